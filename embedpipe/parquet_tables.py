"""Whole parquet files as tables."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from . import files


def read_table(location: str, columns: Sequence[str] | None = None, schema: pa.Schema | None = None) -> pa.Table:
    """A parquet file, or some columns of it, with the checksums of its pages verified where it has any.

    Raises InputError when it cannot be opened, pyarrow.ArrowException or OSError when it cannot be read.

    Arrow's threads let go of a Python stream only after the table is there; a script that ends just then is aborted
    (apache/arrow issue 34314). So a local file is opened by Arrow itself, and a remote one read on this thread.
    """
    wanted = list(columns) if columns is not None else None
    with files.reading(location) as stream:
        if files.is_local(location):
            with pa.OSFile(str(files.local_path(location))) as file:
                return pq.read_table(file, columns=wanted, schema=schema, page_checksum_verification=True)
        return pq.read_table(
            stream, columns=wanted, schema=schema, page_checksum_verification=True, use_threads=False, pre_buffer=False
        )
