"""Exported image shards hold what was encoded of the chosen rows, to the byte, and encode to the same rows."""

import io
import json
import tarfile

import numpy as np
import pyarrow.parquet as pq
import pytest

from embedpipe import manifest
from embedpipe.curate import export_images, image_shards
from embedpipe.encode.job import encode
from embedpipe.errors import DatasetError, InputError, OutputBusy, RunMismatch
from embedpipe.load import EmbeddingDataset
from embedpipe.lock import exclusive
from embedpipe.tar import key_of_member
from embedpipe.verify import verify
from tests import shards


def members(path):
    with tarfile.open(path) as archive:
        found = archive.getmembers()
        assert all((entry.mtime, entry.uid, entry.uname) == (0, 0, "") for entry in found)
        return [(entry.name, archive.extractfile(entry).read()) for entry in found]


def test_the_chosen_samples_in_the_order_of_the_rows(encoded_once, tmp_path, encode_config):
    source, data = encoded_once
    dataset = EmbeddingDataset(data)
    rows = np.array([0, 3, 4, 19])  # none of the second shard
    out = tmp_path / "out"
    report = export_images(dataset, rows, str(out))
    assert (report.shards, report.already, report.rows) == (3, 0, 4)
    original = {name: data for i in range(3) for name, data in members(f"{source}/{i:05d}.tar")}
    found = {i: members(out / f"{i:05d}.tar") for i in range(3)}
    for i, keys in ((0, ["00000", "00003", "00004"]), (1, []), (2, ["00019"])):
        assert [name for name, _ in found[i]] == [f"{key}.{end}" for key in keys for end in ("jpg", "json", "txt")]
        for name, data_ in found[i]:
            assert json.loads(data_) == json.loads(original[name]) if name.endswith("json") else data_ == original[name]
    table = pq.read_table(out / "00000.parquet")
    assert table["key"].to_pylist() == ["00000", "00003", "00004"]
    assert table["sha256"].to_pylist() == dataset.column("sha256").take(rows[:3]).to_pylist()
    tar = (out / "00000.tar").read_bytes()
    for name, offset, size in zip(*(table[c].to_pylist() for c in ("key", "offset", "bytes")), strict=True):
        assert tar[offset : offset + size] == original[f"{name}.jpg"]
    assert verify(str(out), shards.DEEP).whole
    encode(str(out), str(tmp_path / "emb"), encode_config())
    again = EmbeddingDataset(str(tmp_path / "emb"))
    assert again.keys() == [dataset.keys()[row] for row in rows]
    assert np.array_equal(again.image[:], dataset.image[rows])


def test_killed_and_run_again_it_is_the_same(encoded_once, tmp_path, monkeypatch):
    dataset, rows = EmbeddingDataset(encoded_once[1]), np.arange(0, 21, 2)
    export_images(dataset, rows, str(tmp_path / "whole"))
    expected = shards.tree(tmp_path / "whole")
    commit = manifest.commit

    def dies(out, entry, digits):
        if entry.number == 1:
            raise KeyboardInterrupt
        commit(out, entry, digits)

    monkeypatch.setattr(image_shards.manifest, "commit", dies)
    with pytest.raises(KeyboardInterrupt):
        export_images(dataset, rows, str(tmp_path / "out"))
    monkeypatch.setattr(image_shards.manifest, "commit", commit)
    assert export_images(dataset, rows, str(tmp_path / "out")).already == 1
    assert shards.tree(tmp_path / "out") == expected
    (tmp_path / "out" / "00002.tar").write_bytes(b"torn")
    assert export_images(dataset, rows, str(tmp_path / "out")).already == 2
    assert shards.tree(tmp_path / "out") == expected


def test_a_folder_of_loose_files_becomes_shards(tmp_path, encode_config):
    loose = [
        ("cats/Dr. No.png", shards.png(1)), ("cats/Dr. No.txt", b"a cat"), ("dogs/7.jpg", shards.jpeg(2)),
        ("dogs/7.txt", b"a dog"),
    ]  # fmt: skip
    source = shards.write_files(tmp_path / "in", loose)
    encode(source, str(tmp_path / "emb"), encode_config())
    dataset = EmbeddingDataset(str(tmp_path / "emb"))
    export_images(dataset, np.arange(2), str(tmp_path / "out"))
    assert dict(members(tmp_path / "out" / "00000.tar")) == {
        "cats/Dr%2E No.json": b"{}", "cats/Dr%2E No.png": shards.png(1), "cats/Dr%2E No.txt": b"a cat",
        "dogs/7.jpg": shards.jpeg(2), "dogs/7.json": b"{}", "dogs/7.txt": b"a dog",
    }  # fmt: skip
    encode(str(tmp_path / "out"), str(tmp_path / "again"), encode_config())
    assert np.array_equal(EmbeddingDataset(str(tmp_path / "again")).image[:], dataset.image[:])


def test_keys_that_lead_outside_or_alike_become_members_of_their_own(tmp_path, encode_config):
    keys = ("../up/04", "../up/05", "a%2Eb", "/abs/1")
    source = shards.write_tar(
        tmp_path / "in" / "0.tar", [m for i, k in enumerate(keys) for m in shards.sample(i, key=k)]
    )
    encode(source, str(tmp_path / "emb"), encode_config())
    dataset = EmbeddingDataset(str(tmp_path / "emb"))
    assert dataset.keys() == list(keys)
    export_images(dataset, None, str(tmp_path / "out"))
    found = {name.rpartition(".")[0] for name, _ in members(tmp_path / "out" / "00000.tar")}
    assert {key_of_member(name) for name in found} == set(keys)
    assert not any(name.startswith(("/", "..")) for name in found)
    encode(str(tmp_path / "out"), str(tmp_path / "again"), encode_config())
    again = EmbeddingDataset(str(tmp_path / "again"))
    rows = [keys.index(key_of_member(key)) for key in again.column("key").to_pylist()]
    assert np.array_equal(again.image[:], dataset.image[rows])


def test_what_is_gone_or_another_is_not_passed_off(tmp_path, encode_config):
    source = shards.write_shards(tmp_path / "in", 1, 4)
    encode(source, str(tmp_path / "emb"), encode_config())
    dataset, rows, out = EmbeddingDataset(str(tmp_path / "emb")), np.arange(4), str(tmp_path / "out")
    shards.write_tar(tmp_path / "in" / "00000.tar", [*shards.samples(3), *shards.sample(3, picture=shards.jpeg(9))])
    with pytest.raises(DatasetError, match="00000.tar has changed since.*the image of 00003 is another one"):
        export_images(dataset, rows, out)
    shards.write_tar(tmp_path / "in" / "00000.tar", shards.samples(3))
    with pytest.raises(DatasetError, match="00003 is no longer in it"):
        export_images(dataset, rows, out)
    assert not (tmp_path / "out" / "00000.tar").exists()
    (tmp_path / "in").rename(tmp_path / "moved")
    with pytest.raises(InputError, match="no longer there.*`images`"):
        export_images(dataset, rows, out)
    with pytest.raises(InputError, match="nowhere"):
        export_images(dataset, rows, out, str(tmp_path / "nowhere"))
    export_images(dataset, rows[:3], str(tmp_path / "else"), str(tmp_path / "moved"))


def test_other_outputs_are_refused(encoded_once, encoded, tmp_path):
    dataset = EmbeddingDataset(encoded_once[1])
    out = str(tmp_path / "out")
    export_images(dataset, np.arange(3), out)
    with pytest.raises(RunMismatch, match="another selection: selection.rows was 3, now 4"):
        export_images(dataset, np.arange(4), out)
    with pytest.raises(RunMismatch, match="holds embedpipe/embeddings"):
        export_images(dataset, np.arange(3), str(encoded))
    with exclusive(out), pytest.raises(OutputBusy):
        export_images(dataset, np.arange(3), out)


def test_a_table_and_metadata_json_cannot_hold(tmp_path, encode_config):
    source = shards.write_table(tmp_path / "in.parquet", shards.table(3, label=["a", None, "b"]))
    encode(source, str(tmp_path / "emb"), encode_config(input="table"))
    export_images(EmbeddingDataset(str(tmp_path / "emb")), np.array([1, 2]), str(tmp_path / "out"))
    found = dict(members(tmp_path / "out" / "00000.tar"))
    assert found["00001.jpg"] == shards.jpeg(1)
    assert json.loads(found["00002.json"])["label"] == "b"
    assert io.BytesIO(found["00002.txt"]).read().decode() == shards.caption(2)
