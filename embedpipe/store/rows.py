"""Read rows of one array piece by piece into the caller's memory, from .npy, .npz or parquet.

`Rows` keeps the stored dtype and avoids extra copies. Errors name the file.
"""

from __future__ import annotations

import contextlib
import io
import os
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .. import files
from ..errors import DatasetError, InputError
from ..scarcity import telling

# A request to an object store takes as long as many bytes; a local read should fit in the processor's cache.
_LOCAL_BYTES_AT_ONCE = 1 << 20
_REMOTE_BYTES_AT_ONCE = 16 << 20
_NPY_HEADER_BYTES = 4096
_LONGEST_HEADER = 1 << 20
_DTYPES = (np.dtype("<f2"), np.dtype("<f4"))
# numpy parses headers with ast.literal_eval, which may raise SystemError in concurrent threads (CPython gh-106905).
HEADERS = threading.Lock()
_NOT_WHOLE = "Fetch or write the file again"


class Rows(Protocol):
    """An array of rows [n, dim] in a file. Close it when it is no longer needed."""

    location: str
    shape: tuple[int, int]
    dtype: np.dtype[Any]
    rows_at_once: int  # the recommended number of rows per read

    def read(self, start: int, out: np.ndarray) -> None:
        """Fill `out`, C order [m, dim] in this dtype, with the rows from `start` on. Raises DatasetError."""
        ...

    def close(self) -> None:
        """Close the file."""
        ...


@dataclass(frozen=True, slots=True)
class NpyHeader:
    """The header of an .npy file: shape, dtype, and the byte offset of the data.

    dtype: as it is in memory, in this machine's byte order. stored: as it is in the file. fortran: column after column.
    """

    shape: tuple[int, ...]
    stored: np.dtype[Any]
    offset: int
    fortran: bool = False

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.stored.newbyteorder("=")

    @property
    def plain(self) -> bool:
        """Whether the bytes of a row are as they are in memory, one after the other."""
        return not self.fortran and self.stored == self.dtype


def whole(rows: Rows) -> np.ndarray:
    """All rows in memory."""
    out = np.empty(rows.shape, rows.dtype)
    rows.read(0, out)
    return out


def npy_header(location: str) -> NpyHeader:
    """The header of an .npy file of embeddings, checked against the file's size.

    Raises DatasetError if it is not an .npy, is truncated, or has anything but float16 or float32 rows. Any version of
    the format, order of the array and byte order is read.
    """
    try:
        start = files.read_range(location, 0, _NPY_HEADER_BYTES)
        if (needed := min(_header_bytes(start), _LONGEST_HEADER)) > len(start):
            start = files.read_range(location, 0, needed)
        header = _parse(start)
        there = files.stat(location).bytes
    except (OSError, ValueError, EOFError, InputError) as problem:
        raise DatasetError(f"{location}: cannot be read: {problem}", _NOT_WHOLE) from problem
    _require_rows(location, header)
    should = header.offset + int(np.prod(header.shape, dtype=np.int64)) * header.dtype.itemsize
    if there != should:
        raise DatasetError(
            f"{location}: {there} bytes, but its header promises {header.shape[0]} rows in {should}", _NOT_WHOLE
        )
    return header


def _parse(start: bytes) -> NpyHeader:
    """Parse the header at the start of a file. Raises ValueError."""
    with HEADERS:
        return _parse_alone(io.BytesIO(start))


def _parse_alone(stream: io.BytesIO) -> NpyHeader:
    version = np.lib.format.read_magic(stream)
    # Version 3 allows field names in UTF-8, which rows have none of: else it is as version 2.
    later = np.lib.format.read_array_header_2_0
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): later, (3, 0): later}
    if version not in read:
        raise ValueError(f"version {version} of the npy format")
    shape, fortran_order, dtype = read[version](stream)
    return NpyHeader(shape, dtype, stream.tell(), fortran_order and len(shape) > 1 and min(shape) > 1)


def _header_bytes(start: bytes) -> int:
    """How long the header says it is, with what comes before it."""
    digits = 2 if start[6:7] == b"\x01" else 4
    return 8 + digits + int.from_bytes(start[8 : 8 + digits], "little")


def _require_rows(location: str, header: NpyHeader) -> None:
    if len(header.shape) != 2 or header.dtype not in _DTYPES or min(header.shape) < 0:
        raise DatasetError(
            f"{location}: an array of shape {header.shape} and type {header.dtype}, not rows of float16 or float32",
            "Save it as float16 or float32, [rows, width]",
        )


def _at_once(location: str, row_bytes: int) -> int:
    most = _LOCAL_BYTES_AT_ONCE if files.is_local(location) else _REMOTE_BYTES_AT_ONCE
    return max(1, most // max(1, row_bytes))


def _require_there(rows: Rows, start: int, out: np.ndarray) -> None:
    if start + len(out) > rows.shape[0]:
        raise DatasetError(f"{rows.location}: {rows.shape[0]} rows, {start + len(out)} wanted", _NOT_WHOLE)


class NpyRows:
    """Rows of an .npy file, read directly into the caller's buffer; from a remote file, by byte ranges."""

    def __init__(self, location: str, header: NpyHeader | None = None) -> None:
        self.location = location
        header = header or npy_header(location)
        self.shape, self.dtype, self._offset = (header.shape[0], header.shape[1]), header.dtype, header.offset
        self._header = header
        self._array: np.ndarray | None = None  # of what is not plain
        self._row_bytes = self.shape[1] * self.dtype.itemsize
        self.rows_at_once = _at_once(location, self._row_bytes)
        self._file: int | None = None

    def read(self, start: int, out: np.ndarray) -> None:
        """See `Rows`."""
        if not out.size:
            return
        if not self.plain:
            _require_there(self, start, out)
            out[...] = self._other_order()[start : start + len(out)]
            return
        first = self._offset + start * self._row_bytes
        try:
            got = self._local(first, out) if files.is_local(self.location) else self._remote(first, out)
        except (OSError, InputError) as problem:
            raise DatasetError(f"{self.location}: cannot be read: {problem}", _NOT_WHOLE) from problem
        if got < out.nbytes:
            raise DatasetError(f"{self.location}: ends {out.nbytes - got} bytes early", _NOT_WHOLE)

    @property
    def plain(self) -> bool:
        """See `NpyHeader`."""
        return self._header.plain

    def _other_order(self) -> np.ndarray:
        """The array as it is stored: memory-mapped, or if it is remote, read once and kept."""
        if self._array is None:
            stored = self._header.stored
            order: Literal["C", "F"] = "F" if self._header.fortran else "C"
            try:
                if files.is_local(self.location):
                    path = files.local_path(self.location)
                    self._array = np.memmap(path, stored, "r", self._offset, self.shape, order)
                else:
                    end = self._offset + self.shape[0] * self._row_bytes
                    data = files.read_range(self.location, self._offset, end)
                    self._array = np.frombuffer(data, stored).reshape(self.shape, order=order)
            except (OSError, ValueError, InputError) as problem:
                raise DatasetError(f"{self.location}: cannot be read: {problem}", _NOT_WHOLE) from problem
        return self._array

    def _local(self, place: int, out: np.ndarray) -> int:
        if self._file is None:
            with telling():
                self._file = os.open(files.local_path(self.location), os.O_RDONLY)
        view, done = memoryview(out.data).cast("B"), 0
        while done < len(view):
            got = os.preadv(self._file, [view[done:]], place + done)
            if not got:
                break
            done += got
        return done

    def _remote(self, place: int, out: np.ndarray) -> int:
        data = files.read_range(self.location, place, place + out.nbytes)
        memoryview(out.data).cast("B")[: len(data)] = data
        return len(data)

    def close(self) -> None:
        """See `Rows`."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
        self._array = None


def npz_headers(location: str) -> dict[str, NpyHeader]:
    """The arrays of an .npz file by name. Raises DatasetError if it is not an .npz, or truncated."""
    try:
        with files.reading(location) as stream, zipfile.ZipFile(stream) as archive:
            found = {}
            for name in archive.namelist():
                with archive.open(name) as member:
                    found[name.removesuffix(".npy")] = _parse(member.read(_NPY_HEADER_BYTES))
            return found
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, InputError) as problem:
        raise DatasetError(f"{location}: cannot be read: {problem}", _NOT_WHOLE) from problem


class NpzRows:
    """Rows of one array of an .npz file, which is decompressed completely on first read."""

    def __init__(self, location: str, name: str, header: NpyHeader) -> None:
        self.location = location
        self.shape, self.dtype = (header.shape[0], header.shape[1]), header.dtype
        self.rows_at_once = _at_once(location, self.shape[1] * self.dtype.itemsize)
        self._name = name
        self._array: np.ndarray | None = None

    def read(self, start: int, out: np.ndarray) -> None:
        """See `Rows`."""
        if self._array is None:
            try:
                with files.reading(self.location) as stream, np.load(stream, allow_pickle=False) as archive, HEADERS:
                    stored = archive[self._name]
                    self._array = stored.astype(stored.dtype.newbyteorder("="), copy=False)
            except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, InputError) as problem:
                raise DatasetError(f"{self.location}: cannot be read: {problem}", _NOT_WHOLE) from problem
            if (self._array.shape, self._array.dtype) != (self.shape, self.dtype):
                raise DatasetError(f"{self.location}: {self._name} is another array than a moment ago", _NOT_WHOLE)
        _require_there(self, start, out)  # numpy would repeat a single row to fill `out`
        out[...] = self._array[start : start + len(out)]

    def close(self) -> None:
        """See `Rows`."""
        self._array = None


class ParquetRows:
    """Rows of a list column in a parquet file, decoded lazily.

    Sequential reads are cheap; a jump decodes its row group from the start. Lists of float64 are read as float32.
    Widths are checked against `dim` while reading.
    """

    def __init__(self, location: str, column: str, dim: int | None = None) -> None:
        self.location = location
        self._column = column
        self._open = contextlib.ExitStack()
        with self._ours():
            stream = self._open.enter_context(files.reading(location))
            self._file = pq.ParquetFile(stream, page_checksum_verification=True)
        if column not in self._file.schema_arrow.names:
            self.close()
            raise DatasetError(f"{location}: has no column {column!r}", "Say which column holds the embeddings")
        self.dtype = _dtype(self._file.schema_arrow.field(column).type, f"{location}: {column}")
        about = self._file.metadata
        sizes = [about.row_group(group).num_rows for group in range(about.num_row_groups)]
        self._bounds = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        self._pieces: Iterator[np.ndarray] = iter(())
        self._piece, self._place = (
            np.empty((0, 0), self.dtype),
            -1,
        )  # the last decoded rows, and the number of the first
        self.shape = (int(about.num_rows), dim if dim is not None else 0)
        if dim is None:
            self.shape = (self.shape[0], self._width())
        self.rows_at_once = _at_once(location, self.shape[1] * self.dtype.itemsize)

    def _width(self) -> int:
        kind = self._file.schema_arrow.field(self._column).type
        if pa.types.is_fixed_size_list(kind):
            return int(kind.list_size)
        with self._ours():
            for batch in self._file.iter_batches(1, columns=[self._column]):
                return len(batch.column(0)[0]) if batch.column(0)[0].is_valid else 0
        return 0

    @contextlib.contextmanager
    def _ours(self) -> Iterator[None]:
        try:
            with telling():
                yield
        except (OSError, pa.ArrowException, InputError) as problem:
            self.close()
            raise DatasetError(f"{self.location}: cannot be read: {problem}", _NOT_WHOLE) from problem

    def read(self, start: int, out: np.ndarray) -> None:
        """See `Rows`."""
        _require_there(self, start, out)
        filled = 0
        while filled < len(out):
            inside = start + filled - self._place
            if self._place < 0 or not 0 <= inside < len(self._piece):
                self._decode(start + filled)
                continue
            some = self._piece[inside : inside + len(out) - filled]
            out[filled : filled + len(some)] = some
            filled += len(some)

    def _decode(self, row: int) -> None:
        """Decode until the last decoded rows include `row`."""
        if self._place < 0 or row != self._place + len(self._piece):
            group = int(np.searchsorted(self._bounds, row, side="right")) - 1
            self._pieces = self._decoded(range(group, self._file.num_row_groups))
            self._piece, self._place = self._piece[:0], int(self._bounds[group])
        while row >= self._place + len(self._piece):
            self._place += len(self._piece)
            with self._ours():
                piece = next(self._pieces, None)
            if piece is None:
                raise DatasetError(f"{self.location}: ends before row {row}", _NOT_WHOLE)
            self._piece = piece

    def _decoded(self, groups: range) -> Iterator[np.ndarray]:
        for batch in self._file.iter_batches(self.rows_at_once, row_groups=list(groups), columns=[self._column]):
            yield lists_as_rows(batch.column(0), self.shape[1], f"{self.location}: {self._column}")

    def close(self) -> None:
        """See `Rows`."""
        self._open.close()


def _dtype(kind: pa.DataType, what: str) -> np.dtype[Any]:
    nested = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if nested and pa.types.is_float16(kind.value_type):
        return np.dtype(np.float16)
    if nested and pa.types.is_floating(kind.value_type):
        return np.dtype(np.float32)
    raise DatasetError(f"{what} is of type {kind}, not lists of numbers", "Say which column holds the embeddings")


def lists_as_rows(lists: pa.Array, width: int, what: str) -> np.ndarray:
    """float16 or float32 [n, width] of n lists, a view into Arrow's memory if possible."""
    if lists.null_count:
        raise DatasetError(f"{what}: {lists.null_count} rows are null", "Leave them out where the file is written")
    numbers = lists.flatten()
    if not pa.types.is_fixed_size_list(lists.type):
        lengths = np.diff(lists.offsets.to_numpy())
        if len(lengths) and (lengths.min() != width or lengths.max() != width):
            raise DatasetError(f"{what}: rows of {lengths.min()} to {lengths.max()} numbers, not {width}", _NOT_WHOLE)
    if numbers.null_count:
        raise DatasetError(f"{what}: {numbers.null_count} numbers are null", "Leave them out where the file is written")
    if pa.types.is_float64(numbers.type):
        numbers = numbers.cast(pa.float32(), safe=False)
    found: np.ndarray = numbers.to_numpy(zero_copy_only=True).reshape(len(lists), width)
    return found


class Normalised:
    """Rows normalised while reading; rows of zeros are unchanged."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self.location, self.shape, self.dtype = rows.location, rows.shape, rows.dtype
        self.rows_at_once = rows.rows_at_once

    def read(self, start: int, out: np.ndarray) -> None:
        """See `Rows`."""
        for first in range(0, len(out), self.rows_at_once):
            some = out[first : first + self.rows_at_once]
            self._rows.read(start + first, some)
            values = some.astype(np.float32)
            length = np.sqrt(np.einsum("ij,ij->i", values, values))
            values /= np.where(length > 0, length, 1)[:, None]
            some[...] = values

    def close(self) -> None:
        """See `Rows`."""
        self._rows.close()
