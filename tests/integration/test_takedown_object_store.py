"""A takedown in an object store: the same rows go, and the same files are left."""

import dataclasses
from pathlib import Path

import pytest

import embedpipe
from embedpipe import files, manifest
from embedpipe.takedown import TakedownConfig
from embedpipe.takedown.job import takedown
from embedpipe.verify.job import verify
from tests import bodies, objectstore
from tests.shards import DEEP


@pytest.fixture(scope="module")
def store():
    with objectstore.serve() as running:
        yield running


def put(folder, url):
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != ".lock" and ".fetch" not in path.parts:
            files.upload(str(path), files.join(url, str(path.relative_to(folder))))


@pytest.mark.slow
def test_rows_go_from_a_bucket(store, tmp_path, encode_config):
    (tmp_path / "photos").mkdir()
    for i in range(6):
        (tmp_path / "photos" / f"{i}.jpg").write_bytes(bodies.photo(i))
        (tmp_path / "photos" / f"{i}.txt").write_text(f"photo {i}")
    shards, emb = tmp_path / "shards", tmp_path / "emb"
    embedpipe.fetch(str(tmp_path / "photos"), str(shards), embedpipe.FetchConfig(processes=1, samples_per_shard=3))
    embedpipe.encode(str(shards), str(emb), encode_config())
    embedpipe.index(str(emb))
    there = [store.url("shards"), store.url("emb")]
    run = manifest.read_run(str(emb))
    put(shards, there[0])
    put(emb, there[1])
    manifest.write_run(there[1], dataclasses.replace(run, source=there[0]))
    (tmp_path / "gone.txt").write_text("4.jpg\n")

    report = takedown(there, TakedownConfig(urls=str(tmp_path / "gone.txt")))
    assert [output.rows for output in report.outputs] == [1, 1]
    for url in there:
        assert verify(url, DEEP).whole
        assert not files.exists(files.join(url, ".takedown"))
    assert len(embedpipe.EmbeddingDataset(there[1])) == 5
    assert len(embedpipe.search(there[1], "a photo", k=9)) == 5
    takedown([str(shards), str(emb)], TakedownConfig(urls=str(tmp_path / "gone.txt")))
    for folder, url in ((shards, there[0]), (emb, there[1])):
        for path in (it for it in folder.rglob("*") if it.suffix in (".tar", ".npy")):
            assert files.read_bytes(files.join(url, str(Path(path).relative_to(folder)))) == path.read_bytes()
