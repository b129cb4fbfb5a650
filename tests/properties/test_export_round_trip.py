"""Whatever a data set holds, the programs that exports are for read the same numbers beside the same key."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedpipe.export import EXPORTS, ExportConfig
from embedpipe.export.job import export
from embedpipe.load import EmbeddingDataset
from tests import embeddings, outside


def config(to, **options):
    return ExportConfig(to, index_width=6 if to == "aligned" else None, **options)


@pytest.mark.parametrize("to", EXPORTS)
@settings(max_examples=3)
@given(data=st.data())
def test_what_was_exported_is_read_back_by_key(to, data):
    count, shards = data.draw(st.integers(1, 40), "rows"), data.draw(st.integers(1, 12), "shards")
    dim, seed = data.draw(st.integers(2, 9), "dim"), data.draw(st.integers(0, 99), "seed")
    chosen = data.draw(st.none() | st.sets(st.integers(0, count - 1), min_size=1), "chosen rows")
    dtype = data.draw(st.sampled_from([None, "float16", "float32"]), "dtype")
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder:
        emb = embeddings.write_dataset(
            f"{folder}/emb", rng.normal(size=(count, dim)), rng.normal(size=(count, dim)), shards
        )
        dataset = EmbeddingDataset(emb)
        rows = sorted(chosen) if chosen is not None else list(range(count))
        keys = None
        if chosen is not None:
            keys = f"{folder}/keys.txt"
            Path(keys).write_text("".join(f"{row:06d}\n" for row in rows))
        out = f"{folder}/out"
        report = export(emb, out, config(to, keys=keys, dtype=dtype))
        read_back = [reader(out) for reader in outside.READERS[to]]
        images, texts = dataset.image[rows].astype(np.float32), dataset.text[rows].astype(np.float32)
    assert report.rows == len(rows)
    for found in read_back:
        assert list(found) == [f"{row:06d}" for row in rows]
        assert np.array_equal(np.array([image for image, _, _ in found.values()], np.float32), images)
        assert np.array_equal(np.array([text for _, text, _ in found.values()], np.float32), texts)
        assert to == "aligned" or [caption for _, _, caption in found.values()] == [f"caption {row}" for row in rows]


def test_every_layout_has_a_reader():
    assert outside.READERS.keys() == EXPORTS.keys()
