"""The takedown: note what goes, write shards without it, renew what was derived from them, search for what is left."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
from collections.abc import Sequence

from .. import files
from ..lock import exclusive
from ..manifest import ShardManifest
from ..progress import Listener, Progress, silent
from ..taken_down import FOLDER, TakedownRecord, TakenRow, finish_record, read_records, write_rows, write_tar
from . import embeddings, image_shards, switch
from .config import TakedownConfig, TakedownReport, TakenFrom
from .find import TakedownRows, find_rows, open_record
from .outputs import KINDS, IdentifiedRow, Output, SelectionFolder, open_outputs
from .request import TakedownRequest, read_request
from .search import Needles, Searched, search_files, shard_needles

_FETCH_FILES = ".fetch"  # indexes of what is stored, and a log: fetch makes them again


def plan_takedown(paths: Sequence[str], config: TakedownConfig, listen: Listener = silent) -> TakedownReport:
    """What `takedown` would take, without writing anything. Raises as it does."""
    request = read_request(config)
    outputs, selections = open_outputs(tuple(paths))
    return _report(request, outputs, selections, find_rows(outputs, request, listen), Searched())


def takedown(paths: Sequence[str], config: TakedownConfig, listen: Listener = silent) -> TakedownReport:
    """Remove rows from image shards, embedding data sets with their indexes, and selections; a repeated call resumes.

    Rows with the url or the image bytes of a named one go as well. Neither `fetch` nor `encode` brings them back. At
    the end every file of the outputs is searched for what went. Raises InputError (no such output, a file that cannot
    be read, a key in several shards), OutputBusy (another run writes there), DatasetError (a damaged shard; something
    is still there), OutputUnwritable, DiskFull, StorageFailed.
    """
    request = read_request(config)
    open_outputs(tuple(paths))  # nothing is locked for a wrong path
    with contextlib.ExitStack() as locks:
        for path in sorted({path.rstrip("/") for path in paths}):
            locks.enter_context(exclusive(path))
        outputs, selections = open_outputs(tuple(paths))
        for output in outputs:
            switch.finish_staged(output)
        outputs, selections = open_outputs(tuple(paths))
        found = find_rows(outputs, request, listen)
        records = {output.path: record for output in outputs if (record := _begun(output, found)) is not None}
        planned = sum(len(found.of(output)) for output in outputs)
        listen(Progress(planned=planned))
        needles = Needles()
        for output in outputs:
            _note_needles(output, records.get(output.path), found, needles)
        for output in outputs:
            if output.path in records:
                _take_from(output, records[output.path], found, needles, listen)
        cleared = {selection.path: _clear(selection, outputs) for selection in selections}
        searched = Searched()
        for output in outputs:
            if output.path in records:
                search_files(output, needles, searched)
        _finish(outputs, records, found)
        return _report(request, outputs, selections, found, searched, cleared)


def _begun(output: Output, found: TakedownRows) -> TakedownRecord | None:
    """The record of what goes from an output, written; None if nothing does."""
    earlier = open_record(output)
    rows = [_taken(row) for of_shard in found.of(output).values() for row in of_shard]
    if earlier is None and not rows:
        return None
    number = 1 + max((record.number for record in output.records), default=0)
    record = earlier or TakedownRecord(number, _now(), None)
    record = dataclasses.replace(record, rows=tuple(dict.fromkeys((*record.rows, *rows))))
    write_rows(output.path, record)
    return record


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _taken(row: IdentifiedRow) -> TakenRow:
    url, key, content = row.digests()
    return TakenRow(row.uid, url, content, key)


def _note_needles(output: Output, record: TakedownRecord | None, found: TakedownRows, needles: Needles) -> None:
    for row in record.rows if record is not None else ():
        needles.urls.update(filter(None, [row.url_sha256]))
        needles.contents.update(filter(None, [row.sha256]))
    for number, rows in found.of(output).items():
        needles.texts.update(row.url.encode("utf-8", "surrogatepass") for row in rows if row.url)
        places = {row.place for row in rows if not row.reject}
        needles.rows |= shard_needles(output, number, places)


def _take_from(output: Output, record: TakedownRecord, found: TakedownRows, needles: Needles, listen: Listener) -> None:
    rows = found.of(output)
    output.of_sources.clear()  # the image shards have changed since
    switch.announce(output, rows)
    for entry in output.entries():
        if entry.number in rows:
            _rewrite(output, record, entry, rows[entry.number])
            listen(Progress(rows=len(rows[entry.number]), tasks=1))
    if output.images:
        image_shards.clear_retry_lists(output, needles.urls)
        files.remove_folder(files.join(output.path, _FETCH_FILES))
    embeddings.settle_plan(output)
    if not output.images:
        embeddings.renew_indexes(output)


def _rewrite(output: Output, record: TakedownRecord, entry: ShardManifest, rows: list[IdentifiedRow]) -> None:
    place = switch.staging(output)
    if output.images:
        changed, tar = image_shards.image_shard_without(output, entry, rows, place)
        write_tar(output.path, record.number, tar)
    else:
        changed = embeddings.embedding_shard_without(output, entry, rows, place)
    switch.stage(output, changed)
    switch.carry_out(output)


def _clear(selection: SelectionFolder, outputs: Sequence[Output]) -> int:
    """Take from the lists of a selection what was ever taken from its data set; if that was not given, from any.

    Elsewhere the same input shard and key may be those of another picture.
    """
    own = [output for output in outputs if files.absolute(output.path).rstrip("/") == selection.data]
    rows = [row for output in own or outputs for record in read_records(output.path) for row in record.rows]
    keys = {row.key_sha256 for row in rows if row.key_sha256}
    return embeddings.clear_lists(selection, keys, {row.uid for row in rows if row.uid and len(row.uid) == 32})


def _finish(outputs: Sequence[Output], records: dict[str, TakedownRecord], found: TakedownRows) -> None:
    for output in outputs:
        if output.path in records:
            record = dataclasses.replace(records[output.path], finished=_now())
            finish_record(output.path, record, {"rows": len(record.rows), "shards": sorted(found.of(output))})


def _report(
    request: TakedownRequest,
    outputs: Sequence[Output],
    selections: Sequence[SelectionFolder],
    found: TakedownRows,
    searched: Searched,
    cleared: dict[str, int] | None = None,
) -> TakedownReport:
    done = []
    for output in outputs:
        rows = found.of(output)
        count = sum(map(len, rows.values()))
        record = files.join(output.path, FOLDER) if count else None
        done.append(TakenFrom(output.path, KINDS[output.run.format], count, len(rows), record))
    done += [TakenFrom(it.path, KINDS["selection"], (cleared or {}).get(it.path, 0), 0, None) for it in selections]
    return TakedownReport(
        asked=len(request.entries),
        rows=sum(entry.rows for entry in done[: len(outputs)]),
        copies=found.copies,
        outputs=tuple(done),
        not_found=request.not_found(),
        files_searched=searched.files,
        bytes_searched=searched.bytes,
    )
