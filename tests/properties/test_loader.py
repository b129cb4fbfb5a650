"""The loader's stream: every row once in an epoch, the same stream for every world size, cut and resumed anywhere."""

import functools
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedpipe.load import EmbeddingDataset, EmbeddingLoader
from embedpipe.load.shuffle import ShuffledOrder
from tests import embeddings

ROWS = 40


@pytest.fixture(scope="module", params=["npy, from files", "parquet, from files", "npy, from memory"])
def dataset(request, tmp_path_factory):
    """Row r is known by its values; shards of 7, 7, 7, 7, 6, 6 rows."""
    values = np.random.default_rng(0).standard_normal((ROWS, 5))
    root = tmp_path_factory.mktemp("data")
    written, source = request.param.split(", from ")
    with pytest.MonkeyPatch.context() as patch:
        if source == "files":
            patch.setattr("embedpipe.load.loader._HELD_IN_MEMORY_BYTES", 0)
        yield EmbeddingDataset(embeddings.write_dataset(root, values, -values, shards=6, format=written))


@functools.cache
def known(dataset):
    return {tuple(row): number for number, row in enumerate(dataset.image[:].astype(np.float32))}


def numbers(dataset, array):
    """Which rows of the data set these are."""
    return [known(dataset)[tuple(row)] for row in array]


splits = st.sets(st.integers(0, ROWS - 1), min_size=1).map(sorted)


@given(splits, st.integers(1, 12), st.integers(1, 70), st.integers(0, 3), st.integers(0, 30), st.data())
def test_ranks_together_see_one_stream_whatever_their_number(dataset, rows, batch, window, seed, position, data):
    """For every split of rows, batch, window, start: the ranks' shares, joined, are what one rank alone sees."""
    count = len(rows) * 2 // batch + 2
    alone = EmbeddingLoader(dataset, np.array(rows), batch, seed, window_rows=window)
    alone.load_state({"seed": seed, "epoch": position // len(rows), "row": position % len(rows)})
    whole = [numbers(dataset, b.image) for b in islice(alone, count)]
    world = data.draw(st.integers(1, batch))
    joined = [[] for _ in range(count)]
    for rank in range(world):
        mine = EmbeddingLoader(dataset, np.array(rows), batch, seed, rank=rank, world=world, window_rows=window)
        mine.load_state({"seed": seed, "epoch": position // len(rows), "row": position % len(rows)})
        for number, found in enumerate(islice(mine, count)):
            assert abs(len(found.image) - batch / world) < 1
            assert np.array_equal(found.text, -found.image)
            joined[number] += numbers(dataset, found.image)
        assert mine.state() == alone.state()
    assert joined == whole


@given(splits, st.integers(1, 12), st.integers(1, 70), st.integers(0, 3))
def test_an_epoch_has_every_row_once(dataset, rows, batch, window, seed):
    loader = EmbeddingLoader(dataset, np.array(rows), batch, seed, window_rows=window)
    taken = islice(loader.batches(), -(-2 * len(rows) // batch))
    seen = [number for found in taken for number in numbers(dataset, found.image)]
    assert sorted(seen[: len(rows)]) == rows
    assert sorted(seen[len(rows) : 2 * len(rows)]) == rows


@given(splits, st.integers(2, 9), st.integers(1, 40), st.integers(0, 9), st.data())
def test_a_run_cut_anywhere_goes_on_at_another_world_size(dataset, rows, batch, window, steps, data):
    """What was seen before the cut and after it is what an undisturbed run sees."""
    undisturbed = EmbeddingLoader(dataset, np.array(rows), batch, 5, window_rows=window)
    whole = [numbers(dataset, found.image) for found in islice(undisturbed.batches(), steps + 3)]
    before = EmbeddingLoader(dataset, np.array(rows), batch, 5, window_rows=window)
    seen = [numbers(dataset, found.image) for found in islice(before, steps)]
    assert all(isinstance(number, int) for number in before.state().values())
    world = data.draw(st.integers(1, batch))
    parts = []
    for rank in range(world):
        after = EmbeddingLoader(dataset, np.array(rows), batch, 5, rank=rank, world=world, window_rows=window)
        after.load_state(before.state())
        parts.append([numbers(dataset, found.image) for found in islice(after, 3)])
    assert seen + [[n for share in shares for n in share] for shares in zip(*parts, strict=True)] == whole
    direct = EmbeddingLoader(dataset, np.array(rows), batch, 5, window_rows=window).batches(steps)
    assert [numbers(dataset, found.image) for found in islice(direct, 3)] == whole[steps:]


@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=8).filter(any), st.integers(0, 99), st.integers(1, 60), st.data()
)
def test_windows_cover_the_stream(sizes, seed, window, data):
    bounds = np.concatenate([[0], np.cumsum(sizes)])
    order = ShuffledOrder(bounds, seed, window)
    position = data.draw(st.integers(0, 3 * order.total))
    reached = position
    for found in islice(order.windows(position), 8):
        assert np.array_equal(np.sort(found.positions), np.arange(reached, reached + len(found.places)))
        assert len(found.places) <= order.most_in_window <= max(window + 1, 1.125 * window)
        reached += len(found.places)
    epoch = order.total
    stream = np.empty(2 * epoch, np.int64)
    for found in order.windows(0):
        fits = found.positions < len(stream)
        stream[found.positions[fits]] = found.places[fits]
        if not fits.all() or found.positions.max() == len(stream) - 1:
            break
    assert np.array_equal(np.sort(stream[:epoch]), np.arange(epoch))
    assert np.array_equal(np.sort(stream[epoch:]), np.arange(epoch))


def test_a_window_mixes_pieces_of_many_places():
    order = ShuffledOrder(np.array([0, 10_000, 20_000]), 0, 1000)
    for found in islice(order.windows(0), 10):
        assert len(np.unique(found.places // 125)) >= 8
        stream = found.places[np.argsort(found.positions)]
        assert abs(np.corrcoef(np.arange(len(stream)), stream)[0, 1]) < 0.2, "rows of a window are mixed"
    firsts = [next(ShuffledOrder(np.array([0, 10_000]), seed, 1000).windows(0)).places[0] for seed in range(5)]
    assert len(set(firsts)) > 1
