"""Every command from and to S3, one request in twenty failing: the same bytes as on this machine."""

import json
from pathlib import Path

import fsspec
import pytest
from embedpipe_cli.main import EXIT_ERROR

from embedpipe import files, manifest
from embedpipe.encode.job import encode
from embedpipe.errors import RunMismatch
from embedpipe.lock import Part
from tests import objectstore, shards
from tests.objectstore import Fault

pytestmark = pytest.mark.slow

SHARE = 0.05


@pytest.fixture(scope="module")
def store():
    with objectstore.serve() as running:
        yield running


@pytest.fixture(scope="module")
def here(tmp_path_factory, encode_config):
    """(image shards, embeddings) on this machine."""
    root = tmp_path_factory.mktemp("here")
    source = shards.write_shards(root / "shards", 20, 3)
    encode(source, str(root / "emb"), encode_config())
    return root


@pytest.fixture(scope="module")
def there(store, here):
    """The same on S3."""
    for name in ("shards", "emb"):
        store.upload(here / name, name)
    return store.url()


@pytest.fixture
def faults(store, monkeypatch):
    """All requests fail one time in twenty, in every way there is; as many tries as users have."""
    monkeypatch.setattr(files, "_TRIES", 5)
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
    copy = fetched(url, tmp_path / "copy")
    assert shards.tree(copy, without) == shards.tree(folder, without)


def test_encode_writes_what_it_writes_here(store, here, there, faults, tmp_path, encode_config):
    report = encode(f"{there}/shards", f"{there}/new", encode_config())
    assert (report.report.tasks, report.set_aside) == (20, ())
    assert faults.struck > 3
    assert faults.seen / 20 < 12, "requests for a shard"
    copy = shards.tree(fetched(f"{there}/new", tmp_path / "new"), ["embedpipe.json"])
    mine = shards.tree(here / "emb", ["embedpipe.json"])
    for name in [name for name in copy if name.startswith("manifest/")]:  # the change mark is the store's
        one, other = json.loads(copy.pop(name)), json.loads(mine.pop(name))
        for document in (one, other):
            del document["source"]["modified"]
        assert one == other
    assert copy == mine
    before = len(store.requests)
    assert encode(f"{there}/shards", f"{there}/new", encode_config()).already == 20
    asked = [rest for rest in store.requests[before:] if rest[1].endswith(".tar") and rest[0] == "HEAD"]
    assert len(asked) < 5, "input shards are known from a listing"


def test_parts_on_s3_agree_on_the_plan(store, here, there, faults, encode_config):
    out = f"{there}/parts"
    for i in (1, 0):
        encode(f"{there}/shards", out, encode_config(part=Part(i, 2)))
    assert manifest.committed_numbers(out) == list(range(20))
    store.heal()
    shards_there = fsspec.filesystem("s3")
    shards_there.pipe_file("bucket/shards/00000-new.tar", (here / "shards" / "00000.tar").read_bytes())
    try:
        with pytest.raises(RunMismatch, match="1 input shards are new .* Run it once without --shard-of"):
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


def test_dedup_reads_from_there_and_says_that_it_writes_here(here, there, faults, embedpipe, tmp_path):
    outs = [tmp_path / "one", tmp_path / "other"]
    for root, out in zip((here, there), outs, strict=True):
        told = embedpipe("dedup", f"{root}/emb", out, "--threshold", 0.9, "--confirm", "none")
        assert told.exit_code == 0, told.stderr
    assert (outs[0] / "kept.parquet").read_bytes() == (outs[1] / "kept.parquet").read_bytes()
    told = embedpipe("dedup", f"{there}/emb", f"{there}/dedup")
    assert (told.exit_code, told.stderr.count("\n")) == (EXIT_ERROR, 1)
    assert "dedup needs a local folder to sort in" in told.stderr


def test_index_says_why_it_is_not_built_there(there, embedpipe):
    told = embedpipe("index", f"{there}/emb")
    assert (told.exit_code, told.stderr.count("\n")) == (EXIT_ERROR, 1)
    assert "an index is built on a local disk" in told.stderr


def test_a_prior_is_trained_on_what_lies_there(here, there, faults, embedpipe, tmp_path):
    settings = {"train.steps": 6, "train.batch_size": 8, "train.evaluate_every": 3, "network.dim": 16}
    settings |= {"network.depth": 1, "diffusion.timesteps": 10, "diffusion.sample_timesteps": 2}
    words = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    for root, out in ((here, "one"), (there, "other")):
        told = embedpipe("train-prior", f"{root}/emb", tmp_path / out, *words, "--device", "cpu", "--valid-share", 0.2)
        assert told.exit_code == 0, told.stderr
    assert faults.struck
    one, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "other"))
    assert one == other


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
