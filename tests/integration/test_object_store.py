"""Data sets on S3, over a real server, and a server that fails on the way."""

from itertools import islice

import numpy as np
import pytest

from embedpipe import files
from embedpipe.errors import DatasetError, InputError, StorageFailed
from embedpipe.load import EmbeddingDataset, EmbeddingLoader
from embedpipe.merge import merge
from embedpipe.verify import VerifyConfig, verify
from tests import embeddings, foreign, objectstore
from tests.objectstore import Fault
from tests.shards import DEEP

ROWS = 60
VALUES = np.random.default_rng(0).standard_normal((ROWS, 8))


@pytest.fixture(scope="module")
def store():
    with objectstore.serve() as running:
        yield running


@pytest.fixture(scope="module", params=["npy", "parquet"])
def places(request, store, tmp_path_factory):
    """(on this machine, on S3)."""
    here = embeddings.write_dataset(tmp_path_factory.mktemp("data"), VALUES, -VALUES, 3, format=request.param)
    return here, store.upload(here, request.param)


@pytest.fixture(autouse=True)
def healed(store):
    yield
    store.heal()


def test_it_reads_as_it_does_here(places):
    here, there = map(EmbeddingDataset, places)
    assert len(there) == ROWS
    assert np.array_equal(there.image[[59, 0, 31]], here.image[[59, 0, 31]])
    assert there.metadata["caption"][21:23].to_pylist() == ["caption 21", "caption 22"]
    assert there.find(["000042"]).tolist() == [42]
    for one, other in zip(here.batches(7), there.batches(7), strict=True):
        assert np.array_equal(one.text, other.text)
    one, other = (islice(EmbeddingLoader(d, None, 16, seed=3).batches(2), 6) for d in (here, there))
    for a, b in zip(one, other, strict=True):
        assert np.array_equal(a.image, b.image)


def test_rows_of_npy_are_asked_for_as_ranges(store, tmp_path):
    there = store.upload(embeddings.write_dataset(tmp_path, VALUES, -VALUES, 1), "ranges")
    dataset = EmbeddingDataset(there)
    before = len(store.requests)
    next(dataset.batches(4, sides=("image",), start=50))
    asked = [rest for rest in store.requests[before:] if "img_emb_00000" in rest[1] and rest[0] == "GET"]
    first = 128 + 50 * 16
    assert asked[-1][2] == f"bytes={first}-{first + 4 * 16 - 1}"


@pytest.mark.parametrize("layout", ["clip-retrieval", "parquet", "datacomp"])
def test_foreign_ones_are_read_too(store, layout, tmp_path):
    arrays, captions = foreign.rows()
    foreign.LAYOUTS[layout][0](tmp_path / layout, arrays, captions)
    dataset = EmbeddingDataset(store.upload(tmp_path / layout, f"foreign-{layout}"))
    order = foreign.order(layout)
    assert np.array_equal(dataset.image[:], arrays["image"][order])
    assert dataset.column("caption").to_pylist() == [captions[i] for i in order]


@pytest.mark.parametrize("how", ["503", "cut", "refuse"])
def test_a_store_that_fails_half_way_is_named_with_the_file(places, store, how):
    _, there = places
    dataset = EmbeddingDataset(there)
    where = "img_emb_00001" if there.endswith("npy") else "embeddings_00001"
    store.fail(Fault(where, how))
    says = (
        rf"s3://bucket/\w+/\w+/{where}\.\w+: the storage failed: .*\. Check endpoint, network and credentials, and run"
    )
    seen = []
    with pytest.raises(StorageFailed, match=says):
        seen.extend(dataset.batches(5, sides=("image",)))
    assert len(seen) == 4, "what came before the failure was handed out"
    with pytest.raises(StorageFailed, match=says):
        list(islice(EmbeddingLoader(dataset, None, 5).batches(), 12))
    store.heal()
    assert sum(len(batch.image) for batch in dataset.batches(5, sides=("image",))) == ROWS, "and then it goes on"


def test_a_store_that_fails_while_it_is_opened_is_named(places, store):
    _, there = places
    for where in ("embedpipe.json", "manifest/00001.json"):
        store.fail(Fault(where, "503"))
        with pytest.raises(StorageFailed, match=f"{where}: the storage failed"):
            EmbeddingDataset(there)
        store.heal()


def test_a_file_that_is_gone_or_torn_there_is_named(store, tmp_path):
    root = embeddings.write_dataset(tmp_path, VALUES, -VALUES, 2)
    there = store.upload(root, "torn")
    dataset = EmbeddingDataset(there)
    image = f"{there}/img_emb/img_emb_00001.npy"
    files.write_bytes(image, files.read_bytes(image)[:-3])
    with pytest.raises(DatasetError, match=r"img_emb_00001\.npy: 605 bytes, but its manifest says 608"):
        list(dataset.batches(9))
    files.remove(image)
    with pytest.raises(DatasetError, match=r"img_emb_00001\.npy: cannot be read: .*no such file"):
        list(dataset.batches(9))


def test_what_is_not_there_is_named(store):
    with pytest.raises(InputError, match="s3://bucket/nowhere: no such folder"):
        EmbeddingDataset(store.url("nowhere"))
    with pytest.raises(InputError, match="s3://nobucket/x: no such folder"):
        EmbeddingDataset("s3://nobucket/x")


def test_the_command_line_says_it_in_one_line(places, store, embedpipe):
    store.fail(Fault("manifest/00002.json", "503"))
    told = embedpipe("info", places[1])
    assert told.exit_code == 1
    assert told.stderr.count("\n") == 1
    assert told.stderr.startswith(f"error: {places[1]}/manifest/00002.json: the storage failed")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["503", "cut", "refuse"])
def test_verify_ends_with_the_file_where_the_store_fails_and_drops_nothing(places, store, how):
    _, there = places
    assert verify(there, DEEP).whole
    for where in ("embedpipe.json", "manifest/00001.json", "00001.npy" if there.endswith("npy") else "00001.parquet"):
        store.fail(Fault(where, how))
        with pytest.raises(StorageFailed, match=f"s3://bucket/.*{where}: the storage failed"):
            verify(there, VerifyConfig(deep=True, repair=True))
        store.heal()
    assert verify(there, DEEP).committed == 3


def test_a_damaged_shard_there_is_found_and_dropped(store, tmp_path):
    there = store.upload(embeddings.write_dataset(tmp_path, VALUES, -VALUES, 3), "damaged")
    image = f"{there}/img_emb/img_emb_00001.npy"
    whole = files.read_bytes(image)
    files.write_bytes(image, whole[:-1] + bytes([whole[-1] ^ 1]))
    assert verify(there).whole
    report = verify(there, VerifyConfig(deep=True, repair=True))
    assert ([fault.number for fault in report.faults], report.dropped) == ([1], (1,))
    left = verify(there, DEEP)
    assert (left.whole, left.committed, left.missing) == (True, 2, 1)
    assert len(EmbeddingDataset(there)) == 40


@pytest.mark.slow
def test_data_sets_are_merged_from_there_to_there(store, tmp_path):
    parts = [
        store.upload(embeddings.write_dataset(tmp_path / name, VALUES, -VALUES, 2), f"merge/{name}/emb")
        for name in ("a", "b")
    ]
    out = "s3://bucket/merged"
    store.fail(Fault("b/emb/img_emb/img_emb_00001", "cut"))
    with pytest.raises(StorageFailed, match="img_emb_00001.npy: the storage failed"):
        merge(parts, out)
    store.heal()
    assert verify(out, DEEP).whole
    assert merge(parts, out).rows == 2 * ROWS
    assert verify(out, DEEP).whole
    assert EmbeddingDataset(out).metadata[ROWS]["src_shard"] == "b/emb/00000.tar"
