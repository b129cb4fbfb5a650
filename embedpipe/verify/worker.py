"""Verify worker: checks each shard by counts and sizes first, then, in a deep check, byte by byte."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from .. import files, manifest
from ..errors import DatasetError, InputError, StorageFailed
from ..execute import Task, WorkerLoop, one_by_one
from ..manifest import EMBEDDINGS, FileRecord, RunCard, ShardManifest
from ..progress import Listener, Note, TaskReport
from . import embeddings, images
from .accounting import InputAgain, count_faults
from .shard import shard_disagreements

# Kinds of notes. An unreadable file may be intact: a disk or network failure says nothing about it.
FAULT, UNREAD, LEFTOVER = "fault", "unread", "leftover"


@dataclass(frozen=True, slots=True)
class VerifyWork:
    """Picklable factory of verify workers."""

    path: str
    run: RunCard
    deep: bool
    input_again: InputAgain | None = None

    def start(self, worker: int) -> WorkerLoop:
        """Nothing to prepare, but check that the output is visible: otherwise all of it would seem to be lost."""
        if not manifest.is_begun(self.path):
            raise StorageFailed(
                f"{self.path}: {socket.gethostname()} does not see it",
                "Give a folder that all machines share at the same place, or an object store",
            )
        return one_by_one(self._check)

    def _check(self, task: Task, listen: Listener) -> TaskReport:
        there: Mapping[str, int] = task.payload
        try:
            entry = manifest.read_manifest(self.path, task.number, self.run.shard_digits)
        except (DatasetError, InputError) as problem:
            return TaskReport(tasks=1, notes=(Note(task.number, FAULT, str(problem)),))
        except OSError as problem:
            return TaskReport(tasks=1, notes=(Note(task.number, UNREAD, f"its manifest cannot be read: {problem}"),))
        listed = {record.path for record in entry.files}
        notes = [Note(entry.number, LEFTOVER, path) for path in sorted(there.keys() - listed)]
        notes += self._notes(entry, there)
        return TaskReport(
            tasks=1,
            rows=entry.rows_out,
            rejected=entry.rows_rejected - sum(entry.retried.values()),  # those are counted in a later shard
            bytes=entry.bytes(),
            notes=tuple(notes),
        )

    def _notes(self, entry: ShardManifest, there: Mapping[str, int]) -> list[Note]:
        found = [Note(entry.number, FAULT, what) for what in shard_disagreements(self.run, entry, there)]
        if found or not self.deep:
            return found
        found = [note for record in entry.files for note in self._checksum(entry.number, record)]
        return found or list(self._contents(entry))

    def _checksum(self, number: int, record: FileRecord) -> Iterator[Note]:
        try:
            if files.sha256(files.join(self.path, record.path)) != record.sha256:
                yield Note(number, FAULT, f"{record.path}: the checksum does not match: its bytes were changed")
        except InputError as problem:
            yield Note(number, UNREAD, str(problem))
        except OSError as problem:
            yield Note(number, UNREAD, f"{record.path}: cannot be read: {problem}")

    def _contents(self, entry: ShardManifest) -> Iterator[Note]:
        check = embeddings.embedding_faults if self.run.format == EMBEDDINGS else images.image_faults
        for what in (*check(self.path, self.run, entry), *count_faults(self.run, entry, self.input_again)):
            yield Note(entry.number, FAULT, what)
