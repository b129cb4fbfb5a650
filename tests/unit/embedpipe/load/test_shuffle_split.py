"""Order and split are functions of their arguments alone."""

from itertools import islice, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedpipe.errors import DatasetError
from embedpipe.load import EmbeddingDataset, hash_split, rows_of_split, splits
from embedpipe.load.shuffle import ShuffledOrder, batches_from, epoch_order
from tests import shards


@given(st.integers(1, 40), st.integers(0, 5), st.integers(0, 5))
def test_an_epoch_is_a_permutation_fixed_by_seed_and_number(n, seed, epoch):
    rows = np.arange(n) * 3
    order = epoch_order(rows, seed, epoch)
    assert sorted(order) == list(rows)
    assert np.array_equal(order, epoch_order(rows, seed, epoch))


@given(st.integers(1, 20), st.integers(1, 50), st.integers(0, 30))
def test_position_is_all_there_is_to_save(n, batch_size, step):
    rows = np.arange(n)
    whole = np.concatenate([epoch_order(rows, 7, epoch) for epoch in range((step + 3) * batch_size // n + 1)])
    for i, batch in enumerate(islice(batches_from(rows, batch_size, 7, step), 3), start=step):
        assert np.array_equal(batch, whole[i * batch_size : (i + 1) * batch_size])


def test_nothing_to_draw_from_is_a_mistake():
    for rows, size in ((np.arange(0), 1), (np.arange(3), 0)):
        with pytest.raises(ValueError, match="at least 1"):
            next(batches_from(rows, size, 0, 0))


@pytest.mark.parametrize(("sizes", "window"), [([3, 2], 0), ([3, 2], -1), ([0], 4), ([0, 0], 4), ([0, 0], 0)])
def test_no_window_and_no_rows_are_mistakes(sizes, window):
    bounds = np.concatenate([[0], np.cumsum(sizes)])
    with pytest.raises(ValueError, match="window_rows must be at least 1 and rows not empty"):
        ShuffledOrder(bounds, 0, window)


@given(st.lists(st.integers(0, 30), min_size=1, max_size=6).filter(any), st.integers(0, 99), st.integers(1, 60))
def test_windows_lie_in_files_as_they_are_read(sizes, seed, window):
    """Places ascend, so that files are read from front to back; a window is of whole pieces that lie together."""
    bounds = np.concatenate([[0], np.cumsum(sizes)])
    order = ShuffledOrder(bounds, seed, window)
    piece = max(1, window // 8)
    assert order.most_in_window == min(order.total, window + piece)
    pieces = {
        first: min(first + piece, stop) for start, stop in pairwise(bounds) for first in range(start, stop, piece)
    }
    reached = 0
    for found in order.windows(0):
        assert np.all(np.diff(found.places) > 0)
        places = found.places.tolist()
        while places:
            stop = pieces[places[0]]
            assert places[: stop - places[0]] == list(range(places[0], stop))
            places = places[stop - places[0] :]
        reached += len(found.places)
        if reached == order.total:
            break
        assert len(found.places) > window - piece, "a window is as full as pieces make it"


def test_epochs_and_windows_and_seeds_are_in_orders_of_their_own():
    def stream(seed):
        out = np.empty(800, np.int64)
        for found in islice(ShuffledOrder(np.array([0, 400]), seed, 100).windows(0), 8):
            fits = found.positions < 800
            out[found.positions[fits]] = found.places[fits]
        return out

    first, other = stream(1), stream(2)
    assert not np.array_equal(first[:400], first[400:])
    assert not np.array_equal(first, other)
    assert not np.array_equal(np.argsort(first[:100]), np.argsort(first[100:200]))


def test_the_hash_split_has_the_share_asked_for_and_only_grows_with_it():
    names = [f"shard\0{i}" for i in range(20_000)]
    held = [{name for name in names if hash_split(name, share) == "valid"} for share in (0.05, 0.2)]
    assert abs(len(held[0]) - 1000) < 100
    assert abs(len(held[1]) - 4000) < 200
    assert held[0] < held[1]


def test_the_split_of_a_row_does_not_depend_on_the_others(encoded_once, encoded):
    before = EmbeddingDataset(encoded_once[1])
    shards.forget(encoded, 0)
    after = EmbeddingDataset(str(encoded))
    assert np.array_equal(splits(before, None, 0.4)[7:], splits(after, None, 0.4))
    assert {"train", "valid"} == set(splits(before, None, 0.4))


def test_a_column_may_say_the_split(encoded_once):
    dataset = EmbeddingDataset(encoded_once[1])
    names = splits(dataset, "label")
    assert list(names) == [f"l{i % 3}" for i in range(21)]
    assert list(rows_of_split(names, "l1", "here")) == list(range(1, 21, 3))
    with pytest.raises(DatasetError, match="here: no rows of the split 'l7'"):
        rows_of_split(names, "l7", "here")
    with pytest.raises(DatasetError, match="no metadata column 'lable'.*label"):
        splits(dataset, "lable")
