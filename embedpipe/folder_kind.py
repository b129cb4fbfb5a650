"""What a folder is, by the records in it: so that a command given the wrong one can say what it got."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from . import files, manifest
from .errors import DatasetError, InputError

EMBEDDINGS, IMAGE_SHARDS, EXPORT = "embeddings", "image shards", "export"
SELECTION, RUN, DECODER, MODEL, OTHER, NOTHING = "selection", "run", "decoder", "model", "other", "nothing"

_MADE_BY = {"prior": "train-prior", "clip": "train-clip", "vae": "train-vae", "decoder-stage": "train-decoder"}
_ALIGNED = "aligned"  # the exporter's name
_REPORT, _KEPT, _RUN_RECORD, _CHECKPOINTS = "report.json", "kept.parquet", "run.json", "checkpoints"


@dataclass(frozen=True, slots=True)
class FolderKind:
    """kind: one of the constants above. said: what it is, in words. of: the data set behind it, if that is recorded.

    facts: the report of a selection, the record of a run or the options of an export; empty if there is none.
    """

    kind: str
    said: str
    of: str = ""
    facts: dict[str, Any] | None = None


def what_is(path: str) -> FolderKind:
    """What is at `path`, any fsspec url. Damaged records count as there: their readers report the damage.

    OTHER is whatever is not embedpipe's: embeddings of others, image files, an empty folder.
    """
    if not files.exists(path):
        return FolderKind(NOTHING, "no such folder")
    if not files.is_folder(path):
        return FolderKind(OTHER, "a file")
    if manifest.is_begun(path):
        return _begun(path)
    if (run := _object(files.join(path, _RUN_RECORD))) is not None:
        kind = str(run.get("kind"))
        made_by = f" of `embedpipe {_MADE_BY[kind]}`" if kind in _MADE_BY else ""
        return FolderKind(RUN, f"a {kind} run{made_by}", _text(run.get("data")), run)
    if any(name.startswith("step-") for name in files.names(files.join(path, _CHECKPOINTS))):
        return FolderKind(RUN, "an unfinished training run", facts={})
    if files.exists(files.join(path, "stage-1", _RUN_RECORD)) or files.exists(
        files.join(path, "stage-1", "config.json")
    ):
        return FolderKind(DECODER, "a decoder of `embedpipe train-decoder`")
    if files.exists(files.join(path, _KEPT)):
        report = _object(files.join(path, _REPORT)) or {}
        other = "dedup" if files.exists(files.join(path, "dropped.parquet")) else "filter"
        made_by = "serve" if report.get("made_by") == "serve" else other
        return FolderKind(SELECTION, f"a selection of rows by `embedpipe {made_by}`", _text(report.get("data")), report)
    if manifest.is_begun(files.join(path, ".embedpipe")):
        return _export(path)
    names = files.names(path)
    if "config.json" in names and any(name.endswith(".safetensors") for name in names):
        return FolderKind(MODEL, "a model")
    return FolderKind(OTHER, "no output of embedpipe")


def require_embeddings(path: str) -> None:
    """Raise InputError if `path` is something of embedpipe's other than embeddings, saying what, and what to give."""
    found = what_is(path)
    if found.kind == EXPORT and (found.facts or {}).get("to") == _ALIGNED:
        raise InputError(
            f"{path}: is {found.said}, in whose arrays rows of zeros stand for images without an embedding",
            f"Give {found.of or 'the data set that it was made of'}",
        )
    if found.kind in (EMBEDDINGS, EXPORT, OTHER):  # an export may be a layout that is read as others are
        return
    if found.kind == NOTHING:
        raise InputError(f"{path}: no such folder", "Check the path")
    if found.kind == IMAGE_SHARDS:
        raise InputError(f"{path}: holds image shards, not embeddings", "Give what `embedpipe encode` made of them")
    if found.kind == SELECTION:
        data = found.of or "the data set"
        raise InputError(
            f"{path}: is {found.said}, not embeddings",
            f"Give {data}, with `keys={path!r}` where a command takes it, or select again with `materialise=True`",
        )
    raise InputError(f"{path}: is {found.said}, not embeddings", f"Give {found.of or 'the data set'}")


def require_pictures(path: str) -> None:
    """Raise InputError if `path` is something of embedpipe's without pictures. A pattern is left to its reader."""
    if set("*?[{") & set(path):
        return
    found = what_is(path)
    if found.kind in (EMBEDDINGS, SELECTION, RUN, DECODER):
        raise InputError(f"{path}: is {found.said}, not pictures", "Give image shards, or a folder of images")


def _export(path: str) -> FolderKind:
    try:
        run = manifest.read_run(files.join(path, ".embedpipe"))
    except DatasetError:
        run = None
    if run is None:
        return FolderKind(EXPORT, "an export of `embedpipe export`")
    return FolderKind(EXPORT, f"an export of `embedpipe export` to {run.options.get('to')}", run.source, run.options)


def _begun(path: str) -> FolderKind:
    try:
        run = manifest.read_run(path)
    except DatasetError:
        run = None
    if run is None:  # damaged: by its manifests it is one of the two
        return FolderKind(EMBEDDINGS, "an output of embedpipe with a damaged embedpipe.json")
    if run.format == manifest.IMAGE_SHARDS:
        return FolderKind(IMAGE_SHARDS, "image shards", run.source)
    if run.format == manifest.EMBEDDINGS:
        return FolderKind(EMBEDDINGS, "embeddings", run.source)
    return FolderKind(EXPORT if run.format == manifest.EXPORT else OTHER, run.format, run.source)


def _object(location: str) -> dict[str, Any] | None:
    """An object of JSON; None without the file, empty if it is damaged."""
    data = files.read_if_there(location)
    if data is None:
        return None
    try:
        content = json.loads(data)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
