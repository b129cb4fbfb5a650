"""Samples from parquet tables: columns found or named, every kind of row a sample or a reject, damage told by name."""

import datetime
import decimal
import hashlib
import json
import random
import uuid
import zoneinfo

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedpipe import files
from embedpipe.columns import guess
from embedpipe.errors import EmptyInput, InputError
from embedpipe.read import SampleRules, open_reader
from embedpipe.read.folder import FolderReader
from embedpipe.read.table import TableReader
from embedpipe.read.webdataset import WebdatasetReader
from tests import shards

RULES = SampleRules()


def read(table, tmp_path, rules=RULES, **options):
    return shards.read(open_reader(shards.write_table(tmp_path / "t.parquet", table, **options), rules))


def raw_text(*values):
    """A column of text whose bytes nobody checked."""
    data = b"".join(values)
    ends, total = [0], 0
    for value in values:
        total += len(value)
        ends.append(total)
    offsets = pa.array(ends, pa.int32()).buffers()[1]
    return pa.Array.from_buffers(pa.string(), len(values), [None, offsets, pa.py_buffer(data)])


@pytest.mark.parametrize(
    "form",
    ["{root}/d", "{root}/d/*.parquet", "{root}/d/0.parquet", "d", "d/{{0,1}}.parquet", "file://{root}/d", "memory"],
)
def test_every_way_to_name_tables_reads_them(form, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for i in range(2):
        shards.write_table(tmp_path / "d" / f"{i}.parquet", shards.table(2, 2 * i))
    if form == "memory":
        form = f"memory://{uuid.uuid4().hex}"
        for name in ("0.parquet", "1.parquet"):
            files.write_bytes(f"{form}/{name}", (tmp_path / "d" / name).read_bytes())
    reader = open_reader(form.format(root=tmp_path), RULES)
    found = reader.shards(())
    assert type(reader) is TableReader
    assert [shard.name for shard in found] == ["0.parquet", "1.parquet"][: len(found)]
    samples, rejects = shards.read(reader, found[0])
    assert [(s.key, s.image, s.caption) for s in samples] == [
        (f"{i:05d}", shards.jpeg(i), shards.caption(i)) for i in range(2)
    ]
    assert rejects == []


def test_a_table_beside_what_it_describes_is_no_input(tmp_path):
    described = shards.table(2, image=None)
    for place, others, kind in (
        ("files", [("00000/a.jpg", b"x"), ("00000/a.txt", b"x")], FolderReader),  # img2dataset's `files`
        ("tars", [("00000.tar", b"x")], WebdatasetReader),
        ("images", [("a.jpg", b"x"), ("b.txt", b"x")], FolderReader),
        ("tables", [("README.md", b"x"), ("emb/x.json", b"x")], TableReader),
    ):
        shards.write_table(tmp_path / place / "00000.parquet", described)
        shards.write_files(tmp_path / place, others)
        assert type(open_reader(str(tmp_path / place), RULES)) is kind, place


def test_keys_are_the_column_of_that_name_or_the_rows_number(tmp_path):
    table = shards.table(3, key=["a", None, "ü"], id=[7, 8, 9])
    samples, _ = read(table, tmp_path)
    assert [s.key for s in samples] == ["a", "000000001", "ü"]
    samples, _ = read(table, tmp_path, SampleRules(key_column="id"))
    assert [s.key for s in samples] == ["7", "8", "9"]
    assert samples[0].metadata["key"] == "a"
    samples, _ = read(shards.table(40, key=None), tmp_path)
    assert [s.key for s in samples] == [f"{i:09d}" for i in range(40)]


@pytest.mark.parametrize(
    "column",
    [
        pa.array([b"one", b"two"], pa.binary()),
        pa.array([b"one", b"two"], pa.large_binary()),
        pa.array([b"one", b"two"], pa.binary(3)),
        pa.array([{"bytes": b"one", "path": "1.jpg"}, {"bytes": b"two", "path": None}]),
    ],
    ids=lambda column: str(column.type),
)
def test_images_are_bytes_or_structs_with_bytes(column, tmp_path):
    samples, _ = read(shards.table(2, image=None, pic=column), tmp_path, SampleRules(image_column="pic"))
    assert [s.image for s in samples] == [b"one", b"two"]
    assert samples[0].metadata.keys() == {"number", "label"}


def test_captions_of_every_type_of_text(tmp_path):
    texts = ["a", "b", "a"]
    for column in (
        pa.array(texts),
        pa.array(texts, pa.large_string()),
        pa.array(texts).dictionary_encode(),
    ):
        samples, _ = read(shards.table(3, caption=None, text=column), tmp_path, SampleRules(caption_key="text"))
        assert [s.caption for s in samples] == texts


def test_every_row_is_a_sample_or_a_reject(tmp_path):
    picture = shards.jpeg()
    rows = [
        ("fine", {"bytes": picture, "path": None}, b"ok"),
        ("null", None, b"ok"),
        ("path", {"bytes": None, "path": "a.jpg"}, b"ok"),
        ("zero", {"bytes": b"", "path": None}, b"ok"),
        ("blank", {"bytes": picture, "path": None}, b" \n"),
        ("latin", {"bytes": picture, "path": None}, b"caf\xe9"),
        ("large", {"bytes": picture, "path": None}, b"x" * (1 << 20) + b"y"),
        ("fine", {"bytes": picture, "path": None}, b"again"),
        ("bom", {"bytes": picture, "path": None}, b"\xef\xbb\xbfok"),
    ]
    table = pa.table(
        {"key": [r[0] for r in rows], "image": [r[1] for r in rows], "caption": raw_text(*(r[2] for r in rows))}
    )
    samples, rejects = read(table, tmp_path)
    assert [(s.key, s.index, s.caption) for s in samples] == [("fine", 0, "ok"), ("bom", 8, "ok")]
    assert [(r.key, r.index, r.error_class) for r in rejects] == [
        ("null", 1, "image_missing"),
        ("path", 2, "image_missing"),
        ("zero", 3, "image_empty"),
        ("blank", 4, "caption_missing"),
        ("latin", 5, "caption_encoding"),
        ("large", 6, "caption_too_large"),
        ("fine", 7, "duplicate_key"),
    ]
    nothing = shards.table(2, caption=pa.nulls(2))
    assert [r.error_class for r in read(nothing, tmp_path)[1]] == ["caption_missing"] * 2


def test_other_columns_become_metadata_that_json_can_hold(tmp_path):
    berlin = datetime.datetime(2024, 7, 1, 12, tzinfo=zoneinfo.ZoneInfo("Europe/Berlin"))
    table = shards.table(
        1,
        whole=pa.array([2**40]),
        broken=pa.array([0.5], pa.float32()),
        yes=[True],
        none=pa.nulls(1),
        text=raw_text(b"caf\xe9"),
        category=pa.array(["x"]).dictionary_encode(),
        day=[datetime.date(2024, 2, 29)],
        hour=[datetime.time(1, 2, 3)],
        instant=pa.array([berlin], pa.timestamp("us", "Europe/Berlin")),
        exact=pa.array([1], pa.timestamp("ns")),
        price=[decimal.Decimal("1.50")],
        tags=[["a", None]],
        nested=[{"a": {"b": [1, 2]}, "c": b"\xff"}],
        mask=[b"many bytes"],
        depth=[{"bytes": b"many bytes", "path": None}],
    )
    samples, _ = read(table, tmp_path)
    metadata = samples[0].metadata
    assert metadata == {
        "number": 0,
        "label": "l0",
        "whole": 2**40,
        "broken": 0.5,
        "yes": True,
        "none": None,
        "text": "caf\\xe9",
        "category": "x",
        "day": "2024-02-29",
        "hour": "01:02:03",
        "instant": "2024-07-01 10:00:00.000000Z",
        "exact": "1970-01-01 00:00:00.000000001",
        "price": "1.50",
        "tags": ["a", None],
        "nested": {"a": {"b": [1, 2]}, "c": "/w=="},
    }
    json.dumps(metadata)
    assert guess([metadata])["whole"] == "int64"


@pytest.mark.parametrize(
    ("columns", "rules", "said"),
    [
        (
            {"image": None},
            {},
            r"no column 'image' with image bytes; it has key, caption, number, label.*`image_column`",
        ),
        ({"caption": None}, {}, r"no column 'caption' with text; it has .*`caption_key`; `texts=False`"),
        ({}, {"key_column": "id"}, r"no column 'id' with text or whole numbers.*`key_column`"),
        ({}, {"image_column": "pic"}, r"no column 'pic'"),
        ({"image": ["a.jpg"] * 2}, {}, r"column 'image' holds string, not image bytes"),
        ({"image": [{"path": "a.jpg"}] * 2}, {}, r"column 'image' holds struct<path: string>, not image bytes"),
        ({"caption": [[1, 2]] * 2}, {}, r"column 'caption' holds list<.*>, not text"),
        ({"key": [0.5, 1.5]}, {}, r"column 'key' holds double, not text or whole numbers"),
    ],
)
def test_a_column_that_will_not_do_is_named_with_what_is_there(columns, rules, said, tmp_path):
    with pytest.raises(InputError, match=rf"t\.parquet: {said}"):
        read(shards.table(2, **columns), tmp_path, SampleRules(**rules))


def test_columns_that_are_not_asked_for_need_not_be_there(tmp_path):
    samples, _ = read(shards.table(2, image=None), tmp_path, SampleRules(need_image=False))
    assert [(s.image, s.caption) for s in samples] == [(None, shards.caption(i)) for i in range(2)]
    samples, _ = read(shards.table(2, caption=None), tmp_path, SampleRules(need_caption=False))
    assert [(s.image, s.caption) for s in samples] == [(shards.jpeg(i), None) for i in range(2)]


def test_two_columns_of_one_name_are_refused(tmp_path):
    table = pa.Table.from_arrays([pa.array([b"x"]), pa.array(["a"]), pa.array(["b"])], ["image", "caption", "caption"])
    with pytest.raises(InputError, match="more than one column 'caption'"):
        read(table, tmp_path)


def test_a_table_without_rows_holds_nothing(tmp_path):
    assert read(shards.table(2).slice(0, 0), tmp_path) == ([], [])


def test_damage_never_passes_for_samples(tmp_path):
    place = shards.write_table(tmp_path / "t.parquet", shards.table(8), row_group_size=3, write_page_checksum=True)
    whole = (tmp_path / "t.parquet").read_bytes()
    reader = open_reader(place, RULES)
    expected, _ = shards.read(reader)
    rng = random.Random(0)
    cuts = [whole[: rng.randrange(len(whole))] for _ in range(20)]
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    flips = []
    for _ in range(60):
        changed = bytearray(whole)
        changed[rng.randrange(4, footer)] ^= 1 << rng.randrange(8)
        flips.append(bytes(changed))
    complaints = []
    for data in [b"", b"PAR1" * 100, *cuts, *flips]:
        (tmp_path / "t.parquet").write_bytes(data)
        try:
            found, _ = shards.read(reader)
        except InputError as problem:
            complaints.append(str(problem))
        else:
            # A flipped bit may concern something that nobody reads, such as the statistics of a page.
            assert [(s.key, s.image, s.caption) for s in found] == [(s.key, s.image, s.caption) for s in expected]
    assert len(complaints) >= 2 + len(cuts) + 20
    assert all(place in said and "\n" not in said for said in complaints)


def test_memory_holds_a_few_rows_not_the_table(tmp_path):
    size, count = 200_000, 200
    schema = pa.schema([("image", pa.binary()), ("caption", pa.string())])
    rng = random.Random(0)
    with pq.ParquetWriter(tmp_path / "t.parquet", schema, compression="none", use_dictionary=False) as writer:
        for _ in range(count // 10):
            rows = {"image": [rng.randbytes(size) for _ in range(10)], "caption": ["c"] * 10}
            writer.write_table(pa.table(rows, schema=schema), row_group_size=10)
    reader = open_reader(str(tmp_path / "t.parquet"), RULES)
    before, most = pa.total_allocated_bytes(), 0
    for _ in reader.read(reader.shards(())[0], hashlib.sha256()):
        most = max(most, pa.total_allocated_bytes() - before)
    assert most < 60 * size


def test_no_tables_are_told(tmp_path):
    with pytest.raises(EmptyInput, match=r"no \.parquet files"):
        open_reader(f"{tmp_path}/*.parquet", RULES).shards(())
