"""Metadata columns: one schema for all shards, and no value is ever lost."""

import json
import math

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedpipe.columns import EXTRA, FIXED, guess, optional_string, schema, split_row

scalar = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(2**62, 2**70)
    | st.just(10**400)
    | st.floats()
    | st.text(max_size=5)
    | st.just("\ud800lone")
)
value = st.recursive(
    scalar,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("xyz"), inner, max_size=2),
    max_leaves=4,
)
name = st.sampled_from(["a", "b", "c", "key", "url", "similarity", "width", EXTRA, "", "\ud800", "é"])
row = st.dictionaries(name, value, max_size=5)


def _comparable(value):
    """As JSON tells it; NaN and infinities as their names."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {k: _comparable(v) for k, v in value.items()}
    return [_comparable(v) for v in value] if isinstance(value, list) else value


def _same(stored, given):
    if isinstance(stored, str) and not isinstance(given, str):
        stored = json.loads(stored)
    return _comparable(stored) == _comparable(given)


@given(st.lists(row, max_size=3), row)
def test_every_value_is_in_its_column_or_in_extra(first, other):
    columns = guess(first)
    stored = {"key": "k", "url": None, "width": 3, "similarity": 0.5}
    for metadata in (*first, other):
        found = split_row(metadata, columns, stored)
        assert set(found) == {*columns, EXTRA}
        extra = json.loads(found[EXTRA]) if found[EXTRA] is not None else {}
        for field, given_value in metadata.items():
            if given_value is None:
                continue
            if field in extra:
                assert _comparable(given_value) == extra[field]
            elif field in columns:
                assert _same(found[field], given_value)
            else:
                assert stored[field] == given_value


@given(st.lists(row, max_size=3), st.lists(row, min_size=1, max_size=3))
def test_shards_whose_values_differ_have_one_schema_and_can_be_written(first, others):
    columns = guess(first)
    expected = schema(columns)
    rows = [split_row(metadata, columns, {}) for metadata in others]
    table = pa.table(
        {
            **{field: [None] * len(rows) for field in FIXED},
            **{field: [found[field] for found in rows] for field in (*columns, EXTRA)},
        },
        schema=expected,
    )
    assert table.schema == expected
    assert table.num_rows == len(others)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1, 2], "int64"),
        ([1, None], "int64"),
        ([1, 2.5], "double"),
        ([True, False], "bool"),
        ([True, 1], "string"),
        ([2**63], "string"),
        (["a", 1], "string"),
        ([{"x": 1}], "string"),
        ([None], "string"),
        ([float("nan")], "double"),
    ],
)
def test_a_column_has_the_narrowest_type_that_holds_what_was_seen(values, kind):
    assert guess([{"a": v} for v in values]) == {"a": kind}


def test_a_whole_number_too_large_for_a_double_is_kept_exactly():
    found = split_row({"a": 2**53 + 1, "b": 10**400}, {"a": "double", "b": "double"}, {})
    assert found["a"] is None
    assert found["b"] is None
    assert json.loads(found[EXTRA]) == {"a": 2**53 + 1, "b": 10**400}


def test_a_reserved_name_is_extra_when_it_says_something_else():
    stored = {"key": "00001", "sha256": "aa", "similarity": 0.25}
    found = split_row({"key": "00001", "sha256": "bb", "similarity": 0.31}, {}, stored)
    assert json.loads(found[EXTRA]) == {"sha256": "bb", "similarity": 0.31}


def test_extra_is_proper_json_even_for_nan():
    found = split_row({"deep": [float("nan"), {"x": float("inf")}]}, {}, {})
    assert json.loads(found[EXTRA], parse_constant=pytest.fail) == {"deep": ["nan", {"x": "inf"}]}


def test_a_url_that_cannot_be_stored_is_none():
    assert optional_string("http://x") == "http://x"
    assert optional_string(3) is None
    assert optional_string("\ud800") is None


def test_what_is_not_there_is_null_in_columns_of_any_type():
    columns = {"text": "string", "list": "string", "number": "int64", "flag": "bool"}
    row = split_row(dict.fromkeys(columns), columns, {})
    assert row == {**dict.fromkeys(columns), EXTRA: None}
