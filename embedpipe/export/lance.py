"""Lance (the only import of it): one data set, one fragment per part, published by a single commit at the end.

    OUT/embeddings.lance

Until then, fragments are recorded in the hidden folder so that a run can resume; a data set exists only when complete.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from .. import files
from ..errors import MissingExtra
from ..load import EmbeddingDataset
from ..manifest import EXPORT_RECORD, FileRecord, ShardManifest, shard_name
from ..store import parquet
from .base import ExportConfig, ExportPart, PlannedPart, avoid_name_clash

_NAME = "embeddings.lance"
_DATA = f"{_NAME}/data"
_NOTES = f"{EXPORT_RECORD}/fragments"
_MOST_BYTES = 1 << 40  # per file of a fragment: a part is one file


class Lance:
    """Vector columns as fixed-size lists beside the metadata. Lance names its files at random."""

    folders: tuple[str, ...] = (_NOTES,)

    def __init__(self, dataset: EmbeddingDataset, plan: Sequence[PlannedPart], config: ExportConfig) -> None:
        _library()
        self.options: dict[str, Any] = {}

    def write(self, out: str, part: ExportPart) -> tuple[FileRecord, ...]:
        """One fragment, and its record."""
        table = _table(part)
        with _telling(out):
            fragments = _library().fragment.write_fragments(
                table, _place(out), max_rows_per_file=len(part), max_bytes_per_file=_MOST_BYTES
            )
        found = [fragment.to_json() for fragment in fragments]
        note = {"schema": base64.b64encode(table.schema.serialize().to_pybytes()).decode(), "fragments": found}
        path = f"{_NOTES}/{shard_name(part.planned.number, 5)}.json"
        written = files.write_bytes(files.join(out, path), json.dumps(note).encode())
        return (*(_record(out, name) for name in _names(found)), FileRecord(path, written.bytes, written.sha256))

    def finish(self, out: str, written: Sequence[ShardManifest]) -> None:
        """Commit all fragments in the order of the parts, and remove orphaned data files."""
        lance = _library()
        notes = [json.loads(files.read_bytes(files.join(out, entry.files[-1].path))) for entry in written]
        found = [fragment for note in notes for fragment in note["fragments"]]
        names = _names(found)
        for leftover in set(files.names(files.join(out, _DATA))) - set(names):
            files.remove(files.join(out, _DATA, leftover))
        if _committed(out) == names:
            return
        schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(notes[0]["schema"])))
        fragments = [lance.FragmentMetadata.from_json(json.dumps(fragment)) for fragment in found]
        with _telling(out):
            lance.LanceDataset.commit(_place(out), lance.LanceOperation.Overwrite(schema, fragments))

    def opened_by(self, out: str) -> str:
        """Lance."""
        return f'lance.dataset("{out}/{_NAME}")'


def _library() -> Any:
    """The module `lance`. Raises MissingExtra."""
    os.environ.setdefault("LANCE_LOG", "error")  # or it warns about every new data set
    try:
        import lance
        import lance.fragment
    except ImportError as problem:
        raise MissingExtra("`to='lance'` needs the package pylance", "pip install 'embedpipe[lance]'") from problem
    return lance


def _place(out: str) -> str:
    return str(files.local_path(files.join(out, _NAME)))


def _table(part: ExportPart) -> pa.Table:
    sides = {parquet.EMBEDDINGS["image"]: part.image, parquet.EMBEDDINGS["text"]: part.text}
    vectors = {name: parquet.as_lists(array) for name, array in sides.items() if array is not None}
    metadata = avoid_name_clash(part.metadata, vectors)
    return pa.table({**vectors, **dict(zip(metadata.column_names, metadata.columns, strict=True))})


def _names(fragments: Sequence[dict[str, Any]]) -> list[str]:
    """The data files of fragments, in order."""
    return [str(file["path"]) for fragment in fragments for file in fragment["files"]]


def _record(out: str, name: str) -> FileRecord:
    location = files.join(out, _DATA, name)
    return FileRecord(f"{_DATA}/{name}", files.stat(location).bytes, files.sha256(location))


def _committed(out: str) -> list[str] | None:
    """The data files of the published data set, in order; None if there is none."""
    if not files.exists(files.join(out, _NAME, "_versions")):
        return None
    fragments = _library().dataset(_place(out)).get_fragments()
    return _names([fragment.metadata.to_json() for fragment in fragments])


@contextlib.contextmanager
def _telling(out: str) -> Iterator[None]:
    """Convert Lance's write errors to embedpipe's: the errno is only in their text."""
    try:
        yield
    except OSError as problem:
        number = re.search(r"os error ([0-9]+)", str(problem))
        known = OSError(int(number[1]), os.strerror(int(number[1]))) if number else problem
        raise files.unwritable(files.join(out, _NAME), known) from problem
