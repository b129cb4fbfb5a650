"""Recall against its definition, counted from all products, and the cheapest setting that reaches a target."""

from types import SimpleNamespace

import numpy as np
import pytest

from embedpipe.index import recall
from embedpipe.index.exact import NearestRows
from embedpipe.index.ids import NONE, ids_of_rows, rows_of_ids
from embedpipe.index.recall import Queries, Setting, draw, packed, tune, unpacked, with_truth
from embedpipe.load import EmbeddingDataset
from tests import embeddings

ROWS, DIM = 60, 6


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Three shards of 20 rows; the last five rows are copies of the first five."""
    rng = np.random.default_rng(0)
    image, text = rng.normal(size=(ROWS, DIM)), rng.normal(size=(ROWS, DIM))
    image[-5:], text[-5:] = image[:5], text[:5]
    return EmbeddingDataset(embeddings.write_dataset(tmp_path_factory.mktemp("recall") / "emb", image, text, 3))


@pytest.fixture(scope="module")
def queries(dataset):
    return with_truth(draw(dataset, "image"), dataset, "image")


def products(dataset, queries):
    """Of each query with each row, -inf for its own."""
    found = queries.vectors @ dataset.image[:].astype(np.float32).T
    own = rows_of_ids(dataset, queries.own)
    found[np.flatnonzero(own >= 0), own[own >= 0]] = -np.inf
    return found


def test_queries_are_rows_of_both_sides_and_always_the_same(dataset, monkeypatch):
    monkeypatch.setattr(recall, "QUERIES", 15)
    drawn = draw(dataset, "image")
    assert [some.side for some in drawn] == ["image", "text"]
    rows = rows_of_ids(dataset, drawn[0].own)
    assert np.all(np.diff(rows) > 0)
    assert len(rows) == 15
    assert np.array_equal(drawn[0].vectors, dataset.image[:][rows].astype(np.float32))
    assert np.array_equal(drawn[1].vectors, dataset.text[:][rows].astype(np.float32))
    assert drawn[1].own.tolist() == [NONE] * 15
    assert all(some.truth.ids.shape == (15, 0) for some in drawn)
    again = draw(dataset, "text")
    assert np.array_equal(again[1].own, drawn[0].own)
    assert again[0].own.tolist() == [NONE] * 15
    monkeypatch.setattr(recall, "QUERIES", 100)
    assert len(draw(dataset, "image")[0].own) == ROWS


def test_the_truth_is_the_ten_best_but_for_a_querys_own_row(dataset, queries):
    assert recall.QUERIES >= ROWS
    for some in queries:
        right = products(dataset, some)
        order = np.argsort(-right, axis=1, kind="stable")[:, :10]
        np.testing.assert_allclose(some.truth.scores, np.take_along_axis(right, order, 1), rtol=1e-5)
        assert np.array_equal(rows_of_ids(dataset, some.truth.ids), order)


def test_the_truth_may_be_put_together_shard_by_shard(dataset, queries):
    parts = draw(dataset, "image")
    for shards in ([1], [0], [2]):
        parts = with_truth(parts, dataset, "image", shards)
    for one, other in zip(parts, queries, strict=True):
        assert np.array_equal(one.truth.ids, other.truth.ids)
        np.testing.assert_allclose(one.truth.scores, other.truth.scores, rtol=1e-6)


def test_without_its_own_row_a_query_has_one_column_less():
    found = NearestRows(np.array([[0.9, 0.8, 0.7], [0.6, 0.5, 0.4], [0.3, -np.inf, -np.inf]], np.float32),
                    np.array([[7, 5, 6], [1, 2, 3], [4, NONE, NONE]]))  # fmt: skip
    left = recall._without_own(found, np.array([5, 9, NONE]))
    assert left.ids.tolist() == [[7, 6], [1, 2], [4, NONE]]
    np.testing.assert_array_equal(left.scores, np.array([[0.9, 0.7], [0.6, 0.5], [0.3, -np.inf]], np.float32))
    alone = recall._without_own(NearestRows(np.ones((2, 1), np.float32), np.array([[3], [4]])), np.array([3, 3]))
    assert alone.ids.tolist() == [[NONE], [4]]


class Index:
    """Of each query the best rows, but for those whose row number is divisible by `blind` of that effort."""

    rows, graph = ROWS, None

    def __init__(self, dataset, blind, lists=None):
        self.dataset, self.blind, self.asked = dataset, blind, []
        self.ivf = None if lists is None else SimpleNamespace(nlist=lists)

    def efforts(self):
        return list(self.blind)

    def candidates(self, vectors, count, effort):
        self.asked.append((effort, count))
        scores = vectors @ self.dataset.image[:].astype(np.float32).T
        if self.blind[effort]:
            scores[:, :: self.blind[effort]] = -np.inf
        rows = np.argsort(-scores, axis=1, kind="stable")[:, :count]
        scores = np.take_along_axis(scores, rows, 1)
        ids = ids_of_rows(self.dataset, rows.reshape(-1)).reshape(rows.shape)
        return NearestRows(scores, np.where(np.isinf(scores), NONE, ids))


def recall_by_hand(dataset, some, blind):
    right = products(dataset, some)
    best = np.argsort(-right, axis=1, kind="stable")[:, :10]
    seen = np.setdiff1d(np.arange(ROWS), np.arange(0, ROWS, blind) if blind else [])
    # As near as the tenth is as good: copies of a row count alike.
    last = np.take_along_axis(right, best[:, -1:], 1)
    return np.minimum((right[:, seen] >= last - 1e-6).sum(axis=1), 10) / 10


@pytest.mark.parametrize("look_up", [True, False])
@pytest.mark.parametrize("blind", [0, 2, 7])
def test_recall_is_the_share_of_the_truth_that_is_found(dataset, queries, blind, look_up):
    found = tune(Index(dataset, {None: blind}), dataset, "image", queries, 1.0, look_up)
    assert found.effort is None
    assert found.candidates == (found.candidates and 10 if blind == 0 else found.candidates)
    for some in queries:
        shares = recall_by_hand(dataset, some, blind)
        assert found.recall[some.side] == pytest.approx(shares.mean())


def test_more_candidates_are_taken_where_fewer_do_not_do(dataset, queries):
    class Late(Index):
        """The best rows stand behind fifteen others."""

        def candidates(self, vectors, count, effort):
            found = super().candidates(vectors, ROWS, effort)
            self.asked[-1] = effort, count
            return NearestRows(np.roll(found.scores, 15, 1)[:, :count], np.roll(found.ids, 15, 1)[:, :count])

    index = Late(dataset, {None: 0})
    found = tune(index, dataset, "image", queries, 0.99, look_up=True)
    assert found == Setting(None, 40, {"image": 1.0, "text": 1.0})
    assert index.asked == [(None, 401)] * 2
    few = tune(Late(dataset, {None: 0}), dataset, "image", queries, 0.4, look_up=True)
    assert few.candidates == 20
    assert few.recall["text"] == pytest.approx(0.5)
    without = Late(dataset, {None: 0})
    assert tune(without, dataset, "image", queries, 0.99, look_up=False).candidates == 0
    assert without.asked == [(None, 11)] * 2


def test_the_cheapest_setting_that_reaches_the_target_is_taken(dataset, queries):
    """Looking into a list costs its rows, reading a candidate as much as fifty rows."""
    blind = {1: 2, 2: 5, 4: 0, 8: 0}
    assert tune(Index(dataset, blind, 8), dataset, "image", queries, 0.95, True).effort == 4
    assert tune(Index(dataset, blind, 8), dataset, "image", queries, 0.7, True).effort == 2
    assert tune(Index(dataset, blind, 8), dataset, "image", queries, 0.1, True).effort == 1
    graph = tune(Index(dataset, {16: 5, 32: 0}), dataset, "image", queries, 0.95, False)
    assert graph.effort == 32
    assert tune(Index(dataset, {16: 0, 32: 0}), dataset, "image", queries, 0.95, False).effort == 16


def test_what_costs_more_than_a_setting_that_is_enough_is_not_tried(dataset, queries):
    index = Index(dataset, {1: 0, 64: 0, 1024: 0}, 1)
    tune(index, dataset, "image", queries, 0.95, True)
    # The first costs 60 rows looked at and 10 candidates, as much as 560; the second 3,840 rows.
    assert {effort for effort, _ in index.asked} == {1}
    index = Index(dataset, {4: 3, 32: 0, 64: 0, 68: 0}, 4)
    tune(index, dataset, "image", queries, 0.95, True)
    # Four lists hold all 60 rows: the second setting costs as much as 980, the third 960 without its candidates.
    assert {effort for effort, _ in index.asked} == {4, 32, 64}


def test_both_sides_must_reach_the_target_with_little_doubt(dataset, queries):
    """One chance in twenty of less: the mean, less 1.645 standard errors."""
    shares = recall_by_hand(dataset, queries[0], 7)
    bound = shares.mean() - 1.645 * shares.std() / np.sqrt(len(shares))
    worse = min(
        side.mean() - 1.645 * side.std() / np.sqrt(len(side))
        for side in (recall_by_hand(dataset, some, 7) for some in queries)
    )
    assert worse <= bound
    for target, effort in ((worse - 1e-6, 1), (worse + 1e-6, 2)):
        assert tune(Index(dataset, {1: 7, 2: 0}, 2), dataset, "image", queries, target, True).effort == effort


def test_where_none_reaches_it_the_best_for_the_worse_side_is_taken(dataset, queries):
    found = tune(Index(dataset, {1: 3, 2: 7, 4: 5}, 4), dataset, "image", queries, 1.0, False)
    worst = {effort: min(recall_by_hand(dataset, some, blind).mean() for some in queries)
             for effort, blind in {1: 3, 2: 7, 4: 5}.items()}  # fmt: skip
    assert found.effort == max(worst, key=worst.get)


def test_a_query_without_neighbours_misses_nothing(dataset):
    nothing = NearestRows(np.full((2, 10), -np.inf, np.float32), np.full((2, 10), NONE))
    lonely = Queries("image", np.ones((2, DIM), np.float32), np.full(2, NONE), nothing)
    few = NearestRows(np.array([[0.5] + [-np.inf] * 9] * 2, np.float32), np.array([[3] + [NONE] * 9] * 2))
    one = Queries("text", np.ones((2, DIM), np.float32), np.full(2, NONE), few)
    for look_up in (False, True):
        found = tune(Index(dataset, {None: 1}), dataset, "image", (lonely,), 0.9, look_up)
        assert found.recall == {"image": 1.0}
        none = tune(Index(dataset, {None: 1}), dataset, "image", (one,), 0.9, look_up)
        assert none.recall == {"text": 0.0}


def test_queries_are_stored_and_read_back(queries):
    back = unpacked(packed(queries))
    assert [some.side for some in back] == ["image", "text"]
    for one, other in zip(queries, back, strict=True):
        assert np.array_equal(one.vectors, other.vectors)
        assert np.array_equal(one.own, other.own)
        assert np.array_equal(one.truth.ids, other.truth.ids)
        assert np.array_equal(one.truth.scores, other.truth.scores)
    assert [some.side for some in unpacked(packed(queries[1:]))] == ["text"]
