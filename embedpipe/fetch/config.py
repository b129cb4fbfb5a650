"""What a fetch is asked to do, and what it did."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

from ..errors import InputError, did_you_mean

RESIZE_MODES = {
    "keep_ratio": "the shorter side becomes --image-size",
    "center_crop": "as keep_ratio, then the middle square",
    "border": "the longer side becomes --image-size, white borders make it square",
    "no": "sizes stay as they are",
}
DEFAULT_CAPTION_COLUMN = "caption"


@dataclass(frozen=True, slots=True)
class FetchConfig:
    """The options of `embedpipe fetch`.

    Those of `shaping()` decide what the shards hold and are locked in the output; the others may change between two
    runs over the same output. `caption_col` None means: the column `caption` if the table has one.
    `timeout_s` bounds each wait on the network, `3 * timeout_s` one whole answer.
    """

    url_col: str = "url"
    caption_col: str | None = None
    samples_per_shard: int = 10_000
    image_size: int = 256
    resize_mode: str = "keep_ratio"
    only_if_bigger: bool = True
    min_image_size: int = 0
    allow_hosts: tuple[str, ...] = ()
    processes: int = field(default_factory=lambda: os.cpu_count() or 1)
    threads: int = 32
    timeout_s: float = 10.0
    retries: int = 2
    user_agent: str = ""

    def __post_init__(self) -> None:
        if self.resize_mode not in RESIZE_MODES:
            raise InputError(
                f"--resize-mode {self.resize_mode}: no such mode", did_you_mean(self.resize_mode, RESIZE_MODES)
            )
        for name in ("samples_per_shard", "image_size", "processes", "threads"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be at least 1")
        if self.retries < 0 or self.min_image_size < 0:
            raise InputError("--retries and --min-image-size must not be negative")
        if self.timeout_s <= 0:
            raise InputError(f"--timeout {self.timeout_s}: must be more than 0 seconds")

    def shaping(self) -> dict[str, Any]:
        """The options that shape the data, as the run card keeps them.

        Patience (retries, timeout), manners and parallelism are left out: they change which answers arrive, not what
        is made of an answer, and a person who comes back to an unfinished run may well want others.
        """
        return {
            "url_col": self.url_col,
            "caption_col": self.caption_col,
            "samples_per_shard": self.samples_per_shard,
            "image_size": self.image_size,
            "resize_mode": self.resize_mode,
            "only_if_bigger": self.only_if_bigger,
            "min_image_size": self.min_image_size,
        }


@dataclass(frozen=True, slots=True)
class FetchReport:
    """What lies in the output once a fetch has ended.

    rows = succeeded + the sum of `failed` (by error class). `bytes` are those of the shards' files. `shards_now` of the
    `shards` were fetched by this run, in `seconds`; the others were there before; `shards_redone` of them because
    files of theirs were missing or cut short.
    `caption_column` is the table's column that gave the captions, None without captions.
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
