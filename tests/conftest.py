"""What many tests share: one tiny real model and one small encoded data set for the whole session."""

import gc
import os
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import hypothesis
import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
# Who starts the tests in the background of a script has them ignore Ctrl-C; tests of it need it as people have it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# Read when Ray is imported, whichever test does that first: on loopback alone, without a token, telling nobody.
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

# Machines that run tests are busy: how long an example takes says nothing.
hypothesis.settings.register_profile(
    "embedpipe", deadline=None, max_examples=50, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
# A change is judged by the same examples every time; people who run the tests look for new ones.
hypothesis.settings.register_profile("ci", hypothesis.settings.get_profile("embedpipe"), derandomize=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "embedpipe"))


# Two Ray clusters at a time are too many for a machine of two cores.
ON_A_CLUSTER = {"test_ray.py", "test_execute.py", "test_openmp.py"}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Tests of a file stay on one worker, since they share what it made for them; so do those of ON_A_CLUSTER.

    By a scheduler of our own: xdist 3.8 does not see its marks for groups with pytest 9.2.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file = nodeid.partition("::")[0]
            return "on a cluster" if file.rpartition("/")[2] in ON_A_CLUSTER else file

    return ByFile(config, log)


# To look through all of torch for garbage, while it is imported and ever again, takes a tenth of the time.
gc.disable()


def pytest_collection_finish():
    """What is imported by now stays: collections look at what tests make."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """Working folders of remote outputs, copies of what lies there, and consents, away from the user's."""
    os.environ["EMBEDPIPE_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    os.environ["EMBEDPIPE_STATE"] = str(tmp_path_factory.mktemp("state"))


@pytest.fixture(autouse=True)
def process_as_it_was():
    """No test, nor the library within it, leaves this process changed for the tests after it."""
    before = of_process()
    yield
    after = of_process()
    for name, limits in before["limits"].items():
        resource.setrlimit(getattr(resource, name), limits)
    if before["offline"] is None:  # not imported then, and as the environment has it since
        after["offline"] = None
    else:
        sys.modules["huggingface_hub.constants"].HF_HUB_OFFLINE = before["offline"]
    assert after == before


def of_process():
    hub = sys.modules.get("huggingface_hub.constants")
    kinds = [name for name in dir(resource) if name.startswith("RLIMIT_")]
    limits = {name: resource.getrlimit(getattr(resource, name)) for name in kinds}
    return {"limits": limits, "offline": getattr(hub, "HF_HUB_OFFLINE", None)}


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """A folder with a real, tiny open_clip model."""
    from tests import tiny_clip

    return tiny_clip.write(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def other_model(tmp_path_factory):
    """The same architecture with other weights."""
    from tests import tiny_clip

    return tiny_clip.write(tmp_path_factory.mktemp("model") / "other", seed=1)


@pytest.fixture(scope="session")
def tiny_encoder(tiny_model):
    """The tiny model, loaded."""
    from embedpipe.encode import EncoderConfig, load_encoder

    return load_encoder(EncoderConfig(tiny_model, precision="fp32"))  # `auto` is the machine's choice


@pytest.fixture(scope="session")
def encode_config(tiny_model):
    """Makes an EncodeConfig for the tiny model on the CPU; keywords go to EncodeConfig, `stage` to StageConfig."""
    from embedpipe.encode.base import EncoderConfig
    from embedpipe.encode.batching import BatchingConfig
    from embedpipe.encode.job import EncodeConfig

    def make(model=tiny_model, dtype="float16", decode="exact", stage=None, pretrained="", **options):
        settings = {"gpus": 0, "threads_per_worker": 1, **options}
        return EncodeConfig(
            EncoderConfig(model, pretrained, dtype=dtype, decode=decode, precision="fp32"),
            BatchingConfig(**{"batch_size": 8, **(stage or {})}),
            **settings,
        )

    return make


@pytest.fixture(scope="session")
def encoded_once(tmp_path_factory, encode_config):
    """(shards, data set): three shards of seven samples, encoded. Not to be written to; see `encoded`."""
    from embedpipe.encode.job import encode
    from tests import shards

    root = tmp_path_factory.mktemp("encoded")
    source = shards.write_shards(root / "shards")
    encode(source, str(root / "emb"), encode_config())
    return source, str(root / "emb")


@pytest.fixture
def encoded(encoded_once, tmp_path):
    """A data set of one's own, to damage."""
    return shutil.copytree(encoded_once[1], tmp_path / "emb")


@pytest.fixture
def embedpipe():
    """Runs the command line in this process: embedpipe("verify", path) → result with exit_code, stdout, stderr."""
    from tests.commands import run_to_its_end

    return run_to_its_end


@pytest.fixture
def embedpipe_process():
    """Starts the command line as a process in a group of its own; it is killed when the test ends."""
    started = []

    def start(*arguments, **options):
        process = subprocess.Popen(
            [sys.executable, "-m", "embedpipe_cli", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            **options,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture(scope="session")
def peer_priors(tmp_path_factory):
    """Priors that DALLE2-pytorch's own releases wrote, see `benchmarks/peers/setup.sh prior-fixtures`."""
    folder = tmp_path_factory.mktemp("peer-priors")
    with tarfile.open(Path(__file__).parent / "oracles" / "dalle2_pytorch_priors.tar.xz") as archive:
        for member in archive.getmembers():
            if member.isfile():
                (folder / Path(member.name).name).write_bytes(archive.extractfile(member).read())
    return folder
