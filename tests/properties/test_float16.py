"""float16 as float32, and finite rows, by integer arithmetic: bit for bit what numpy gives, at any length."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedpipe.load import float16
from embedpipe.load.float16 import all_finite, convert_into, float16_to_float32


@pytest.fixture(params=["torch", "integers"])
def by(request, monkeypatch):
    """With torch loaded, and as without."""
    pytest.importorskip("torch")
    if request.param == "integers":
        monkeypatch.setattr(float16, "_torch_if_loaded", lambda: None)
    return request.param


EVERY = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
FINITE = EVERY[np.isfinite(EVERY)]


@pytest.mark.parametrize("at_once", [1, 7, 4096, 1 << 18])
def test_every_half_is_widened_exactly_in_blocks_of_any_size(at_once, by, monkeypatch):
    monkeypatch.setattr(float16, "_VALUES_AT_ONCE", at_once)
    monkeypatch.setattr(float16, "_SERIAL_VALUES", at_once)
    rows = FINITE if at_once > 7 else FINITE[::101]
    out = np.full(len(rows) + 2, 7, np.float32)
    float16_to_float32(rows, out[1:-1])
    assert np.array_equal(out[1:-1].view(np.uint32), rows.astype(np.float32).view(np.uint32))
    assert out[[0, -1]].tolist() == [7, 7], "nothing beside it is written"


@pytest.mark.parametrize("by", ["integers"], indirect=True)
def test_no_more_is_held_than_stays_in_the_cache(by, monkeypatch):
    held, empty = [], np.empty
    monkeypatch.setattr(float16.np, "empty", lambda shape, dtype: held.append(shape) or empty(shape, dtype))
    for count in (5, (1 << 18) + 5):
        rows = np.ones((count, 1), np.float16)
        out = np.zeros((count, 1), np.float32)
        float16_to_float32(rows, out)
        assert np.all(out == 1)
    assert held == [5, 1 << 18]


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@given(data=st.data())
def test_finite_is_what_numpy_says(dtype, data):
    unsigned = {np.float16: np.uint16, np.float32: np.uint32}[dtype]
    bits = data.draw(st.lists(st.integers(0, np.iinfo(unsigned).max), max_size=6))
    rows = np.array(bits, unsigned).view(dtype)
    assert all_finite(rows) is bool(np.isfinite(rows).all())


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_the_largest_numbers_are_finite_and_what_follows_is_not(dtype):
    most = np.finfo(dtype).max
    unsigned = {np.float16: np.uint16, np.float32: np.uint32}[dtype]
    for sign in (1, -1):
        largest = np.array([1, -1, sign * most], dtype)
        assert all_finite(largest) is True
        for more in (1, 2):  # infinity, and the first NaN
            beyond = largest.copy()
            beyond.view(unsigned)[2] += more
            assert all_finite(beyond) is False
            assert all_finite(beyond[2:]) is False
    assert all_finite(np.empty((0, 3), dtype)) is True


@pytest.mark.parametrize("source", [np.float16, np.float32])
@pytest.mark.parametrize("target", [np.float16, np.float32])
def test_rows_are_converted_between_any_two_types(source, target):
    rows = np.random.default_rng(0).standard_normal((5, 3)).astype(source)
    out = np.empty((5, 3), target)
    convert_into(rows, out)
    assert np.array_equal(out, rows.astype(target))
    rows.setflags(write=False)  # of a file, which is not written to
    convert_into(rows, out)
    assert np.array_equal(out, rows.astype(target))


def test_numbers_are_not_made_whole():
    with pytest.raises(TypeError, match="same_kind"):
        convert_into(np.ones((2, 2), np.float32), np.empty((2, 2), np.int32))
