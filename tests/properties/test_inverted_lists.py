"""Parts merged on disk are the lists that one index would hold; ids lead back to the rows they were made of."""

import io

import faiss
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from embedpipe.index.card import IndexedShard
from embedpipe.index.exact import NearestRows
from embedpipe.index.ids import ids_of, ids_of_rows, rows_of_ids
from embedpipe.index.inverted_lists import (
    IndexSource,
    PartSource,
    emptied,
    merge_parts,
    part_name,
    read_parts,
    write_part,
)
from embedpipe.load import EmbeddingDataset
from tests import clusters

LISTS, CODE = 5, 3


def trained():
    """An index of five lists whose codes are three bytes."""
    rng = np.random.default_rng(0)
    index = faiss.index_factory(CODE, f"IVF{LISTS},SQ8", faiss.METRIC_INNER_PRODUCT)
    index.cp.min_points_per_centroid = 1
    index.train(rng.normal(size=(50, CODE)).astype("f"))
    return index


INDEX = trained()


def contents(index):
    lists = faiss.extract_index_ivf(index).invlists
    out = {}
    for number in range(LISTS):
        size = lists.list_size(number)
        ids = faiss.rev_swig_ptr(lists.get_ids(number), size) if size else []
        codes = faiss.rev_swig_ptr(lists.get_codes(number), size * CODE).reshape(-1, CODE) if size else []
        out |= {int(i): (number, bytes(code)) for i, code in zip(ids, codes, strict=True)}
    return out


@settings(max_examples=25)
@given(data=st.data())
def test_merging_parts_loses_doubles_and_moves_nothing(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts")
    shards = data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=6), label="rows of each shard")
    cut = data.draw(st.integers(1, len(shards)), label="shards in the first index")
    gone = data.draw(st.sets(st.integers(0, len(shards) - 1)), label="shards that leave")
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    expected, sources = {}, []
    for number, size in enumerate(shards):
        lists, codes = rng.integers(0, LISTS, size), rng.integers(0, 256, (size, CODE)).astype(np.uint8)
        ids = ids_of(number, 0, size)
        of = [IndexedShard(number, size, "")]
        write_part(str(folder), part_name("", of), of, LISTS, lists, codes, ids)
        kept = number not in gone or number >= cut
        expected |= {int(i): (int(at), bytes(code)) for i, at, code in zip(ids, lists, codes, strict=True) if kept}
    parts = read_parts(str(folder))
    assert [part.shards[0].number for part in parts] == list(range(len(shards)))
    first = io.BytesIO()
    merge_parts(faiss.clone_index(INDEX), [PartSource(str(folder), part) for part in parts[:cut]], first)
    before = faiss.deserialize_index(np.frombuffer(first.getvalue(), np.uint8))
    assert before.ntotal == sum(shards[:cut])
    sources = [IndexSource(before, sorted(gone)), *(PartSource(str(folder), part) for part in parts[cut:])]
    both = io.BytesIO()
    merge_parts(emptied(faiss.clone_index(before)), sources, both)
    after = faiss.deserialize_index(np.frombuffer(both.getvalue(), np.uint8))
    assert contents(after) == expected
    assert after.ntotal == len(expected)


@settings(max_examples=15)  # each writes a data set
@given(sizes=st.dictionaries(st.integers(0, 30), st.integers(1, 4), min_size=1, max_size=5))
def test_ids_lead_back_to_their_rows_whatever_the_numbers(sizes, tmp_path_factory):
    dataset = EmbeddingDataset(clusters.write(tmp_path_factory.mktemp("ids") / "emb", sizes, dim=4))
    rows = np.arange(len(dataset))
    ids = ids_of_rows(dataset, rows)
    keys = dataset.keys()
    assert [f"{i >> 32}-0-{i & 0xFFFFFFFF}" for i in ids.tolist()] == keys
    assert rows_of_ids(dataset, ids).tolist() == rows.tolist()
    beyond = [ids_of(number, size, size + 2) for number, size in sizes.items()]
    absent = np.concatenate([*beyond, ids_of(31, 0, 3), [-1]])
    assert (rows_of_ids(dataset, absent) == -1).all()


@given(
    scores=st.lists(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=6, max_size=6), min_size=1, max_size=4),
    k=st.integers(1, 8),
)
def test_the_best_are_in_order_and_ties_go_by_id(scores, k):
    scores = np.float32(scores)
    ids = np.tile([5, 3, -1, 9, 1, 7], (len(scores), 1))
    best = NearestRows(scores, ids).best(k)
    for row, found_scores, found in zip(scores, best.scores, best.ids, strict=True):
        order = sorted((-score, i) for score, i in zip(row, [5, 3, -1, 9, 1, 7], strict=True) if i != -1)
        expected = [i for _, i in order] + [-1]
        assert found.tolist() == expected[:k]
        assert [s for s in found_scores if s > -np.inf] == [-score for score, _ in order][:k]
