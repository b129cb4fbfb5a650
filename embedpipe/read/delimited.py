"""Delimited text (csv, tsv): the only reader of such files. Strict: a file that could mean two things is refused.

Two quotings are known. In `minimal`, RFC 4180's, quotes enclose a value, which may then contain delimiters, line breaks
and doubled quotes. In `none` a quote is a character like any other, and a line is a row. Without a given quoting, both
readings of the whole file are compared; see `detect`.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ..errors import EmptyInput, InputError, OptionError, did_you_mean
from .text_file import TextFile

QUOTINGS = ("auto", "minimal", "none")
DELIMITERS = (",", ";", "\t", "|")
_NAMES = {"\\t": "\t", "tab": "\t"}
_LONGEST_FIELD = 1 << 24
_URL = re.compile(r"\s*https?://", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class DialectOptions:
    """What is known of a file before it is read. quoting: one of QUOTINGS; delimiter, encoding: None to detect it."""

    quoting: str = "auto"
    delimiter: str | None = None
    encoding: str | None = None

    def __post_init__(self) -> None:
        if self.quoting not in QUOTINGS:
            raise OptionError(f"`quoting={self.quoting!r}`: no such quoting", did_you_mean(self.quoting, QUOTINGS))
        separator = self.separator
        if separator is not None and (len(separator) != 1 or separator in '"\r\n\0'):
            raise OptionError(
                f"`delimiter={self.delimiter!r}`: must be one character other than a quote or a line break",
                "Give `delimiter='tab'` for a tab",
            )

    @property
    def separator(self) -> str | None:
        """The delimiter as a character: `tab` stands for one."""
        return None if self.delimiter is None else _NAMES.get(self.delimiter, self.delimiter)


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a file is read. quoting: minimal or none."""

    delimiter: str
    quoting: str
    encoding: str


@dataclass(frozen=True, slots=True)
class Detected:
    """A file's dialect, its column names, and its numbers of rows (without the header) and of blank lines."""

    dialect: Dialect
    header: tuple[str, ...]
    rows: int
    blank_lines: int


class _Malformed(Exception):
    """A line that a reading does not allow."""

    def __init__(self, line: int, what: str) -> None:
        self.line = line
        self.what = what
        super().__init__(what)


def header(file: TextFile, dialect: Dialect) -> tuple[str, ...]:
    """The column names."""
    with file.text(dialect.encoding) as lines:
        return tuple(next((values for _, values, _ in _records(lines, dialect) if values), ()))


def rows(file: TextFile, dialect: Dialect) -> Iterator[list[str]]:
    """The rows after the header, each with one value per column. Blank lines are no rows. Raises InputError."""
    with file.text(dialect.encoding) as lines:
        filled = (values for _, values, _ in _records(lines, dialect) if values)
        try:
            next(filled, None)  # the header
            yield from filled
        except _Malformed as problem:
            raise _refusal(file, problem, dialect.delimiter) from None


def detect(file: TextFile, usual: str, given: DialectOptions) -> Detected:
    """The dialect of a file; reads all of it, up to twice. usual: the delimiter that the file's name suggests.

    A delimiter that is not given is the usual one, or the first of DELIMITERS that divides the header where that one
    does not. Of the two quotings the one that gives every row as many values as the header is taken. If both do and
    differ, quotes enclose values, unless they could also belong to the text: in a file with tabs, where only some
    values of a column begin and end with one; or where a value of several lines contains what looks like whole rows.
    Raises InputError, with the line, if neither or both are possible; EmptyInput if there is no header.
    """
    encoding = file.encoding(given.encoding)
    separator = given.separator or _delimiter(file, encoding, usual)
    minimal = Dialect(separator, "minimal", encoding)
    none = Dialect(separator, "none", encoding)
    if given.quoting != "auto":
        asked = _scan(file, minimal if given.quoting == "minimal" else none)
        if asked.problem is not None:
            raise _refusal(file, asked.problem, separator)
        return asked.detected(file)
    plain = _scan(file, none)
    if plain.problem is None and plain.quotes == _NO_QUOTES:
        return _Scan(minimal, plain.header, plain.rows, plain.blank, None, _NO_QUOTES).detected(file)
    quoted = _scan(file, minimal)
    return _chosen(file, plain, quoted).detected(file)


def _delimiter(file: TextFile, encoding: str, usual: str) -> str:
    with file.text(encoding) as lines:
        header = next((line for line in lines if line.strip()), "")
    for candidate in (usual, *DELIMITERS):
        if len(next(csv.reader([header.rstrip("\r\n")], delimiter=candidate), [])) > 1:
            return candidate
    return usual


def _records(lines: Iterable[str], dialect: Dialect) -> Iterator[tuple[int, list[str], list[str]]]:
    """First line, values and physical lines of each record, the header's included. Raises _Malformed."""
    csv.field_size_limit(max(csv.field_size_limit(), _LONGEST_FIELD))
    taken: list[str] = []

    def noted() -> Iterator[str]:
        for line in lines:
            taken.append(line)
            yield line

    if dialect.quoting == "none":
        reader = csv.reader(noted(), delimiter=dialect.delimiter, quoting=csv.QUOTE_NONE, strict=True)
    else:
        reader = csv.reader(noted(), delimiter=dialect.delimiter, strict=True)
    first, width = 1, 0
    while True:
        taken.clear()
        try:
            values = next(reader, None)
        except csv.Error as problem:
            raise _Malformed(first, _said(problem)) from None
        if values is None:
            return
        if width and values and len(values) != width:
            raise _Malformed(first, f"{len(values)} fields where the header has {width}: {taken[0].rstrip()[:200]!r}")
        width = width or len(values)
        yield first, values, taken
        first = reader.line_num + 1


def _said(problem: csv.Error) -> str:
    if "unexpected end" in str(problem) or "field larger" in str(problem):
        return "a quote opens here that nothing closes"
    if "expected after" in str(problem):
        return "text follows a closing quote"
    return str(problem)


@dataclass(frozen=True, slots=True)
class _Quotes:
    """The first lines, in a reading where quotes are characters, of values that begin with a quote.

    whole: that end with one, too. alone: as `whole`, without a reason to be enclosed, in a column where not all are.
    """

    opening: int = 0
    whole: int = 0
    alone: int = 0


_NO_QUOTES = _Quotes()


@dataclass(frozen=True, slots=True)
class _Scan:
    """What a whole file comes to in one reading.

    swallowed: the first line of a value that contains what looks like rows, with urls as in its own row.
    maybe_swallowed: of one where no url can tell.
    """

    dialect: Dialect
    header: tuple[str, ...]
    rows: int
    blank: int
    problem: _Malformed | None
    quotes: _Quotes
    swallowed: int = 0
    maybe_swallowed: int = 0

    def detected(self, file: TextFile) -> Detected:
        """The finding. Raises EmptyInput, or InputError for a column that is there twice."""
        if not self.header:
            raise EmptyInput(f"{file.location}: empty, there is not even a header")
        twice = next((name for at, name in enumerate(self.header) if name in self.header[:at]), None)
        if twice is not None:
            raise InputError(f"{file.location}: the column {twice!r} is there twice", "Rename one of them")
        return Detected(self.dialect, self.header, self.rows, self.blank)


def _scan(file: TextFile, dialect: Dialect) -> _Scan:
    header: list[str] = []
    count = blank = swallowed = maybe_swallowed = 0
    quotes = _QuoteCount()
    problem = None
    with file.text(dialect.encoding) as lines:
        try:
            for line, values, taken in _records(lines, dialect):
                if not values:
                    blank += 1
                    continue
                if dialect.quoting == "none":
                    quotes.see(line, values)
                elif len(taken) > 1 and _looks_like_rows(taken, values, dialect.delimiter):
                    if any(map(_URL.match, values)):
                        swallowed = swallowed or line
                    else:
                        maybe_swallowed = maybe_swallowed or line
                if header:
                    count += 1
                header = header or values
        except _Malformed as found:
            problem = found
    return _Scan(dialect, tuple(header), count, blank, problem, quotes.total(), swallowed, maybe_swallowed)


class _QuoteCount:
    """Counts, by column, values that begin with a quote."""

    def __init__(self) -> None:
        self.opening = self.whole = 0
        self.filled: dict[int, int] = {}
        self.enclosed: dict[int, int] = {}
        self.alone: dict[int, int] = {}

    def see(self, line: int, values: list[str]) -> None:
        for column, value in enumerate(values):
            if value:
                self.filled[column] = self.filled.get(column, 0) + 1
            if value[:1] != '"':
                continue
            self.opening = self.opening or line
            if len(value) > 1 and value[-1] == '"':
                self.whole = self.whole or line
                self.enclosed[column] = self.enclosed.get(column, 0) + 1
                if '"' not in value[1:-1]:
                    self.alone.setdefault(column, line)

    def total(self) -> _Quotes:
        partly = [line for column, line in self.alone.items() if self.enclosed[column] < self.filled[column]]
        return _Quotes(self.opening, self.whole, min(partly, default=0))


def _looks_like_rows(taken: list[str], values: list[str], delimiter: str) -> bool:
    """Whether more than one line of a record could be a row: as many fields, and urls where this record has them."""
    urls = [column for column, value in enumerate(values) if _URL.match(value)]
    pieces = (line.rstrip("\r\n").split(delimiter) for line in taken)
    alike = (len(piece) == len(values) and all(_URL.match(piece[column]) for column in urls) for piece in pieces)
    return sum(alike) > 1


def _chosen(file: TextFile, plain: _Scan, quoted: _Scan) -> _Scan:
    """The one reading that is possible. Raises InputError if there is none, or no telling."""
    delimiter = plain.dialect.delimiter
    if quoted.problem is not None and plain.problem is not None:
        raise _refusal(file, quoted.problem if plain.quotes.opening else plain.problem, delimiter)
    if quoted.problem is not None:
        if plain.quotes.whole:
            also = f"{quoted.problem.what}, but line {plain.quotes.whole} has a value in quotes"
            raise _ambiguous(file, quoted.problem.line, also)
        return plain
    said = "a quote opens, and the lines up to the one that closes it look like rows"
    if quoted.swallowed:
        raise _ambiguous(file, quoted.swallowed, said)
    if plain.problem is not None:
        return quoted
    if quoted.maybe_swallowed:
        raise _ambiguous(file, quoted.maybe_swallowed, said)
    if delimiter == "\t" and plain.quotes.alone:
        raise _ambiguous(file, plain.quotes.alone, "quotes around a value, which may enclose it or belong to it")
    return quoted


def _ambiguous(file: TextFile, line: int, what: str) -> InputError:
    return InputError(
        f"{file.location}: line {line}: {what}",
        "Give `quoting='minimal'` if quotes enclose values, `quoting='none'` if they belong to the text",
    )


def _refusal(file: TextFile, problem: _Malformed, delimiter: str) -> InputError:
    return InputError(
        f"{file.location}: line {problem.line}: {problem.what}",
        f"Mend the line, or give `quoting` ('none' if quotes belong to the text) or `delimiter` (taken: {delimiter!r})",
    )
