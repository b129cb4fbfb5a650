"""Does the memory of `embedpipe dedup` grow with the rows beyond the bytes it says it takes for each? Does it find all?

Rows of made-up data sets, float16, drawn around many centres that are drawn around fewer, with planted near-copies; the
whole command is watched from outside. A last set holds one huge cluster of rows that are nearly equal, and no hash
tells them: the worst there is for this method.

    python -m benchmarks.dedup_scale
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from embedpipe import manifest
from embedpipe.columns import EXTRA, FIXED
from embedpipe.manifest import EMBEDDINGS, RunCard, ShardManifest
from embedpipe.store import open_format
from embedpipe.types import EmbeddingShard, SourceShard
from tests import embeddings

from . import measure, report

_PER_SHARD = 10_000
_COPIES = 1000
COSINE_OF_COPIES = 0.97


def write(folder: Path, rows: int, dim: int, near: int = 0) -> str:
    """A data set of `rows` rows, the last 1,000 near-copies of the first; `near` rows are nearly equal to one."""
    shutil.rmtree(folder, ignore_errors=True)
    rng = np.random.default_rng(0)
    card = embeddings.card(dim)
    names = [f"{i:05d}.tar" for i in range(-(-rows // _PER_SHARD))]
    plan = tuple(SourceShard(name, 1, "0") for name in names)
    options = {"images": True, "texts": False, "format": "npy"}
    manifest.write_run(str(folder), RunCard(EMBEDDINGS, options, plan, {}, "", card))
    coarse = rng.normal(size=(50, dim)).astype(np.float32)
    fine = rng.normal(size=(rows // 40, dim)).astype(np.float32)
    one = rng.normal(size=dim)
    first = None
    for number, start in enumerate(range(0, rows, _PER_SHARD)):
        count = min(_PER_SHARD, rows - start)
        drawn = rng.normal(size=(count, dim)).astype(np.float32)
        drawn += coarse[rng.integers(len(coarse), size=count)] + fine[rng.integers(len(fine), size=count)]
        equal = max(0, min(count, near - start))
        drawn[:equal] = one + 0.1 * rng.normal(size=(equal, dim))
        unit = embeddings.normalised(drawn)
        first = unit[:_COPIES].copy() if first is None else first
        if start + count == rows and not near:
            noise = embeddings.normalised(rng.normal(size=first.shape))
            unit[-_COPIES:] = embeddings.normalised(first + np.sqrt(2 - 2 * COSINE_OF_COPIES) * noise)
        _commit(folder, number, unit, plan[number], card)
    return str(folder)


def _commit(folder: Path, number: int, unit: np.ndarray, source: SourceShard, card) -> None:
    n = len(unit)
    metadata = {name: [None] * n for name in (*FIXED, EXTRA)}
    metadata["key"] = metadata["image_path"] = [f"{number:05d}{row:05d}" for row in range(n)]
    metadata["src_shard"], metadata["src_index"] = [source.name] * n, list(range(n))
    metadata["sha256"] = [hashlib.sha256(key.encode()).hexdigest() for key in metadata["key"]]
    shard = EmbeddingShard(number, unit.astype(np.float16), None, metadata, ())
    written = open_format("npy").write(str(folder), shard, source.name, {}, 5)
    entry = ShardManifest(number, source, "", n, n, 0, {}, written, unit.shape[1], "float16", card.fingerprint())
    manifest.commit(str(folder), entry, 5)


def run(data: str, out: Path, timeout_s: float) -> tuple[measure.Measured, dict]:
    """`embedpipe dedup` into an empty folder; what it took and its report."""
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "embedpipe_cli", "dedup", data, str(out), "--json"]
    done = measure.run(command, out.with_name(f"{out.name}-log"), timeout_s=timeout_s).require("embedpipe dedup")
    return done, json.loads(done.stdout)


def found(out: Path, rows: int) -> int:
    """How many of the planted near-copies were dropped."""
    dropped = set(pq.read_table(out / "dropped.parquet", columns=["row"])["row"].to_pylist())
    return sum(row in dropped for row in range(rows - _COPIES, rows))


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[100_000, 1_000_000], help="rows, fewest first")
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--near", type=int, default=100_000, help="nearly equal rows of the last set; 0 leaves it out")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=7200, help="seconds for one run")
    parser.add_argument("--work", type=Path, default=Path("build/benchmarks"), help="for data and outputs")
    parser.add_argument("--results", type=Path, default=report.RESULTS)
    options = parser.parse_args()
    started = report.start("benchmarks.dedup_scale", measure.use_cores(options.cores))
    work = options.work.resolve()
    lines, peaks = [], []
    for count in options.counts:
        data = write(work / f"rows-{count}", count, options.dim)
        done, told = run(data, work / "out" / f"dedup-{count}", options.timeout)
        peaks.append(done.largest_mib)
        copies = found(work / "out" / f"dedup-{count}", count)
        lines.append(_line(f"{count:,}", done, told, f"{copies:,} of {_COPIES:,}"))
    if options.near:
        data = write(work / "rows-near", options.near + 20_000, options.dim, options.near)
        done, told = run(data, work / "out" / "dedup-near", options.timeout)
        lines.append(_line(f"{options.near:,} nearly equal, and 20,000", done, told, ""))
    heads = ("rows", "largest process, MiB", "wall s", "CPU s", "clusters", "rows in two", "kept", "copies found")
    growth = (peaks[-1] - peaks[0]) * 2**20 / max(1, options.counts[-1] - options.counts[0])
    shutil.rmtree(work / "out", ignore_errors=True)
    report.write(
        "dedup_scale",
        f"memory and time of dedup, {' and '.join(f'{count:,}' for count in options.counts)} rows × {options.dim}",
        [
            report.table(heads, lines),
            f"From the fewest to the most rows the peak grew by {growth:.0f} bytes a row. Near-copies are at a cosine "
            f"of {COSINE_OF_COPIES} to their originals, in a random direction, in the last shard. Threshold 0.95.",
        ],
        started,
        not_measured=["More than a million rows.", "Object stores, parquet."],
        folder=options.results,
    )


def _line(name: str, done: measure.Measured, told: dict, copies: str) -> tuple[str, ...]:
    return (
        name,
        f"{done.largest_mib:.0f}",
        f"{done.wall_s:.1f}",
        f"{done.cpu_s:.1f}",
        f"{told['clusters']:,}",
        f"{told['twice'] / told['rows']:.1%}",
        f"{told['kept']:,}",
        copies,
    )


if __name__ == "__main__":
    main()
