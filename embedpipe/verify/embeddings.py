"""Verify the contents of an embedding shard: all files describe the same samples row by row, with valid numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..columns import NORMS, TEXT_TOKENS_CUT, measured, schema
from ..errors import DatasetError
from ..manifest import RunCard, ShardManifest
from ..progress import CutCaptions
from ..ragged import RaggedRows
from ..store import Contents, open_format
from ..store.rejects import read_rejects

_ROWS_AT_ONCE = 8192

# Tolerances of a row's norm, and of a similarity against the dot product of the stored rows. Rounding to float16
# changes each number by at most 2⁻¹¹ of it, hence a norm by at most 4.9e-4 and a dot product by twice that.
_LENGTH_TOLERANCE = {"float16": 1e-3, "float32": 1e-5}
_SIMILARITY_TOLERANCE = {"float16": 2e-3, "float32": 1e-4}


def embedding_faults(path: str, run: RunCard, entry: ShardManifest) -> Iterator[str]:
    """Faults in a shard whose files match its manifest byte for byte."""
    try:
        rejects = read_rejects(path, entry, run.shard_digits)
        yield from _reject_faults(entry, rejects)
        if not entry.rows_out:
            if _is_input(run):
                yield from _place_faults(entry, pa.array([], pa.int64()), rejects["src_index"])
            return
        reader = open_format(str(run.options.get("format", "npy"))).reader
        table = reader.metadata(path, entry, run.shard_digits)
        wanted = schema(run.columns)
        if not table.schema.remove_metadata().equals(wanted):
            yield f"metadata: columns {_columns(table.schema)}, but embedpipe.json says {_columns(wanted)}"
            return
        yield from _metadata_faults(entry, table)
        if _is_input(run):
            yield from _place_faults(entry, table["src_index"], rejects["src_index"])
        contents = Contents.of(run.options)
        arrays: dict[str, np.ndarray] = {}
        for modality in contents.modalities:
            found = reader.embeddings(path, entry, modality, run.shard_digits)
            if found is None:
                yield f"no {modality} embeddings"
            elif str(found.dtype) != entry.dtype:
                yield f"{modality} embeddings are {found.dtype}, should be {entry.dtype}"
            else:
                arrays[modality] = found
        yield from _number_faults(run, arrays)
        yield from _measure_faults(run, entry, contents, table)
        if "read_as" not in run.options:
            yield from _similarity_faults(arrays, table["similarity"], str(entry.dtype))
        if contents.text_tokens:
            yield from _token_faults(run, entry, reader.text_tokens(path, entry, run.shard_digits))
    except DatasetError as problem:
        yield str(problem)


def _is_input(run: RunCard) -> bool:
    """Whether `src_index` refers to the samples counted by the manifests.

    It does not if rows were predicted from another data set (whose rejects it counts, too), or selected from another
    tool's data set, where it is arbitrary, and similarities are missing.
    """
    predicted = run.encoder is not None and run.encoder.predicted_by is not None
    return not predicted and "read_as" not in run.options


def _columns(found: pa.Schema) -> str:
    return ", ".join(f"{field.name} {field.type}" for field in found)


def _reject_faults(entry: ShardManifest, rejects: pa.Table) -> Iterator[str]:
    counted = {name.as_py(): count.as_py() for name, count in zip(*_value_counts(rejects["error_class"]), strict=True)}
    if counted != entry.rejects:
        yield f"errors: {counted}, but the manifest says {entry.rejects}"
    if set(rejects["src_shard"].unique().to_pylist()) - {entry.source.name}:
        yield f"errors: rows of another input shard than {entry.source.name}"


def _value_counts(column: pa.ChunkedArray) -> tuple[pa.Array, pa.Array]:
    return pc.value_counts(column).flatten() if len(column) else (pa.array([]), pa.array([]))


def _metadata_faults(entry: ShardManifest, table: pa.Table) -> Iterator[str]:
    keys = table["key"]
    if keys.null_count:
        yield f"metadata: {keys.null_count} rows have no key"
    elif (distinct := pc.count_distinct(keys).as_py()) != len(keys):
        yield f"metadata: {len(keys)} rows, but {distinct} keys"
    if not keys.equals(table["image_path"]):
        yield "metadata: key and image_path differ"
    if table["src_shard"].unique().to_pylist() != [entry.source.name]:
        yield f"metadata: rows of another input shard than {entry.source.name}"


def _place_faults(entry: ShardManifest, rows: pa.Array, rejects: pa.Array) -> Iterator[str]:
    """Every sample of the input shard is exactly one of row, reject or dropped, and rows are in its order."""
    if rows.null_count or rejects.null_count:
        yield "src_index: rows without one"
        return
    kept, rejected = rows.to_numpy(), rejects.to_numpy()
    if (np.diff(kept) <= 0).any():
        yield "src_index: rows are not in the order of the input shard"
    places = np.concatenate([kept, rejected])
    inside = len(places) == 0 or (places.min() >= 0 and places.max() < entry.rows_in)
    if not inside or len(np.unique(places)) != entry.rows_in - entry.rows_dropped:
        yield f"src_index: rows and rejects together are not the {entry.rows_in} samples of the input shard"


def _number_faults(run: RunCard, arrays: Mapping[str, np.ndarray]) -> Iterator[str]:
    assert run.encoder is not None
    tolerance = _LENGTH_TOLERANCE.get(run.encoder.dtype, 0.0) if run.encoder.normalised else np.inf
    for modality, array in arrays.items():
        blocks = [(np.isfinite(block).all(axis=1), _lengths(block)) for _, block in _blocks(array)]
        finite, length = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
        yield from _told(f"{modality} embeddings", ~finite, "hold NaN or infinity")
        yield from _told(f"{modality} embeddings", finite & (np.abs(length - 1) > tolerance), "are not of length 1")


def _measure_faults(run: RunCard, entry: ShardManifest, contents: Contents, table: pa.Table) -> Iterator[str]:
    """Norms exist, finite and above 0, for all embeddings; truncated tokens add up to the manifest's count.

    A merged data set may have rows without them, and other tools' data may or may not have them.
    """
    may_lack = bool(run.merged) or "read_as" in run.options
    there = measured(run.columns)
    for modality, name in NORMS.items():
        if name not in there:
            continue
        column = table[name]
        if modality not in contents.modalities:
            if column.null_count < len(column):
                yield f"{name}: there, where there are no {modality} embeddings"
            continue
        if column.null_count and not may_lack:
            yield f"{name}: {column.null_count} rows have none"
        norms = column.to_numpy()
        known = column.is_valid().to_numpy()
        yield from _told(name, known & ~(np.isfinite(norms) & (norms > 0)), "are not finite and above 0")
    if TEXT_TOKENS_CUT in there and entry.tokens_cut is not None and not may_lack:
        counts = table[TEXT_TOKENS_CUT].drop_null().to_numpy()
        found = CutCaptions.of(counts)
        if (counts < 0).any() or (found.captions, found.tokens) != (entry.captions_cut, entry.tokens_cut):
            yield (
                f"{TEXT_TOKENS_CUT}: {found.tokens} tokens of {found.captions} captions, but the manifest says "
                f"{entry.tokens_cut} of {entry.captions_cut}"
            )


def _lengths(block: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(np.linalg.norm(block, axis=1))


def _similarity_faults(arrays: Mapping[str, np.ndarray], column: pa.ChunkedArray, dtype: str) -> Iterator[str]:
    if len(arrays) < 2:
        if column.null_count < len(column):
            yield "similarity: there, where image and text are not"
        return
    if column.null_count:
        yield f"similarity: {column.null_count} rows have none"
        return
    said = column.to_numpy().astype(np.float32)
    images, texts = (_blocks(arrays[modality]) for modality in ("image", "text"))
    off = np.zeros(len(said), bool)
    for (start, image), (_, text) in zip(images, texts, strict=True):
        rows = slice(start, start + len(image))
        with np.errstate(over="ignore", invalid="ignore"):
            apart = np.abs(np.einsum("nd,nd->n", image, text) - said[rows])
            scale = np.maximum(1, _lengths(image) * _lengths(text))
            off[rows] = ~(apart <= _SIMILARITY_TOLERANCE.get(dtype, 0.0) * scale)
    yield from _told("similarity", off, "are not the dot product of image and text")


def _token_faults(run: RunCard, entry: ShardManifest, tokens: RaggedRows | None) -> Iterator[str]:
    if tokens is None:
        yield "no text tokens"
        return
    if str(tokens.values.dtype) != entry.dtype:
        yield f"text tokens are {tokens.values.dtype}, should be {entry.dtype}"
    if tokens.width != run.token_width:
        yield f"text tokens are {tokens.width} wide, but embedpipe.json says {run.token_width}"
    yield from _told("text tokens", ~tokens.finite(), "hold NaN or infinity")


def _blocks(array: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """(first row, float32 [m, dim]) for each block of an array that may be larger than memory."""
    for start in range(0, len(array), _ROWS_AT_ONCE):
        yield start, np.asarray(array[start : start + _ROWS_AT_ONCE], np.float32)


def _told(what: str, bad: np.ndarray, how: str) -> Iterator[str]:
    rows: Any = np.flatnonzero(bad)
    if len(rows):
        yield f"{what}: {len(rows)} of {len(bad)} rows {how}, the first is row {rows[0]} of the shard"
