"""Does `embedpipe dedup`, as it is by default, find near-copies of pictures, and leave the others alone?

Pictures, and near-copies of 500 of them in shards behind theirs: re-encoded (JPEG, quality 75 to 95), resized (to 0.75
to 1.5 of the size), cropped by 2% of width and height, or all three; a quarter each. Two sets of pictures: the demo's
3,828 emoji, and photo-like ones (`benchmarks.photos`). Both are encoded with the demo's encoder.

A dropped row is right when it and the row it repeats go back to one picture, or when their pictures are equal to the
pixel: the packages draw some emoji alike. All else is wrong, however alike the two may look, as the same emoji in two
shades does. Recall is of the planted copies: one is found when it is dropped, or a row is dropped for it.

    python -m embedpipe_cli demo build/benchmarks/demo
    python -m benchmarks.dedup_demo
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from . import measure, photos, report

KINDS = ("re-encoded", "resized", "cropped", "all three")
THRESHOLDS = (0.9, 0.93, 0.95, 0.97, 0.98, 0.99)
_CROP = 0.02
_PER_SHARD = 1000


@dataclass(frozen=True, slots=True)
class Picture:
    """One sample of the demo's shards: its shard's name, key, bytes and caption."""

    shard: str
    key: str
    data: bytes
    caption: str


def read_pictures(shards: Path) -> list[Picture]:
    """All samples of a folder of tars."""
    found = []
    for path in sorted(shards.glob("*.tar")):
        with tarfile.open(path) as archive:
            members = {member.name: archive.extractfile(member).read() for member in archive}
        for name in sorted(members):
            key, _, suffix = name.partition(".")
            if suffix not in ("txt", "json"):
                found.append(Picture(path.name, key, members[name], members[f"{key}.txt"].decode()))
    return found


def changed(data: bytes, kind: str, rng: np.random.Generator) -> bytes:
    """A near-copy of an encoded picture, as a JPEG."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    width, height = image.size
    if kind in ("cropped", "all three"):
        left, upper = rng.uniform(0, _CROP * width), rng.uniform(0, _CROP * height)
        box = (left, upper, left + (1 - _CROP) * width, upper + (1 - _CROP) * height)
        image = image.resize(image.size, Image.Resampling.BICUBIC, box=box)
    if kind in ("resized", "all three"):
        scale = rng.uniform(0.75, 1.5)
        image = image.resize((round(width * scale), round(height * scale)), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=int(rng.integers(75, 96)) if kind in ("re-encoded", "all three") else 95)
    return stream.getvalue()


@dataclass(frozen=True, slots=True)
class Planted:
    """By key of a sample: which picture it goes back to (a number), of what kind a copy is, and what pixels it has."""

    origin: dict[str, int]
    kind: dict[str, str]
    pixels: dict[str, bytes]


def plant(pictures: Sequence[Picture], folder: Path, copies: int, seed: int) -> Planted:
    """Write the pictures, and near-copies of some behind them, as tars."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    samples = [(picture.data, picture.caption) for picture in pictures]
    planted = Planted({f"{i:09d}": i for i in range(len(pictures))}, {}, {})
    for i, origin in enumerate(rng.choice(len(pictures), copies, replace=False).tolist()):
        key = f"{len(samples):09d}"
        planted.origin[key], planted.kind[key] = origin, KINDS[i % len(KINDS)]
        samples.append((changed(pictures[origin].data, planted.kind[key], rng), pictures[origin].caption))
    for start in range(0, len(samples), _PER_SHARD):
        with tarfile.open(folder / f"{start // _PER_SHARD:05d}.tar", "w", format=tarfile.GNU_FORMAT) as archive:
            for place, (data, caption) in enumerate(samples[start : start + _PER_SHARD], start):
                planted.pixels[f"{place:09d}"] = _pixels(data)
                for suffix, content in (("jpg", data), ("txt", caption.encode())):
                    entry = tarfile.TarInfo(f"{place:09d}.{suffix}")
                    entry.size = len(content)
                    archive.addfile(entry, io.BytesIO(content))
    return planted


def _pixels(data: bytes) -> bytes:
    image = Image.open(io.BytesIO(data)).convert("RGB")
    return hashlib.sha256(repr(image.size).encode() + image.tobytes()).digest()


@dataclass(frozen=True, slots=True)
class Judged:
    """Of a run: rows dropped, how many of these rightly, and of each kind of copy how many were found of how many."""

    dropped: int
    right: int
    found: dict[str, tuple[int, int]]

    @property
    def precision(self) -> float:
        """Share of what was dropped that was rightly so."""
        return self.right / max(1, self.dropped)

    @property
    def recall(self) -> float:
        """Share of the planted copies that were found."""
        return sum(f for f, _ in self.found.values()) / max(1, sum(n for _, n in self.found.values()))


def judge(dropped: Sequence[tuple[str, str]], planted: Planted) -> Judged:
    """`dropped`: (key, key of the row it repeats)."""
    right = 0
    found = set()
    for gone, stays in dropped:
        if planted.origin[gone] == planted.origin[stays]:
            right += 1
            found |= {gone, stays} & planted.kind.keys()
        else:
            right += planted.pixels[gone] == planted.pixels[stays]
    counts = {
        kind: (sum(planted.kind[key] == kind for key in found), sum(k == kind for k in planted.kind.values()))
        for kind in KINDS
    }
    return Judged(len(dropped), right, counts)


def measure_set(name: str, pictures: Sequence[Picture], clip: Path, work: Path, copies: int) -> str:
    """Plant, encode, dedup; a table of what each threshold does."""
    planted = plant(pictures, work / f"planted-{name}", copies, seed=0)
    emb, out = work / f"planted-{name}-emb", work / "out" / f"dedup-{name}"
    shutil.rmtree(emb, ignore_errors=True)
    shutil.rmtree(out, ignore_errors=True)
    _embedpipe("encode", work / f"planted-{name}", emb, "--model", clip, "--gpus", 0)
    told = json.loads(_embedpipe("dedup", emb, out, "--json"))
    rows = []
    for threshold in dict.fromkeys(sorted({told["threshold"], *THRESHOLDS})):
        _embedpipe("dedup", emb, out, "--threshold", threshold, "--pairs", 0)
        table = pq.read_table(out / "dropped.parquet", columns=["key", "of_key"])
        done = judge(list(zip(*(table[c].to_pylist() for c in ("key", "of_key")), strict=True)), planted)
        default = " (the default)" if threshold == told["threshold"] else ""
        kinds = (f"{found}/{count}" for found, count in done.found.values())
        rows.append((f"{threshold:g}{default}", f"{done.precision:.3f}", f"{done.recall:.3f}", done.dropped, *kinds))
    return report.table(("threshold", "precision", "recall", "dropped", *KINDS), rows)


def _embedpipe(*arguments: object) -> str:
    command = [sys.executable, "-m", "embedpipe_cli", *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def main() -> None:
    """Measure both sets and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=Path("build/benchmarks/demo"), help="where `embedpipe demo` ran")
    parser.add_argument("--copies", type=int, default=500)
    parser.add_argument("--n", type=int, default=2000, help="photo-like pictures; 0 leaves them out")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("build/benchmarks"), help="for data and outputs")
    parser.add_argument("--results", type=Path, default=report.RESULTS)
    options = parser.parse_args()
    started = report.start("benchmarks.dedup_demo", measure.use_cores(options.cores))
    work, clip = options.work.resolve(), options.demo / "clip"
    sets = {"emoji": read_pictures(options.demo / "shards")}
    if options.n:
        sets["photos"] = read_pictures(photos.make(work / f"photos-{options.n}", photos.PhotoSet(options.n, 2)))
    sections = [
        f"## {name}: {len(pictures):,} and {options.copies:,} near-copies\n\n"
        f"{measure_set(name, pictures, clip, work, options.copies)}"
        for name, pictures in sets.items()
    ]
    report.write(
        "dedup_demo",
        "precision and recall of dedup on planted near-copies",
        sections,
        started,
        not_measured=[
            "An encoder of ordinary size: there is no model hub here. The demo's sees pictures of 96 pixels."
        ],
        folder=options.results,
    )


if __name__ == "__main__":
    main()
