"""An opened data set answers like one array, however many shards it is made of."""

import uuid

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedpipe import manifest
from embedpipe.clip_model.encoder_card import EncoderCard, PreprocessSpec
from embedpipe.errors import DatasetError, InputError
from embedpipe.load import EmbeddingDataset, EmbeddingLoader
from embedpipe.manifest import EMBEDDINGS, RunCard, ShardManifest
from embedpipe.store import open_format
from embedpipe.types import EmbeddingShard, SourceShard
from tests import shards

DIM = 4
SPEC = PreprocessSpec((8, 8), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "bicubic", "squash", 0)
CARD = EncoderCard("m", "", "w", DIM, "float16", True, "fp32", "exact", SPEC, "t", 8)


def write(root, sizes, fingerprint=None):
    """A data set with shards of these sizes; row r holds r, r + .25, … ; its key is `k<r>`."""
    plan = tuple(SourceShard(f"{n}.tar", 1, "") for n in range(len(sizes)))
    manifest.write_run(root, RunCard(EMBEDDINGS, {"format": "npy"}, plan, encoder=CARD))
    start = 0
    for number, size in enumerate(sizes):
        numbers = np.arange(start, start + size)
        array = (numbers[:, None] + np.arange(DIM) / DIM).astype(np.float16)
        names = [
            "key",
            "image_path",
            "caption",
            "url",
            "width",
            "height",
            "sha256",
            "similarity",
            "src_shard",
            "src_index",
        ]
        metadata = {name: [None] * size for name in (*names, "extra")}
        metadata["key"] = [f"k{n}" for n in numbers]
        metadata["src_shard"] = [plan[number].name] * size
        shard = EmbeddingShard(number, array, -array, metadata, ())
        written = open_format("npy").write(root, shard, plan[number].name, {}, 5)
        entry = ShardManifest(
            number, plan[number], "", size, size, 0, {}, written, DIM, "float16", fingerprint or CARD.fingerprint()
        )
        manifest.commit(root, entry, 5)
        start += size
    return root


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return EmbeddingDataset(write(str(tmp_path_factory.mktemp("data")), [3, 0, 5, 1, 4]))


@pytest.fixture(scope="module")
def whole(dataset):
    return (np.arange(13)[:, None] + np.arange(DIM) / DIM).astype(np.float16)


def test_all_rows_are_there_in_order(dataset, whole):
    assert len(dataset) == len(dataset.image) == 13
    assert dataset.image.dim == DIM
    assert np.array_equal(dataset.image[:], whole)
    assert np.array_equal(dataset.text[:], -whole)
    assert dataset.image[:].dtype == np.float16
    assert np.array_equal(dataset.image.read(), whole.astype(np.float32))
    assert dataset.image.read().dtype == np.float32
    assert dataset.keys() == [f"k{n}" for n in range(13)]


@given(data=st.data())
def test_slices_are_those_of_numpy(dataset, whole, data):
    index = data.draw(st.slices(13))
    assert np.array_equal(dataset.image[index], whole[index])


@given(index=st.lists(st.integers(-13, 12), max_size=20))
def test_lists_of_rows_are_those_of_numpy(dataset, whole, index):
    assert np.array_equal(dataset.image[index], whole[np.asarray(index, int)])
    assert np.array_equal(dataset.image[np.asarray(index, int)], whole[np.asarray(index, int)])


@given(mask=st.lists(st.booleans(), min_size=13, max_size=13))
def test_masks_are_those_of_numpy(dataset, whole, mask):
    assert np.array_equal(dataset.image[np.asarray(mask)], whole[np.asarray(mask)])


@pytest.mark.parametrize("row", range(-13, 13))
def test_single_rows_are_those_of_numpy(dataset, whole, row):
    assert np.array_equal(dataset.image[row], whole[row])
    assert np.array_equal(dataset.image[np.int64(row)], whole[row])


@pytest.mark.parametrize("index", [13, -14, [0, 13], [-14], [0.5], [[1, 2]], np.ones(12, bool), ["a"]])
def test_what_numpy_would_refuse_is_refused(dataset, index):
    with pytest.raises(IndexError):
        dataset.image[index]


def test_rows_of_metadata_come_in_the_order_asked_for(dataset):
    assert [row["key"] for row in dataset.rows([12, 0, 3, 3])] == ["k12", "k0", "k3", "k3"]
    assert dataset.rows([5], ("key", "src_shard")) == [{"key": "k5", "src_shard": "2.tar"}]
    with pytest.raises(IndexError):
        dataset.rows([13])
    with pytest.raises(DatasetError, match="no metadata column 'kye'.*key"):
        dataset.column("kye")


def test_an_empty_data_set_is_one(tmp_path):
    for sizes in ([], [0, 0]):
        dataset = EmbeddingDataset(write(str(tmp_path / str(len(sizes))), sizes))
        assert len(dataset) == 0
        assert dataset.image[:].shape == (0, DIM)
        assert dataset.image.read().shape == (0, DIM)
        assert dataset.keys() == []
        with pytest.raises(DatasetError, match="no rows"):
            dataset.require_rows()


def test_a_data_set_in_memory_answers_the_same(whole):
    dataset = EmbeddingDataset(write(f"memory://{uuid.uuid4().hex}", [5, 8]))
    assert np.array_equal(dataset.image[[12, 0]], whole[[12, 0]])
    assert dataset.keys()[12] == "k12"


def test_a_shard_without_a_manifest_does_not_exist(tmp_path):
    root = write(str(tmp_path), [3, 5, 2])
    (tmp_path / "manifest" / "00001.json").unlink()
    dataset = EmbeddingDataset(root)
    assert dataset.keys() == ["k0", "k1", "k2", "k8", "k9"]
    assert np.array_equal(dataset.image[:][:, 0], [0, 1, 2, 8, 9])


def test_damage_is_named_when_it_is_met(tmp_path):
    root = write(str(tmp_path), [3, 5])
    np.save(tmp_path / "img_emb" / "img_emb_00001.npy", np.zeros((4, DIM), np.float16))
    (tmp_path / "text_emb" / "text_emb_00001.npy").write_bytes(b"")
    (tmp_path / "metadata" / "metadata_00001.parquet").write_bytes(b"PAR1")
    dataset = EmbeddingDataset(root)
    assert dataset.image[2][0] == 2
    with pytest.raises(DatasetError, match=r"img_emb_00001\.npy: 160 bytes, but its manifest says 168"):
        dataset.image[3]
    shards.record_anew(tmp_path, 1, tmp_path / "img_emb" / "img_emb_00001.npy")
    with pytest.raises(DatasetError, match=r"img_emb_00001\.npy: shape \(4, 4\)"):
        EmbeddingDataset(root).image[3]
    with pytest.raises(DatasetError, match=r"text_emb_00001\.npy: 0 bytes"):
        dataset.text[3]
    with pytest.raises(DatasetError, match=r"metadata_00001\.parquet: 4 bytes"):
        dataset.keys()
    (tmp_path / "text_emb" / "text_emb_00001.npy").unlink()
    with pytest.raises(DatasetError, match=r"text_emb_00001\.npy: cannot be read"):
        EmbeddingDataset(root).text[3]


def test_what_is_no_data_set_says_so(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        EmbeddingDataset(str(tmp_path / "no"))
    with pytest.raises(DatasetError, match=r"no embedpipe\.json"):
        EmbeddingDataset(str(tmp_path))
    with pytest.raises(DatasetError, match="shard 0 was made by another encoder"):
        EmbeddingDataset(write(str(tmp_path / "mixed"), [1], fingerprint="other"))


# Batches.


def take(loader, count, step=0):
    found = []
    for batch in loader.batches(step):
        found.append(batch)
        if len(found) == count:
            return found


def test_each_epoch_visits_every_row_once_in_its_own_order(dataset):
    loader = EmbeddingLoader(dataset, np.arange(12), batch_size=4, seed=3)
    seen = np.concatenate([batch.image[:, 0] for batch in take(loader, 6)])
    assert sorted(seen[:12]) == sorted(seen[12:]) == list(range(12))
    assert list(seen[:12]) != list(seen[12:])
    other = np.concatenate([batch.image[:, 0] for batch in take(EmbeddingLoader(dataset, np.arange(12), 4, 4), 3)])
    assert list(other) != list(seen[:12])


@given(st.integers(1, 30), st.integers(0, 12), st.integers(1, 13))
def test_batches_from_a_step_are_those_after_skipping(dataset, batch_size, step, rows):
    loader = EmbeddingLoader(dataset, np.arange(rows), batch_size, seed=1)
    skipped = take(loader, step + 2)[step:]
    direct = take(loader, 2, step)
    for one, other in zip(skipped, direct, strict=True):
        assert np.array_equal(one.image, other.image)
        assert one.image.shape == (batch_size, DIM)
        assert one.image.dtype == np.float32
        assert np.array_equal(one.text, -one.image)


def test_only_the_rows_asked_for_are_seen(dataset):
    rows = np.array([1, 5, 9])
    seen = {float(value) for batch in take(EmbeddingLoader(dataset, rows, 2), 9) for value in batch.image[:, 0]}
    assert seen == {1.0, 5.0, 9.0}


def test_rows_from_files_and_from_memory_are_the_same(dataset, monkeypatch):
    held = take(EmbeddingLoader(dataset, np.arange(13), 5), 4)
    monkeypatch.setattr("embedpipe.load.loader._HELD_IN_MEMORY_BYTES", 0)
    for one, other in zip(held, take(EmbeddingLoader(dataset, np.arange(13), 5), 4), strict=True):
        assert np.array_equal(one.image, other.image)
        assert np.array_equal(one.text, other.text)
