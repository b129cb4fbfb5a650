"""Conditions mean what SQL says they mean, and whatever is typed is either a condition or a clear error."""

import contextlib
import sqlite3

import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from embedpipe.curate.filter.expression import FUNCTIONS, parse_condition
from embedpipe.errors import InputError

COLUMNS = {
    "width": pa.array([100, 300, None, 256, -3]),
    "score": pa.array([0.5, None, 2.0, -1.5, 0.0]),
    "caption": pa.array(["a cat", "it's", None, "", "Ünï%_"]),
    "safe": pa.array([True, None, False, True, False]),
    "a b": pa.array([1, 2, 3, 4, 5]),
}
TYPES = {name: column.type for name, column in COLUMNS.items()}


def mask(text):
    return parse_condition(text, TYPES).mask(COLUMNS, 5).to_pylist()


def sqlite_says(text):
    with sqlite3.connect(":memory:") as base:
        base.execute("pragma case_sensitive_like = on")
        base.create_function(
            "lower", 1, lambda text: None if text is None else text.lower()
        )  # its own knows ASCII only
        names = ", ".join(f'"{name}"' for name in COLUMNS)
        base.execute(f"create table rows (place, {names})")
        rows = zip(range(5), *(column.to_pylist() for column in COLUMNS.values()), strict=True)
        base.executemany(f"insert into rows values (?{', ?' * len(COLUMNS)})", rows)
        found = base.execute(f"select {text} from rows order by place").fetchall()
    return [None if value is None else bool(value) for (value,) in found]


numbers = st.sampled_from(["width", "score", '"a b"', "1", "256", "0.5", "-2", "1e2"])
sums = st.recursive(
    numbers,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from("+-*"), inner).map(lambda parts: f"({' '.join(parts)})"),
        inner.map(lambda part: f"- {part}"),
        inner.map(lambda part: f"abs({part})"),
    ),
    max_leaves=4,
)
texts = st.sampled_from(["caption", "'a cat'", "'it''s'", "''", "lower(caption)"])
comparisons = st.one_of(
    st.tuples(sums, st.sampled_from(["=", "==", "!=", "<>", "<", "<=", ">", ">="]), sums).map(" ".join),
    st.tuples(texts, st.sampled_from(["=", "!=", "<", ">="]), texts).map(" ".join),
    st.tuples(sums, st.sampled_from(["is null", "is not null"])).map(" ".join),
    st.tuples(sums, st.sampled_from(["in", "not in"]), sums, sums).map(lambda p: f"{p[0]} {p[1]} ({p[2]}, {p[3]})"),
    st.tuples(numbers, sums, sums).map(lambda p: f"{p[0]} between {p[1]} and {p[2]}"),
    st.tuples(st.sampled_from(["caption"]), st.sampled_from(["'a%'", "'%_a_'", "'_%'", "''"])).map(" like ".join),
    st.just("length(caption) > 3"),
)
conditions = st.recursive(
    comparisons,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from([" and ", " OR "]), inner).map(lambda p: f"{p[0]}{p[1]}{p[2]}"),
        inner.map(lambda part: f"not ({part})"),
        inner.map(lambda part: f"({part})"),
    ),
    max_leaves=5,
)


@given(conditions)
@example("width >= 256 and caption = 'it''s' or not width < 0")
@example("1 + 2 * 3 = 7 and 10 - 2 - 3 = 5")
@example("caption = lower(caption)")
def test_it_says_what_sqlite_says(text):
    assert mask(text) == sqlite_says(text)


@given(
    st.text(max_size=30)
    | st.lists(st.sampled_from([*"()<>=,'\"%", "width", "and", "not", " ", "5", "in"])).map("".join)
)
@example("(" * 5000)
@example("not " * 5000 + "safe")
@example("-" * 5000 + "1 = 1")
@example("safe and " * 5000 + "safe")
@example("1 + " * 5000 + "1 > 3")
@example(f"width in ({'1, ' * 5000} 2)")
def test_whatever_is_typed_is_a_condition_or_a_clear_error(text):
    with contextlib.suppress(InputError):
        mask(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("widht > 3", "no column 'widht'. Did you mean width?"),
        ("size(width) > 3", "no function 'size'"),
        ("caption > 3", "caption is string: no such operation on it. Compare a number with numbers"),
        ("width", "is int64, not true or false"),
        ("width >", "something is missing, at its end"),
        ("width > 3 4", "'and' or 'or' expected, at '4'"),
        ("width > 3; drop", "what is this.*at '; drop'"),
        ("contains(caption, caption)", "written out, in single quotes"),
        ("length(caption, 1) > 2", "length takes 1, not 2"),
        ("width not 3", "'in', 'like' or 'between' expected"),
        ("width > 99999999999999999999", "too large a number"),
        ("width * 9223372036854775807 > 0", "overflow"),
        ("matches(caption, '(')", "regular expression"),
        ("", "something is missing"),
        ("__import__('os')", "no function '__import__'"),
    ],
)
def test_what_is_wrong_is_said(text, message):
    with pytest.raises(InputError, match=message):
        mask(text)


def test_what_sqlite_does_otherwise():
    assert mask("safe") == [True, None, False, True, False]
    assert mask("not safe or width > 200") == [False, True, True, True, True]
    assert mask("width / 8 = 12.5") == [True, False, None, False, False], "a quotient is not cut off"
    assert mask("width % 7 = 2") == [True, False, None, False, False]
    assert mask("width / 0 > 1")[0] is True
    assert mask("1 = 1") == [True] * 5
    assert mask("contains(caption, 'cat') and starts_with(caption, 'a') and ends_with(caption, 't')")[0] is True
    assert mask("matches(caption, '^.t')") == [False, True, None, False, False]


def test_it_knows_what_it_reads():
    assert parse_condition("width > 3 and lower(caption) = 'x'", TYPES).columns == {"width", "caption"}
    assert set(FUNCTIONS) >= {"length", "contains"}
