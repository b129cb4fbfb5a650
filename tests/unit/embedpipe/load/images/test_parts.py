"""The image shards of merged data sets, wherever they are: every command sees the pictures it saw before merging."""

import dataclasses
import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest

from embedpipe import manifest
from embedpipe.consent import remember_source
from embedpipe.curate import dedup, export_images, plan_dedup
from embedpipe.encode.job import encode
from embedpipe.errors import DatasetError, InputError
from embedpipe.load import EmbeddingDataset
from embedpipe.load.images.join import join_images
from embedpipe.load.images.loader import ImageLoader, ImageOptions
from embedpipe.load.images.parts import original_name
from embedpipe.load.images.source import open_source, source_images
from embedpipe.load.webdataset import webdataset_pipeline
from embedpipe.merge import merge
from embedpipe.read import SampleRules, open_reader
from embedpipe.verify import verify
from tests import embeddings, shards

PER_SHARD = 6


def near_rows(folder, first, count=12):
    """Rows that are all near each other, row 2 i + 1 a copy of the picture of 2 i; returns (data set, image shards)."""
    rng = np.random.default_rng(first)
    image = np.ones((count, 16)) + rng.normal(size=(count, 16)) * 0.15
    image[1::2] = image[::2] + rng.normal(size=(count // 2, 16)) * 0.02
    for start in range(0, count, PER_SHARD):
        members = []
        for row in range(start, start + PER_SHARD):
            picture = shards.encoded(shards.pixels(first + row // 2, 96, 96), quality=95 if row % 2 else 80)
            members += [(f"{row:06d}.jpg", picture), (f"{row:06d}.txt", b"drawn")]
        shards.write_tar(folder / "in" / f"{start // PER_SHARD:05d}.tar", members)
    place = embeddings.write_dataset(folder / "emb", image, image, count // PER_SHARD)
    there = tuple(open_reader(str(folder / "in"), SampleRules()).shards(()))
    manifest.write_run(place, dataclasses.replace(manifest.read_run(place), source=str(folder / "in"), plan=there))
    for entry in list(manifest.read_manifests(place, 5)):
        manifest.commit(place, dataclasses.replace(entry, source=there[entry.number]), 5)
    remember_source(str(folder / "in"), there)
    return place, str(folder / "in")


def dropped(out):
    return pq.read_table(f"{out}/dropped.parquet").to_pydict()["row"]


@pytest.fixture
def merged(tmp_path):
    """Two data sets whose shards have the same names, merged, and merged again with a third; (path, image folders)."""
    made = [near_rows(tmp_path / name, first) for name, first in (("a", 0), ("b", 100), ("c", 200))]
    merge([made[0][0], made[1][0]], str(tmp_path / "two"))
    merge([str(tmp_path / "two"), made[2][0]], str(tmp_path / "three"))
    return str(tmp_path / "three"), [images for _, images in made]


def test_dedup_after_merging_drops_what_it_dropped_before(tmp_path, merged):
    path, images = merged
    before = []
    for number, name in enumerate("abc"):
        dedup(str(tmp_path / name / "emb"), str(tmp_path / name / "dedup"))
        before += [12 * number + row for row in dropped(tmp_path / name / "dedup")]
    assert before == list(range(1, 36, 2))
    report = dedup(path, str(tmp_path / "out"))
    assert (report.confirmed_by, report.threshold, report.not_compared) == ("pictures", 0.75, 0)
    assert dropped(tmp_path / "out") == before
    assert all(folder in report.why for folder in images)
    assert "not available" not in (tmp_path / "out" / "pairs.html").read_text()


def test_moved_folders_are_told_in_any_order_and_what_was_not_moved_is_found(tmp_path, merged):
    path, images = merged
    data = EmbeddingDataset(path)
    rows = [(row["src_shard"], row["key"]) for row in data.rows(range(len(data)))]
    expected = source_images(data, rows)
    assert len(expected) == len(rows) == 36
    moved = [shutil.move(folder, tmp_path / f"moved-{number}") for number, folder in enumerate(images[:2])]
    assert len(source_images(data, rows)) == 12
    assert plan_dedup(path).why.endswith("4 of 6 shards not found: cosines decide there")
    assert source_images(data, rows, list(map(str, moved))) == expected
    assert source_images(data, rows, [str(moved[1]), str(moved[0])]) == expected
    assert source_images(data, rows, (str(moved[0]), str(moved[1]), images[2])) == expected
    with pytest.raises(InputError, match="elsewhere: no such"):
        source_images(data, rows, str(tmp_path / "elsewhere"))
    (tmp_path / "other").mkdir()
    shards.write_tar(tmp_path / "other" / "x.tar", shards.samples(1))
    with pytest.raises(InputError, match="other: has no input shard of .*three"):
        source_images(data, rows, [str(tmp_path / "other")])
    shutil.rmtree(images[2])
    for folder in moved:
        shutil.rmtree(folder)
    assert open_source(data) is None
    assert plan_dedup(path).confirmed_by == "none"
    assert all(folder in plan_dedup(path).why for folder in images)


def test_copied_folders_of_equal_sizes_are_told_apart_by_their_order(tmp_path, merged):
    path, images = merged
    data = EmbeddingDataset(path)
    rows = [(row["src_shard"], row["key"]) for row in data.rows(range(len(data)))]
    expected = source_images(data, rows)
    copies = []
    for number, folder in enumerate(images):
        copies.append(str(tmp_path / f"copy-{number}"))
        shutil.copytree(folder, copies[-1], copy_function=shutil.copyfile)
        for tar in (tmp_path / f"copy-{number}").iterdir():
            tar.write_bytes(tar.read_bytes().ljust(1 << 18, b"\0"))
        shutil.rmtree(folder)
    assert source_images(data, rows, copies) == expected


def test_a_divided_folder_is_several_places(tmp_path, encoded_once):
    source, path = encoded_once
    data = EmbeddingDataset(path)
    rows = [(row["src_shard"], row["key"]) for row in data.rows(range(len(data)))]
    for name in ("00000.tar", "00001.tar", "00002.tar"):
        (tmp_path / name[:-4]).mkdir()
        shutil.copy(f"{source}/{name}", tmp_path / name[:-4] / name)
    places = [str(tmp_path / name) for name in ("00002", "00000", "00001")]
    assert source_images(data, rows, places) == source_images(data, rows)
    report = export_images(path, None, str(tmp_path / "out"), places)
    assert report.rows == 21
    assert verify(str(tmp_path / "out"), shards.DEEP).whole


def test_merged_data_are_joined_loaded_exported_and_streamed_with_their_images(tmp_path, encode_config):
    for number, name in enumerate(("a", "b")):
        shards.write_tar(tmp_path / name / "in" / "00000.tar", shards.samples(5, first=10 * number))
        encode(str(tmp_path / name / "in"), str(tmp_path / name / "emb"), encode_config())
    path = str(tmp_path / "all")
    merge([str(tmp_path / "a" / "emb"), str(tmp_path / "b" / "emb")], path)
    data = EmbeddingDataset(path)
    join = join_images(data, open_source(data), str(tmp_path / "cache"), "there")
    assert (join.counts.joined, join.counts.image_unused, join.counts.shard_unused) == (10, 0, 0)
    assert not (tmp_path / "cache").exists()  # unchanged shards are not read
    loader = ImageLoader(data, join, ImageOptions(16), 5, seed=0)
    batch = next(iter(loader.batches(0)))
    assert batch.pixels.shape == (5, 3, 16, 16)
    with pytest.warns(DeprecationWarning, match="images="):
        assert open_source(data, data=str(tmp_path / "a" / "in")) is not None
    assert export_images(path, None, str(tmp_path / "out")).rows == 10
    seen = {sample["row"]: sample["jpg"] for sample in webdataset_pipeline(data)}
    assert seen == {row: shards.jpeg(row if row < 5 else 5 + row) for row in range(10)}
    tar = tmp_path / "b" / "in" / "00000.tar"
    shards.write_tar(tar, shards.samples(4, first=50))
    with pytest.raises(DatasetError, match="have no image|another image"):
        join_images(data, open_source(data), str(tmp_path / "cache"), "there")


def test_original_names_are_those_before_any_merge(merged):
    path, _ = merged
    run = manifest.read_run(path)
    names = [shard.name for shard in run.plan]
    assert len(set(names)) == 6
    assert [original_name(run, name) for name in names] == ["00000.tar", "00001.tar"] * 3
    assert original_name(manifest.read_run(path.replace("three", "a/emb")), "00000.tar") == "00000.tar"
    assert json.dumps([part.source for part in run.merged]) != "[]"
