"""How long does `encode` take to plan very many shards, and to find out what is left, and in how much memory?

One row in each shard: what is measured is the price of a shard, not of its rows. The input is empty .tar files and
nothing is encoded: a stub takes each shard from the executor and gives it back. The manifests are what `encode` writes,
all but the last shard committed; their three files are one small file under three names that all shards share, so that
the disk needs no four files for each. Every step runs in a process of its own, whose largest size is taken.

    python -m benchmarks.planner_scale
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from embedpipe import manifest
from embedpipe.checksummed_json import dump
from embedpipe.encode.base import EncoderConfig
from embedpipe.encode.job import EncodeConfig, plan_encode
from embedpipe.encode.resume import scan_committed
from embedpipe.execute import Task, WorkerLoop, one_by_one, open_executor
from embedpipe.manifest import EMBEDDINGS, FileRecord, RunCard, ShardManifest
from embedpipe.progress import TaskReport, silent
from tests import embeddings

from . import measure, report

STEPS = ("plan", "hand out", "resume")
_CONFIG = EncodeConfig(EncoderConfig("stub"))
_SHARED = ("img_emb/shared.npy", "text_emb/shared.npy", "metadata/shared.parquet")


def write_input(folder: Path, count: int) -> None:
    """That many empty tars."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for number in range(count):
        (folder / f"{number:07d}.tar").touch()


def write_output(source: Path, out: Path) -> None:
    """What a run that was killed before its last shard would have left, but for the data files."""
    shutil.rmtree(out, ignore_errors=True)
    change, _ = plan_encode(str(source), str(out), _CONFIG)
    card = embeddings.card(768)
    run = RunCard(EMBEDDINGS, _CONFIG.shaping(), change.shards, {}, str(source), card, shard_digits=8)
    manifest.write_run(str(out), run)
    for path in _SHARED:
        (out / path).parent.mkdir(parents=True)
        (out / path).write_bytes(b"x" * 100)
    records = tuple(FileRecord(path, 100, "0" * 64, "0" * 64) for path in _SHARED)
    (out / "manifest").mkdir()
    fingerprint = card.fingerprint()
    for number, shard in enumerate(change.shards[:-1]):
        entry = ShardManifest(number, shard, "0" * 64, 1, 1, 0, {}, records, 768, "float16", fingerprint)
        # As `manifest.commit` writes it, without waiting for the disk each time.
        (out / "manifest" / f"{number:08d}.json").write_bytes(dump(dataclasses.asdict(entry)))


def step(name: str, source: str, out: str) -> dict[str, float]:
    """Seconds and MiB of one step, in this process."""
    before = _peak_mib()
    begun = time.perf_counter()
    {"plan": _plan, "hand out": _hand_out, "resume": _resume}[name](source, out)
    return {"seconds": time.perf_counter() - begun, "mib": _peak_mib(), "mib_before": before}


def _plan(source: str, out: str) -> None:
    change, todo = plan_encode(source, f"{out}-new", _CONFIG)
    assert len(todo) == len(change.shards)
    run = RunCard(EMBEDDINGS, _CONFIG.shaping(), change.shards, {}, source, embeddings.card(768), shard_digits=8)
    manifest.write_run(f"{out}-new", manifest.with_pending(f"{out}-new", run))


class _Stub:
    def start(self, worker: int) -> WorkerLoop:
        return one_by_one(lambda task, listen: TaskReport(tasks=1, rows=1))


def _hand_out(source: str, out: str) -> None:
    change, todo = plan_encode(source, f"{out}-none", _CONFIG)
    tasks = [Task(number, change.shards[number].name, change.shards[number]) for number in todo]
    begun = time.perf_counter()
    assert open_executor("inline", 1).run(_Stub(), tasks, silent).report.rows == len(todo)
    print(f"{len(todo) / (time.perf_counter() - begun):,.0f} tasks a second", file=sys.stderr)


def _resume(source: str, out: str) -> None:
    change, todo = plan_encode(source, out, _CONFIG)
    run = manifest.read_run(out)
    assert run is not None
    committed = scan_committed(out, run, change.vanished, lambda number: True)
    assert committed.rows == len(change.shards) - 1
    assert todo == [len(change.shards) - 1]


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measured(name: str, source: Path, out: Path, timeout_s: float) -> dict[str, float]:
    """One step in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.planner_scale", "--step", name, str(source), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s)
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main() -> None:
    """Measure and write the result."""
    if sys.argv[1:2] == ["--step"]:
        print(json.dumps(step(*sys.argv[2:5])))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[10_000, 50_000, 200_000, 1_000_000], help="shards")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=3600, help="seconds for one step")
    parser.add_argument("--work", type=Path, default=Path("build/benchmarks"), help="for data: 5 GB for a million")
    parser.add_argument("--results", type=Path, default=report.RESULTS)
    options = parser.parse_args()
    started = report.start("benchmarks.planner_scale", measure.use_cores(options.cores))
    lines = []
    for count in options.counts:
        source, out = (options.work.resolve() / f"planner-{side}-{count}" for side in ("in", "out"))
        write_input(source, count)
        write_output(source, out)
        for name in STEPS:
            rounds = [measured(name, source, out, options.timeout) for _ in range(options.rounds)]
            lines.append(_line(name, count, rounds))
        for folder in (source, out, Path(f"{out}-new")):
            shutil.rmtree(folder, ignore_errors=True)
    head = (
        "step",
        "shards",
        "seconds",
        "per shard, µs",
        "largest size, MiB",
        "more than at the start, per shard, bytes",
    )
    report.write(
        "planner_scale",
        f"planning and resuming {' and '.join(f'{n:,}' for n in options.counts)} shards of one row",
        [
            report.table(head, lines),
            "plan: list the input, number it, write `embedpipe.json`. hand out: plan, and give every shard to a worker "
            "that does nothing. resume: read `embedpipe.json`, list the input, read every manifest and look at the "
            "size of its three files, with one shard left to do. Imports are not in the seconds.",
        ],
        started,
        not_measured=[
            "Encoding: nothing is read, encoded or written for a shard but its manifest.",
            "Disks: everything is in the page cache, and the three files are the same for all shards.",
            "Object stores, where a listing takes a request for each 1,000 files, and a manifest one for itself.",
        ],
        folder=options.results,
    )


def _line(name: str, count: int, rounds: list[dict[str, float]]) -> tuple[str, ...]:
    seconds = [done["seconds"] for done in rounds]
    grown = max(done["mib"] - done["mib_before"] for done in rounds)
    micros = min(seconds) / count * 1e6
    peak = max(done["mib"] for done in rounds)
    spread: Callable[..., str] = measure.spread
    return (name, f"{count:,}", spread(seconds, 2), f"{micros:.0f}", f"{peak:.0f}", f"{grown * 2**20 / count:.0f}")


if __name__ == "__main__":
    main()
