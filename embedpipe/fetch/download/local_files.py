"""Images from a local folder: the same results as from the web, without HTTP."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ... import files
from ...errors import InputError
from ...images.formats import SNIFF_BYTES, format_of, why_not_read
from ...read.names import printable
from ...read.rooted import OutsideRoot, read_below
from ...read.sample import LFS_REMEDY, is_lfs_pointer
from ...scarcity import lack_of, out_of
from .. import outcome
from ..http.client import Response
from ..outcome import Failure


def read_local_files(folder: str, paths: Iterable[bytes], max_bytes: int) -> Iterator[tuple[int, Response]]:
    """For every path below `folder`, its position and the result."""
    for position, path in enumerate(paths):
        found = _read(files.join(folder, path.decode("utf-8", "surrogateescape")), max_bytes)
        yield position, Response(None, found) if isinstance(found, Failure) else Response(found, None)


def read_files_below(root: str, paths: Iterable[bytes], max_bytes: int) -> Iterator[tuple[int, Response]]:
    """For every path, its position and the result; a failure for paths that lead out of `root`."""
    for position, path in enumerate(paths):
        try:
            found = _judged(read_below(root, path.decode("utf-8", "surrogateescape"), max_bytes + 1), max_bytes)
        except OutsideRoot as problem:
            found = Failure("outside_root", printable(str(problem.strerror))[:300])
        except OSError as problem:
            found = _unreadable(problem)
        yield position, Response(None, found) if isinstance(found, Failure) else Response(found, None)


def _read(location: str, max_bytes: int) -> bytes | Failure:
    try:
        with files.reading(location) as stream:
            return _judged(stream.read(max_bytes + 1), max_bytes)
    except (InputError, OSError) as problem:
        return _unreadable(problem)


def _unreadable(problem: Exception) -> Failure:
    """The failure of a file that cannot be read. Raises OutOfResources if this machine is to blame."""
    if (lack := lack_of(problem)) is not None:
        raise out_of(lack) from problem
    return Failure("unreadable", printable(str(problem))[:300])


def _judged(body: bytes, max_bytes: int) -> bytes | Failure:
    if len(body) > max_bytes:
        return Failure("too_large", f"more than {max_bytes} bytes")
    if not body:
        return Failure("empty", "a file without a byte")
    if is_lfs_pointer(body):
        return Failure("not_an_image", f"a pointer of Git LFS, not the image. {LFS_REMEDY}")
    start = body[:SNIFF_BYTES]
    return outcome.of_start(body, None) if why_not_read(start) or format_of(start) is None else body
