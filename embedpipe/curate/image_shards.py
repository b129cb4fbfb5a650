"""Write the images of the selected rows as webdataset tars, in the format of `fetch`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .. import files, manifest
from ..errors import DatasetError, InputError, RunMismatch
from ..fetch.shards.commit import json_safe
from ..fetch.tables.schema import FIXED
from ..images.formats import EXTENSIONS, SNIFF_BYTES, format_of
from ..load import EmbeddingDataset
from ..load.images.source import Images, open_source, places_of, sources_of
from ..lock import exclusive
from ..manifest import IMAGE_SHARDS, FileRecord, RunCard, ShardManifest
from ..progress import Listener, Progress, silent
from ..read import Reader
from ..subset import read_subset
from ..taken_down import refuse_interrupted
from ..tar import TarWriter, member_key
from ..types import Sample
from ..uid import uid
from .materialise import SELECTION, selection_run


@dataclass(frozen=True, slots=True)
class ImageExportReport:
    """The result of `export_images`. already: shards written by an earlier run."""

    shards: int
    already: int
    rows: int
    bytes: int


def export_images(
    dataset: EmbeddingDataset | str,
    rows: np.ndarray | str | None,
    out: str,
    images: Images = None,
    listen: Listener = silent,
) -> ImageExportReport:
    """Write the images, captions and metadata of `rows` as image shards; a repeated call resumes.

    rows: int64, ascending; or a key subset, see `read_subset`; None for all. Shard i of `out` has the selected samples
    of input shard i, in row order. images: where the input is now, None for where it was. Raises
    InputError if it is missing, DatasetError if it differs from what was encoded, RunMismatch if `out` contains other
    things, OutputBusy, OutputUnwritable, DiskFull.
    """
    dataset, rows = _chosen(dataset, rows)
    reader = _source(dataset, images)
    run = _run_of(dataset, rows, images)
    with exclusive(out):
        _refuse_other(out, run)
        refuse_interrupted(out)
        done = _committed(out, run)
        manifest.write_run(out, manifest.with_pending(out, run))
        todo = [entry for entry in dataset.manifests if entry.number not in done]
        listen(Progress(planned=len(todo)))
        for entry in todo:
            _export_shard(dataset, rows, out, run, reader, entry)
            listen(Progress(rows=len(_rows_of(dataset, rows, entry)[1]), tasks=1))
        manifest.settle(out)
        written = list(manifest.read_manifests(out, run.shard_digits))
    return ImageExportReport(
        len(written), len(done), sum(entry.rows_out for entry in written), sum(entry.bytes() for entry in written)
    )


@dataclass(frozen=True, slots=True)
class ImageExportPlan:
    """What `export_images` would write: rows, shards, and where the images are."""

    rows: int
    shards: int
    source: str


def plan_images(
    dataset: EmbeddingDataset | str, rows: np.ndarray | str | None, out: str, images: Images = None
) -> ImageExportPlan:
    """What `export_images` would do. Raises as it does before it writes."""
    dataset, rows = _chosen(dataset, rows)
    _source(dataset, images)
    run = _run_of(dataset, rows, images)
    _refuse_other(out, run)
    return ImageExportPlan(len(rows), len(dataset.manifests), run.source)


def _chosen(dataset: EmbeddingDataset | str, rows: np.ndarray | str | None) -> tuple[EmbeddingDataset, np.ndarray]:
    dataset = EmbeddingDataset(dataset) if isinstance(dataset, str) else dataset
    if rows is None:
        return dataset, np.arange(len(dataset))
    return dataset, read_subset(dataset, rows) if isinstance(rows, str) else rows


def _source(dataset: EmbeddingDataset, images: Images) -> Reader:
    reader = open_source(dataset, images, captions=True)
    if reader is None:
        raise InputError(
            f"{', '.join(sources_of(dataset)) or dataset.path}: the image shards are no longer there",
            "Give their folder with `images`",
        )
    return reader


def _run_of(dataset: EmbeddingDataset, rows: np.ndarray, images: Images) -> RunCard:
    return RunCard(
        format=IMAGE_SHARDS,
        options={SELECTION: selection_run(dataset, rows, "export").options[SELECTION]},
        plan=dataset.run.plan,
        source=", ".join(places_of(images) or sources_of(dataset)),
        shard_digits=dataset.run.shard_digits,
        versions=dataset.run.versions,
    )


def _refuse_other(out: str, run: RunCard) -> None:
    before = manifest.read_run(out)
    if before is not None:
        if before.format != IMAGE_SHARDS:
            raise RunMismatch(f"{out}: holds {before.format}, not {IMAGE_SHARDS}", "Give another output folder")
        manifest.refuse_difference(out, before.options, run.options, "selection", "Give another output folder")


def _committed(out: str, run: RunCard) -> set[int]:
    """Numbers of the complete shards; leftovers of killed writers are removed."""
    files.sweep_temporaries(out)
    files.sweep_temporaries(files.join(out, "manifest"))
    whole = set()
    for entry in list(manifest.read_manifests(out, run.shard_digits)):
        if manifest.files_are_there(out, entry):
            whole.add(entry.number)
        else:
            manifest.retract(out, entry.number, run.shard_digits)
    return whole


def _rows_of(dataset: EmbeddingDataset, rows: np.ndarray, entry: ShardManifest) -> tuple[int, np.ndarray]:
    """(index of the shard in `dataset.shards`, selected rows counted from its first); -1 and none if it is empty."""
    for place, shard in enumerate(dataset.shards):
        if shard.manifest is entry:
            return place, rows[slice(*np.searchsorted(rows, (shard.start, shard.stop)))] - shard.start
    return -1, np.empty(0, np.int64)


def _export_shard(
    dataset: EmbeddingDataset, rows: np.ndarray, out: str, run: RunCard, reader: Reader, entry: ShardManifest
) -> None:
    place, mine = _rows_of(dataset, rows, entry)
    about = dataset.metadata(place).take(pa.array(mine)).to_pylist() if len(mine) else []
    name = manifest.shard_name(entry.number, run.shard_digits)
    table: list[dict[str, Any]] = []
    with files.writing(files.join(out, f"{name}.tar")) as stream:
        tar = TarWriter(stream)
        for row, sample in _samples(dataset, reader, entry, about):
            table.append(_add(tar, row, sample))
        written_tar = tar.finish()
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(table, schema=FIXED), sink, compression="zstd")
    written_table = files.write_bytes(files.join(out, f"{name}.parquet"), sink.getvalue().to_pybytes())
    record = ShardManifest(
        number=entry.number,
        source=entry.source,
        source_sha256=entry.source_sha256,
        rows_in=len(table),
        rows_out=len(table),
        rows_rejected=0,
        rejects={},
        files=(
            FileRecord(f"{name}.tar", written_tar.bytes, written_tar.sha256),
            FileRecord(f"{name}.parquet", written_table.bytes, written_table.sha256),
        ),
    )
    manifest.commit(out, record, run.shard_digits)


def _samples(
    dataset: EmbeddingDataset, reader: Reader, entry: ShardManifest, about: list[dict[str, Any]]
) -> Iterator[tuple[dict[str, Any], Sample]]:
    """Each selected row with its sample, in order. Raises DatasetError if one is gone, or has another image now."""
    if not about:
        return
    waiting = iter(about)
    row = next(waiting)
    for sample in reader.read(entry.source, hashlib.sha256()):
        if not isinstance(sample, Sample) or sample.key != row["key"] or sample.index != row["src_index"]:
            continue
        if sample.image is not None and row["sha256"] and hashlib.sha256(sample.image).hexdigest() != row["sha256"]:
            raise _changed(dataset, entry, f"the image of {row['key']} is another one")
        yield row, sample
        following = next(waiting, None)
        if following is None:
            return
        row = following
    raise _changed(dataset, entry, f"{row['key']} is no longer in it")


def _changed(dataset: EmbeddingDataset, entry: ShardManifest, what: str) -> DatasetError:
    return DatasetError(
        f"{dataset.path}: input shard {entry.source.name} has changed since it was encoded: {what}",
        "Give the shards that were encoded, with `images`",
    )


def _add(tar: TarWriter, row: dict[str, Any], sample: Sample) -> dict[str, Any]:
    """Write the members of a sample, sorted by name; returns its row of the table."""
    parts = {"json": json.dumps(json_safe(sample.metadata), ensure_ascii=False).encode()}
    if sample.caption is not None:
        parts["txt"] = sample.caption.encode()
    ending = ""
    if sample.image is not None:
        ending = _ending(sample.image)
        parts[ending] = sample.image
    key = member_key(sample.key)
    begins = {suffix: tar.add(f"{key}.{suffix}", data) for suffix, data in sorted(parts.items())}
    known = {name: sample.metadata.get(name) for name in FIXED.names}
    return {
        **dict.fromkeys(FIXED.names),
        "uid": known["uid"] if isinstance(known["uid"], str) else uid(row["url"], sample.caption),
        "url": row["url"],
        "caption": sample.caption,
        "key": key,
        "status": "success",
        "attempts": 0,
        "sha256": row["sha256"],
        "bytes": len(sample.image) if sample.image is not None else None,
        "width": row["width"],
        "height": row["height"],
        "original_width": known["original_width"] if isinstance(known["original_width"], int) else None,
        "original_height": known["original_height"] if isinstance(known["original_height"], int) else None,
        "offset": begins.get(ending),
    }


def _ending(data: bytes) -> str:
    """The file name extension of an image format."""
    return EXTENSIONS.get(format_of(data[:SNIFF_BYTES]) or "JPEG", ("jpg",))[0]
