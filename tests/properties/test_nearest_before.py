"""Nearest predecessors, tile by tile, are those that comparing all with all finds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedpipe.curate.dedup.nearest import nearest_before
from embedpipe.curate.dedup.scratch_rows import ScratchRows


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 40), st.integers(1, 9), st.integers(0, 10_000))
def test_tiles_make_no_difference(count, tile, seed):
    rows = np.random.default_rng(seed).integers(-2, 3, (count, 3)).astype(np.float32)  # many ties
    product = rows @ rows.T
    for start in range(0, count, tile):
        stop = min(start + tile, count)
        found = nearest_before(lambda first, last: rows[first:last], start, stop, tile=tile)
        cosine, position = (values[:, 0] for values in found)
        for i in range(start, stop):
            if i == 0:
                assert (cosine[0], position[0]) == (-1, -1)
            elif product[i, :i].max() > -1:
                assert cosine[i - start] == product[i, :i].max()
                assert position[i - start] == product[i, :i].argmax(), "of equally near ones the first"


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 30), st.integers(1, 9), st.integers(1, 5), st.integers(-2, 6), st.integers(0, 10_000))
def test_the_few_nearest_are_those_of_a_sort(count, tile, most, floor, seed):
    rows = np.random.default_rng(seed).integers(-2, 3, (count, 3)).astype(np.float32)
    product = rows @ rows.T
    for start in range(0, count, tile):
        stop = min(start + tile, count)
        cosine, position = nearest_before(lambda first, last: rows[first:last], start, stop, most, floor, tile)
        for i in range(start, stop):
            order = np.argsort(-product[i, :i], kind="stable")
            expected = [int(j) for j in order if product[i, j] >= floor and product[i, j] > -1][:most]
            got = position[i - start][(cosine[i - start] >= floor) & (position[i - start] >= 0)]
            assert got.tolist() == expected


def test_of_many_equally_near_ones_the_first_come_first():
    """More than sorts of few values keep in order by chance."""
    rows = np.ones((130, 2), np.float32)
    cosine, position = nearest_before(lambda first, last: rows[first:last], 120, 130, 60, 1, 50)
    assert (cosine == 2).all()
    assert position.tolist() == [list(range(60))] * 10


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.integers(1, 7), st.integers(0, 10_000))
def test_scratch_rows_come_back_at_their_places(tmp_path_factory, count, pieces, seed):
    rng = np.random.default_rng(seed)
    rows, places = rng.normal(size=(count, 5)).astype(np.float16), rng.permutation(count)
    folder = tmp_path_factory.mktemp("scratch")
    with ScratchRows(folder / "rows.bin", 5, "float16") as stored:
        for some in np.array_split(np.arange(count), pieces):
            stored.write(rows[some], places[some])
        back = stored.read(0, count)
        assert np.array_equal(back[places], rows.astype(np.float32))
        with pytest.raises(OSError, match="ends"):
            stored.read(0, count + 1)
