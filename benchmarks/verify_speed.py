"""How long does `embedpipe verify` take, fast and deep, does its memory grow with the data, and what does reading pay?

Made-up data sets in both formats, of image and text embeddings and some metadata, in shards of 10,000 rows. The whole
command is watched from outside; beside it stands what hashing the same files takes alone. Reading: all embeddings and
one metadata column, in turns with and without what readers check by themselves (sizes, ends, page checksums).

    python -m benchmarks.verify_speed
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from embedpipe.load import EmbeddingDataset
from embedpipe.store import npy, parquet
from tests import embeddings

from . import measure, report

_PER_SHARD = 10_000
MODES = {"fast": (), "deep": ("--deep",), "deep, 2 workers": ("--deep", "--workers", "2")}


def write(folder: Path, rows: int, dim: int, format: str) -> str:
    """A data set of random rows with a caption and two passed-through columns."""
    shutil.rmtree(folder, ignore_errors=True)
    rng = np.random.default_rng(0)
    columns = {"label": [rng.bytes(20).hex() for _ in range(rows)], "score": ("double", rng.random(rows).tolist())}
    image, text = (rng.normal(size=(rows, dim)).astype(np.float32) for _ in range(2))
    return embeddings.write_dataset(folder, image, text, -(-rows // _PER_SHARD), columns, format=format)


def run(data: str, options: tuple[str, ...], logs: Path, timeout_s: float) -> measure.Measured:
    """`embedpipe verify`, which must find nothing."""
    command = [sys.executable, "-m", "embedpipe_cli", "verify", data, *options]
    return measure.run(command, logs, timeout_s=timeout_s).require("embedpipe verify")


def hash_alone(data: str) -> tuple[int, float]:
    """(bytes of all data files, seconds that sha256 takes over them)."""
    begun, total = time.perf_counter(), 0
    for path in sorted(Path(data).glob("*_*/*")) + sorted(Path(data).glob("m*/*.parquet")):
        digest = hashlib.sha256()
        with path.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
                total += len(chunk)
    return total, time.perf_counter() - begun


def read(data: str) -> float:
    """Seconds to open a data set, and read all image embeddings and all captions."""
    begun = time.perf_counter()
    dataset = EmbeddingDataset(data)
    assert dataset.image is not None
    dataset.image.read()
    dataset.column("caption")
    return time.perf_counter() - begun


@contextlib.contextmanager
def unchecked() -> Iterator[None]:
    """Reading as it would be without the checks."""
    kept = [(place, "require_written", place.require_written) for place in (npy, parquet)]
    kept += [(pq, "read_table", pq.read_table), (pq, "ParquetFile", pq.ParquetFile)]
    read_table, open_file = pq.read_table, pq.ParquetFile
    for place in (npy, parquet):
        place.require_written = lambda root, record: None
    pq.read_table = lambda *given, page_checksum_verification=False, **named: read_table(*given, **named)
    pq.ParquetFile = lambda *given, page_checksum_verification=False, **named: open_file(*given, **named)
    try:
        yield
    finally:
        for place, name, value in kept:
            setattr(place, name, value)


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[20_000, 200_000], help="rows, fewest first")
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5, help="of reading, in turns")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=1800, help="seconds for one run")
    parser.add_argument("--work", type=Path, default=Path("build/benchmarks"), help="for data")
    parser.add_argument("--results", type=Path, default=report.RESULTS)
    options = parser.parse_args()
    started = report.start("benchmarks.verify_speed", measure.use_cores(options.cores))
    lines, ratios = [], []
    for format in ("npy", "parquet"):
        for count in options.counts:
            data = write(options.work.resolve() / f"verify-{format}-{count}", count, options.dim, format)
            size, alone_s = hash_alone(data)
            for mode, arguments in MODES.items():
                done = run(data, arguments, options.work.resolve() / "logs" / "verify", options.timeout)
                lines.append(_line(format, count, mode, done, size))
            lines.append(
                (format, f"{count:,}", "sha256 alone", f"{alone_s:.2f}", "", f"{size / 1e6 / alone_s:.0f}", "")
            )
        checked, bare = [], []
        for _ in range(options.rounds):
            checked.append(read(data))
            with unchecked():
                bare.append(read(data))
        ratio = [with_s / without_s for with_s, without_s in zip(checked, bare, strict=True)]
        ratios.append(
            (format, f"{count:,}", measure.spread(checked, 3), measure.spread(bare, 3), measure.spread(ratio))
        )
        for each in options.counts:
            shutil.rmtree(options.work / f"verify-{format}-{each}")
    report.write(
        "verify_speed",
        f"verify fast and deep, and what reading pays, {' and '.join(f'{n:,}' for n in options.counts)} rows",
        [
            report.table(("format", "rows", "what", "wall s", "CPU s", "MB/s", "largest process, MiB"), lines),
            f"2 × {options.dim} numbers of float16 for each row. Start-up is in the wall time.",
            "## Reading, with and without its checks",
            report.table(("format", "rows", "checked, s", "unchecked, s", "ratio"), ratios),
        ],
        started,
        not_measured=["Object stores.", "Disks: the files are in the page cache.", "Image shards."],
        folder=options.results,
    )


def _line(format: str, count: int, mode: str, done: measure.Measured, size: int) -> tuple[str, ...]:
    rate = f"{size / 1e6 / done.wall_s:.0f}" if mode != "fast" else ""
    return (format, f"{count:,}", mode, f"{done.wall_s:.2f}", f"{done.cpu_s:.2f}", rate, f"{done.largest_mib:.0f}")


if __name__ == "__main__":
    main()
