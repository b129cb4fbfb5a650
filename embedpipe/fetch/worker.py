"""The download process, and the only file that imports img2dataset. `python -m embedpipe.fetch.worker`, see `tasks`.

img2dataset's downloader runs the threads and its resizer makes the images; the request itself is ours (`transport`),
and so is what is written, because its own shards lose rows whose columns JSON cannot hold.
"""

from __future__ import annotations

import errno
import hashlib
import importlib
import io
import os
import queue
import sys
import threading
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from . import outcome, tasks
from .outcome import Failure
from .tasks import Event, Task, WorkerSettings
from .transport import Answer, Limits, Transport

_REPORT_EVERY_S = 0.5
# The X-Robots-Tag words that img2dataset honours unless told otherwise.
_FORBIDDING = ("noai", "noimageai", "noindex", "noimageindex")

Tell = Callable[[Event], None]


def _import_img2dataset() -> tuple[Any, Any]:
    # Its imports pull in torch (through webdataset, which does without where there is none) and wandb (which only its
    # own logger calls): three seconds of every start, and nothing here uses them.
    sys.modules["torch"] = None  # type: ignore[assignment]
    sys.modules["wandb"] = types.ModuleType("wandb")
    return importlib.import_module("img2dataset.downloader"), importlib.import_module("img2dataset.resizer")


class PartWriter:
    """Takes samples as img2dataset's downloader hands them over, in the order of their arrival."""

    def __init__(self, task: Task, answers: dict[int, Answer], tell: Tell) -> None:
        self.task = task
        self.answers = answers
        self.tell = tell
        self.images = Path(task.images_file).open("wb")  # noqa: SIM115  closed in close()
        self.outcomes: list[dict[str, Any]] = []
        self.fault: OSError | None = None
        self.told_s = time.monotonic()
        self.untold = [0, 0]

    def write(self, image: bytes | None, key: str, caption: str | None, meta: dict[str, Any]) -> None:
        """Keep one sample. The downloader's key is its position in the part."""
        answer = self.answers.pop(int(key))
        entry: dict[str, Any] = dict.fromkeys(tasks.OUTCOMES.names)
        entry |= {"row": meta["row"], "attempts": answer.attempts, "content_type": answer.content_type}
        if image is None:
            failure = answer.failure or outcome.of_resizing(str(meta["error_message"]))
            entry |= {"error_class": failure.error_class, "error_message": failure.message}
        else:
            entry |= {name: meta[name] for name in ("width", "height", "original_width", "original_height")}
            entry |= {"offset": self._store(image), "bytes": len(image), "sha256": hashlib.sha256(image).hexdigest()}
        self.outcomes.append(entry)
        self._count(failed=image is None)

    def _store(self, image: bytes) -> int:
        # The downloader's loop swallows exceptions and forgets the row; a full disk must not pass as a lost image.
        try:
            offset = self.images.tell()
            self.images.write(image)
            return offset
        except OSError as problem:
            self.fault = self.fault or problem
            raise

    def _count(self, failed: bool) -> None:
        self.untold[0] += 1
        self.untold[1] += failed
        if time.monotonic() - self.told_s >= _REPORT_EVERY_S:
            self.tell(Event(rows=self.untold[0], failed=self.untold[1]))
            self.told_s, self.untold = time.monotonic(), [0, 0]

    def close(self) -> None:
        """Write the table of outcomes. Raises OSError when any of it could not be written."""
        self.tell(Event(rows=self.untold[0], failed=self.untold[1]))
        self.images.close()
        if self.fault:
            raise self.fault
        table = pa.Table.from_pylist(self.outcomes, schema=tasks.OUTCOMES)
        with pa.OSFile(self.task.outcomes_file, "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)


class Worker:
    """Downloads one part after another with img2dataset."""

    def __init__(self, settings: WorkerSettings, tell: Tell) -> None:
        self.settings = settings
        self.tell = tell
        self.answers: dict[int, Answer] = {}
        self.downloader, resizer = _import_img2dataset()
        self.resizer = resizer.Resizer(
            image_size=settings.image_size,
            resize_mode=settings.resize_mode,
            resize_only_if_bigger=settings.only_if_bigger,
            min_image_size=settings.min_image_size,
        )
        self.transport = Transport(
            Limits(settings.timeout_s, settings.deadline_s, settings.retries),
            settings.user_agent,
            settings.allow_hosts,
            lambda headers: bool(self.downloader.is_disallowed(headers, "embedpipe", _FORBIDDING)),
        )
        self.downloader.download_image_with_retry = self._get  # looked up by that name in each of its threads

    def _get(self, row: tuple[int, str], **_: Any) -> tuple[int, io.BytesIO | None, str | None]:
        position, url = row
        answer = self.transport.get(url)
        # Kept without the body: it travels through the downloader's own queue, which bounds how many are in memory.
        self.answers[position] = Answer(None, answer.failure, answer.attempts, answer.content_type)
        body, failure = answer.body, answer.failure or Failure("lost", "")
        return (position, None, failure.error_class) if body is None else (position, io.BytesIO(body), None)

    def run(self, task: Task) -> None:
        """Download one part. Raises OSError when its files cannot be written."""
        self.answers.clear()
        self.downloader.Downloader(
            sample_writer_class=lambda *_: PartWriter(task, self.answers, self.tell),
            resizer=self.resizer,
            thread_count=self.settings.threads,
            save_caption=False,
            extract_exif=False,
            output_folder=str(Path(task.stem).parent),
            column_list=["row", "url"],
            timeout=self.settings.timeout_s,
            number_sample_per_shard=max(task.rows, 1),
            oom_shard_count=1,
            compute_hash=None,
            verify_hash_type=None,
            encode_format="jpg",
            retries=self.settings.retries,
            user_agent_token="embedpipe",
            disallowed_header_directives=list(_FORBIDDING),
        ).download_shard((0, task.urls_file))


def _lines_until_parent_is_gone(stream: BinaryIO) -> queue.SimpleQueue[bytes]:
    """The lines of `stream`, as they come. Its end means that nobody waits for us, whatever we are doing: exit."""
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def read() -> None:
        for line in stream:
            lines.put(line)
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    return lines


def main() -> None:
    """Read settings and tasks from stdin, write events to stdout, until stdin ends."""
    events = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # whatever img2dataset prints goes to the log

    def tell(event: Event) -> None:
        events.write(tasks.to_line(event))

    lines = _lines_until_parent_is_gone(sys.stdin.buffer)
    worker = Worker(tasks.settings_from(lines.get()), tell)
    while True:
        task = tasks.task_from(lines.get())
        try:
            worker.run(task)
            tell(Event(done=True))
        except OSError as problem:
            tell(Event(error=str(problem.filename or task.stem), errno=problem.errno or errno.EIO))


if __name__ == "__main__":
    main()
