"""Values of a table pass through a plan unchanged, or the table is refused before anything is fetched."""

import csv
import dataclasses
import io
import json
import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedpipe import manifest
from embedpipe.errors import InputError, RunMismatch
from embedpipe.fetch import FetchConfig, make_plan
from embedpipe.fetch.planned_rows import shard_rows
from embedpipe.fetch.tables.schema import FIXED

U = "http://a/"


def planned(urls, out="/nowhere", **options):
    plan = make_plan(str(urls), str(out), FetchConfig(**options))
    return pa.concat_tables(table for _, table in shard_rows(plan, frozenset(range(len(plan.shards)))))


def jsonl(folder, *rows):
    (folder / "t.jsonl").write_text("".join(json.dumps({"url": U, **row}) + "\n" for row in rows))
    return folder / "t.jsonl"


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([2**63, 1], pa.uint64()),
        ([2**63 - 1, -1], pa.int64()),
        ([2**63, -1], pa.string()),
        ([2**64], pa.string()),
        ([2**53 + 1, 0.5], pa.string()),
        ([2**53, 0.5], pa.float64()),
        ([[2**63], [], None], pa.list_(pa.uint64())),
        ([[1], ["a"]], pa.string()),
        ([{"a": 1}, {"a": None}], pa.struct([("a", pa.int64())])),
        ([{"a": 1}, {"b": 1}], pa.string()),
        ([{}], pa.string()),
        ([True, 1], pa.string()),
        ([None], pa.string()),
    ],
)
def test_json_values_have_a_type_that_holds_them_all(tmp_path, monkeypatch, values, kind):
    for rows_at_once in (1, 5000):
        monkeypatch.setattr("embedpipe.read.tables.json_table._ROWS", rows_at_once)
        column = planned(jsonl(tmp_path, *({"x": value} for value in values))).column("x")
        assert column.type == kind
        as_text = pa.types.is_string(kind)
        found = [json.loads(value) if as_text and value is not None else value for value in column.to_pylist()]
        assert found == values


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([2**53 + 1, 0.5], pa.string()),
        ([2**53, 0.5], pa.float64()),
        ([2**64 - 1, -1], pa.string()),
        ([{"a": 1}, {"a": 2, "b": 3}], pa.string()),
        ([{"b": 1, "a": 2}, {"a": 2, "b": 3}], pa.string()),
        ([[{"a": 1}], [{"a": 2, "b": 3}]], pa.string()),
        ([{"a": 1}, {"a": 0.5}], pa.struct([("a", pa.float64())])),
        ([[1], [0.5]], pa.list_(pa.float64())),
        ([1, "x"], pa.string()),
    ],
)
def test_json_values_of_two_files_have_a_type_that_holds_them_all(tmp_path, values, kind):
    for name, order in (("one", values), ("other", values[::-1])):
        for part, value in enumerate(order):
            (tmp_path / name / f"{part}").mkdir(parents=True)
            jsonl(tmp_path / name / f"{part}", {"x": value}).rename(tmp_path / name / f"{part}.jsonl")
        column = planned(tmp_path / name).column("x")
        assert column.type == kind
        found = [
            json.loads(value) if pa.types.is_string(kind) and not isinstance(wanted, str) else value
            for value, wanted in zip(column.to_pylist(), order, strict=True)
        ]
        assert found == order


def test_numbers_of_two_csv_files_keep_their_digits(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.csv").write_text(f"url,n,m\n{U},123456789012345678,1\n")
    (tmp_path / "in" / "b.csv").write_text(f"url,n,m\n{U},0.5,0.5\n")
    found = planned(tmp_path / "in", infer_types=True)
    assert found.column("n").to_pylist() == ["123456789012345678", "0.5"]
    assert found.column("m").to_pylist() == [1.0, 0.5]


def test_numbers_of_a_later_csv_file_keep_their_digits_or_are_refused(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.csv").write_text(f"url,n\n{U},0.5\n")
    plan = make_plan(str(tmp_path / "in"), str(tmp_path / "out"), FetchConfig(infer_types=True))
    manifest.write_run(str(tmp_path / "out"), plan.run)
    (tmp_path / "in" / "b.csv").write_text(f"url,n\n{U},2\n")
    assert planned(tmp_path / "in", tmp_path / "out", infer_types=True).column("n").to_pylist() == [0.5, 2.0]
    (tmp_path / "in" / "b.csv").write_text(f"url,n\n{U},123456789012345678\n")
    with pytest.raises(RunMismatch, match=r"b\.csv has a column n of int64, in the shards so far it is double"):
        planned(tmp_path / "in", tmp_path / "out", infer_types=True)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("t.jsonl", f'{{"url": "{U}"}}\n{{"url": "{U}", "a": 1, "a": 2}}\n', "line 2: the field 'a' is there twice"),
        ("t.jsonl", f'{{"url": "{U}", "x": {{"a": 1, "a": 2}}}}\n', "line 1: the field 'a' is there twice"),
        ("t.json", f'[{{"url": "{U}"}}, {{"url": "{U}", "a": 1, "a": 2}}]', "object 2: the field 'a' is there twice"),
        ("t.jsonl", '{"url": "\\ud800", "\\ud800": 1}', "has a name that is no text"),
        ("t.csv", "url,,\nx,,\n", "the column '' is there twice"),
        ("t.txt", f"url\tcaption\n{U}\tx\n", r"has columns.*\.tsv"),
    ],
)
def test_what_would_lose_a_value_is_refused(tmp_path, name, text, said):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=said):
        planned(tmp_path / name)


def test_parquet_with_two_columns_of_one_name_is_refused(tmp_path):
    pq.write_table(
        pa.Table.from_arrays([pa.array([U])] * 3, names=["url", "caption", "caption"]), tmp_path / "t.parquet"
    )
    with pytest.raises(InputError, match="the column 'caption' is there twice"):
        planned(tmp_path / "t.parquet")


def test_bytes_that_are_no_text_are_refused_as_urls(tmp_path):
    pq.write_table(pa.table({"url": [b"http://a/\xff"]}), tmp_path / "t.parquet")
    with pytest.raises(InputError, match="the column 'url' does not fit string"):
        planned(tmp_path / "t.parquet")
    pq.write_table(pa.table({"url": [U.encode()]}), tmp_path / "t.parquet")
    assert planned(tmp_path / "t.parquet").column("url").to_pylist() == [U]


def test_a_column_without_a_name_has_one_in_the_shards(tmp_path):
    (tmp_path / "t.csv").write_text(f",url,key\n0,{U},k\n")  # as pandas writes its index
    assert planned(tmp_path / "t.csv").to_pydict() == {
        "url": [U],
        "caption": [None],
        "unnamed": ["0"],
        "source_key": ["k"],
    }


names = st.sampled_from(["a", "b c", "ü", "key", "width", "source_key", "a.b", "", "sha256"])
scalars = {
    "text": st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=5),
    "int": st.integers(-(2**70), 2**70) | st.integers(-9, 9),
    "float": st.floats(allow_nan=False, allow_infinity=False),
    "bool": st.booleans(),
}
values = st.none() | st.one_of(*scalars.values())
nested = st.recursive(
    values, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("xyz"), inner, max_size=2)
)
columns = st.sampled_from([*scalars.values(), values, nested])


@st.composite
def tables(draw, cells):
    chosen = draw(st.lists(names, unique=True, max_size=3))
    kinds = {name: draw(cells) for name in chosen}
    return [{name: draw(kinds[name]) for name in chosen} for _ in range(draw(st.integers(1, 4)))]


def shard_name(name):
    return "unnamed" if name == "" else f"source_{name}" if name in FIXED.names else name


@given(tables(columns), st.sampled_from(["t.jsonl", "t.json"]))
def test_json_rows_come_out_as_they_went_in(tmp_path_factory, rows, ending):
    folder = tmp_path_factory.mktemp("json")
    full = [{"url": U, **row} for row in rows]
    text = json.dumps(full) if ending == "t.json" else "".join(json.dumps(row) + "\n" for row in full)
    (folder / ending).write_text(text)
    found = planned(folder / ending)
    for name in rows[0]:
        if name == "key" and "source_key" in rows[0]:
            continue  # renamed twice
        column = found.column(shard_name(name))
        for value, row in zip(column.to_pylist(), rows, strict=True):
            wanted = row[name]
            if pa.types.is_string(column.type) and not isinstance(wanted, str) and wanted is not None:
                value = json.loads(value)
            assert value == wanted
            assert isinstance(value, bool) == isinstance(wanted, bool)
    sink = io.BytesIO()
    pq.write_table(found, sink)
    assert pq.read_table(sink).equals(found)


@given(tables(st.just(scalars["text"])), st.sampled_from([",", "\t", ";"]), st.sampled_from(["utf-8", "utf-16"]))
def test_csv_values_come_out_as_they_went_in(tmp_path_factory, rows, delimiter, encoding):
    folder = tmp_path_factory.mktemp("csv")
    sink = io.StringIO()
    csv.writer(sink, delimiter=delimiter).writerows([["url", *rows[0]], *([U, *row.values()] for row in rows)])
    (folder / "t.csv").write_bytes(sink.getvalue().encode(encoding))
    found = planned(folder / "t.csv", delimiter=delimiter)
    for name in rows[0]:
        if name == "key" and "source_key" in rows[0]:
            continue
        assert found.column(shard_name(name)).to_pylist() == [row[name] for row in rows]


def test_numbers_are_inferred_only_when_asked_for(tmp_path):
    (tmp_path / "t.csv").write_text(f"url,version,zip,id\n{U},1.10,007,9223372036854775808\n")
    assert planned(tmp_path / "t.csv").select(["version", "zip", "id"]).to_pylist() == [
        {"version": "1.10", "zip": "007", "id": "9223372036854775808"}
    ]
    assert math.isclose(planned(tmp_path / "t.csv", infer_types=True).column("version").to_pylist()[0], 1.1)


def test_an_output_of_an_earlier_version_goes_on_as_it_began(tmp_path):
    """Its plan knows no dialects: types are inferred, quotes taken leniently, also in files that are added."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.tsv").write_text(f'url\tn\tcaption\n{U}1\t1.10\t"Hello" she said\n')
    plan = make_plan(str(tmp_path / "in"), str(tmp_path / "out"), FetchConfig(infer_types=True))
    (entry,) = plan.run.options["inputs"]
    assert entry["dialect"] == {"delimiter": "\t", "encoding": "utf-8-sig", "quoting": "none"}
    earlier = {**plan.run.options, "inputs": [{name: entry[name] for name in entry if name != "dialect"}]}
    assert earlier.pop("infer_types") is True
    manifest.write_run(str(tmp_path / "out"), dataclasses.replace(plan.run, options=earlier))
    (tmp_path / "in" / "b.tsv").write_text(f"url\tn\tcaption\n{U}2\t2\tx\n")
    for _ in range(2):
        plan = make_plan(str(tmp_path / "in"), str(tmp_path / "out"), FetchConfig())
        assert "infer_types" not in plan.run.options
        manifest.write_run(str(tmp_path / "out"), plan.run)
        found = planned(tmp_path / "in", tmp_path / "out")
        assert found.column("n").to_pylist() == [1.1, 2.0]
        assert found.column("caption").to_pylist() == ["Hello she said", "x"]
    with pytest.raises(RunMismatch, match=r"a\.tsv was read with quoting None, now it is 'none'"):
        planned(tmp_path / "in", tmp_path / "out", quoting="none")


def test_an_output_keeps_the_dialect_of_its_files(tmp_path):
    (tmp_path / "t.csv").write_text(f'url,caption\n{U},"a"\n')
    plan = make_plan(str(tmp_path / "t.csv"), str(tmp_path / "out"), FetchConfig(quoting="none"))
    manifest.write_run(str(tmp_path / "out"), plan.run)
    assert planned(tmp_path / "t.csv", tmp_path / "out").column("caption").to_pylist() == ['"a"']
    assert planned(tmp_path / "t.csv", tmp_path / "out", quoting="none", encoding="utf8").num_rows == 1
    with pytest.raises(RunMismatch, match="was read with quoting 'none', now it is 'minimal'"):
        planned(tmp_path / "t.csv", tmp_path / "out", quoting="minimal")
    with pytest.raises(RunMismatch, match="infer_types was false, now true"):
        planned(tmp_path / "t.csv", tmp_path / "out", infer_types=True)


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_of_a_list_of_captions_the_first_is_the_caption_and_the_list_stays(tmp_path, ending):
    captions = [["a", "b"], ["c"], [], None]
    if ending == "jsonl":
        path = jsonl(tmp_path, *({"caption": value} for value in captions))
    else:
        path = tmp_path / "t.parquet"
        pq.write_table(pa.table({"url": [U] * 4, "caption": captions}), path)
    found = planned(path)
    assert found.column("caption").to_pylist() == ["a", "c", None, None]
    assert found.column("source_caption").to_pylist() == captions


def test_lists_of_captions_among_texts_are_read_as_lists(tmp_path):
    (tmp_path / "in").mkdir()
    captions = ["a", ["", "b"], None, '["c"]', []]
    jsonl(tmp_path / "in", *({"caption": value, "tags": value} for value in captions))
    (tmp_path / "in" / "u.jsonl").write_text(json.dumps({"url": U, "caption": ["d", "e"], "tags": "f"}) + "\n")
    found = planned(tmp_path / "in")
    assert found.column("caption").to_pylist() == ["a", "b", None, '["c"]', None, "d"]
    assert found.column("tags").to_pylist() == ["a", '["", "b"]', None, '["c"]', "[]", "f"]


@pytest.mark.parametrize("depth", [32, 33, 120, 400])
@pytest.mark.parametrize("wrapped", [lambda value: [value], lambda value: {"a": value}])
def test_deep_values_never_make_a_shard_that_nobody_can_open(tmp_path, depth, wrapped):
    value = 1
    for _ in range(depth):
        value = wrapped(value)
    found = planned(jsonl(tmp_path, {"x": value}))
    pq.write_table(found, tmp_path / "shard.parquet")
    column = pq.read_table(tmp_path / "shard.parquet").column("x")
    if depth > 32:
        column = pa.array(map(json.loads, column.to_pylist()))
    assert column.to_pylist() == [value]


@pytest.mark.parametrize(("ending", "outer"), [("jsonl", "%s\n"), ("json", "[%s]")])
def test_json_too_deep_to_be_parsed_is_named(tmp_path, ending, outer):
    row = '{"url": "u", "x": ' + "[" * 50_000 + "]" * 50_000 + "}"
    (tmp_path / f"t.{ending}").write_text(outer % row)
    with pytest.raises(InputError, match=r"(line|object) 1: .*recursion"):
        planned(tmp_path / f"t.{ending}")


@pytest.mark.parametrize("gap", ["\n", " " * 100, ","])
def test_nothing_behind_the_end_of_an_array_is_left_unread(tmp_path, monkeypatch, gap):
    monkeypatch.setattr("embedpipe.read.tables.json_table._CHUNK", 32)
    array = json.dumps([{"url": U, "n": number} for number in range(3)])
    (tmp_path / "t.json").write_text(array + gap.replace(",", " "))
    assert planned(tmp_path / "t.json").num_rows == 3
    (tmp_path / "t.json").write_text(array + gap + array)
    with pytest.raises(InputError, match=r"behind the end of the array"):
        planned(tmp_path / "t.json")
