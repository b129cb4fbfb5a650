"""Every command from and to S3, one request in twenty failing: the same bytes as on this machine."""

import json
import shutil
from pathlib import Path

import fsspec
import numpy as np
import pytest
from embedpipe_cli.main import EXIT_ERROR

from embedpipe import files, filesystem, manifest
from embedpipe.encode.job import encode
from embedpipe.errors import RunMismatch
from embedpipe.index import IndexConfig, build_index, check_index, plan_index
from embedpipe.lock import Part
from tests import embeddings, objectstore, outside, shards
from tests.objectstore import Fault

pytestmark = pytest.mark.slow

SHARE = 0.05
SHARDS = 17  # a folder is listed where more than 16 of its files are asked for


@pytest.fixture(scope="module")
def store():
    with objectstore.serve() as running:
        yield running


@pytest.fixture(scope="module")
def here(tmp_path_factory, encode_config):
    """(image shards, embeddings) on this machine."""
    root = tmp_path_factory.mktemp("here")
    source = shards.write_shards(root / "shards", SHARDS, 3)
    encode(source, str(root / "emb"), encode_config())
    return root


@pytest.fixture(scope="module")
def there(store, here):
    """The same on S3."""
    for name in ("shards", "emb"):
        store.upload(here / name, name)
    return store.url()


@pytest.fixture(autouse=True)
def machine(tmp_path, monkeypatch):
    """Be on the machine of that name; its folder."""

    def switch(name):
        monkeypatch.setenv("EMBEDPIPE_CACHE", str(tmp_path / "machines" / name))
        return tmp_path / "machines" / name

    switch("one")
    return switch


@pytest.fixture
def faults(store, monkeypatch):
    """All requests fail one time in twenty, in every way there is; as many tries as users have."""
    monkeypatch.setattr(filesystem, "_TRIES", 5)
    fault = Fault("", "any", share=SHARE)
    store.fail(fault)
    yield fault
    store.heal()


def fetched(url, folder):
    """A copy of all that lies at `url`, on this machine."""
    file_system, root = fsspec.core.url_to_fs(url)
    for path in file_system.find(root):
        local = Path(folder) / path[len(root) + 1 :]
        local.parent.mkdir(parents=True, exist_ok=True)
        local.write_bytes(file_system.cat_file(path))
    return folder


def same(url, folder, store, tmp_path, without=("embedpipe.json",)):
    store.heal()
    one, other = (shards.tree(root, without) for root in (folder, fetched(url, tmp_path / "copy")))
    assert {name: data for name, data in one.items() if not name.startswith(".dedup/")} == {
        name: data for name, data in other.items() if not name.startswith(".commits/")
    }


def test_encode_writes_what_it_writes_here(store, here, there, faults, tmp_path, encode_config):
    report = encode(f"{there}/shards", f"{there}/new", encode_config())
    assert (report.report.tasks, report.failed_tasks) == (SHARDS, ())
    assert faults.struck > 3
    assert faults.seen / SHARDS < 12, "requests for a shard"
    copy = shards.tree(fetched(f"{there}/new", tmp_path / "new"), ["embedpipe.json"])
    mine = shards.tree(here / "emb", ["embedpipe.json"])
    for name in [name for name in copy if name.startswith("manifest/")]:  # the change mark is the store's
        one, other = json.loads(copy.pop(name)), json.loads(mine.pop(name))
        for document in (one, other):
            del document["source"]["modified"]
        assert one == other
    assert copy == mine
    before = len(store.requests)
    assert encode(f"{there}/shards", f"{there}/new", encode_config()).already == SHARDS
    asked = [rest for rest in store.requests[before:] if rest[1].endswith(".tar") and rest[0] == "HEAD"]
    assert len(asked) < 5, "input shards are known from a listing"


def test_parts_on_s3_agree_on_the_plan(store, here, there, faults, encode_config):
    out = f"{there}/parts"
    for i in (1, 0):
        encode(f"{there}/shards", out, encode_config(part=Part(i, 2)))
    assert manifest.committed_numbers(out) == list(range(SHARDS))
    store.heal()
    shards_there = fsspec.filesystem("s3")
    shards_there.pipe_file("bucket/shards/00000-new.tar", (here / "shards" / "00000.tar").read_bytes())
    try:
        with pytest.raises(RunMismatch, match="1 input shards are new .* Run it once without `part`"):
            encode(f"{there}/shards", out, encode_config(part=Part(0, 2)))
    finally:
        shards_there.rm_file("bucket/shards/00000-new.tar")
    assert encode(f"{there}/shards", out, encode_config()).report.tasks == 0
    assert manifest.read_run(out).pending == ()


def test_verify_and_info_find_what_they_find_here(here, there, faults, embedpipe):
    for arguments in (("verify", "--deep"), ("info",)):
        one, other = (
            json.loads(embedpipe(arguments[0], f"{root}/emb", *arguments[1:], "--json").stdout)
            for root in (here, there)
        )
        for document in (one, other):
            document.pop("path")
        assert one == other
    assert faults.struck


def test_searches_find_what_they_find_here(here, there, faults, embedpipe, tiny_model):
    one, other = (
        json.loads(
            embedpipe("search", f"{root}/emb", "a red bicycle", "--model", tiny_model, "--exact", "--json").stdout
        )
        for root in (here, there)
    )
    assert one == other
    assert faults.struck


@pytest.mark.parametrize("materialise", [(), ("--materialise",)])
def test_filter_keeps_what_it_keeps_here(store, here, there, faults, embedpipe, tmp_path, materialise):
    arguments = ("--top", "0.5", *materialise)
    assert embedpipe("filter", f"{here}/emb", tmp_path / "kept", *arguments).exit_code == 0
    told = embedpipe("filter", f"{there}/emb", f"{there}/kept{len(materialise)}", *arguments)
    assert told.exit_code == 0, told.stderr
    assert faults.struck
    without = ("embedpipe.json", "report.json", "examples.html")  # these name the data set
    same(f"{there}/kept{len(materialise)}", tmp_path / "kept", store, tmp_path, without)


@pytest.mark.parametrize("to", ["hf", "parquet", "datacomp", "clip-retrieval"])
def test_exports_are_what_they_are_here(store, here, there, faults, embedpipe, tmp_path, to):
    assert embedpipe("export", f"{here}/emb", tmp_path / to, "--to", to).exit_code == 0
    told = embedpipe("export", f"{there}/emb", f"{there}/export-{to}", "--to", to)
    assert told.exit_code == 0, told.stderr
    assert faults.struck
    store.heal()
    copy = fetched(f"{there}/export-{to}", tmp_path / "copy")
    names = [name for name in shards.tree(tmp_path / to) if not name.startswith(".embedpipe/")]
    one, other = shards.tree(tmp_path / to), shards.tree(copy)
    assert {name: one[name] for name in names} == {name: other[name] for name in names}


def test_a_lance_data_set_reads_as_it_does_here(store, here, there, faults, embedpipe, tmp_path):
    out = f"{there}/export-lance"
    for root, to in ((here, tmp_path / "lance"), (there, out), (there, out)):
        told = embedpipe("export", f"{root}/emb", to, "--to", "lance")
        assert told.exit_code == 0, told.stderr
    assert faults.struck
    store.heal()
    assert outside.lance(fetched(out, tmp_path / "copy")) == outside.lance(tmp_path / "lance")


@pytest.mark.parametrize("materialise", [(), ("--materialise",)])
def test_dedup_keeps_what_it_keeps_here(store, here, there, faults, embedpipe, tmp_path, materialise):
    arguments = ("--threshold", "0.9", "--confirm", "none", *materialise)
    out = f"{there}/unique{len(materialise)}"
    assert embedpipe("dedup", f"{here}/emb", tmp_path / "unique", *arguments).exit_code == 0
    for _ in range(2):
        told = embedpipe("dedup", f"{there}/emb", out, *arguments)
        assert told.exit_code == 0, told.stderr
    assert faults.struck
    same(out, tmp_path / "unique", store, tmp_path, ("embedpipe.json", "report.json", "pairs.html"))


def test_an_index_is_what_it_is_here_and_is_searched(store, here, faults, embedpipe, machine, tiny_model, tmp_path):
    query = ("a red bicycle", "--model", tiny_model, "--json")
    store.heal()
    here = Path(shutil.copytree(here, tmp_path / "here"))
    there = store.upload(here / "emb", "indexed/emb").removesuffix("/emb")
    store.fail(faults)
    for root in (here, there):
        told = embedpipe("index", f"{root}/emb")
        assert told.exit_code == 0, told.stderr
    assert faults.struck
    same(f"{there}/emb/index", here / "emb" / "index", store, machine("copy"))
    store.fail(faults)
    machine("two")
    one, other = (embedpipe("search", f"{root}/emb", *query) for root in (here, there))
    assert one.exit_code == 0
    assert one.stdout == other.stdout
    before = len(store.requests)
    assert embedpipe("search", f"{there}/emb", *query).stdout == one.stdout
    asked = {path for method, path, _ in store.requests[before:] if method == "GET" and path.endswith(".faiss")}
    assert len(asked) <= 1, "its ends, to know that it is the one that was fetched"
    one, other = (json.loads(embedpipe("verify", f"{root}/emb", "--deep", "--json").stdout) for root in (here, there))
    assert one["faults"] == other["faults"] == []


def test_an_index_is_added_to_from_another_machine(store, faults, tmp_path, machine):
    numbers = np.random.default_rng(0).standard_normal((360, 8))
    root, config = tmp_path / "emb", IndexConfig(kind="ivf-sq8")
    for shard_count in (3, 4):
        rows = numbers[: 90 * shard_count]
        for folder in (root, tmp_path / "plain"):
            embeddings.write_dataset(folder, rows, -rows, shard_count, format="parquet")
        store.heal()
        url = store.upload(tmp_path / "plain", "grows")
        store.fail(faults)
        cards = [build_index(where, config) for where in (str(root), url)]
        assert cards[0] == cards[1]
        machine("two")
    assert faults.struck
    assert cards[0].rows == 360
    assert plan_index(url, config).action == "nothing"
    same(f"{url}/index", root / "index", store, tmp_path)
    files.write_bytes(f"{url}/index/{cards[1].file}", b"torn")
    assert "damaged" in check_index(url, "image")[0]


PRIOR = {"train.steps": 6, "train.batch_size": 8, "train.evaluate_every": 3, "train.save_every": 2, "network.dim": 16}
PRIOR |= {"network.depth": 1, "diffusion.timesteps": 10, "diffusion.sample_timesteps": 2}
DECODER = {"network.dim_mults": "[1,2]", "network.attn_heads": 2, "network.attn_dim_head": 4}
DECODER |= {"network.init_cross_embed_kernel_sizes": "[3,5]", "stage.sample_timesteps": 2, "train.save_every": 2}


def settings(values, prefix=""):
    return [word for name, value in values.items() for word in ("--set", f"{prefix}{name}={value}")]


def same_weights(url, folder, store, tmp_path):
    store.heal()
    one, other = (shown(shards.tree(root)) for root in (folder, fetched(url, tmp_path / "copy")))
    assert one.keys() == other.keys()
    weights = [name for name in one if name.endswith(".safetensors")]
    assert len(weights) > 4
    assert [name for name in weights if one[name] != other[name]] == []


def shown(tree):
    """Without what is hidden, and without caches."""
    return {
        name: data for name, data in tree.items() if not name.startswith(("join/", "cache/")) and "/." not in f"/{name}"
    }


def test_a_prior_trained_there_is_the_one_trained_here(store, here, there, faults, embedpipe, tmp_path, machine):
    words = (*settings(PRIOR), "--device", "cpu", "--valid-share", 0.2)
    assert embedpipe("train-prior", f"{here}/emb", tmp_path / "prior", *words).exit_code == 0
    store.heal()
    store.fail(Fault("prior/.commits/00000003.json", "503"))
    told = embedpipe("train-prior", f"{there}/emb", f"{there}/prior", *words)
    assert told.exit_code == EXIT_ERROR
    assert told.stderr.count("error: ") == 1
    assert "the storage failed" in told.stderr
    store.heal()
    store.fail(faults)
    machine("two")
    told = embedpipe("train-prior", f"{there}/emb", f"{there}/prior", *words)
    assert told.exit_code == 0, told.stderr
    assert faults.struck
    same_weights(f"{there}/prior", tmp_path / "prior", store, tmp_path)
    machine("three")
    store.fail(faults)
    one, other = (
        embedpipe("evaluate", prior, f"{here}/emb", "--device", "cpu", "--json")
        for prior in (tmp_path / "prior", f"{there}/prior")
    )
    assert one.exit_code == 0, one.stderr
    assert one.stdout == other.stdout


def test_a_decoder_trained_there_is_the_one_trained_here(store, here, there, faults, embedpipe, tmp_path, machine):
    words = ["--sizes", "8", "--dims", "8", "--timesteps", 20, "--steps", 4, "--batch-size", 6, "--valid-share", 0.2]
    words += ["--device", "cpu", "--decode-threads", 2, *settings(DECODER, "stages.1.")]
    picture = ("--embedding", tmp_path / "asked.npy", "--device", "cpu", "-o")
    np.save(tmp_path / "asked.npy", np.load(here / "emb" / "img_emb" / "img_emb_00000.npy")[:1])
    for root, out in ((here, tmp_path / "decoder"), (there, f"{there}/decoder")):
        told = embedpipe("train-decoder", f"{root}/shards", f"{root}/emb", out, *words)
        assert told.exit_code == 0, told.stderr
        assert "no decoder yet" not in told.stdout
        machine("two")
        told = embedpipe("generate", "--decoder", out, *picture, tmp_path / f"{'://' in str(out)}.png")
        assert told.exit_code == 0, told.stderr
    assert faults.struck
    assert (tmp_path / "True.png").read_bytes() == (tmp_path / "False.png").read_bytes()
    same_weights(f"{there}/decoder", tmp_path / "decoder", store, tmp_path)


def test_credentials_are_never_shown(store, there, embedpipe, tiny_model, monkeypatch):
    store.fail(Fault("emb", "503"))
    for arguments in (("info", f"{there}/emb"), ("encode", f"{there}/shards", f"{there}/emb", "--model", tiny_model)):
        told = embedpipe(*arguments)
        assert told.exit_code == EXIT_ERROR
        assert told.stderr.count("\n") == 1
        assert "secret" not in told.stdout + told.stderr
    store.heal()
    for document in fsspec.filesystem("s3").find("bucket/new"):
        if document.endswith(".json"):
            assert b"secret" not in fsspec.filesystem("s3").cat_file(document)
