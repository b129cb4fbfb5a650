"""Forecast the duration and cost of a run from a measured rate."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .. import manifest
from ..errors import InputError
from ..manifest import IMAGE_SHARDS, RunCard, ShardManifest
from ..types import SourceShard

# The rate is measured on the last shards: reading more would not improve it.
_SHARDS_TO_JUDGE_BY = 256


@dataclass(frozen=True, slots=True)
class Forecast:
    """The remaining work, its duration and its cost.

    samples: left to encode, None if unknown; samples_from: the source of that number. rate: samples per second of one
    worker; rate_from: `given` or `earlier shards`. seconds: wall-clock time, with `workers` workers that share the
    shards evenly. cost: seconds × workers × price of a worker-hour.
    """

    shards: int
    bytes: int
    workers: int
    samples: int | None
    samples_from: str | None
    rate: float | None
    rate_from: str | None
    seconds: float | None
    cost: float | None


def forecast(
    data: str,
    out: str,
    left: Iterable[SourceShard],
    workers: int,
    rate: float | None = None,
    price: float | None = None,
) -> Forecast:
    """Forecast for the shards `left` of the input `data` on that many workers.

    rate: samples per second of one worker; None uses the rate of the shards committed to `out`. price: per worker-hour.
    Raises InputError for a rate or a price that is not positive.
    """
    for name, value in (("rate", rate), ("price", price)):
        if value is not None and not value > 0:
            raise InputError(f"a {name} of {value:g}", "Give a positive one")
    shards = list(left)
    earlier = _earlier(out)
    samples, samples_from = _samples(data, shards, earlier)
    rate_from = "given" if rate is not None else None
    if rate is None and (measured := _rate(earlier)) is not None:
        rate, rate_from = measured, "earlier shards"
    seconds = samples / rate / workers if samples is not None and rate is not None else None
    cost = seconds * workers / 3600 * price if seconds is not None and price is not None else None
    size = sum(shard.bytes for shard in shards)
    return Forecast(len(shards), size, workers, samples, samples_from, rate, rate_from, seconds, cost)


def _earlier(out: str) -> list[ShardManifest]:
    """The last committed shards, by number."""
    run = manifest.read_run(out)
    if run is None:
        return []
    numbers = manifest.committed_numbers(out)[-_SHARDS_TO_JUDGE_BY:]
    return list(manifest.read_manifests(out, run.shard_digits, numbers))


def _samples(data: str, left: list[SourceShard], earlier: list[ShardManifest]) -> tuple[int | None, str | None]:
    """The number of samples in the remaining shards, and its source."""
    if (run := _image_shards(data)) is not None:
        wanted = {shard.name for shard in left}
        entries = manifest.read_manifests(data, run.shard_digits)
        named = ((f"{manifest.shard_name(entry.number, run.shard_digits)}.tar", entry) for entry in entries)
        return sum(entry.rows_out for name, entry in named if name in wanted), "manifests of the input"
    read = sum(entry.source.bytes for entry in earlier)
    if read:
        still = sum(shard.bytes for shard in left)
        return round(still * sum(entry.rows_in for entry in earlier) / read), "bytes, as in earlier shards"
    return None, None


def _image_shards(data: str) -> RunCard | None:
    if "*" in data or "{" in data:
        return None
    run = manifest.read_run(data)
    return run if run is not None and run.format == IMAGE_SHARDS else None


def _rate(earlier: list[ShardManifest]) -> float | None:
    """Samples per second of one worker: writing runs in the background, so its time is left out."""
    spent = sum(seconds for entry in earlier for name, seconds in entry.timing_s.items() if name in ("model", "wait"))
    return sum(entry.rows_in for entry in earlier) / spent if spent > 0 else None
