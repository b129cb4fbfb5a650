"""The download process: `python -m embedpipe.fetch.download.worker`, see `messages`.

A resizer (`resizers`) makes the images; threads, requests and output files are ours (`threads`, `http.client`).
"""

from __future__ import annotations

import errno
import hashlib
import os
import queue
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from ...errors import OutOfResources
from ...scarcity import raise_file_limit
from .. import rights
from ..http.client import HttpClient, Limits, Response
from ..http.connections import Connections
from ..http.resolver import Resolver
from ..outcome import Failure
from ..rights import Rights
from . import local_files, messages
from .guarded import GuardedPictures, MakerSettings, hide_unneeded_modules
from .image import StoredImage
from .messages import DownloadTask, Event, WorkerSettings
from .threads import DownloadLoop, affordable_threads

_REPORT_EVERY_S = 0.5
_OF_PICTURE = ("width", "height", "original_width", "original_height", "orientation")

Tell = Callable[[Event], None]


class PartWriter:
    """Writes the results of one part, in order of arrival; the last one of a row counts."""

    def __init__(self, task: DownloadTask, tell: Tell) -> None:
        self.task = task
        self.tell = tell
        self.images = Path(task.images_file).open("wb")  # noqa: SIM115  closed in close()
        self.outcomes: dict[int, dict[str, Any]] = {}
        self.told_s = time.monotonic()
        self.rows = self.received = 0
        self.failed: Counter[str] = Counter()

    def write(self, row: int, answer: Response, made: StoredImage | Failure, stated: Rights | None = None) -> None:
        """Write one outcome. Raises OSError if its image cannot be written.

        stated: the rights in the file, if they were read.
        """
        entry: dict[str, Any] = dict.fromkeys(messages.OUTCOMES.names)
        if stated is not None:
            entry |= stated.columns()
        entry |= {"row": row, "attempts": answer.attempts, "content_type": answer.content_type}
        if isinstance(made, Failure):
            entry |= {"error_class": made.error_class, "error_message": made.message}
        else:
            entry |= {name: getattr(made, name) for name in _OF_PICTURE}
            entry |= {"offset": self.images.tell(), "bytes": len(made.data)}
            entry |= {"sha256": hashlib.sha256(made.data).hexdigest()}
            self.images.write(made.data)
        earlier = self.outcomes.get(row)
        self.outcomes[row] = entry
        if earlier is None:
            self.rows += 1
        elif earlier["error_class"] is not None:
            self.failed[earlier["error_class"]] -= 1
        self.received += len(answer.body or b"")
        if isinstance(made, Failure):
            self.failed[made.error_class] += 1
        if time.monotonic() - self.told_s >= _REPORT_EVERY_S:
            self._tell()

    def _tell(self) -> None:
        self.tell(Event(rows=self.rows, failed=dict(self.failed), received=self.received))
        self.told_s, self.rows, self.received = time.monotonic(), 0, 0
        self.failed.clear()

    def close(self) -> None:
        """Write the table of outcomes. Raises OSError if anything could not be written."""
        self._tell()
        self.images.close()
        table = pa.Table.from_pylist(list(self.outcomes.values()), schema=messages.OUTCOMES)
        with pa.OSFile(self.task.outcomes_file, "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)


class Worker:
    """Downloads one part after another. May import img2dataset, and so torch unless it is hidden, see `main`."""

    def __init__(self, settings: WorkerSettings, tell: Tell) -> None:
        self.settings = settings
        self.tell = tell
        self.pictures = GuardedPictures(
            MakerSettings(settings.pictures, settings.resizer, settings.quality, settings.max_sample_seconds)
        )
        self.transport = HttpClient(
            Limits(settings.timeout_s, settings.deadline_s, settings.max_bytes),
            settings.user_agent,
            Connections(Resolver(), settings.allow_hosts, settings.ca_file),
            settings.robots,
        )
        threads = min(settings.threads, affordable_threads())
        self.loop = DownloadLoop(self.transport, threads, settings.retries, settings.per_host)

    def run(self, task: DownloadTask) -> None:
        """Download one part. Raises OSError if its files cannot be written."""
        with pa.OSFile(task.urls_file) as source, pa.ipc.open_file(source) as reader:
            table = reader.read_all()
        rows = table.column("row").to_pylist()
        writer = PartWriter(task, self.tell)
        urls = table.column("url").to_pylist()
        settings = self.settings
        if settings.root:
            found = local_files.read_files_below(settings.root, urls, settings.max_bytes)
        elif settings.folder:
            found = local_files.read_local_files(settings.folder, urls, settings.max_bytes)
        else:
            found = self.loop.answers(urls)
        for position, answer in found:
            stated = self._rights(answer)
            writer.write(rows[position], answer, self._picture(answer, stated, task.careful), stated)
        writer.close()
        Path(task.urls_file).unlink()

    def _rights(self, answer: Response) -> Rights | None:
        """What the file states, before it is encoded anew; None if nobody asks."""
        return (
            rights.read_rights(answer.body) if answer.body is not None and self.settings.rights != rights.OFF else None
        )

    def _picture(self, answer: Response, stated: Rights | None, careful: bool) -> StoredImage | Failure:
        if answer.body is None:
            return answer.failure or Failure("lost", "neither a body nor a reason")
        if stated is not None and stated.opt_out is not None and self.settings.rights == rights.OBEY:
            return Failure("opt_out", f"forbidden by the image's own metadata: {stated.opt_out}")
        return self.pictures.make(answer.body, careful)


def _lines(stream: BinaryIO, ended: Callable[[], object]) -> queue.SimpleQueue[bytes]:
    """The lines of `stream`, as they arrive; `ended` is called from a thread at the end of the stream."""
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def read() -> None:
        for line in stream:
            lines.put(line)
        ended()

    threading.Thread(target=read, daemon=True).start()
    return lines


def main() -> None:
    """Read settings and tasks from stdin, write events to stdout, until stdin ends."""
    events = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # output printed by libraries goes to the log

    def tell(event: Event) -> None:
        events.write(messages.to_line(event))

    hide_unneeded_modules()
    raise_file_limit()
    # The end of stdin means that the parent is gone: exit at once.
    lines = _lines(sys.stdin.buffer, ended=lambda: os._exit(0))
    worker = Worker(messages.settings_from(lines.get()), tell)
    while True:
        task = messages.task_from(lines.get())
        try:
            worker.run(task)
            tell(Event(done=True))
        except OutOfResources as problem:
            tell(Event(lack=problem.what, remedy=problem.remedy))
        except OSError as problem:
            tell(Event(error=str(problem.filename or task.stem), errno=problem.errno or errno.EIO))


if __name__ == "__main__":
    main()
