"""Key subsets: what is written is found again, by shard and key, by key, by uid; what is not there is told."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedpipe import subset
from embedpipe.errors import DatasetError, InputError
from embedpipe.load import EmbeddingDataset
from tests import embeddings
from tests.shards import record_anew

ROWS = 23


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    rng = np.random.default_rng(0)
    uids = [rng.bytes(16).hex() for _ in range(ROWS)]
    uids[0] = "0" * 31 + "1"
    place = embeddings.write_dataset(
        tmp_path_factory.mktemp("subset") / "emb", rng.normal(size=(ROWS, 4)), rng.normal(size=(ROWS, 4)), 3,
        columns={"uid": uids},
    )  # fmt: skip
    return EmbeddingDataset(place)


@given(st.sets(st.integers(0, ROWS - 1)))
def test_what_is_written_is_read(dataset, tmp_path_factory, chosen):
    folder = tmp_path_factory.mktemp("out")
    rows = np.array(sorted(chosen), np.int64)
    subset.write_subset(dataset, str(folder / "kept.parquet"), rows)
    subset.write_uids(dataset, str(folder / "subset.npy"), rows)
    for path in (folder, folder / "kept.parquet", folder / "subset.npy"):
        found = subset.read_subset(dataset, str(path))
        assert (found.dtype, found.tolist()) == (np.int64, rows.tolist())
    table = pq.read_table(folder / "kept.parquet")
    assert table["row"].to_pylist() == rows.tolist()
    assert table["uid"].to_pylist() == [dataset.column("uid")[row].as_py() for row in rows.tolist()]


def test_keys_are_found_whatever_their_order(dataset, tmp_path):
    keys = ["000020", "000003", "", "000003", "000011"]
    (tmp_path / "keys.txt").write_text("\n".join(keys))
    pq.write_table(pa.table({"key": [key for key in keys if key]}), tmp_path / "keys.parquet")
    for name in ("keys.txt", "keys.parquet"):
        assert subset.read_subset(dataset, str(tmp_path / name)).tolist() == [3, 11, 20]


def test_the_uids_are_datacomps(dataset, tmp_path):
    subset.write_uids(dataset, str(tmp_path / "subset.npy"), np.arange(ROWS))
    stored = np.load(tmp_path / "subset.npy")
    uids = dataset.column("uid").to_pylist()
    expected = np.array([(int(uid[:16], 16), int(uid[16:32], 16)) for uid in uids], np.dtype("u8,u8"))
    expected.sort()
    assert stored.dtype == np.dtype("u8,u8")
    assert np.array_equal(stored, expected)
    with pytest.raises(InputError, match="column caption: not all are uids of 32 hex digits"):
        subset.write_uids(dataset, str(tmp_path / "no.npy"), np.arange(ROWS), "caption")
    assert not (tmp_path / "no.npy").exists()


def test_keys_that_are_not_there_are_counted_and_named(dataset, tmp_path):
    shards = ["00000.tar", "00000.tar", "00001.tar", "elsewhere.tar"]
    pq.write_table(pa.table({"src_shard": shards, "key": ["000000", "x", "000000", "y"]}), tmp_path / "s.parquet")
    (tmp_path / "keys.txt").write_text("000001\nnowhere\n")
    uids = np.array([(5, 7)], subset.UID)
    np.save(tmp_path / "uids.npy", uids)
    for name, message in (
        ("s.parquet", "3 of 4 keys are not in .*such as 00000.tar x, 00001.tar 000000, elsewhere.tar y"),
        ("keys.txt", "1 of 2 keys are not in .*such as nowhere"),
        ("uids.npy", "1 of 1 keys are not in .*such as 00000000000000050000000000000007"),
    ):
        with pytest.raises(InputError, match=message):
            subset.read_subset(dataset, str(tmp_path / name))
    found = subset.find_subset(dataset, str(tmp_path / "s.parquet"))
    assert (found.rows.tolist(), found.asked, found.absent) == ([0], 4, 3)


def test_a_key_of_several_shards_is_not_guessed(tmp_path):
    rng = np.random.default_rng(1)
    place = embeddings.write_dataset(tmp_path / "emb", rng.normal(size=(4, 3)), rng.normal(size=(4, 3)), 2)
    for number in range(2):  # the same keys in both shards
        path = tmp_path / "emb" / "metadata" / f"metadata_0000{number}.parquet"
        table = pq.read_table(path)
        pq.write_table(table.set_column(0, "key", pa.array(["a", "b"])), path)
        record_anew(tmp_path / "emb", number, path)
    dataset = EmbeddingDataset(place)
    (tmp_path / "keys.txt").write_text("b\n")
    with pytest.raises(InputError, match="several rows of the key b.*Name the source shard"):
        subset.read_subset(dataset, str(tmp_path / "keys.txt"))
    pq.write_table(pa.table({"src_shard": ["00001.tar"], "key": ["b"]}), tmp_path / "s.parquet")
    assert subset.read_subset(dataset, str(tmp_path / "s.parquet")).tolist() == [3]


def test_files_that_are_no_subset_say_so(dataset, tmp_path):
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 and no more")
    (tmp_path / "noise.txt").write_bytes(bytes(range(128, 256)))
    (tmp_path / "torn.npy").write_bytes(b"\x93NUMPY")
    np.save(tmp_path / "other.npy", np.arange(3))
    pq.write_table(pa.table({"kye": ["a"]}), tmp_path / "other.parquet")
    for name, message in (
        ("torn.parquet", "cannot be read"),
        ("noise.txt", "neither parquet, nor .npy, nor text"),
        ("torn.npy", "cannot be read"),
        ("other.npy", r"holds int64 \[3\], not u8,u8"),
        ("other.parquet", "no column key. Did you mean kye"),
        ("nowhere.parquet", "no such file"),
    ):
        with pytest.raises(InputError, match=message):
            subset.read_subset(dataset, str(tmp_path / name))


def test_uids_need_a_column_of_them(tmp_path):
    rng = np.random.default_rng(1)
    place = embeddings.write_dataset(tmp_path / "emb", rng.normal(size=(4, 3)), rng.normal(size=(4, 3)), 2)
    np.save(tmp_path / "uids.npy", np.zeros(1, subset.UID))
    with pytest.raises(DatasetError, match="no metadata column 'uid'"):
        subset.read_subset(EmbeddingDataset(place), str(tmp_path / "uids.npy"))
