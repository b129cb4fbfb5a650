"""Every storage format gives back what was written to it, byte for byte the same each time."""

import dataclasses
import uuid

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from embedpipe import files
from embedpipe.columns import EXTRA, FIXED
from embedpipe.manifest import ShardManifest
from embedpipe.ragged import RaggedRows
from embedpipe.store import FORMATS, layout
from embedpipe.types import EmbeddingShard, Reject, SourceShard

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
COLUMNS = {"n": "int64", "x": "double", "s": "string", "b": "bool"}
cell = {
    "int64": st.integers(-(2**63), 2**63 - 1),
    "double": st.floats(allow_nan=False),
    "float": st.floats(width=32, allow_nan=False),
    "string": text,
    "bool": st.booleans(),
}


@st.composite
def embedding_shards(draw):
    rows, dim = draw(st.integers(0, 6)), draw(st.integers(1, 5))
    dtype = draw(st.sampled_from([np.float16, np.float32]))
    array = arrays.arrays(dtype, (rows, dim), elements=st.floats(-1, 1, width=16))
    metadata = {
        name: draw(st.lists(st.none() | cell[kind], min_size=rows, max_size=rows))
        for name, kind in {**FIXED, **COLUMNS, EXTRA: "string"}.items()
    }
    rejects = tuple(Reject(draw(text), i, "read", "image_empty", draw(text)) for i in range(draw(st.integers(0, 3))))
    image, wanted_text = draw(array), draw(st.booleans())
    texts, tokens = (draw(array), draw(st.none() | token_states(rows, dtype))) if wanted_text else (None, None)
    return EmbeddingShard(draw(st.integers(0, 99999)), image, texts, metadata, rejects, tokens)


@st.composite
def token_states(draw, rows, dtype):
    """Rows that share some of their values, as equal captions do."""
    lengths = np.array(draw(st.lists(st.integers(1, 5), min_size=1, max_size=4)), np.int32)
    shape = (int(lengths.sum()), draw(st.integers(1, 3)))
    values = draw(arrays.arrays(dtype, shape, elements=st.floats(-9, 9, width=16)))
    place = draw(st.lists(st.integers(0, len(lengths) - 1), min_size=rows, max_size=rows))
    return RaggedRows.packed(values, lengths).take(np.array(place, np.int64))


@pytest.mark.parametrize("name", FORMATS)
@given(shard=embedding_shards())
def test_what_was_written_is_read_back(name, shard):
    root, again = (f"memory://{uuid.uuid4().hex}" for _ in range(2))
    written = FORMATS[name].write(root, shard, "a.tar", COLUMNS, 5)
    assert FORMATS[name].write(again, shard, "a.tar", COLUMNS, 5) == written
    for record in written:
        assert (record.bytes, record.sha256) == (
            files.stat(files.join(root, record.path)).bytes,
            files.sha256(files.join(root, record.path)),
        )
    if len(shard):
        entry = ShardManifest(
            shard.number, SourceShard("a.tar", 1, ""), "", len(shard), len(shard), 0, {}, written, shard.image.shape[1]
        )
        if shard.text_tokens is not None:
            entry = dataclasses.replace(entry, tokens=shard.text_tokens.total, token_width=shard.text_tokens.width)
        reader = FORMATS[name].reader
        assert np.array_equal(reader.embeddings(root, entry, "image", 5), shard.image)
        found = reader.embeddings(root, entry, "text", 5)
        assert (found is None) == (shard.text is None)
        assert found is None or (np.array_equal(found, shard.text) and found.dtype == shard.text.dtype)
        assert_pieces(reader.open_rows(root, entry, "image", 5), shard.image)
        assert (reader.open_rows(root, entry, "text", 5) is None) == (shard.text is None)
        tokens = reader.text_tokens(root, entry, 5)
        assert (tokens is None) == (shard.text_tokens is None)
        if tokens is not None:
            assert np.array_equal(tokens.lengths, shard.text_tokens.lengths)
            assert np.array_equal(tokens.flat(), shard.text_tokens.flat())
            assert tokens.values.dtype == shard.text_tokens.values.dtype
        assert reader.metadata(root, entry, 5).to_pydict() == shard.metadata
        assert reader.metadata(root, entry, 5, ("n", "key")).to_pydict() == {
            name: shard.metadata[name] for name in ("n", "key")
        }
    else:
        assert not any("errors" not in record.path for record in written)
    assert {record.path for record in written} <= set(layout.data_paths(shard.number, 5))
    assert any("errors" in record.path for record in written) == bool(shard.rejects)


def assert_pieces(rows, whole):
    """Every piece of the rows, from the back to the front, is what it is of the whole."""
    assert (rows.shape, rows.dtype) == (whole.shape, whole.dtype)
    for start in reversed(range(len(whole))):
        for stop in range(start, len(whole) + 1):
            out = np.empty((stop - start, whole.shape[1]), whole.dtype)
            rows.read(start, out)
            assert np.array_equal(out, whole[start:stop])
    rows.close()
