"""Url tables of every kind are read as they are written, or refused with a line that says where."""

import bz2
import datetime
import gzip
import json
import lzma
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedpipe.errors import EmptyInput, InputError
from embedpipe.fetch import FetchConfig, make_plan
from embedpipe.fetch import plan as plan_module
from embedpipe.fetch.planned_rows import shard_rows
from embedpipe.read.delimited import Dialect
from embedpipe.read.tables import delimited, json_table
from embedpipe.read.tables.table import locate_tables
from embedpipe.read.tables.table_file import TableFile

URLS = ["http://example.org/a,b.jpg", "http://example.org/c.jpg"]
CSV = 'url,caption,zip,n,score,ok\n"http://example.org/a,b.jpg","a ""b""\nc",007,1,0.5,true\nhttp://example.org/c.jpg,,12,,2,\n'


def rows(urls, out="/nowhere", **options):
    plan = make_plan(str(urls), out, FetchConfig(**options))
    tables = [table for _, table in shard_rows(plan, frozenset(range(len(plan.shards))))]
    return pa.concat_tables(tables)


def written(folder: Path, name: str, content: str) -> Path:
    path = folder / name
    data = content.encode()
    path.write_bytes(PACK.get(name.rpartition(".")[2], bytes)(data))
    return path


PACK = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": pa.Codec("zstd").compress}


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t.csv.bz2", "t.csv.xz", "t.csv.zst"])
def test_csv_values_stay_text_unless_types_are_asked_for(tmp_path, name):
    table = rows(written(tmp_path, name, CSV))
    assert set(table.schema.types) == {pa.string()}
    assert table.column("score").to_pylist() == ["0.5", "2"]
    table = rows(tmp_path / name, infer_types=True)
    assert table.to_pydict() == {
        "url": URLS,
        "caption": ['a "b"\nc', ""],
        "zip": ["007", "12"],  # as a number it would lose its zeros
        "n": [1, None],
        "score": [0.5, 2.0],
        "ok": [True, None],
    }
    assert [str(t) for t in table.schema.types] == ["string", "string", "string", "int64", "double", "bool"]


def test_captions_with_line_breaks_may_lie_across_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(delimited, "_ROWS", 7)
    captions = [f"line {i}\nand more,\n{'x' * (i % 30)}" for i in range(60)]
    text = "url,caption\n" + "".join(f'http://a/{i},"{caption}"\n' for i, caption in enumerate(captions))
    table = rows(written(tmp_path, "t.csv", text))
    assert table.column("caption").to_pylist() == captions
    assert table.column("url").to_pylist() == [f"http://a/{i}" for i in range(60)]


def test_many_lines_come_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(delimited, "_ROWS", 4)
    urls = [f"http://a/{i}" for i in range(10)]
    path = written(tmp_path, "t.txt", "\ufeff" + "\n".join(urls))
    file = TableFile(str(path), "t.txt", "txt", dialect=Dialect("", "none", "utf-8-sig"))
    assert [len(batch) for batch in delimited.line_batches(file)] == [4, 4, 2]
    assert rows(tmp_path / "t.txt").column("url").to_pylist() == urls


def test_tsv(tmp_path):
    table = rows(
        written(tmp_path, "t.tsv", "TEXT\tURL\na, b\thttp://example.org/c.jpg\n"), url_col="URL", caption_col="TEXT"
    )
    assert table.to_pydict() == {"url": [URLS[1]], "caption": ["a, b"]}


def test_a_txt_url_may_hold_a_comma_and_blank_lines_are_no_rows(tmp_path):
    table = rows(written(tmp_path, "t.txt", "\n".join([URLS[0], "", URLS[1], ""])))
    assert table.to_pydict() == {"url": URLS, "caption": [None, None]}


JSON_ROWS = [{"url": URLS[0], "tags": ["x"], "n": 1}, {"url": URLS[1], "caption": "ü\ud83d", "n": 2.5}]


@pytest.mark.parametrize("chunk", [3, 1 << 20])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.jsonl", "\n".join(json.dumps(row) for row in JSON_ROWS) + "\n\n"),
        ("t.json.gz", json.dumps(JSON_ROWS, indent=1)),
        ("t.json", "\n".join(json.dumps(row) for row in JSON_ROWS)),
    ],
)
def test_json_in_its_shapes(tmp_path, monkeypatch, name, text, chunk):
    monkeypatch.setattr(json_table, "_CHUNK", chunk)
    monkeypatch.setattr(json_table, "_ROWS", 1)  # types must agree over blocks
    table = rows(written(tmp_path, name, text))
    assert table.to_pydict() == {
        "url": URLS,
        "caption": [None, "ü?"],
        "tags": [["x"], None],
        "n": [1.0, 2.5],
    }


def test_parquet_columns_keep_their_types(tmp_path):
    source = pa.table(
        {
            "url": pa.array(URLS, pa.large_string()),
            "caption": pa.array(["a", None]).dictionary_encode(),
            "when": pa.array([datetime.datetime(2020, 1, 2), None], pa.timestamp("ms", "UTC")),
            "box": pa.array([[1.5, 2], None], pa.list_(pa.float32())),
            "key": pa.array([7, 8], pa.uint8()),
        }
    )
    pq.write_table(source, tmp_path / "t.parquet")
    table = rows(tmp_path / "t.parquet", samples_per_shard=1)
    assert table.column("caption").to_pylist() == ["a", None]
    assert table.schema.field("when").type == pa.timestamp("ms", "UTC")
    assert table.schema.field("box").type == pa.list_(pa.float32())
    assert table.column("source_key").to_pylist() == [7, 8]  # `key` is ours


def test_a_folder_is_read_in_the_order_of_names_and_its_types_are_joined(tmp_path):
    written(tmp_path, "b.csv", "url,n,zip\nhttp://b/,1.5,x\n")
    written(tmp_path, "a.csv", "url,n,zip\nhttp://a/,1,2\n")
    assert rows(tmp_path).column("n").to_pylist() == ["1", "1.5"]
    table = rows(tmp_path, infer_types=True)
    assert table.column("url").to_pylist() == ["http://a/", "http://b/"]
    assert table.column("n").to_pylist() == [1.0, 1.5]
    assert table.column("zip").to_pylist() == ["2", "x"]


def test_a_glob_names_files_below_its_fixed_part(tmp_path):
    (tmp_path / "x").mkdir()
    written(tmp_path / "x", "a.txt", "http://a/")
    assert [file.name for file in locate_tables(f"{tmp_path}/*/a.txt")] == ["x/a.txt"]


def test_shards_are_cut_in_order_and_never_span_files(tmp_path):
    written(tmp_path, "a.txt", "\n".join(f"http://a/{i}" for i in range(5)))
    written(tmp_path, "b.txt", "http://b/0")
    plan = make_plan(str(tmp_path), "/nowhere", FetchConfig(samples_per_shard=2))
    assert [shard.source.name for shard in plan.shards] == ["a.txt:0-1", "a.txt:2-3", "a.txt:4-4", "b.txt:0-0"]
    chosen = {shard.number: table.column("url").to_pylist() for shard, table in shard_rows(plan, frozenset({1, 3}))}
    assert chosen == {1: ["http://a/2", "http://a/3"], 3: ["http://b/0"]}


def test_a_table_that_grows_while_it_is_counted_is_refused(tmp_path, monkeypatch):
    """Else its hash would be that of the longer table, and the rows that nobody counted be lost for good."""
    path = written(tmp_path, "t.txt", "http://a/0\n")
    count = plan_module.table.survey

    def slowly(file, options):
        found = count(file, options)
        path.write_text(path.read_text() + "http://a/1\n")
        return found

    monkeypatch.setattr(plan_module.table, "survey", slowly)
    with pytest.raises(InputError, match=r"t\.txt: changed while it was read"):
        make_plan(str(path), "/nowhere", FetchConfig())


def test_a_table_that_is_replaced_while_it_is_fetched_ends_the_run(tmp_path):
    lines = [f"http://a/{i}\n" for i in range(4)]
    path = written(tmp_path, "t.txt", "".join(lines))
    plan = make_plan(str(path), "/nowhere", FetchConfig(samples_per_shard=2))
    shards = shard_rows(plan, frozenset({0, 1}))
    assert next(shards)[1].column("url").to_pylist() == ["http://a/0", "http://a/1"]
    path.write_text("".join(reversed(lines)))
    with pytest.raises(InputError, match="changed since the run began"):
        next(shards)
    path.write_text("".join(lines))  # the same again, with a new date
    assert [shard.number for shard, _ in shard_rows(plan, frozenset({0, 1}))] == [0, 1]


@pytest.mark.parametrize(
    ("name", "content", "kind", "words"),
    [
        ("t.csv", "", EmptyInput, "empty"),
        ("t.csv", "url\n", EmptyInput, "no rows"),
        ("t.txt", "\n\n", EmptyInput, "no rows"),
        ("t.csv", "url,url\na,b\n", InputError, "'url' is there twice"),
        ("t.csv", "url,caption\na,b\nc,d,e\n", InputError, r"line 3: 3 fields where the header has 2: 'c,d,e'"),
        ("t.csv", "link,caption\na,b\n", InputError, "no column 'url'.*caption, link.*`url_col`"),
        ("t.csv", "urls,caption\na,b\n", InputError, "Did you mean urls"),
        ("t.jsonl", '{"url": 1}\nurl\n', InputError, "line 2: not JSON"),
        ("t.jsonl", "[1]\n", InputError, "object 1: a int, not an object"),
        ("t.json", '[{"url": "a"}, {"ur', InputError, "object 2: .*cut off"),
        ("t.parquet", "PAR1", InputError, "cannot be read as parquet"),
        ("t.xls", "", InputError, "not a kind of table.*parquet, csv, tsv"),
    ],
)
def test_what_cannot_be_read_is_said_with_its_place(tmp_path, name, content, kind, words):
    path = written(tmp_path, name, content)
    with pytest.raises(kind, match=words) as caught:
        rows(path)
    assert name in str(caught.value) or kind is EmptyInput


def test_not_gzip_and_not_there_and_mixed_folders(tmp_path):
    (tmp_path / "t.csv.gz").write_bytes(b"url\nhttp://a/\n")
    with pytest.raises(InputError, match=r"t\.csv\.gz: cannot be unpacked as .gz"):
        rows(tmp_path / "t.csv.gz")
    with pytest.raises(InputError, match="no such file"):
        rows(tmp_path / "missing.csv")
    with pytest.raises(InputError, match="no file matches"):
        rows(tmp_path / "*.tsv")
    written(tmp_path, "README.txt", "hello")
    with pytest.raises(InputError, match=r"holds csv and txt files.*pattern"):
        rows(tmp_path)


def test_an_explicit_caption_column_must_be_there_a_default_one_need_not(tmp_path):
    path = written(tmp_path, "t.csv", "url,TEXT\na,b\n")
    assert rows(path).column("caption").to_pylist() == [None]
    with pytest.raises(InputError, match=r"no column 'text'.* Did you mean TEXT"):
        rows(path, caption_col="text")


def test_blank_lines_are_counted_and_a_table_without_rows_is_said(tmp_path, caplog):
    written(tmp_path, "a.txt", f"\n{URLS[0]}\n  \n\n{URLS[1]}\n")
    written(tmp_path, "b.txt", "\n")
    plan = make_plan(str(tmp_path), "/nowhere", FetchConfig())
    assert plan.rows == 2
    assert plan.run.listing.passed_over == {"blank_line": 4}
    assert "b.txt: no rows in it" in caplog.text
