"""Columns of any type pass through a fetch: into the parquet as they are, into JSON in a form that JSON has."""

import datetime
import decimal
import json

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedpipe.fetch import FetchConfig, make_plan
from embedpipe.fetch.planned_rows import planned_urls, shard_rows
from embedpipe.fetch.shards.commit import json_safe, uid

WHEN = datetime.datetime(2020, 1, 2, 3, 4, 5, 678901)
COLUMNS = {
    "decimal": pa.array([decimal.Decimal("1.50"), None], pa.decimal128(10, 2)),
    "struct": pa.array([{"a": 1, "b": {"c": [WHEN]}}, None]),
    "structs": pa.array([[{"a": 1.5}, None], []]),
    "map": pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int8())),
    "nested": pa.array([[[1], None, []], None], pa.list_(pa.list_(pa.int16()))),
    "fixed": pa.array([[1.0, 2.0], None], pa.list_(pa.float16(), 2)),
    "duration": pa.array([datetime.timedelta(seconds=3), None]),
    "time": pa.array([datetime.time(1, 2), None]),
    "date": pa.array([datetime.date(2020, 1, 1), None]),
    "zoned": pa.array([WHEN, None], pa.timestamp("us", "Europe/Berlin")),
    "nanos": pa.array([1, None], pa.timestamp("ns")),
    "binary": pa.array([b"\xff\0", None]),
    "category": pa.array(["x", None]).dictionary_encode(),
    "large": pa.array(["x" * 100, None], pa.large_string()),
    "unsigned": pa.array([2**64 - 1, None], pa.uint64()),
    "nothing": pa.nulls(2),
    "a.b": pa.array([1, None]),
    "sha256": pa.array(["theirs", None]),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_a_column_keeps_its_type_and_has_a_form_in_json(tmp_path, name):
    source = pa.table({"url": ["http://a/", "http://b/"], name: COLUMNS[name]})
    pq.write_table(source, tmp_path / "t.parquet")
    plan = make_plan(str(tmp_path / "t.parquet"), "/nowhere", FetchConfig(samples_per_shard=1))
    tables = [table for _, table in shard_rows(plan, frozenset({0, 1}))]
    found = pa.concat_tables(tables).column("source_sha256" if name == "sha256" else name)
    kept = pq.read_table(tmp_path / "t.parquet").column(name)
    assert found.type == kept.type
    assert found.to_pylist() == kept.to_pylist()
    json.dumps(json_safe(found.to_pylist()), allow_nan=False)
    assert list(planned_urls(plan)) == [((0, 0), "http://a/"), ((1, 0), "http://b/")]


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.datetimes() | st.timedeltas()
    | st.decimals(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.integers(), inner, max_size=3),
)  # fmt: skip


@given(values)
def test_any_value_has_a_form_in_json(value):
    safe = json_safe(value)
    assert json.loads(json.dumps(safe, allow_nan=False)) == safe


@pytest.mark.parametrize("name", ["t.csv", "t.tsv.gz", "t.txt", "t.jsonl", "t.parquet"])
def test_tables_on_any_file_system(name):
    import gzip
    import io

    url = f"memory://fetch-tables/{name}"
    sink = io.BytesIO()
    pq.write_table(pa.table({"url": ["http://a/,b"]}), sink)
    text = {"csv": 'url\n"http://a/,b"\n', "tsv": "url\nhttp://a/,b\n", "txt": "http://a/,b\n"}
    data = text.get(name.split(".")[1], '{"url": "http://a/,b"}\n').encode()
    data = sink.getvalue() if name.endswith("parquet") else gzip.compress(data) if name.endswith("gz") else data
    with fsspec.open(url, "wb") as stream:
        stream.write(data)
    plan = make_plan(url, "/nowhere", FetchConfig())
    assert [url for _, url in planned_urls(plan)] == ["http://a/,b"]


def test_the_uid_is_what_it_always_was():
    # Written down: a change would part old shards from new ones.
    assert uid("http://a/", "cü") == "5728681b339c08cc51c15423cf3b22d0"
    assert len({uid("a", None), uid("a", ""), uid(None, "a"), uid("a,", "b"), uid("a", ",b")}) == 5
