"""The configuration and the report of a fetch."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from typing import Any

from ..accounts import Accounts
from ..errors import InputError, OptionError, did_you_mean
from ..execute import Cluster, refuse_address_beside
from ..images.cost import DEFAULT_MAX_SECONDS
from ..images.rules import WHITE, colour
from ..read.delimited import DialectOptions
from .http.connections import tls_context
from .http.ssrf_guard import host_and_port
from .http.url import is_url
from .outcome import ERROR_CLASSES, FINAL, HostFailures
from .resizers import AUTO, check_name
from .rights import MODES as RIGHTS_MODES

RESIZE_MODES = {
    "keep_ratio": "the shorter side becomes `image_size`",
    "center_crop": "as keep_ratio, then the middle square",
    "border": "the longer side becomes `image_size`, white borders make it square",
    "keep_ratio_largest": "the longer side becomes `image_size`",
    "no": "sizes stay as they are",
}
# Storage formats with their default quality: 1 to 100 for jpg and webp, compression 0 to 9 for png.
IMAGE_FORMATS = {"jpg": (95, range(1, 101)), "png": (6, range(10)), "webp": (95, range(1, 101))}
EXECUTORS = ("auto", "processes", "ray")
SOURCES = ("auto", "table", "images")
DEFAULT_CAPTION_COLUMN = "caption"
DEFAULT_URL_COLUMN = "url"


def _class_named(name: str) -> str:
    """The error class of that name, with or without `http_`. Raises InputError."""
    for known in (name, f"http_{name}"):
        if known in ERROR_CLASSES:
            return known
    raise OptionError(f"`only={name!r}`: no such error class", did_you_mean(name, ERROR_CLASSES))


@dataclass(frozen=True, slots=True)
class FetchConfig:
    """The options of `embedpipe fetch`.

    Those of `shaping()` determine the contents of the shards and are fixed for an output; the others may change between
    runs. `quoting` (auto, minimal or none), `delimiter` and `encoding` describe text tables; None and auto detect them.
    With `infer_types` the columns of a csv become numbers and booleans where all their values are. With
    `local_root` the table holds local paths, in the column `file_col` (or one of a usual name), relative to the table's
    folder; they must not lead out of that folder. `caption_col` None
    means the column `caption`, if the table has one; of a folder it is the field of .json with the captions, and None
    means the .txt, or else the field `caption`. `max_aspect_ratio` 0 means any, `quality` None the format's
    default. `background` is the CSS colour that transparent images are composited over. `resizer` is a name in
    `resizers.RESIZERS`, or auto for the first that is installed; all
    write identical bytes. `source` table or images is the contents of a folder; auto detects it. `timeout_s` bounds
    each wait on the network, `3 * timeout_s` a whole attempt, from name resolution to the last byte. `per_host` is the
    number of concurrent requests per host, divided among the processes. `ca_file` is a PEM file of certificate
    authorities trusted besides the system's. `max_sample_seconds` is the processor time that one image may take to be
    decoded and resized. `executor` is a name in EXECUTORS, the location of the download processes: auto and processes
    on this machine, ray on the machines of `cluster`, which share the output's folder. `rights` is what becomes of the
    rights that an image file states, a name in `rights.MODES`: obey rejects images that opt out of training and records
    the rest, record rejects none, off reads nothing; None means obey for a new output, and as before for one that
    exists. `overwrite` removes what an earlier run wrote to the output, and begins again.
    """

    source: str = "auto"
    quoting: str = "auto"
    delimiter: str | None = None
    encoding: str | None = None
    infer_types: bool = False
    url_col: str = DEFAULT_URL_COLUMN
    caption_col: str | None = None
    local_root: str | None = None
    file_col: str | None = None
    samples_per_shard: int = 10_000
    image_size: int = 256
    resize_mode: str = "keep_ratio"
    only_if_bigger: bool = True
    min_image_size: int = 0
    max_aspect_ratio: float = 0.0
    image_format: str = "jpg"
    quality: int | None = None
    resizer: str = AUTO
    orient: bool = True
    background: str = WHITE
    drop_duplicates: bool = False
    rights: str | None = None
    allow_hosts: tuple[str, ...] = ()
    processes: int = field(default_factory=lambda: os.cpu_count() or 1)
    threads: int = 32
    timeout_s: float = 10.0
    retries: int = 2
    user_agent: str = ""
    retry_failed: bool = False
    only: tuple[str, ...] = ()
    max_bytes: int = 50_000_000
    per_host: int = 8
    robots: bool = False
    ca_file: str | None = None
    max_sample_seconds: float = DEFAULT_MAX_SECONDS
    executor: str = "auto"
    cluster: Cluster = field(default_factory=Cluster)
    overwrite: bool = False

    def __post_init__(self) -> None:
        colour(self.background)  # which refuses what is none
        if self.resize_mode not in RESIZE_MODES:
            raise OptionError(
                f"`resize_mode={self.resize_mode!r}`: no such mode", did_you_mean(self.resize_mode, RESIZE_MODES)
            )
        _ = self.dialect  # which checks its values
        for name in ("samples_per_shard", "image_size", "processes", "threads", "max_bytes", "per_host"):
            if getattr(self, name) < 1:
                raise OptionError(f"`{name}={getattr(self, name)}`: must be at least 1")
        if self.source not in SOURCES:
            raise OptionError(f"`source={self.source!r}`: no such kind", did_you_mean(self.source, SOURCES))
        if self.rights not in (None, *RIGHTS_MODES):
            raise OptionError(f"`rights={self.rights!r}`: no such choice", did_you_mean(self.rights, RIGHTS_MODES))
        if self.executor not in EXECUTORS:
            raise OptionError(f"`executor={self.executor!r}`: not for fetch", did_you_mean(self.executor, EXECUTORS))
        refuse_address_beside(self.executor, self.cluster)
        check_name(self.resizer)
        if self.image_format not in IMAGE_FORMATS:
            raise OptionError(
                f"`image_format={self.image_format!r}`: no such format", did_you_mean(self.image_format, IMAGE_FORMATS)
            )
        allowed = IMAGE_FORMATS[self.image_format][1]
        if self.stored_quality not in allowed:
            raise OptionError(
                f"`quality={self.quality}`: for {self.image_format} it must be from {allowed[0]} to {allowed[-1]}"
            )
        if self.overwrite and self.retry_failed:
            raise OptionError("`overwrite` begins again, and leaves nothing to retry", "Drop `retry_failed`")
        if self.only and not self.retry_failed:
            raise OptionError("`only` says what to retry", "Give `retry_failed=True` with it")
        for name in self.only:
            if _class_named(name) in FINAL - {"invalid_url"}:
                raise OptionError(f"`only={name!r}`: another try cannot change these")
        if self.max_aspect_ratio and not 1 <= self.max_aspect_ratio < math.inf:
            raise OptionError(f"`max_aspect_ratio={self.max_aspect_ratio:g}`: must be at least 1 (or 0 for any)")
        if self.retries < 0 or self.min_image_size < 0:
            raise OptionError("`retries` and `min_image_size` must not be negative")
        if self.max_sample_seconds <= 0:
            raise OptionError(f"`max_sample_seconds={self.max_sample_seconds}`: must be more than 0 seconds")
        if self.timeout_s <= 0:
            raise OptionError(f"`timeout_s={self.timeout_s}`: must be more than 0 seconds")
        self._check_manners()

    def _check_manners(self) -> None:
        if not (self.user_agent.isascii() and self.user_agent.isprintable()):
            raise OptionError("`user_agent`: only printable ASCII can be sent in a header")
        for entry in self.allow_hosts:
            try:
                host_and_port(entry)
            except ValueError as problem:
                raise OptionError(
                    f"`allow_hosts={entry}`: {problem}", "Give HOST or HOST:PORT, without http://"
                ) from None
        if self.ca_file is not None:
            try:
                tls_context(self.ca_file)
            except OSError as problem:  # ssl errors are OSErrors
                raise InputError(
                    f"`ca_file={self.ca_file!r}`: {problem}", "Give a file of PEM certificates"
                ) from problem

    def retries_row(self, error_class: str, url: str | None) -> bool:
        """Whether to retry a row that failed with this error class; invalid urls only if they count as valid by now."""
        if self.only and error_class not in {_class_named(short) for short in self.only}:
            return False
        if error_class == "invalid_url":
            return is_url(url)
        return error_class not in FINAL

    @property
    def dialect(self) -> DialectOptions:
        """What is known of the dialect of text tables."""
        return DialectOptions(self.quoting, self.delimiter, self.encoding)

    @property
    def stored_quality(self) -> int:
        """The requested quality, or the format's default."""
        return IMAGE_FORMATS[self.image_format][0] if self.quality is None else self.quality

    def shaping(self) -> dict[str, Any]:
        """The options that shape the data, as stored in the run card.

        Retries, timeouts, rate limits and parallelism are left out: they change which responses arrive, not how a
        response is processed, and a user who resumes a run may want to change them.
        """
        return {
            "url_col": self.url_col,
            "caption_col": self.caption_col,
            "infer_types": self.infer_types,
            "samples_per_shard": self.samples_per_shard,
            "image_size": self.image_size,
            "resize_mode": self.resize_mode,
            "only_if_bigger": self.only_if_bigger,
            "min_image_size": self.min_image_size,
            "max_aspect_ratio": self.max_aspect_ratio,
            "image_format": self.image_format,
            "quality": self.stored_quality,
            "orient": self.orient,
            "drop_duplicates": self.drop_duplicates,
            "rights": self.rights,
            # Absent where it is white, so that outputs older than the option can be resumed.
            **({} if colour(self.background) == WHITE else {"background": colour(self.background)}),
        }


@dataclass(frozen=True, slots=True)
class FetchReport:
    """The contents of the output after a fetch.

    rows = succeeded + the sum of `failed` (by error class); a retried row counts once, with its last outcome. `retried`
    counts the retries of all runs. `bytes` is the total size of the shards' files. `shards_now` of the `shards` were
    fetched by this run, in `seconds`, and the others by earlier ones; `shards_redone` of them because files were
    missing or truncated. `hosts` are those with the most failed urls in this run, `report` is the location of its
    report, None if it did nothing. `accounts` is what became of everything in the shards' inputs, `listing` of the
    files of a folder. `caption_column` is the table's column with the captions, None without captions.
    """

    rows: int
    succeeded: int
    failed: dict[str, int]
    bytes: int
    shards: int
    shards_now: int
    shards_redone: int
    seconds: float
    caption_column: str | None
    retried: int
    hosts: tuple[HostFailures, ...]
    report: str | None
    accounts: Accounts | None = None
    listing: Accounts | None = None
