"""encode and verify on a cluster of two nodes, whole, losing a node, and losing the process that began them."""

import subprocess
import sys
import threading
import time

import pytest

from embedpipe import manifest
from embedpipe.encode.job import encode
from embedpipe.execute import Cluster, Task
from embedpipe.execute.cluster import joined
from embedpipe.execute.ray import RayExecutor
from embedpipe.progress import silent
from embedpipe.verify import VerifyConfig, verify
from tests import raycluster, shards
from tests.works import Doing

pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="a cluster on loopback is Linux's")]

SHARDS = 10


@pytest.fixture(scope="module")
def cluster():
    with raycluster.start(2) as running:
        yield running


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return shards.write_shards(tmp_path_factory.mktemp("ray") / "shards", SHARDS, 8)


@pytest.fixture(scope="module")
def alone(source, tmp_path_factory, encode_config):
    """What one process on this machine makes of it."""
    out = tmp_path_factory.mktemp("alone") / "emb"
    encode(source, str(out), encode_config())
    return shards.tree(out)


@pytest.fixture
def on(cluster, encode_config):
    return encode_config(executor="ray", workers=2, cluster=Cluster(cluster.address))


def test_two_nodes_make_what_one_process_makes(source, alone, on, tmp_path):
    out = tmp_path / "emb"
    report = encode(source, str(out), on)
    assert (report.report.tasks, report.rows, report.set_aside) == (SHARDS, SHARDS * 8, ())
    assert shards.tree(out) == alone
    checked = verify(str(out), VerifyConfig(deep=True, workers=2, executor="ray", cluster=on.cluster))
    assert (checked.whole, checked.committed, checked.rows) == (True, SHARDS, SHARDS * 8)


def test_both_nodes_have_a_worker(cluster, tmp_path):
    """Each has one core, so two workers are one on each."""
    tasks = [Task(number, str(number), "slow") for number in range(60)]
    outcome = RayExecutor(2, Cluster(cluster.address)).run(Doing(str(tmp_path)), tasks, silent)
    assert outcome.report.tasks == 60
    assert {path.name.split("-")[1] for path in tmp_path.glob("worker-*")} == {"0", "1"}


def command(source, out, model, address):
    return [
        *(sys.executable, "-m", "embedpipe_cli", "encode", source, str(out), "--model", model, "--gpus", "0"),
        *("--workers", "2", "--threads", "1", "--batch-size", "8", "--precision", "fp32"),
        *("--executor", "ray", "--address", address),
    ]


def test_a_driver_that_is_killed_is_run_again_for_what_is_left(source, alone, on, tiny_model, cluster, tmp_path):
    out = tmp_path / "emb"
    driver = subprocess.Popen(
        command(source, out, tiny_model, cluster.address), stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while len(done := manifest.committed_numbers(str(out))) < 2:
        assert driver.poll() is None, driver.stderr.read()
        time.sleep(0.02)
    driver.kill()
    driver.communicate()
    written = {number: (out / "manifest" / f"{number:05d}.json").stat().st_mtime_ns for number in done}
    # Workers end with their driver: they may commit what they have in hand until the cluster has noticed.
    with joined(on.cluster, 1):
        import ray

        while ray.available_resources().get("CPU") != 2.0:
            time.sleep(0.2)
    done = manifest.committed_numbers(str(out))
    assert len(done) < SHARDS
    report = encode(source, str(out), on)
    assert (report.already, report.report.tasks) == (len(done), SHARDS - len(done))
    assert shards.tree(out) == alone
    assert all((out / "manifest" / f"{n:05d}.json").stat().st_mtime_ns == at for n, at in written.items())


def test_a_node_that_is_lost_loses_nothing(source, alone, on, cluster, tmp_path):
    out, killed = tmp_path / "emb", threading.Event()

    def listen(step):
        if step.finished is not None and not killed.is_set():
            killed.set()
            cluster.kill_last()

    report = encode(source, str(out), on, listen)
    assert killed.is_set()
    assert (report.report.tasks, report.set_aside) == (SHARDS, ())
    assert shards.tree(out) == alone
    cluster.add()
