"""The search at the end: is anything of what went still in a file of the outputs, whatever the file is for?

Tars are read member by member, parquet column by column, loose arrays row by row, any other file byte by byte: hidden
and temporary files and leftovers of killed runs as well.
"""

from __future__ import annotations

import hashlib
import io
import json
import posixpath
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .. import files, manifest
from ..errors import DatasetError, InputError
from ..filesystem import filesystem
from ..taken_down import FOLDER, url_digest
from ..tar import TarDamaged, entries
from .outputs import Output

_CHUNK = 1 << 22
_MOST_NEEDLES = 2_000
_LEAST_NEEDLE_BYTES = 8
_OF_URL = rb"[\w%/.?&=+~:@!$*,;#-]"  # what may go on where a url only seems to end
_TAR_MAGIC, _PARQUET_MAGIC, _NPY_MAGIC = b"ustar", b"PAR1", b"\x93NUMPY"


@dataclass(slots=True)
class Needles:
    """What must be nowhere. urls, contents: digests. texts: urls as they were stored, as far as this run saw them.
    rows: bytes of embeddings of images, likewise.
    """

    urls: set[str] = field(default_factory=set)
    contents: set[str] = field(default_factory=set)
    texts: set[bytes] = field(default_factory=set)
    rows: set[bytes] = field(default_factory=set)


@dataclass(slots=True)
class Searched:
    """How much was searched."""

    files: int = 0
    bytes: int = 0


def search_files(output: Output, needles: Needles, searched: Searched) -> None:
    """Look through every file of an output. Raises DatasetError if something of what went is still there."""
    committed = {record.path for entry in output.entries() for record in entry.files}
    of_files = any(source.members for source in output.run.plan)  # the plan of a folder names the files in it
    for path in every_file(output.path):
        if path.startswith(f"{FOLDER}/") or posixpath.basename(path).startswith(".lock"):
            continue
        if of_files and (path == "embedpipe.json" or path.startswith("manifest/")):
            continue
        location = files.join(output.path, path)
        try:
            what = _found(location, path in committed, needles)
            searched.bytes += files.stat(location).bytes
        except InputError:  # gone since it was listed
            continue
        searched.files += 1
        if what:
            raise DatasetError(
                f"{location}: {what} is still in it",
                "If it is no file of this output, remove it; run the same command again",
            )


def every_file(root: str) -> list[str]:
    """Paths of all files below `root`, temporary and hidden ones among them."""
    fs, place = filesystem(root)
    fs.invalidate_cache()
    below = len(place.rstrip("/")) + 1
    return sorted(str(found)[below:] for found in files.ask(root, lambda: fs.find(place)))


def _found(location: str, committed: bool, needles: Needles) -> str:
    """What of the needles is in a file; empty if nothing is."""
    head = files.read_range(location, 0, 512)
    if head[257:262] == _TAR_MAGIC:
        return next(_in_tar(location, committed, needles), "")
    if head.startswith(_PARQUET_MAGIC):
        return next(_in_parquet(location, committed, needles), "")
    if head.startswith(_NPY_MAGIC):
        return "" if committed else _in_array(location, needles)
    return _in_bytes(location, needles)


def _in_tar(location: str, committed: bool, needles: Needles) -> Iterator[str]:
    try:
        with files.reading(location) as stream:
            for member in entries(stream, lambda path, size, start: True):
                data = member.data or b""
                if hashlib.sha256(data).hexdigest() in needles.contents:
                    yield f"the image {member.path}, which was taken down,"
                if member.path.endswith(".json") and _names_url(data, needles):
                    yield f"a url that was taken down ({member.path})"
    except TarDamaged:  # torn: what is in it of a whole member was seen
        yield from filter(None, [_in_bytes(location, needles)])


def _names_url(data: bytes, needles: Needles) -> bool:
    """Whether the .json of a sample is of a url that was taken down. Other fields may name it: they are another's."""
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError):
        return False
    url = fields.get("url") if isinstance(fields, dict) else None
    return isinstance(url, str) and url_digest(url) in needles.urls


def _in_parquet(location: str, committed: bool, needles: Needles) -> Iterator[str]:
    """In the rows of shards a url counts in its own column alone; in a loose file in any."""
    try:
        with files.reading(location) as stream:
            file = pq.ParquetFile(stream)
            names = [field.name for field in file.schema_arrow if pa.types.is_string(field.type)]
            names = [name for name in names if not committed or name in ("url", "sha256")]
            for batch in file.iter_batches(columns=names):
                for name, column in zip(names, batch.columns, strict=True):
                    values = column.to_pylist()
                    if name == "sha256" and not needles.contents.isdisjoint(values):
                        yield "a row of an image that was taken down"
                    if any(value and value.encode() in needles.texts for value in values if name != "sha256"):
                        yield "a url that was taken down"
                    if name == "url" and any(value and url_digest(value) in needles.urls for value in values):
                        yield "a url that was taken down"
    except (pa.ArrowException, OSError):
        yield from filter(None, [_in_bytes(location, needles)])


def _in_array(location: str, needles: Needles) -> str:
    """Rows of a loose array: one that belongs to no shard."""
    try:
        array = np.load(io.BytesIO(files.read_bytes(location)), allow_pickle=False)
    except (ValueError, EOFError):
        return _in_bytes(location, needles)
    if array.ndim == 2 and any(row.tobytes() in needles.rows for row in array):
        return "an embedding that was taken down"
    return ""


def _in_bytes(location: str, needles: Needles) -> str:
    """Urls as whole words, and embeddings as they are or widened to float32, which an index may keep."""
    texts = sorted(text for text in needles.texts if len(text) >= _LEAST_NEEDLE_BYTES)[:_MOST_NEEDLES]
    wide = {np.frombuffer(row, np.float16).astype(np.float32).tobytes() for row in needles.rows}
    rows = sorted(needles.rows | wide)[:_MOST_NEEDLES]
    words = [b"(?<!%b)(?:%b)(?!%b)" % (_OF_URL, b"|".join(map(re.escape, texts)), _OF_URL)] if texts else []
    if not words and not rows:
        return ""
    pattern = re.compile(b"|".join([*words, *map(re.escape, rows)]))
    longest = max(map(len, [*texts, *rows])) + 1
    seen, first = b"", True
    with files.reading(location) as stream:
        while True:
            chunk = stream.read(_CHUNK)
            seen += chunk
            for match in pattern.finditer(seen):
                # At an end the next byte is not known yet; at a beginning the last was, and it was looked at then.
                if (match.end() < len(seen) or not chunk) and (match.start() > 0 or first):
                    return "a url or an embedding that was taken down"
            if not chunk:
                return ""
            seen, first = seen[-longest:], first and len(seen) <= longest


def shard_needles(output: Output, number: int, places: Collection[int]) -> set[bytes]:
    """The bytes of the image embeddings of some rows of a shard, as far as no row that stays has the same."""
    from ..store import open_format

    entry = manifest.read_manifest(output.path, number, output.run.shard_digits)
    if output.images or not places or not entry.rows_out:
        return set()
    reader = open_format(str(output.run.options.get("format", "npy"))).reader
    array = reader.embeddings(output.path, entry, "image", output.run.shard_digits)
    if array is None:
        return set()
    gone = {np.asarray(array[place]).tobytes() for place in places}
    stays = {np.asarray(row).tobytes() for place, row in enumerate(array) if place not in places}
    return gone - stays
