"""A takedown that was interrupted is finished by itself alone: nothing else makes its shards anew, or ends it."""

import dataclasses
import hashlib
import shutil
from pathlib import Path

import pytest

import embedpipe as library
from embedpipe import manifest
from embedpipe.encode.job import encode
from embedpipe.errors import DatasetError
from embedpipe.fetch import FetchConfig, fetch
from embedpipe.takedown import TakedownConfig
from embedpipe.takedown.job import takedown
from embedpipe.taken_down import STAGING
from embedpipe.verify.job import verify
from tests import bodies
from tests.shards import DEEP
from tests.unit.embedpipe.takedown.test_takedown import images_of, killed_at, listed

CONFIG = FetchConfig(processes=1, samples_per_shard=3)


@pytest.fixture
def made(tmp_path):
    (tmp_path / "photos").mkdir()
    for i in range(6):
        (tmp_path / "photos" / f"{i}.jpg").write_bytes(bodies.photo(i))
        (tmp_path / "photos" / f"{i}.txt").write_text(f"photo {i}")
    fetch(str(tmp_path / "photos"), str(tmp_path / "shards"), CONFIG)
    return tmp_path, TakedownConfig(urls=listed(tmp_path, "1.jpg"))


def without_manifest(out, job):
    """Kill `job` in the moment in which a shard of `out` has no manifest and only some of its files."""
    copy = Path(f"{out}-before")
    shutil.copytree(out, copy)
    for operation in range(40):
        assert killed_at(operation, job)
        staged = Path(out, ".takedown")
        if 0 not in manifest.committed_numbers(str(out)) and not [*staged.glob("*.tar"), *staged.glob("img_emb/*")]:
            return
        shutil.rmtree(out)
        shutil.copytree(copy, out)
    raise AssertionError("no such moment")


def test_a_fetch_waits_for_the_end_of_a_takedown(made):
    """Made anew, its shard would lose what is no longer there, and take files of both in the end."""
    root, named = made
    shards = str(root / "shards")
    before = images_of(shards)
    without_manifest(shards, lambda: takedown([shards], named))
    with pytest.raises(DatasetError, match="takedown was interrupted"):
        fetch(str(root / "photos"), shards, CONFIG)
    assert takedown([shards], named).not_found == ()
    assert len(images_of(shards)) == len(before) - 1
    assert verify(shards, DEEP).whole


def test_so_do_encode_merge_and_the_other_writers(made, encode_config):
    root, _ = made
    emb, merged, chosen = str(root / "emb"), str(root / "merged"), str(root / "chosen")
    encode(str(root / "shards"), emb, encode_config())
    parts = [emb, str(shutil.copytree(emb, f"{emb}-2"))]
    library.merge(parts, merged)
    library.filter(emb, chosen, library.FilterConfig(min_similarity=-1, materialise=True))
    library.export_images(emb, None, str(root / "images"))
    again = {
        emb: lambda: encode(str(root / "shards"), emb, encode_config()),
        merged: lambda: library.merge(parts, merged),
        chosen: lambda: library.filter(emb, chosen, library.FilterConfig(min_similarity=-1, materialise=True)),
        str(root / "images"): lambda: library.export_images(emb, None, str(root / "images")),
    }
    for out, job in again.items():
        job()
        Path(out, ".takedown", "manifest").mkdir(parents=True)
        shutil.copy(Path(out, "manifest", "00000.json"), Path(out, ".takedown", "manifest"))
        with pytest.raises(DatasetError, match="takedown was interrupted"):
            job()


def test_a_shard_that_was_made_anew_meanwhile_is_left_whole(made):
    """As by an earlier version, or on another machine of an object store."""
    root, named = made
    shards = str(root / "shards")
    whole = Path(shutil.copytree(shards, root / "whole"))
    without_manifest(shards, lambda: takedown([shards], named))
    for name in ("00000.tar", "00000.parquet", "manifest/00000.json"):
        shutil.copy(whole / name, root / "shards" / name)
    takedown([shards], named)
    assert verify(shards, DEEP).whole
    assert len(images_of(shards)) == 5


def test_files_of_no_whole_shard_are_never_committed(made):
    root, named = made
    shards = str(root / "shards")
    without_manifest(shards, lambda: takedown([shards], named))
    (root / "shards" / "00000.tar").write_bytes(b"another writer's")
    takedown([shards], named)
    assert verify(shards, DEEP).faults == ()
    assert manifest.committed_numbers(shards) == [1]
    fetch(str(root / "photos"), shards, CONFIG)
    assert verify(shards, DEEP).whole
    assert len(images_of(shards)) == 5


@pytest.mark.parametrize("path", ["../../victim", "00001.tar", "embedpipe.json"])
def test_a_staged_manifest_moves_no_other_file(made, path):
    """A folder that somebody handed over may hold one."""
    root, _ = made
    shards = str(root / "shards")
    (root / "victim").write_text("mine")
    entry = manifest.read_manifest(shards, 0, 5)
    record = manifest.FileRecord(path, 4, hashlib.sha256(b"mine").hexdigest())
    (root / "shards" / ".takedown").mkdir()
    manifest.commit(f"{shards}/{STAGING}", dataclasses.replace(entry, files=(record,)), 5)
    manifest.retract(shards, 0, 5)
    takedown([shards], TakedownConfig(urls=listed(root, "4.jpg")))
    assert (root / "victim").read_text() == "mine"
    assert manifest.committed_numbers(shards) == [1]
    assert not verify(shards, DEEP).faults
