"""Csv, tsv and txt as embedpipe read them until it told dialects apart, for outputs whose plan has none.

Quotes are taken leniently, and bytes that are not UTF-8 replaced: an output that was begun so goes on so.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import BinaryIO

import pyarrow as pa
import pyarrow.csv

from ...errors import InputError
from .type_inference import text_to

_BLOCK_BYTES = 8 << 20
_LINES = 20_000


def lenient_batches(stream: BinaryIO, name: str, delimiter: str, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """The rows of a delimited file, its columns as in `schema`."""
    parsing = pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    header = stream.readline()
    stream.seek(0)
    names = pyarrow.csv.open_csv(pa.BufferReader(header), parse_options=parsing).schema.names
    try:
        reader = pyarrow.csv.open_csv(
            stream,
            read_options=pyarrow.csv.ReadOptions(block_size=_BLOCK_BYTES, use_threads=False),
            parse_options=parsing,
            convert_options=pyarrow.csv.ConvertOptions(column_types={column: pa.string() for column in names}),
        )
        for batch in reader:
            kinds = [schema.field(column).type for column in batch.schema.names]
            arrays = [text_to(values, kind) for values, kind in zip(batch.columns, kinds, strict=True)]
            yield pa.RecordBatch.from_arrays(arrays, names=batch.schema.names)
    except pa.ArrowInvalid as problem:
        raise InputError(f"{name}: {problem}") from problem


def lenient_lines(stream: BinaryIO) -> Iterator[pa.RecordBatch]:
    """The urls of a txt file."""
    urls = (line.decode("utf-8", "replace").strip().lstrip("\ufeff") for line in stream if line.strip())
    while block := list(islice(urls, _LINES)):
        yield pa.RecordBatch.from_arrays([pa.array(block, pa.string())], names=["url"])
