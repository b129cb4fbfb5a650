"""A folder of images with captions beside them goes into the same shards, without HTTP."""

import dataclasses
import hashlib
import io
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from embedpipe import manifest
from embedpipe.errors import EmptyInput, InputError, RunMismatch
from embedpipe.fetch import FetchConfig, fetch, make_plan
from embedpipe.fetch.shards.commit import uid
from embedpipe.read import open_reader
from embedpipe.read.grouping import SampleRules
from embedpipe.verify import verify
from tests import shards
from tests.integration.test_fetch import shard_bytes, table_of

CONFIG = FetchConfig(samples_per_shard=4, image_size=32, processes=1, min_image_size=10, resizer="opencv")


def photo(folder, name, seed, caption=None, fields=None, size=(40, 60)):
    path = Path(folder) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(shards.encoded(shards.pixels(seed, *size), "PNG" if name.endswith("png") else "JPEG"))
    if caption is not None:
        path.with_suffix(".txt").write_text(caption)
    if fields is not None:
        path.with_suffix(".json").write_text(fields if isinstance(fields, str) else json.dumps(fields))


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    photo(folder, "a.jpg", 1, "ü cat", {"n": 1, "tags": ["x"], "width": 5, "bad": float("nan")})
    photo(folder, "b/Dr. No.png", 2, "\ufeffa man", None)
    photo(folder, "b/c.jpg", 3, None, {"caption": "from fields"})
    photo(folder, "d.jpg", 4, "")
    photo(folder, "e.jpg", 5, "no fields", "{")
    photo(folder, "f.jpg", 6, "tiny", None, (8, 9))
    photo(folder, "h.jpg", 1, "the same cat")
    (folder / "g.jpg").write_bytes(b"<html>")
    (folder / "i.jpg").write_bytes(b"")
    (folder / "alone.txt").write_text("a caption without an image")
    (folder / "notes.md").write_text("no part of it")
    return folder


def test_every_stem_is_one_row_with_its_caption_fields_or_failure(photos, tmp_path):
    out = str(tmp_path / "out")
    report = fetch(str(photos), out, CONFIG)
    rows = {row["url"]: row for row in table_of(out).to_pylist()}
    assert {url: row["error_class"] for url, row in rows.items()} == {
        "a.jpg": None,
        "alone.txt": "no_image",
        "b/Dr. No.png": None,
        "b/c.jpg": None,
        "d.jpg": None,
        "e.jpg": "sidecar",
        "f.jpg": "too_small",
        "g.jpg": "not_an_image",
        "h.jpg": None,
        "i.jpg": "empty",
    }
    assert (report.rows, report.succeeded, report.shards) == (10, 5, 3)
    captions = {"a.jpg": "ü cat", "b/Dr. No.png": "a man", "b/c.jpg": "from fields", "d.jpg": None}
    assert {url: rows[url]["caption"] for url in captions} == captions
    assert rows["a.jpg"]["uid"] == uid("a.jpg", "ü cat")
    assert "does not parse" in rows["e.jpg"]["error_message"]
    assert (rows["a.jpg"]["original_width"], rows["a.jpg"]["width"]) == (60, 48)
    reader = open_reader(out, SampleRules(need_caption=False))
    samples = [sample for shard in reader.shards([]) for sample in reader.read(shard, hashlib.sha256())]
    assert [s.key for s in samples] == [row["key"] for row in rows.values() if row["status"] == "success"]
    first = samples[0]
    assert Image.open(io.BytesIO(first.image)).size == (48, 32)
    assert {name: first.metadata[name] for name in ("n", "tags", "source_width", "bad", "url")} == {
        "n": 1, "tags": ["x"], "source_width": 5, "bad": None, "url": "a.jpg",
    }  # fmt: skip
    assert verify(out, shards.DEEP).whole


def test_it_goes_on_grows_and_refuses_what_changed(photos, tmp_path):
    out = str(tmp_path / "out")
    chosen = dataclasses.replace(CONFIG, drop_duplicates=True)
    fetch(str(photos), out, chosen)
    assert table_of(out).column("error_class").to_pylist().count("duplicate") == 1  # h.jpg is a.jpg
    expected = shard_bytes(out)
    manifest.retract(out, 1, 5)
    assert fetch(str(photos), out, chosen).shards_now == 1
    assert shard_bytes(out) == expected
    photo(photos, "0.jpg", 9, "sorts first, is numbered last")
    grown = fetch(str(photos), out, chosen)
    assert (grown.shards, grown.shards_now) == (4, 1)
    assert table_of(out).column("url").to_pylist()[-1] == "0.jpg"
    # What failed may be retried; then more may come.
    (photos / "i.jpg").unlink()
    with pytest.raises(RunMismatch, match=r"among the files from e\.jpg|among the files from h\.jpg"):
        fetch(str(photos), out, chosen)


def test_retries_take_images_again(photos, tmp_path):
    out = str(tmp_path / "out")
    chosen = FetchConfig(samples_per_shard=4, processes=1, resizer="opencv")
    first = fetch(str(photos), out, chosen)
    again = fetch(str(photos), out, dataclasses.replace(chosen, retry_failed=True))
    assert again.failed == first.failed
    assert again.retried == 2  # neither e.jpg nor alone.txt
    photo(photos, "z.jpg", 9, "last")
    grown = fetch(str(photos), out, chosen)
    assert (grown.rows, grown.succeeded) == (first.rows + 1, first.succeeded + 1)
    assert verify(out, shards.DEEP).whole


def test_what_a_folder_holds(photos, tmp_path):
    assert make_plan(str(photos), "/nowhere", FetchConfig()).images
    tables = tmp_path / "tables"
    tables.mkdir()
    (tables / "a.txt").write_text("http://a/")
    assert not make_plan(str(tables), "/nowhere", FetchConfig()).images
    (photos / "urls.csv").write_text("url\nhttp://a/\n")
    with pytest.raises(InputError, match=r"contains both images and urls\.csv.*`source='images'` or `source='table'`"):
        make_plan(str(photos), "/nowhere", FetchConfig())
    assert make_plan(str(photos), "/nowhere", FetchConfig(source="images")).images
    (photos / "alone.txt").unlink()
    with pytest.raises(InputError, match="holds csv and json and txt files"):
        make_plan(str(photos), "/nowhere", FetchConfig(source="table"))
    (tables / "a.txt").unlink()
    with pytest.raises(EmptyInput, match="no images in it"):
        make_plan(str(tables), "/nowhere", FetchConfig(source="images"))
    with pytest.raises(InputError, match="no such folder"):
        make_plan(str(tmp_path / "missing"), "/nowhere", FetchConfig(source="images"))


def test_an_output_of_tables_does_not_go_on_with_images(photos, tmp_path):
    pq.write_table(pa.table({"url": ["http://10.0.0.1/"]}), tmp_path / "t.parquet")
    out = str(tmp_path / "out")
    fetch(str(tmp_path / "t.parquet"), out, CONFIG)
    with pytest.raises(RunMismatch, match='source was "table", now "images"'):
        fetch(str(photos), out, CONFIG)


def test_names_that_are_spelled_alike_keep_their_own_pictures(tmp_path):
    """A name that is not UTF-8, and one that is spelled as that one is shown."""
    names = [b"lat\xe9", rb"lat\xe9", rb"lat\x5cxe9"]
    for number, name in enumerate(names):
        photo(
            tmp_path / "in", os.fsdecode(name) + ".png", number, f"caption {number}", {"n": number}, (16, 16 + number)
        )
    out = tmp_path / "out"
    fetch(str(tmp_path / "in"), str(out), CONFIG)
    rows = {row["caption"]: row for row in table_of(out).to_pylist()}
    assert len({row["url"] for row in rows.values()}) == 3
    for number in range(3):
        assert rows[f"caption {number}"]["original_width"] == 16 + number
        assert json.loads(rows[f"caption {number}"]["metadata"]) == {"n": number}
