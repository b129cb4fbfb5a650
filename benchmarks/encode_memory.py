"""Does the memory of `embedpipe encode` grow with the data, and how much does ViT-B-32 on photos take?

The whole command is watched from outside. Growth: tiny pictures through a tiny model, shards of 1,000, ten times as
many the second time. ViT-B-32: the photos of the speed comparison.

    python -m benchmarks.encode_memory
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from tests import tiny_clip

from . import embeddings, measure, photos, report

_ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
_PICTURES = 200


def write_tiny_shards(folder: Path, count: int, per_shard: int) -> Path:
    """`count` samples with keys and captions of their own; of pictures, 48×40, there are 200, again and again."""
    rng = np.random.default_rng(0)
    pictures = []
    for _ in range(_PICTURES):
        coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), np.uint8))
        stream = io.BytesIO()
        coarse.resize((48, 40), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=85)
        pictures.append(stream.getvalue())
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for shard, first in enumerate(range(0, count, per_shard)):
        with tarfile.open(folder / f"{shard:05d}.tar", "w", format=tarfile.GNU_FORMAT) as archive:
            for number in range(first, min(first + per_shard, count)):
                facts = json.dumps({"number": number, "label": f"l{number % 7}"})
                caption = f"picture {number} of many, the {number % 97}th of its kind"
                members = {"jpg": pictures[number % _PICTURES], "json": facts.encode(), "txt": caption.encode()}
                for suffix, data in members.items():
                    entry = tarfile.TarInfo(f"{number:08d}.{suffix}")
                    entry.size = len(data)
                    archive.addfile(entry, io.BytesIO(data))
    return folder


def encode(data: Path, out: Path, timeout_s: float, *options: str) -> measure.Measured:
    """Run the command into an empty folder. Raises RuntimeError when it fails."""
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "embedpipe_cli", "encode", str(data), str(out), "--json", "--gpus", "0", *options]
    return measure.run(command, out, timeout_s=timeout_s, environment=_ENVIRONMENT).require("embedpipe encode")


def measure_growth(work: Path, counts: Sequence[int], per_shard: int, rounds: int, timeout_s: float) -> str:
    """Peaks for each number of samples, in turns, and the ratio of the last to the first."""
    model = tiny_clip.write(work / "tiny-model")
    folders = {count: write_tiny_shards(work / f"tiny-{count}", count, per_shard) for count in counts}
    runs: dict[int, list[measure.Measured]] = {count: [] for count in counts}
    for _ in range(rounds):
        for count, folder in folders.items():
            runs[count].append(encode(folder, work / "out" / f"memory-{count}", timeout_s, "--model", model))
    rows = [
        (
            f"{count:,} samples",
            measure.spread([r.largest_mib for r in done], 0),
            measure.spread([r.together_mib for r in done], 0),
            measure.spread([r.wall_s for r in done], 1),
        )
        for count, done in runs.items()
    ]
    pairs = list(zip(runs[counts[-1]], runs[counts[0]], strict=True))
    rows.append(
        (
            "ratio",
            measure.spread([many.largest_mib / few.largest_mib for many, few in pairs], 3),
            measure.spread([many.together_mib / few.together_mib for many, few in pairs], 3),
            "",
        )
    )
    return report.table(("", "largest process, MiB", "all, MiB (PSS)", "wall s"), rows)


def measure_model(work: Path, model: str, photo_set: photos.PhotoSet, timeout_s: float) -> str:
    """Peaks of a real model on photos, as it runs by default and with a second worker."""
    data = photos.make(work / f"photos-{photo_set.n}", photo_set)
    named = ("--model", model, "--pretrained", str(embeddings.random_weights(model, work)), "--gelu")
    rows = []
    for workers in (1, 2):
        done = encode(data, work / "out" / "memory-photos", timeout_s, *named, "--workers", str(workers))
        how = embeddings.card(work / "out" / "memory-photos")
        rows.append((f"{model}, workers {workers}, {how}", f"{done.largest_mib:.0f}", f"{done.together_mib:.0f}"))
    return report.table((f"{photo_set.n:,} photos", "largest process, MiB", "all, MiB (PSS)"), rows)


def main() -> None:
    """Measure both and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[4_000, 40_000], help="samples, fewest first")
    parser.add_argument("--per-shard", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--model", default="ViT-B-32", help="for the photos; '' leaves them out")
    parser.add_argument("--n", type=int, default=1000, help="photos")
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=3600, help="seconds for one run")
    parser.add_argument("--work", type=Path, default=Path("build/benchmarks"), help="for data, weights and outputs")
    parser.add_argument("--results", type=Path, default=report.RESULTS)
    options = parser.parse_args()
    started = report.start("benchmarks.encode_memory", measure.use_cores(options.cores))
    work = options.work.resolve()
    growth = measure_growth(work, options.counts, options.per_shard, options.rounds, options.timeout)
    sections = [f"## Ten times the data\n\nTiny pictures, a tiny model, {options.rounds} rounds in turns.\n\n{growth}"]
    if options.model:
        photo_set = photos.PhotoSet(options.n, options.shards)
        sections.append(f"## A real model\n\n{measure_model(work, options.model, photo_set, options.timeout)}")
    report.write(
        "encode_memory",
        f"peak memory of the whole command, {' and '.join(f'{count:,}' for count in options.counts)} samples",
        sections,
        started,
        not_measured=["CUDA: neither memory on the device nor pinned memory.", "Shards with more than 1,000 samples."],
        folder=options.results,
    )


if __name__ == "__main__":
    main()
