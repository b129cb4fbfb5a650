"""Messages between fetch and its download processes: settings and tasks in, events and part files out.

A part is a range of rows of one shard. Its urls are in `STEM.in.arrow` (row, url); its images are concatenated in
`STEM.images`, and `STEM.out.arrow` (schema `OUTCOMES`) gives the outcome of each row and the offset of its image.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field

import pyarrow as pa

from .. import rights
from .image import PictureRules

OUTCOMES = pa.schema(
    [
        ("row", pa.int32()),
        ("error_class", pa.string()),
        ("error_message", pa.string()),
        ("attempts", pa.int32()),
        ("content_type", pa.string()),
        ("offset", pa.int64()),
        ("bytes", pa.int64()),
        ("sha256", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("original_width", pa.int32()),
        ("original_height", pa.int32()),
        ("orientation", pa.int8()),
        *rights.COLUMNS,
    ]
)


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """The settings of a download process.

    folder: the folder to read files from instead of urls, or empty. root: the folder that paths of files must not lead
    out of, or empty.
    rights: a name in `rights.MODES`.
    """

    folder: str
    root: str
    pictures: PictureRules
    quality: int
    resizer: str
    threads: int
    timeout_s: float
    deadline_s: float
    retries: int
    user_agent: str
    allow_hosts: tuple[str, ...]
    max_bytes: int
    per_host: int
    robots: bool
    ca_file: str | None
    rights: str
    max_sample_seconds: float


@dataclass(frozen=True, slots=True)
class DownloadTask:
    """One part to download. `stem` is the path of its files without suffixes.

    careful: a process died on it before; images are decoded in a child.
    """

    shard: int
    part: int
    rows: int
    stem: str
    careful: bool = False

    @property
    def urls_file(self) -> str:
        """The rows to download; the download process removes the file when done."""
        return f"{self.stem}.in.arrow"

    @property
    def images_file(self) -> str:
        """The stored images, concatenated."""
        return f"{self.stem}.images"

    @property
    def outcomes_file(self) -> str:
        """The outcome of each row."""
        return f"{self.stem}.out.arrow"


@dataclass(frozen=True, slots=True)
class Event:
    """A report of a download process: its task is done or has failed, or the outcomes since the last report.

    `failed` counts by error class, `received` bytes. A task fails if a file cannot be written or read: `error` is its
    path, `errno` the reason; or if the machine lacks something: `lack` says what, `remedy` what to do.
    """

    rows: int = 0
    failed: dict[str, int] = field(default_factory=dict)
    received: int = 0
    done: bool = False
    error: str = ""
    errno: int = 0
    lack: str = ""
    remedy: str = ""


def to_line(value: WorkerSettings | DownloadTask | Event) -> bytes:
    """One JSON line."""
    return json.dumps(dataclasses.asdict(value)).encode() + b"\n"


def settings_from(line: bytes) -> WorkerSettings:
    """The settings in a line."""
    document = json.loads(line)
    pictures = PictureRules(**document["pictures"])
    return WorkerSettings(**{**document, "pictures": pictures, "allow_hosts": tuple(document["allow_hosts"])})


def task_from(line: bytes) -> DownloadTask:
    """The task in a line."""
    return DownloadTask(**json.loads(line))


def event_from(line: bytes) -> Event:
    """The event in a line."""
    return Event(**json.loads(line))
