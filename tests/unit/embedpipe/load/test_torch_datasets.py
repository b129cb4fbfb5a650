"""Rows for a DataLoader, and image shards with their embeddings: with workers and ranks each comes once."""

import itertools
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset as wds
from torch.utils.data import DataLoader

from embedpipe import EmbeddingDataset
from embedpipe.encode.job import encode
from embedpipe.errors import DatasetError, InputError
from embedpipe.load import dataset as dataset_module
from embedpipe.load.torch_datasets import RowDataset, RowStream
from embedpipe.load.webdataset import webdataset_pipeline
from embedpipe.merge import merge
from tests import shards


@pytest.fixture(scope="module")
def dataset(encoded_once):
    return EmbeddingDataset(encoded_once[1])


def same_rows(dataset, batch):
    rows = batch["row"].numpy()
    assert np.array_equal(batch["image"].numpy(), dataset.image[rows])
    assert np.array_equal(batch["text"].numpy(), dataset.text[rows])
    return rows.tolist()


def test_rows_by_number(dataset):
    rows = dataset.torch(columns=("key", "width"))
    assert len(rows) == len(dataset)
    assert rows[9]["key"] == dataset.keys()[9]
    assert rows[-1]["row"] == len(dataset) - 1
    assert torch.equal(rows[3]["image"], torch.from_numpy(dataset.image[3]))
    with pytest.raises(IndexError):
        rows[len(dataset)]
    some = RowDataset(dataset, rows=[5, 2, 20])
    assert [int(some[i]["row"]) for i in range(len(some))] == [5, 2, 20]


def test_a_data_loader_with_workers_gives_each_row_once(dataset):
    loader = DataLoader(dataset.torch(columns=["key"]), batch_size=4, shuffle=True, num_workers=2)
    seen = []
    for batch in loader:
        found = same_rows(dataset, batch)
        assert batch["key"] == [dataset.keys()[row] for row in found]
        seen += found
    assert sorted(seen) == list(range(len(dataset)))


@pytest.mark.parametrize("batch_size", [None, 4])
def test_a_stream_with_workers_gives_each_row_once(dataset, batch_size):
    loader = DataLoader(RowStream(dataset, batch_size=batch_size), batch_size=None if batch_size else 5, num_workers=2)
    seen = [row for batch in loader for row in same_rows(dataset, batch)]
    assert sorted(seen) == list(range(len(dataset)))


@pytest.mark.parametrize("chosen", [None, [20, 3, 4, 11, 0]])
@pytest.mark.parametrize("world", [1, 2, 5, 40])
def test_ranks_share_a_stream_without_loss(dataset, chosen, world):
    shares = [[int(row["row"]) for row in RowStream(dataset, chosen, rank=rank, world=world)] for rank in range(world)]
    assert list(itertools.chain(*shares)) == (chosen or list(range(len(dataset))))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_stream_asks_torchrun_which_rank_it_is(dataset, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert [int(row["row"]) for row in dataset.torch(stream=True)] == list(range(7, 14))


def test_they_can_be_pickled(dataset):
    for made in (dataset, dataset.torch(), dataset.torch(stream=True), webdataset_pipeline(dataset)):
        again = pickle.loads(pickle.dumps(made))
        first = next(iter(again)) if made is not dataset else {"row": 0, "image": again.image[0]}
        assert int(first["row"]) == 0
        name = "image_embedding" if "image_embedding" in first else "image"
        assert np.array_equal(np.asarray(first[name]), dataset.image[0])


def test_opening_a_data_set_loads_no_torch(encoded_once):
    code = f"import sys, embedpipe; d = embedpipe.EmbeddingDataset({encoded_once[1]!r}); repr(d); d.to_arrow(); "
    code += "print('torch' in sys.modules, 'webdataset' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_image_shards_come_with_their_embeddings(dataset):
    pipeline = webdataset_pipeline(dataset, columns=["caption"], decode="torchrgb")
    seen = []
    for sample in DataLoader(pipeline, batch_size=None, num_workers=2):
        row = int(sample["row"])
        seen.append(row)
        assert sample["__key__"] == dataset.keys()[row]
        assert np.array_equal(np.asarray(sample["image_embedding"]), dataset.image[row])
        assert np.array_equal(np.asarray(sample["text_embedding"]), dataset.text[row])
        assert sample["caption"] == dataset.metadata["caption"][row]
        assert sample["jpg"].shape[0] == 3
    assert sorted(seen) == list(range(len(dataset)))


@pytest.fixture
def encoded_tar(tmp_path, encode_config):
    """Encodes members of a tar: (the tar, the data set)."""

    def make(members, out="emb"):
        source = shards.write_tar(tmp_path / "a.tar", members)
        encode(source, str(tmp_path / out), encode_config())
        return source, EmbeddingDataset(str(tmp_path / out))

    return make


def test_samples_of_one_key_that_stand_apart_are_one_row(encoded_tar):
    numbers = (1, 0, 2)
    members = [member for number in numbers for member in shards.sample(number)]
    _, dataset = encoded_tar([("00000.npy", b"numbers"), *members, *shards.sample(7, key="00001")])
    pipeline = webdataset_pipeline(dataset, columns=["number"])
    for _ in range(2):
        found = [(sample["row"], sample["number"], sample["jpg"]) for sample in pipeline]
        assert found == [(row, number, shards.jpeg(number)) for row, number in enumerate(numbers)]


def test_rows_of_merged_data_sets_of_one_tar_all_come(encoded_tar, tmp_path):
    for out in "ab":
        encoded_tar(shards.samples(3), out)
    merge([str(tmp_path / "a"), str(tmp_path / "b")], str(tmp_path / "merged"))
    dataset = EmbeddingDataset(str(tmp_path / "merged"))
    found = sorted((sample["row"], sample["jpg"]) for sample in webdataset_pipeline(dataset))
    assert found == [(row, shards.jpeg(row % 3)) for row in range(6)]


def test_a_tar_of_the_same_size_with_other_images_is_refused(encoded_tar):
    source, dataset = encoded_tar(shards.samples(3))
    data = Path(source).read_bytes()
    Path(source).write_bytes(data.replace(shards.jpeg(1), shards.jpeg(1)[::-1]))
    with pytest.raises(DatasetError, match=r"1 row of .* without their sample in it, the first is '00001'"):
        list(webdataset_pipeline(dataset))


def test_a_pipeline_goes_on_as_any_of_webdataset(dataset):
    batches = webdataset_pipeline(dataset).compose(
        wds.shuffle(8), wds.to_tuple("row", "image_embedding"), wds.batched(8)
    )
    found = list(batches)
    assert sorted(row for rows, _ in found for row in rows) == list(range(len(dataset)))
    for rows, images in found:
        assert np.array_equal(np.stack(images), dataset.image[np.array(rows)])


def test_ranks_share_image_shards(dataset, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    seen = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        seen += [sample["row"] for sample in webdataset_pipeline(dataset)]
    assert sorted(seen) == list(range(len(dataset)))


def test_other_image_shards_are_refused(dataset, encoded_once, tmp_path):
    moved = shutil.copytree(encoded_once[0], tmp_path / "moved")
    assert next(iter(webdataset_pipeline(dataset, str(moved))))["row"] == 0
    tar = sorted(moved.glob("*.tar"))[1]
    tar.write_bytes(tar.read_bytes() + bytes(512))
    with pytest.raises(DatasetError, match="has changed since it was encoded"):
        webdataset_pipeline(dataset, str(moved))
    tar.unlink()
    with pytest.raises(DatasetError, match=f"{tar.name}: not there"):
        webdataset_pipeline(dataset, str(moved))
    with pytest.raises(InputError):
        webdataset_pipeline(dataset, str(tmp_path / "nowhere"))


def test_a_data_set_says_what_it_is(dataset):
    said = repr(dataset)
    assert repr(dataset.path) in said
    assert f"{len(dataset)} rows × {dataset.card.dim} (image and text, float16) in 3 shards" in said
    assert dataset.card.model in said
    assert dataset.shape == dataset.image.read().shape
    assert dataset.columns == dataset.metadata.names
    assert said.endswith(", ".join(dataset.columns))


def test_metadata_as_tables(dataset, monkeypatch):
    table = dataset.to_arrow()
    assert table.column_names == list(dataset.columns)
    assert table.column("key").to_pylist() == dataset.keys()
    frame = dataset.to_pandas(columns=["key", "width"], rows=slice(5, 12))
    assert list(frame.columns) == ["key", "width"]
    assert frame["key"].tolist() == dataset.keys()[5:12]
    assert dataset.to_arrow(["key"], [20, 0]).column("key").to_pylist() == [dataset.keys()[20], dataset.keys()[0]]
    assert dataset.to_arrow(rows=[]).num_rows == 0
    with pytest.raises(DatasetError, match="Did you mean key"):
        dataset.to_arrow(["keyy"])
    monkeypatch.setattr(dataset_module, "LARGEST_TABLE", 1000)
    monkeypatch.setattr(dataset_module, "_ROWS_AT_ONCE", 4)
    with pytest.raises(InputError, match="metadata of 21 rows"):
        dataset.to_arrow()
    assert dataset.to_arrow(["width"]).num_rows == 21
