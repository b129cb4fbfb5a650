"""A held-out row stays held out, whatever is merged, filtered, deduplicated or added around it."""

import hashlib
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from embedpipe.curate import DedupConfig, FilterConfig
from embedpipe.curate.dedup.job import dedup
from embedpipe.curate.filter.job import filter
from embedpipe.load import EmbeddingDataset, splits
from embedpipe.load.images.parts import original_name
from embedpipe.merge import merge
from tests.embeddings import write_dataset

SHARE = 0.4
part = st.tuples(st.lists(st.integers(0, 30), min_size=4, max_size=14), st.booleans())


def write(folder, pictures, hashed, names):
    """A data set of one row for each picture (a number); rows of equal ones have the same file. hashed: it is known."""
    rng = np.random.default_rng(len(pictures))
    image, text = rng.normal(size=(2, len(pictures), 8))
    hashes = [hashlib.sha256(str(it).encode()).hexdigest() for it in pictures] if hashed else None
    columns = {"picture": [str(it) for it in pictures], "home": [str(folder)] * len(pictures)}
    return write_dataset(folder, image, text, columns=columns, names=names, sha256=hashes)


def held(path):
    """The split of each row, by its picture's hash or else by what it was called in its first data set."""
    data = EmbeddingDataset(path)
    found = {}
    names = splits(data, None, SHARE)
    rows = data.rows(range(len(data)), ("sha256", "home", "src_shard", "key"))
    for row, name in zip(rows, names, strict=True):
        identity = row["sha256"] or (row["home"], original_name(data.run, row["src_shard"]), row["key"])
        assert found.setdefault(identity, name) == name, "rows of one picture are on the same side"
    return found


@settings(max_examples=25, deadline=None)
@given(st.lists(part, min_size=2, max_size=3), st.lists(st.integers(0, 30), min_size=4, max_size=8), st.booleans())
def test_a_row_never_changes_sides(parts, later, same_names):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        names = [["0.tar", "1.tar"] if same_names else [f"{i}-0.tar", f"{i}-1.tar"] for i in range(len(parts) + 1)]
        paths = [write(root / f"p{i}", it, hashed, names[i]) for i, (it, hashed) in enumerate(parts)]
        truth = {}
        for path in paths:
            for identity, name in held(path).items():
                assert truth.setdefault(identity, name) == name
        merge(paths, str(root / "merged"))
        assert held(str(root / "merged")) == truth
        dedup(str(root / "merged"), str(root / "unique"), DedupConfig(threshold=0.999, materialise=True, pairs=0))
        assert held(str(root / "unique")).items() <= truth.items()
        wanted = FilterConfig(where=("picture != '3'",), materialise=True, examples=0)
        filter(str(root / "unique"), str(root / "kept"), wanted)
        if not len(EmbeddingDataset(str(root / "kept"))):
            return
        more = write(root / "later", later, True, names[-1])
        # Grown: merged again with what came later, in another order and under other prefixes.
        merge([more, str(root / "kept")], str(root / "grown"))
        grown = held(str(root / "grown"))
        for identity, name in grown.items():
            assert truth.get(identity, name) == name
        assert held(more).items() <= grown.items()
