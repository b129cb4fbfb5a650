"""How fast are embeddings read and written: beside embedding-reader, and beside a bare loop of `readinto`?

Rows of made-up float16 embeddings in .npy shards, all in the page cache. Each way of reading them is a process of its
own that reads all of them once; ways take turns. Time and CPU are those of opening and reading, without imports; memory
is the peak of the whole process.

    python -m benchmarks.load_vs_embedding_reader
    python -m benchmarks.load_vs_embedding_reader --two-sides   # what a prior reads: image and text, without a peer
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from . import measure, report

if TYPE_CHECKING:
    from embedpipe.types import EmbeddingBatch

_PER_SHARD = 10_000
_DIM = 768
_BATCH = 4096
_EPOCHS = 3  # of the loader: training goes on for many
_PEER_BATCHES = (10_000, 100_000)
_HEADER_BYTES = 128


def make(root: Path, rows: int, texts: bool = False) -> None:
    """A data set of that many rows of norm 1, image side only or both; left as it is when it is there."""
    if (root / "made.json").exists() and json.loads((root / "made.json").read_text()) == rows:
        return
    shutil.rmtree(root, ignore_errors=True)
    from embedpipe import manifest
    from embedpipe.manifest import EMBEDDINGS, RunCard
    from embedpipe.types import SourceShard
    from tests import embeddings

    plan = tuple(SourceShard(f"{i:05d}.tar", 1, "0") for i in range(-(-rows // _PER_SHARD)))
    options = {"images": True, "texts": texts, "format": "npy"}
    manifest.write_run(str(root), RunCard(EMBEDDINGS, options, plan, {}, "", embeddings.card(_DIM)))
    for number, start in enumerate(range(0, rows, _PER_SHARD)):
        drawn = np.random.default_rng(number).standard_normal((min(_PER_SHARD, rows - start), _DIM), np.float32)
        image = embeddings.normalised(drawn).astype(np.float16)
        write_shard(str(root), number, image, plan[number].name, image[::-1].copy() if texts else None)
    (root / "made.json").write_text(json.dumps(rows))


def write_shard(root: str, number: int, image: np.ndarray, source: str, text: np.ndarray | None = None) -> None:
    """Write and commit one shard, as `encode` does."""
    from embedpipe import manifest
    from embedpipe.columns import EXTRA, FIXED
    from embedpipe.manifest import ShardManifest
    from embedpipe.store import open_format
    from embedpipe.types import EmbeddingShard, SourceShard
    from tests import embeddings

    n = len(image)
    metadata: dict[str, list] = {name: [None] * n for name in (*FIXED, EXTRA)}
    metadata["key"] = [f"{number:05d}{i:05d}" for i in range(n)]
    metadata["src_shard"] = [source] * n
    written = open_format("npy").write(root, EmbeddingShard(number, image, text, metadata, ()), source, {}, 5)
    card = embeddings.card(_DIM)
    entry = ShardManifest(
        number, SourceShard(source, 1, "0"), "", n, n, 0, {}, written, _DIM, "float16", card.fingerprint()
    )
    manifest.commit(root, entry, 5)


# The ways. Each gives the bytes of float16 rows that it has handed out.


def bare(root: str) -> Iterator[int]:
    """What nothing can beat that copies: the same batches into one buffer, nothing looked at."""
    view = memoryview(np.empty((_BATCH, _DIM), np.float16).data).cast("B")
    for path in sorted(Path(root).glob("img_emb/*.npy")):
        with path.open("rb", buffering=0) as stream:
            stream.seek(_HEADER_BYTES)
            while got := stream.readinto(view):
                yield got


def ours(root: str, **options: object) -> Iterator[int]:
    """`EmbeddingDataset.batches`."""
    from embedpipe import EmbeddingDataset

    for batch in EmbeddingDataset(root).batches(_BATCH, **options):
        yield _float16_bytes(batch)


def _float16_bytes(batch: EmbeddingBatch) -> int:
    return sum(side.size * 2 for side in (batch.image, batch.text) if side is not None)


def loader(root: str, **options: object) -> Iterator[int]:
    """Three epochs of `EmbeddingLoader`, the memory that the first one takes included."""
    from embedpipe import EmbeddingDataset, EmbeddingLoader

    made = EmbeddingLoader(EmbeddingDataset(root), None, _BATCH, **options)
    batches = made.batches()
    for _ in range(_EPOCHS * len(made) // _BATCH):
        yield _float16_bytes(next(batches))
    batches.close()


def peer(root: str, batch: int) -> Iterator[int]:
    """embedding-reader's own loop, which hands out float32."""
    from embedding_reader import EmbeddingReader

    reader = EmbeddingReader(f"{root}/img_emb", file_format="npy")
    for rows, _ in reader(batch_size=batch, show_progress=False):
        yield rows.size * 2


def writing(root: str, target: str) -> Iterator[int]:
    """Write all rows again, as `encode` does: hashed, synced, renamed, with metadata and manifest."""
    rows = [np.load(path) for path in sorted(Path(root).glob("img_emb/*.npy"))]
    yield 0
    for number, image in enumerate(rows):
        write_shard(target, number, image, f"{number:05d}.tar")
        yield image.nbytes


WAYS: dict[str, Callable[[str], Iterator[int]]] = {
    "bare readinto": bare,
    "batches, float16, reuse": lambda root: ours(root, reuse=True),
    "batches, float16": ours,
    "batches, float16, reuse, finite": lambda root: ours(root, reuse=True, finite=True),
    "batches, float32, reuse": lambda root: ours(root, reuse=True, dtype="float32"),
    **{f"embedding-reader, batch {n}": (lambda root, n=n: peer(root, n)) for n in _PEER_BATCHES},
    "loader, float16, reuse": lambda root: loader(root, dtype="float16", reuse=True),
    "loader, float32": loader,
}
OURS, FINITE, FLOAT32, LOADER = (
    "batches, float16, reuse",
    "batches, float16, reuse, finite",
    "batches, float32, reuse",
    "loader, float16, reuse",
)
WRITING = "writing"
_RATES = ("rate", "cpu_rate")


@dataclass(frozen=True, slots=True)
class Read:
    """One run of a way: bytes handed out, wall and CPU seconds of the loop, and the process's memory."""

    bytes: int
    wall_s: float
    cpu_s: float
    mib: float
    load: float

    @property
    def rate(self) -> float:
        """MB in a second."""
        return self.bytes / 1e6 / self.wall_s

    @property
    def cpu_rate(self) -> float:
        """MB in a second of the processor, all threads together."""
        return self.bytes / 1e6 / self.cpu_s


def time_one(name: str, root: str, target: str) -> None:
    """In a process of its own: read (or write) everything, and print what it took, opening included."""
    import embedding_reader  # noqa: F401  # imports are not what is measured
    import torch  # noqa: F401  # as in a training, whose loader converts by it

    import embedpipe.load  # noqa: F401

    items = writing(root, target) if name == WRITING else WAYS[name](root)
    if name == WRITING:
        next(items)  # the rows are in memory
    wall, cpu, total = time.perf_counter(), time.process_time(), 0
    for size in items:
        total += size
    print(json.dumps([total, time.perf_counter() - wall, time.process_time() - cpu]))


def run_one(name: str, options: argparse.Namespace, root: Path) -> Read:
    """Start that process and take down what it says."""
    target = options.tmpfs / f"embedpipe-writing-{root.name}"
    command = [sys.executable, "-m", "benchmarks.load_vs_embedding_reader", "--one", name, "--target", str(target)]
    command += ["--root", str(root)]
    environment = {"OMP_NUM_THREADS": "1"}
    try:
        made = measure.run(command, options.work / "logs" / "load", timeout_s=600, environment=environment).require(
            name
        )
    finally:
        shutil.rmtree(target, ignore_errors=True)
    total, wall_s, cpu_s = json.loads(made.stdout.splitlines()[-1])
    return Read(total, wall_s, cpu_s, made.largest_mib, made.load)


def sections(runs: dict[str, list[Read]]) -> list[str]:
    """The tables."""
    head = ("", "MB/s", "MB per CPU second", "peak MiB")
    rows = [
        (
            name,
            measure.spread([read.rate for read in done], 0),
            measure.spread([read.cpu_rate for read in done], 0),
            measure.spread([read.mib for read in done], 0),
        )
        for name, done in runs.items()
    ]
    peers = [name for name in runs if name.startswith("embedding-reader")]
    best = max(peers, key=lambda name: statistics.median(read.cpu_rate for read in runs[name]))

    def ratio(one: str, other: str, of: str) -> str:
        return measure.spread([getattr(a, of) / getattr(b, of) for a, b in zip(runs[one], runs[other], strict=True)])

    ratios = [
        ("MB per CPU second, batches float16 / embedding-reader (its better one)", ratio(OURS, best, "cpu_rate")),
        ("the same, batches float32", ratio(FLOAT32, best, "cpu_rate")),
        ("MB/s, batches float16 / embedding-reader", ratio(OURS, best, "rate")),
        ("MB/s, batches float16 / bare readinto", ratio(OURS, "bare readinto", "rate")),
        ("MB per CPU second, batches float16 / bare readinto", ratio(OURS, "bare readinto", "cpu_rate")),
        ("MB/s, with every number checked / bare readinto", ratio(FINITE, "bare readinto", "rate")),
        ("MB/s, shuffled loader float16 / batches float16", ratio(LOADER, OURS, "rate")),
        ("MB per CPU second, shuffled loader float16 / batches float16", ratio(LOADER, OURS, "cpu_rate")),
    ]
    loads = [read.load for done in runs.values() for read in done]
    load = f"Load average before a run: {min(loads):.1f} to {max(loads):.1f}, median {statistics.median(loads):.1f}."
    how = f"Median (smallest–largest) of the rounds; ratios are taken round by round. {load}"
    return [
        f"{how}\n\n{report.table(head, rows)}",
        report.table(("", ""), ratios),
    ]


def two_sides(runs: dict[str, list[Read]], row_bytes: int) -> list[str]:
    """The table of a data set with images and texts: rows a second, and the share of reading them in order."""
    base = runs[OURS]
    rows = []
    for name, done in runs.items():
        shares = [[getattr(a, of) / getattr(b, of) for a, b in zip(done, base, strict=True)] for of in _RATES]
        each = [[getattr(read, of) * 1e6 / row_bytes for read in done] for of in _RATES]
        rows.append([name, *(measure.spread(it, 0) for it in each), *map(measure.spread, shares)])
    head = ("", "rows/s", "rows per CPU second", "share of reading in order", "of it per CPU second")
    return [report.table(head, rows)]


def main() -> None:
    """Run the rounds and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_050_000, help=f"of {_DIM} numbers: 1.6 GB")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--two-sides", action="store_true", help="images and texts, without the peer")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--tmpfs", type=Path, default=Path("/dev/shm"), help="where to write to")
    parser.add_argument("--work", type=Path, default=Path("build/benchmarks"))
    parser.add_argument("--results", type=Path, default=report.RESULTS)
    for name in ("--one", "--root", "--target"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        time_one(options.one, options.root, options.target)
        return
    started = report.start("benchmarks.load_vs_embedding_reader", measure.use_cores(options.cores))
    options.work = options.work.resolve()
    root = options.work / f"rows-{options.rows}{'-two-sides' * options.two_sides}"
    make(root, options.rows, options.two_sides)
    ways = [OURS, *(name for name in WAYS if name.startswith("loader"))] if options.two_sides else [*WAYS, WRITING]
    runs: dict[str, list[Read]] = {name: [] for name in ways}
    run_one(OURS, options, root)  # into the page cache
    for number in range(options.rounds):
        for name, done in runs.items():
            done.append(run_one(name, options, root))
            print(f"round {number + 1}: {name}: {done[-1].rate:.0f} MB/s, {done[-1].cpu_rate:.0f} per CPU second")
    if options.two_sides:
        report.write(
            "load_two_sides",
            f"{options.rows:,} rows of two times {_DIM} float16 numbers, {options.rounds} rounds in turns",
            two_sides(runs, 2 * 2 * _DIM),
            started,
            not_measured=["A cold disk and object stores: everything is in the page cache.", "Text tokens, a GPU."],
            folder=options.results,
        )
        return
    report.write(
        "load_vs_embedding_reader",
        f"{options.rows:,} float16 rows of {_DIM} ({options.rows * _DIM * 2 / 1e9:.1f} GB) in shards of "
        f"{_PER_SHARD:,}, {options.rounds} rounds in turns",
        sections(runs),
        started,
        peers=[f"embedding-reader {version('embedding-reader')}, in this environment"],
        not_measured=[
            "A cold disk and object stores: everything is in the page cache.",
            "Two sides at once (see `--two-sides`), text tokens, and several ranks on one machine.",
        ],
        folder=options.results,
    )


if __name__ == "__main__":
    main()
