"""Ragged rows against a list of arrays, which is what they stand for."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedpipe import ragged
from embedpipe.ragged import RaggedRows

WIDTH = 2


@st.composite
def rows(draw):
    """(ragged rows, the same as a list): packed, and then some of them taken in any order, some twice."""
    lengths = np.array(draw(st.lists(st.integers(1, 4), max_size=6)), np.int32)
    values = np.arange(lengths.sum() * WIDTH, dtype=np.float32).reshape(-1, WIDTH)
    plain = np.split(values, np.cumsum(lengths)[:-1]) if len(lengths) else []
    chosen = draw(st.lists(st.integers(0, len(plain) - 1), max_size=8)) if plain else []
    packed = RaggedRows.packed(values, lengths)
    assert packed.flat().tolist() == values.tolist()
    return packed.take(np.array(chosen, np.int64)), [plain[i] for i in chosen]


def test_few_values_are_copied_at_once_and_many_in_blocks(monkeypatch):
    made = RaggedRows.packed(np.zeros((9, 2), np.float16), np.array([3, 1, 5]))
    assert [len(block) for block in made.blocks()] == [9]
    monkeypatch.setattr(ragged, "_VALUES_AT_ONCE", 8)
    assert [len(block) for block in made.blocks()] == [4, 5]
    wide = RaggedRows.packed(np.full((2, 100), np.nan, np.float16), np.array([1, 1]))
    assert [len(block) for block in wide.blocks()] == [1, 1]
    assert wide.finite().tolist() == [False, False]
    assert RaggedRows.packed(np.zeros((3, 0), np.float16), np.array([2, 1])).finite().tolist() == [True, True]


def test_lengths_are_int32_and_nothing_is_a_row(monkeypatch):
    made = RaggedRows.packed(np.zeros((0, 2), np.float16), np.array([], np.int64))
    assert made.lengths.dtype == np.int32
    assert made.starts.dtype == np.int64
    assert (len(made), made.total, made.flat().shape, made.padded()[0].shape) == (0, 0, (0, 2), (0, 0, 2))
    assert made.finite().tolist() == []


@pytest.fixture(scope="module", params=[1 << 22, 4, 1])
def at_once(request):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ragged, "_VALUES_AT_ONCE", request.param)
        yield


@given(made=rows())
def test_they_are_that_list(at_once, made):
    found, plain = made
    assert [found[i].tolist() for i in range(len(found))] == [row.tolist() for row in plain]
    assert (len(found), found.width, found.total) == (len(plain), WIDTH, sum(map(len, plain)))
    assert found.flat().tolist() == [value for row in plain for value in row.tolist()]
    padded, mask = found.padded()
    assert padded.shape == (*mask.shape, WIDTH) == (len(plain), max(map(len, plain), default=0), WIDTH)
    assert [padded[i][mask[i]].tolist() for i in range(len(plain))] == [row.tolist() for row in plain]
    assert not padded[~mask].any()
    assert mask.sum() == found.total
    assert (mask[:, :-1] >= mask[:, 1:]).all(), "what is real comes first"


@given(made=rows(), data=st.data())
def test_a_row_is_finite_when_all_of_it_is(at_once, made, data):
    found, _ = made
    for place in data.draw(st.sets(st.integers(0, max(0, len(found.values) - 1)), max_size=2)):
        if len(found.values):
            found.values[place, data.draw(st.integers(0, WIDTH - 1))] = data.draw(st.sampled_from([np.nan, np.inf]))
    assert found.finite().tolist() == [bool(np.isfinite(found[i]).all()) for i in range(len(found))]
