"""Stream the files of a tar: ustar, GNU and pax archives, with tarfile's results at a third of its cost.

Layout after POSIX.1-2017, pax, "ustar Interchange Format" and "pax Header Block", and GNU tar's manual, "Basic Tar
Format". Nothing is ever extracted; links, devices and sparse files have no contents here.
"""

from __future__ import annotations

import hashlib
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Protocol, runtime_checkable
from urllib.parse import quote, unquote

from .files import Written

_BLOCK = 512
_ZEROS = bytes(_BLOCK)
_CHUNK = 1 << 20
# Maximum size of a read, whatever a damaged header claims.
_READ_AT_ONCE = 1 << 24
_LARGEST_HEADER = 1 << 20  # of a pax or long-name header; real ones have a few hundred bytes

_REGULAR = frozenset(b"0\x007")
_PAX, _PAX_SOLARIS, _PAX_GLOBAL, _LONG_NAME, _LONG_LINK, _SPARSE = b"xXgLKS"
START_BYTES = _BLOCK  # a whole block, so that what follows begins with one


class TarDamaged(Exception):
    """The bytes are not a valid tar from some point on."""


@runtime_checkable
class Passing(Protocol):
    """A stream that can skip bytes without reading them."""

    def pass_over(self, size: int) -> bool:
        """Whether there were `size` bytes to skip."""
        ...


class Readable(Protocol):
    """A stream that is read once, sequentially."""

    def read(self, size: int = -1, /) -> bytes:
        """At most `size` bytes, none at the end."""
        ...


@dataclass(slots=True)
class _Extended:
    """Values from the extended headers before a member's own."""

    path: str | None = None
    size: int | None = None
    sparse: bool = False


FILE, FOLDER, LINK, SPECIAL, SPARSE = "file", "folder", "link", "special", "sparse"
# Whatever size they claim.
_WITHOUT_DATA = {
    ord("1"): LINK,
    ord("2"): LINK,
    ord("3"): SPECIAL,
    ord("4"): SPECIAL,
    ord("5"): FOLDER,
    ord("6"): SPECIAL,
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One member: its path, what it is (FILE …), its size in bytes, and its contents, if they were taken.

    Bytes of a path that are not UTF-8 are lone surrogates. start: the first bytes of a file about which `Take` was
    undecided.
    """

    path: str
    what: str
    size: int
    start: bytes = b""
    data: bytes | None = None


class Take(Protocol):
    """Decides whether the contents of a regular file are read."""

    def __call__(self, path: str, size: int, start: bytes | None) -> bool | None:
        """None: undecided; it is asked again with the first bytes, up to `START_BYTES`."""
        ...


def entries(stream: Readable, take: Take) -> Iterator[Entry]:
    """Every member, in order. The stream is read to its end.

    Raises TarDamaged if the archive is truncated or not a tar; members yielded before are intact.
    """
    everywhere = _Extended()
    following = _Extended()
    while True:
        header = _read(stream, _BLOCK)
        if header == _ZEROS:
            _expect_zeros(stream)
            return
        if not header:
            raise TarDamaged("no end-of-archive mark: the tar was cut off between two members")
        kind, size = _checked(header)
        if kind in (_PAX, _PAX_SOLARIS, _PAX_GLOBAL):
            _take_pax(_extended_header(stream, size), everywhere if kind == _PAX_GLOBAL else following)
            continue
        if kind == _LONG_NAME:
            following.path = _text(_extended_header(stream, size))
            continue
        if kind == _LONG_LINK:
            _extended_header(stream, size)
            continue
        path = following.path or everywhere.path or _path(header)
        for said in (everywhere.size, following.size):
            size = said if said is not None else size
        sparse = following.sparse or everywhere.sparse or kind == _SPARSE
        following = _Extended()
        if kind == _SPARSE:
            _skip_sparse_map(stream, header)
        if kind in _WITHOUT_DATA or (kind == 0 and path.endswith("/")):
            yield Entry(path, _WITHOUT_DATA.get(kind, FOLDER), 0)
        elif kind not in _REGULAR or sparse:
            _skip(stream, size)
            yield Entry(path, SPARSE if sparse else SPECIAL, size)
        else:
            yield _file(stream, path, size, take)


def _file(stream: Readable, path: str, size: int, take: Take) -> Entry:
    start = b""
    wanted = take(path, size, None)
    if wanted is None:
        start = _contents(stream, path, min(size, START_BYTES), size)
        wanted = take(path, size, start)
    if wanted:
        return Entry(path, FILE, size, start, start + _contents(stream, path, size - len(start), size))
    _skip(stream, size - len(start))
    return Entry(path, FILE, size, start)


def _read(stream: Readable, size: int) -> bytes:
    """`size` bytes, or as many as there are."""
    data = stream.read(size) if size <= _READ_AT_ONCE else b""
    if len(data) == size:
        return data
    parts = [data]
    have = len(data)
    while have < size and (more := stream.read(min(size - have, _READ_AT_ONCE))):
        parts.append(more)
        have += len(more)
    return b"".join(parts)


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _contents(stream: Readable, path: str, size: int, of: int) -> bytes:
    """The next `size` bytes of a member, and their padding. of: its whole size."""
    data = _read(stream, _padded(size))
    if len(data) < _padded(size):
        raise TarDamaged(f"{path!r} ends after {of - size + min(len(data), size)} of {of} bytes")
    return data[:size]


def _skip(stream: Readable, size: int) -> None:
    left = _padded(size)
    if isinstance(stream, Passing):
        if not stream.pass_over(left):
            raise TarDamaged("it ends within a member")
        return
    while left:
        passed = len(stream.read(min(left, _CHUNK)))
        if not passed:
            raise TarDamaged("it ends within a member")
        left -= passed


def _expect_zeros(stream: Readable) -> None:
    while data := stream.read(_CHUNK):
        if data.count(0) != len(data):
            raise TarDamaged("what follows its end-of-archive mark is no member")


def _checked(header: bytes) -> tuple[int, int]:
    """Kind and size of a member, after checking the header's checksum."""
    if len(header) < _BLOCK:
        raise TarDamaged("it ends within a header")
    claimed = _number(header[148:156])
    unsigned = sum(header) - sum(header[148:156]) + 8 * ord(" ")
    if claimed != unsigned and claimed != _signed_sum(header):
        raise TarDamaged("bad checksum of a header")
    size = _number(header[124:136])
    if size < 0:
        raise TarDamaged("a member of negative size")
    return header[156], size


def _signed_sum(header: bytes) -> int:
    # Some old tars computed the checksum with signed bytes.
    fields = header[:148] + header[156:]
    return sum(fields) - 256 * sum(byte > 127 for byte in fields) + 8 * ord(" ")


def _number(field: bytes) -> int:
    """Parse octal digits, or GNU's base 256 for larger numbers."""
    if field[0] in (0x80, 0xFF):
        value = int.from_bytes(field[1:], "big")
        return value if field[0] == 0x80 else value - 256 ** (len(field) - 1)
    digits = field.split(b"\0", 1)[0].strip()
    try:
        return int(digits, 8) if digits else 0
    except ValueError:
        raise TarDamaged(f"a header with {field!r} for a number") from None


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def _path(header: bytes) -> str:
    name = _text(header[:100])
    prefix = _text(header[345:500]) if header[345] and header[156] != _SPARSE else ""
    return f"{prefix}/{name}" if prefix else name


def _extended_header(stream: Readable, size: int) -> bytes:
    if size > _LARGEST_HEADER:
        raise TarDamaged(f"an extended header of {size} bytes")
    return _contents(stream, "an extended header", size, size)


def _take_pax(records: bytes, into: _Extended) -> None:
    """Records are "length key=value\\n", the length counting all of it."""
    at = 0
    while at < len(records) and records[at]:
        length, space, _ = records[at : at + 20].partition(b" ")
        end = at + int(length) if length.isdigit() else at
        key, equals, value = records[at + len(length) + 1 : end - 1].partition(b"=")
        if not space or not equals or end > len(records) or records[end - 1 : end] != b"\n":
            raise TarDamaged("a pax header that is none")
        if key == b"path":
            into.path = value.decode("utf-8", "surrogateescape").rstrip("/")
        elif key == b"size":
            if not value.isdigit():
                raise TarDamaged(f"a pax header with {value[:30]!r} for a size")
            into.size = int(value)
        elif key.startswith(b"GNU.sparse."):
            into.sparse = True
        at = end


def _skip_sparse_map(stream: Readable, header: bytes) -> None:
    """The map of an old GNU sparse file continues in blocks after its header."""
    more = header[482]
    while more:
        block = _read(stream, _BLOCK)
        if len(block) < _BLOCK:
            raise TarDamaged("it ends within a sparse file's map")
        more = block[504]


_BLOCK = 512
_RECORD = 10_240  # tar's convention: the file's length is a multiple of twenty blocks


class TarWriter:
    """Writes members to `stream` in the given order, hashing all bytes."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream
        self.digest = hashlib.sha256()
        self.bytes = 0

    def add(self, name: str, data: bytes) -> int:
        """Append one file; returns the offset of its bytes."""
        info = tarfile.TarInfo(name)  # mtime 0, uid and gid 0, no names, mode 0644
        info.size = len(data)
        self._put(info.tobuf(tarfile.GNU_FORMAT))
        begins = self.bytes
        self._put(data)
        self._put(bytes(-len(data) % _BLOCK))
        return begins

    def finish(self) -> Written:
        """End the tar."""
        self._put(bytes(2 * _BLOCK))
        self._put(bytes(-self.bytes % _RECORD))
        return Written(self.bytes, self.digest.hexdigest())

    def _put(self, data: bytes) -> None:
        self.stream.write(data)
        self.digest.update(data)
        self.bytes += len(data)


# Characters that lead out of a folder, end a name, or are none on some systems.
_UNSAFE = re.compile(r'[%\\:\x00-\x1f\x7f<>"|?*\udc80-\udcff]')
_NO_KEY = "%"  # the empty key, whose members would be hidden files; no other key is written so
_LONE_SLASH = re.compile(r"^/|/(?=/|$)")


def member_key(key: str) -> str:
    """`key` as the key of tar members, which no program extracts outside its folder; `key_of_member` undoes it.

    Unsafe characters are percent-encoded as in urls, and so are a slash that is not between two names, the dots of a
    folder called `.` or `..`, and those of the last name, where a key would end. Different keys stay different.
    """
    if not key:
        return _NO_KEY
    *folders, last = _LONE_SLASH.sub("%2F", _UNSAFE.sub(lambda found: _encoded(found[0]), key)).split("/")
    folders = [folder.replace(".", "%2E") if folder in (".", "..") else folder for folder in folders]
    return "/".join((*folders, last.replace(".", "%2E")))


def key_of_member(name: str) -> str:
    """The key that `member_key` made `name` of."""
    return "" if name == _NO_KEY else unquote(name, errors="surrogateescape")


def _encoded(character: str) -> str:
    return quote(character, safe="", errors="surrogateescape")
