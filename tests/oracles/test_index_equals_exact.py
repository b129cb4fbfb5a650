"""Search through the index finds what comparing with every row finds."""

import numpy as np
import pytest

from embedpipe.index import IndexConfig, build_index, search
from embedpipe.load import EmbeddingDataset
from tests import shards
from tests.unit.embedpipe.load.test_dataset import CARD, write


@pytest.mark.parametrize("modality", ["image", "text"])
def test_the_nearest_rows_are_the_nearest(modality, encoded):
    build_index(str(encoded), IndexConfig(modality))
    dataset = EmbeddingDataset(str(encoded))
    rows = dataset.require(modality).read()
    rng = np.random.default_rng(0)
    for query in (*rng.normal(size=(5, 16)).astype(np.float32), rows[3], -rows[4]):
        query = query / np.linalg.norm(query)
        scores = rows @ query
        hits = search(dataset, query, 7, modality)
        assert [hit.rank for hit in hits] == list(range(1, 8))
        assert np.allclose([hit.score for hit in hits], np.sort(scores)[::-1][:7], atol=1e-6)
        assert np.allclose([scores[hit.row] for hit in hits], [hit.score for hit in hits], atol=1e-6)
        assert len({hit.row for hit in hits}) == 7
        assert [hit.key for hit in hits] == [f"{hit.row:05d}" for hit in hits]


def test_rows_of_one_score_are_all_found(tmp_path):
    root = write(str(tmp_path), [4, 3])
    for number, size in ((0, 4), (1, 3)):
        path = tmp_path / "img_emb" / f"img_emb_{number:05d}.npy"
        np.save(path, np.tile(np.float16([1, 0, 0, 0]), (size, 1)))
        shards.record_anew(tmp_path, number, path)
    build_index(root)
    hits = search(EmbeddingDataset(root), np.float32([1, 0, 0, 0]), 7)
    assert sorted(hit.row for hit in hits) == list(range(7))
    assert {hit.score for hit in hits} == {1.0}
    assert CARD.dim == 4
