"""Feeds damaged images to what decodes other people's: nothing may be raised, crash a worker or cost more than it may.

    python -m tools.fuzz_images --mutations 200000
    python -m tools.fuzz_images --seconds 60 --seed 7
    python -m tools.fuzz_images --only 12345 --keep findings

Each is decoded as `encode` and as `fetch` do, in a child with their limits. A finding is an exception, or an image that
would have been decoded in the worker itself and crashes the child or exceeds a limit there. Its number makes the same
image again.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from embedpipe.clip_model.encoder_card import PreprocessSpec
from embedpipe.fetch.download import guarded as guarded_pictures
from embedpipe.fetch.download.guarded import MakerSettings, picture_maker
from embedpipe.fetch.download.image import PictureRules
from embedpipe.fetch.outcome import Failure
from embedpipe.fetch.rights.record import read_rights
from embedpipe.images import guarded
from embedpipe.images.cost import is_bounded, limits_for
from embedpipe.images.decode import Undecodable, decode
from embedpipe.limited import CallFault, LimitedCalls

from .image_mutations import Original, mutated, originals

SPEC = PreprocessSpec((224, 224), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "bicubic", "shortest", 0)
SETTINGS = MakerSettings(PictureRules(256, "keep_ratio", True, 0, 0.0, True, "jpg"), "opencv", 95, 10.0)
LIMITS = limits_for(100_000_000, 10.0)
SIDES = ("encode", "fetch", "rights")
_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Tried:
    """One damaged image. outcomes: by `SIDES`. problem: what was raised, or empty.

    seconds: of processor time, all together. mebibytes: by which the process grew.
    """

    outcomes: dict[str, str]
    problem: str
    seconds: float
    mebibytes: float


@dataclass(slots=True)
class Findings:
    """What came of all: counts of outcomes, the costliest images by number, and the findings."""

    tried: int = 0
    outcomes: dict[str, Counter[str]] = field(default_factory=lambda: {side: Counter() for side in SIDES})
    slowest: tuple[float, int, str] = (0.0, -1, "")
    largest: tuple[float, int, str] = (0.0, -1, "")
    found: list[str] = field(default_factory=list)

    def add(self, number: int, image: Original, result: Tried | CallFault) -> bool:
        """Count one; returns whether it is a finding."""
        self.tried += 1
        bounded = is_bounded(image.data)
        if isinstance(result, CallFault):
            for counter in self.outcomes.values():
                counter[result.error_class] += 1
            problem = f"{result.error_class}: {result.message}" if bounded else ""
        else:
            for side, outcome in result.outcomes.items():
                self.outcomes[side][outcome] += 1
            problem = result.problem
            self.slowest = max(self.slowest, (result.seconds, number, image.name))
            self.largest = max(self.largest, (result.mebibytes, number, image.name))
        if problem:
            self.found.append(f"{number} ({image.name}): {problem}")
        return bool(problem)

    def said(self) -> Iterator[str]:
        """Lines for people."""
        yield f"{self.tried:,} damaged images"
        for side, counter in self.outcomes.items():
            yield f"{side}: " + ", ".join(f"{name} {count:,}" for name, count in counter.most_common())
        yield f"slowest: {self.slowest[0]:.2f} s, number {self.slowest[1]} ({self.slowest[2]})"
        yield f"largest: {self.largest[0]:.0f} MiB, number {self.largest[1]} ({self.largest[2]})"
        yield f"{len(self.found)} findings"
        yield from self.found


def fuzz(numbers: Iterable[int], seed: int = 0, cpu_seconds: float | None = None, keep: Path | None = None) -> Findings:
    """Try the damaged images of those numbers, or as many as that much processor time allows, or until Ctrl-C."""
    whole, findings, calls = originals(), Findings(), LimitedCalls(_prepare)
    begun = _cpu_s()
    try:
        for number in numbers:
            image = mutated(whole, number, seed)
            if findings.add(number, image, calls.call(try_both, image.data, (), LIMITS)) and keep is not None:
                keep.mkdir(parents=True, exist_ok=True)
                (keep / f"{seed}-{number}").write_bytes(image.data)
            if cpu_seconds is not None and _cpu_s() - begun + findings.tried * 0.001 > cpu_seconds:
                break
    except KeyboardInterrupt:
        pass  # what was found so far is told
    finally:
        calls.close()
    return findings


def try_both(data: bytes) -> Tried:
    """In the child: decode as encode and as fetch do."""
    _reset_peak()
    before, begun = _memory("VmRSS"), time.process_time()
    outcomes, problems = {}, []
    bounded = is_bounded(data)  # decoded by the worker itself, where nothing may be raised
    sides: dict[str, Callable[[], Any]] = {
        "encode": lambda: (decode if bounded else guarded._decode)(data, SPEC),
        "fetch": lambda: picture_maker(SETTINGS).make(data) if bounded else guarded_pictures._make(data, SETTINGS),
        "rights": lambda: read_rights(data),
    }
    for side, made in sides.items():
        try:
            outcomes[side] = _outcome(made())
        except MemoryError:
            raise
        except Exception as problem:
            outcomes[side] = "raised"
            problems.append(f"{side} raised {type(problem).__name__}: {problem}"[:200])
    seconds, grown = time.process_time() - begun, (_memory("VmHWM") - before) / _MIB
    return Tried(outcomes, "; ".join(problems), seconds, grown)


def _outcome(made: Any) -> str:
    return made.error_class if isinstance(made, Undecodable | Failure) else "fine"


def _prepare() -> None:
    picture_maker(SETTINGS)


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _memory(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(f"{name}:")).split()[1])


def _cpu_s() -> float:
    """Processor time of this process and of its children that have ended."""
    own, ended = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + ended.ru_utime + ended.ru_stime


def main() -> int:
    """Print what came of all; 1 if there are findings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutations", type=int, default=10_000, help="how many damaged images (10,000)")
    parser.add_argument("--first", type=int, default=0, help="the number of the first (0)")
    parser.add_argument("--only", type=int, help="one number alone")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, help="stop after this much processor time, or so")
    parser.add_argument("--keep", type=Path, help="a folder for the images of findings")
    options = parser.parse_args()
    last = options.first + options.mutations
    numbers = range(options.first, last) if options.only is None else [options.only]
    findings = fuzz(numbers, options.seed, options.seconds, options.keep)
    print("\n".join(findings.said()))
    return int(bool(findings.found))


if __name__ == "__main__":
    from tools.fuzz_images import main as importable  # so that children find `try_both`

    sys.exit(importable())
