"""Does `embedpipe dedup`, as it is by default, find near-copies of pictures, and leave the others alone?

The demo's 3,828 emoji, and 500 copies of them that were re-encoded, resized, cropped by 2%, or all of it, in shards of
their own behind the others, encoded with the demo's encoder. A dropped row is right when it or the row it repeats is a
planted copy and the two go back to the same picture, or when the two pictures are equal to the pixel (the packages draw
some emoji alike); everything else is wrong, however alike the two may look.

    python -m embedpipe_cli demo build/benchmarks/demo
    python -m benchmarks.dedup_demo
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import sys
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from . import measure, report

KINDS = ("re-encoded", "resized", "cropped", "all three")
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
    """A near-copy: JPEG of another quality, of another size, without 2% of its width and height, or all of these."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    if kind in ("cropped", "all three"):
        width, height = image.size
        left, upper = rng.uniform(0, _CROP * width), rng.uniform(0, _CROP * height)
        box = (left, upper, left + (1 - _CROP) * width, upper + (1 - _CROP) * height)
        image = image.resize(image.size, Image.Resampling.BICUBIC, box=box)
    if kind in ("resized", "all three"):
        scale = rng.uniform(0.6, 1.6)
        image = image.resize([round(side * scale) for side in image.size], Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    quality = int(rng.integers(50, 90)) if kind in ("re-encoded", "all three") else 95
    image.save(stream, "JPEG", quality=quality)
    return stream.getvalue()


def plant(pictures: Sequence[Picture], folder: Path, copies: int, seed: int) -> dict[tuple[str, str], tuple[int, str]]:
    """Write the pictures and near-copies of some as tars. Returns by (shard, key) of a copy its original and its kind."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    originals = rng.choice(len(pictures), copies, replace=False)
    planted = {}
    samples = [(picture.data, picture.caption) for picture in pictures]
    for i, original in enumerate(originals.tolist()):
        kind = KINDS[i % len(KINDS)]
        place = len(samples)
        planted[f"{place // _PER_SHARD:05d}.tar", f"{place:09d}"] = (original, kind)
        samples.append((changed(pictures[original].data, kind, rng), pictures[original].caption))
    for start in range(0, len(samples), _PER_SHARD):
        with tarfile.open(folder / f"{start // _PER_SHARD:05d}.tar", "w", format=tarfile.GNU_FORMAT) as archive:
            for place, (data, caption) in enumerate(samples[start : start + _PER_SHARD], start):
                for suffix, content in (("jpg", data), ("txt", caption.encode())):
                    entry = tarfile.TarInfo(f"{place:09d}.{suffix}")
                    entry.size = len(content)
                    archive.addfile(entry, io.BytesIO(content))
    return planted


def pixels(data: bytes) -> bytes:
    """What a picture looks like, to the pixel."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    return repr(image.size).encode() + image.tobytes()
