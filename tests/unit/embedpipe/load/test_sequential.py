"""Reading in order, columns, keys, and what the loader refuses."""

import gc
import re
import threading
from itertools import islice

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedpipe.errors import DatasetError, InputError, RunMismatch
from embedpipe.load import EmbeddingDataset, EmbeddingLoader, hash_split, splits
from embedpipe.load.float16 import all_finite, float16_to_float32
from embedpipe.load.prefetch import prefetch
from tests import embeddings, shards

ROWS = 23
VALUES = np.random.default_rng(0).standard_normal((ROWS, 6))


@pytest.fixture(scope="module", params=["npy", "parquet", "memory"])
def dataset(request, tmp_path_factory):
    place = "memory://batches" if request.param == "memory" else tmp_path_factory.mktemp("data")
    written = "parquet" if request.param == "parquet" else "npy"
    columns = {"label": [f"l{i % 3}" for i in range(ROWS)]}
    return EmbeddingDataset(embeddings.write_dataset(place, VALUES, -VALUES, 4, columns, format=written))


@given(st.integers(1, 30), st.integers(0, 25), st.integers(0, 25), st.sampled_from([None, "float16", "float32"]))
def test_batches_are_slices_of_the_whole(dataset, size, start, stop, dtype):
    whole = dataset.image[:].astype(dtype or "float16")[start:stop]
    for reuse in (False, True):
        found = [
            (b.image.copy(), b.text.copy()) for b in dataset.batches(size, dtype, start=start, stop=stop, reuse=reuse)
        ]
        assert [len(image) for image, _ in found] == [len(whole[i : i + size]) for i in range(0, len(whole), size)]
        for i, (image, text) in enumerate(found):
            assert np.array_equal(image, whole[i * size : (i + 1) * size])
            assert image.dtype == whole.dtype
            assert np.array_equal(text, -image)


def test_memory_is_used_again_only_where_that_was_asked_for(dataset):
    kept = list(dataset.batches(4, sides=("image",)))
    assert np.array_equal(np.concatenate([batch.image for batch in kept]), dataset.image[:])
    assert kept[0].text is None
    assert len({batch.image.ctypes.data for batch in dataset.batches(4, reuse=True)}) == 1


def test_what_batches_cannot_be_is_refused(dataset):
    with pytest.raises(InputError, match="no batches of 'float64'. Did you mean float"):
        dataset.batches(4, "float64")
    with pytest.raises(InputError, match="a batch of 0 rows"):
        dataset.batches(0)
    with pytest.raises(InputError, match="no batches of 'int8'"):
        EmbeddingLoader(dataset, None, 4, dtype="int8")
    with pytest.raises(InputError, match="rank 0 of 5 and a global batch of 4 rows"):
        EmbeddingLoader(dataset, None, 4, world=5)
    with pytest.raises(InputError, match="given twice"):
        EmbeddingLoader(dataset, np.array([1, 1]), 1)
    with pytest.raises(IndexError):
        EmbeddingLoader(dataset, np.array([ROWS]), 1)
    with pytest.raises(InputError, match="no rows to draw from"):
        EmbeddingLoader(dataset, np.array([], int), 1)


def test_a_position_of_another_run_is_refused(dataset):
    loader = EmbeddingLoader(dataset, None, 4, seed=2)
    with pytest.raises(RunMismatch, match="a position of seed 3, but this loader has seed 2"):
        loader.load_state({"seed": 3, "epoch": 0, "row": 0})
    with pytest.raises(RunMismatch, match="row 23 of an epoch of 23"):
        loader.load_state({"seed": 2, "epoch": 0, "row": 23})


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_the_loader_reads_the_same_from_files_and_from_memory(dataset, monkeypatch, dtype):
    held = [b.image for b in islice(EmbeddingLoader(dataset, None, 5, dtype=dtype).batches(), 12)]
    monkeypatch.setattr("embedpipe.load.loader._HELD_IN_MEMORY_BYTES", 0)
    for options in ({}, {"reuse": True}):
        loader = EmbeddingLoader(dataset, None, 5, dtype=dtype, **options)
        for one, other in zip(held, islice(loader.batches(), 12), strict=True):
            assert np.array_equal(one, other.image)
            assert other.image.dtype == dtype
    some = np.arange(0, ROWS, 5)
    for one in islice(EmbeddingLoader(dataset, some, 2).batches(), 6):
        assert set(map(tuple, one.image)) <= set(map(tuple, dataset.image[some].astype(np.float32)))


# Rows that are not finite.


@pytest.fixture(params=["npy", "parquet"])
def broken(request, tmp_path):
    values = VALUES.copy()
    values[17, 3] = np.nan
    root = embeddings.write_dataset(tmp_path / "emb", values, VALUES, 4, format=request.param)
    return EmbeddingDataset(root)


def test_a_row_that_is_not_finite_is_named(broken):
    says = (
        r"\w+_00002\.\w+: row 5 \(row 17 of .*emb\) holds NaN or infinity\. Write that file again, or leave the row out"
    )
    with pytest.raises(DatasetError, match=says):
        list(broken.batches(4, finite=True))
    with pytest.raises(DatasetError, match=says):
        list(islice(EmbeddingLoader(broken, None, 4).batches(), 6))
    good = np.delete(np.arange(ROWS), 17)
    seen = np.concatenate([b.image for b in islice(EmbeddingLoader(broken, good, 11).batches(), 2)])
    assert len(np.unique(seen, axis=0)) == 22
    assert np.isnan(np.concatenate([b.image for b in broken.batches(4, "float32")])[17]).all(), "as it is stored"


def test_rows_that_are_not_drawn_need_not_be_finite(broken, monkeypatch):
    monkeypatch.setattr("embedpipe.load.loader._HELD_IN_MEMORY_BYTES", 0)
    good = np.delete(np.arange(ROWS), 17)
    assert sum(len(b.image) for b in islice(EmbeddingLoader(broken, good, 11).batches(), 2)) == 22
    with pytest.raises(DatasetError, match="row 17 of"):
        list(islice(EmbeddingLoader(broken, None, 4).batches(), 6))


# Numbers.


def test_every_finite_float16_is_widened_exactly():
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    finite = every[np.isfinite(every)].reshape(-1, 8)
    out = np.empty(finite.shape, np.float32)
    float16_to_float32(finite, out)
    assert np.array_equal(out.view(np.uint32), finite.astype(np.float32).view(np.uint32))
    assert all_finite(finite)
    for value in every[~np.isfinite(every)]:
        assert not all_finite(np.array([1, value, -1], np.float16))


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, -np.nan])
def test_what_is_not_finite_is_seen_in_float32(value):
    assert not all_finite(np.array([1, -1, value, 0], np.float32))
    assert all_finite(np.array([np.finfo(np.float32).max, np.finfo(np.float32).min, -0.0], np.float32))
    assert all_finite(np.empty((0, 4), np.float32))


# Metadata and keys.


def test_metadata_columns_are_sliced_like_arrays(dataset):
    labels = [f"l{i % 3}" for i in range(ROWS)]
    column = dataset.metadata["label"]
    assert len(column) == len(dataset.metadata) == ROWS
    assert column[5] == column[5 - ROWS] == "l2"
    assert column[3:19:4].to_pylist() == labels[3:19:4]
    assert column[[22, 0, 22]].to_pylist() == [labels[22], labels[0], labels[22]]
    assert column.read().to_pylist() == labels
    assert dataset.metadata[22]["caption"] == "caption 22"
    table = dataset.metadata[[7, 2]]
    assert table.column_names == list(dataset.metadata.names)
    assert table["key"].to_pylist() == ["000007", "000002"]
    assert dataset.metadata[5:5].num_rows == 0
    assert dataset.metadata.take([9], ("label", "key")).to_pylist() == [{"label": "l0", "key": "000009"}]
    assert dataset.metadata(1, ("key",))["key"].to_pylist() == [f"{i:06d}" for i in range(6, 12)]
    assert isinstance(column[2:4], pa.Array)
    with pytest.raises(DatasetError, match="no metadata column 'lable'. Did you mean label"):
        dataset.metadata["lable"]
    with pytest.raises(IndexError):
        column[ROWS]
    with pytest.raises(TypeError):
        iter(dataset.metadata)


def test_only_the_shards_that_are_asked_for_are_read(dataset, monkeypatch):
    fresh, asked = EmbeddingDataset(dataset.path), []
    read = fresh._reader.metadata
    monkeypatch.setattr(
        type(fresh._reader),
        "metadata",
        lambda self, root, entry, *a: asked.append(entry.number) or read(root, entry, *a),
    )
    for _ in range(3):
        assert fresh.metadata["key"][7] == "000007"
        assert fresh.metadata["key"][[8, 20]].to_pylist() == ["000008", "000020"]
    assert asked == [1, 3]


@given(st.lists(st.integers(0, ROWS - 1), max_size=8))
def test_rows_are_found_by_key(dataset, rows):
    assert dataset.find([f"{row:06d}" for row in rows]).tolist() == rows


def test_keys_that_are_not_there_once_are_named(dataset, tmp_path):
    with pytest.raises(DatasetError, match="no row has the key 'x'"):
        dataset.find(["000001", "x"])
    with pytest.raises(DatasetError, match="no row has the key '000001' in the source shard 00003.tar"):
        dataset.find(["000001"], src_shard="00003.tar")
    root = embeddings.write_dataset(tmp_path, VALUES[:4], VALUES[:4], 2, key=["a", "b", "a", "c"])
    twice = EmbeddingDataset(root)
    with pytest.raises(DatasetError, match=r"2 rows have the key 'a' \(00000\.tar, 00001\.tar\).*src_shard="):
        twice.find(["a"])
    assert twice.find(["a", "c"], "00001.tar").tolist() == [2, 3]


def test_keys_of_one_hash_are_told_apart(dataset, monkeypatch):
    monkeypatch.setattr("embedpipe.load.keys._hashes", lambda keys: np.zeros(len(list(keys)), np.uint64))
    fresh = EmbeddingDataset(dataset.path)
    assert fresh.find(["000011", "000002"]).tolist() == [11, 2]
    with pytest.raises(DatasetError, match="no row has the key 'x'"):
        fresh.find(["x"])


# Splits.


def test_three_splits_by_the_key_alone(dataset):
    names = [f"shard\0{i}" for i in range(20_000)]
    found = [hash_split(name, 0.05, 0.1) for name in names]
    assert abs(found.count("valid") - 1000) < 100
    assert abs(found.count("test") - 2000) < 150
    assert [n for n, f in zip(names, found, strict=True) if f == "valid"] == [
        n for n in names if hash_split(n, 0.05) == "valid"
    ], "what is held out to watch does not depend on how much is held out to test"
    assert {"train", "valid", "test"} == set(splits(dataset, None, 0.3, 0.3))


# The thread.


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "loading ahead"]


def test_a_source_is_at_most_so_far_ahead():
    made = []

    def items():
        for i in range(9):
            made.append(i)
            yield i

    found = prefetch(items(), 2)
    for i in range(9):
        assert next(found) == i
        assert len(made) <= i + 3
    assert list(found) == []
    assert not threads()


def test_what_the_source_raises_is_raised_and_its_thread_ends():
    def items():
        yield 1
        raise ValueError("no more")

    found = prefetch(items(), 3)
    assert next(found) == 1
    with pytest.raises(ValueError, match="no more"):
        next(found)
    assert not threads()


def test_a_wake_up_that_is_lost_holds_nobody_up(monkeypatch):
    """An interruption inside `release` can leave a waiter behind that was woken before and takes the next call."""

    class Deaf(threading.Semaphore):
        def release(self, n=1):
            self._value += n

    monkeypatch.setattr(threading, "Semaphore", Deaf)
    found = prefetch((i for i in range(9)), 2)
    assert list(found) == list(range(9))
    found = prefetch((i for i in range(9)), 2)
    next(found)
    found.close()
    assert not threads()


def test_a_loader_that_is_forgotten_leaves_no_thread_and_no_open_file(dataset, monkeypatch):
    monkeypatch.setattr("embedpipe.load.loader._HELD_IN_MEMORY_BYTES", 0)
    batches = EmbeddingLoader(dataset, None, 2, window_rows=4).batches()
    next(batches)
    assert threads()
    del batches
    gc.collect()
    assert not threads()


def test_numbers_of_another_type_are_never_taken_for_what_they_are_not(tmp_path, monkeypatch):
    monkeypatch.setattr("embedpipe.load.loader._HELD_IN_MEMORY_BYTES", 0)
    dataset = EmbeddingDataset(embeddings.write_dataset(tmp_path, VALUES, VALUES, 4))
    np.save(tmp_path / "img_emb" / "img_emb_00001.npy", np.zeros((6, 6), np.float32))
    shards.record_anew(tmp_path, 1, tmp_path / "img_emb" / "img_emb_00001.npy")
    dataset = EmbeddingDataset(str(tmp_path))
    for read in (
        lambda: list(dataset.batches(4)),
        lambda: list(islice(EmbeddingLoader(dataset, None, 4).batches(), 6)),
    ):
        with pytest.raises(DatasetError, match=r"img_emb_00001\.npy: float32, but the data set is float16"):
            read()


def test_the_error_of_a_file_that_is_gone_names_it(tmp_path, monkeypatch):
    monkeypatch.setattr("embedpipe.load.loader._HELD_IN_MEMORY_BYTES", 0)
    dataset = EmbeddingDataset(embeddings.write_dataset(tmp_path, VALUES, VALUES, 4))
    (tmp_path / "img_emb" / "img_emb_00002.npy").write_bytes(
        (tmp_path / "img_emb" / "img_emb_00002.npy").read_bytes()[:-5]
    )
    with pytest.raises(DatasetError, match=r"img_emb_00002\.npy: 195 bytes, but its manifest says 200"):
        list(islice(EmbeddingLoader(dataset, None, 4).batches(), 6))
    shards.record_anew(tmp_path, 2, tmp_path / "img_emb" / "img_emb_00002.npy")
    with pytest.raises(
        DatasetError, match=re.escape("img_emb_00002.npy: 195 bytes, but its header promises 6 rows in 200")
    ):
        list(islice(EmbeddingLoader(EmbeddingDataset(str(tmp_path)), None, 4).batches(), 6))
    with pytest.raises(DatasetError, match=r"img_emb_00002\.npy"):
        list(dataset.batches(7))
    (tmp_path / "img_emb" / "img_emb_00002.npy").unlink()
    with pytest.raises(DatasetError, match=r"img_emb_00002\.npy: cannot be read.*no such file"):
        list(dataset.batches(7))
