"""Text files line by line: plain or compressed, UTF-8 or UTF-16 by its byte order mark, any other encoding if given."""

from __future__ import annotations

import bz2
import codecs
import contextlib
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, cast

import pyarrow as pa

from .. import files
from ..errors import InputError, OptionError

# Endings of compressed files, and what undoes each.
COMPRESSIONS: dict[str, Callable[[BinaryIO], object]] = {
    "gz": lambda stream: gzip.GzipFile(fileobj=stream),
    "bz2": bz2.BZ2File,
    "xz": lzma.LZMAFile,
    "zst": lambda stream: io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(stream), "zstd")),
}
_DAMAGE = (pa.ArrowException, gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError)
_MARKS = (  # the longest first: that of UTF-32 begins like UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
UTF_8 = "utf-8-sig"  # with or without the mark


@dataclass(frozen=True, slots=True)
class TextFile:
    """A text file, opened as often as it is read. compression: a key of COMPRESSIONS, or empty."""

    location: str
    compression: str = ""

    @contextlib.contextmanager
    def binary(self) -> Iterator[BinaryIO]:
        """Its bytes, unpacked. Raises InputError, also for a damaged archive."""
        with files.reading(self.location) as stream:
            if not self.compression:
                yield stream
                return
            try:
                yield cast(BinaryIO, COMPRESSIONS[self.compression](stream))
            except (*_DAMAGE, OSError) as problem:
                raise InputError(f"{self.location}: cannot be unpacked as .{self.compression}: {problem}") from problem

    def encoding(self, given: str | None = None) -> str:
        """The encoding: as given, else by the byte order mark, else UTF-8. Raises OptionError for an unknown one."""
        if given is not None:
            try:
                name = codecs.lookup(given).name
            except LookupError:
                raise OptionError(f"`encoding={given!r}`: unknown", "Give a name such as utf-16 or cp1252") from None
            return UTF_8 if name == "utf-8" else name
        with self.binary() as stream:
            head = stream.read(4)
        return next((name for mark, name in _MARKS if head.startswith(mark)), UTF_8)

    def head(self, encoding: str, characters: int = 4096) -> str:
        """The first characters, as far as they can be decoded."""
        with self.binary() as stream:
            return io.TextIOWrapper(stream, encoding, "replace", newline="").read(characters)

    def pieces(self, encoding: str, characters: int) -> Iterator[str]:
        """Its text in pieces of so many characters, for files of one long line. Raises InputError as `text`."""
        with self.binary() as stream:
            try:
                whole = io.TextIOWrapper(stream, encoding, "strict", newline="")
                while piece := whole.read(characters):
                    yield piece
            except UnicodeError as problem:
                name = "UTF-8" if encoding == UTF_8 else encoding
                raise InputError(f"{self.location}: not {name}: {problem}", "Give its encoding: `encoding`") from None

    @contextlib.contextmanager
    def text(self, encoding: str, newline: str = "") -> Iterator[Iterator[str]]:
        """Its lines, with their ends. Raises InputError that names the line of a byte which is not in the encoding."""
        with self.binary() as stream:
            yield self._lines(stream, encoding, newline)

    def _lines(self, stream: BinaryIO, encoding: str, newline: str) -> Iterator[str]:
        # Undecodable bytes become lone surrogates first: a decoder reads ahead, and could not tell the line.
        errors = "surrogatepass" if encoding.startswith(("utf-16", "utf-32")) else "surrogateescape"
        number = 0
        try:
            for number, line in enumerate(io.TextIOWrapper(stream, encoding, errors, newline=newline), 1):
                if "\0" in line:
                    raise self._problem(number, "a NUL byte", "If the file is UTF-16, give `encoding='utf-16-le'`")
                if not line.isascii():
                    line.encode()
                yield line
        except UnicodeError as problem:
            name = "UTF-8" if encoding == UTF_8 else encoding
            where = number if isinstance(problem, UnicodeEncodeError) else number + 1  # a decoder's own: the next one
            raise self._problem(
                where, f"not {name}", "Give its encoding: `encoding='cp1252'` for Western Windows, for instance"
            ) from None

    def _problem(self, line: int, what: str, remedy: str) -> InputError:
        return InputError(f"{self.location}: line {line}: {what}", remedy)


def compression_of(name: str) -> tuple[str, str]:
    """A file's lower-case name without the ending of its compression, and that ending (empty if it has none)."""
    plain, _, ending = name.lower().rpartition(".")
    return (plain, ending) if plain and ending in COMPRESSIONS else (name.lower(), "")
