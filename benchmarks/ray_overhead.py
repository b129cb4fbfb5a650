"""What does `--executor ray` cost over `--executor processes`, once the workers are at work?

The same shards, model and number of workers, on the same cores, in turns, each order as often as the other. Workers
begin together, when all have loaded the model, and each one's rate counts from its first finished shard to its last:
starting Python, Ray and the model is left out, and stands beside it. Then the same two executors with work that does
nothing: what a shard costs that has no rows, which is what can be compared with shards of any size.

    python -m benchmarks.ray_overhead
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from unittest import mock

from embedpipe.encode import EncoderConfig, job
from embedpipe.encode.job import EncodeConfig
from embedpipe.encode.worker import EncodeWork
from embedpipe.execute import ResourceRequest, Task, WorkerLoop, one_by_one, open_places
from embedpipe.progress import Progress, TaskReport

from . import embeddings, measure, photos, report

EXECUTORS = ("processes", "ray")


@dataclass(slots=True)
class Clock:
    """Listens to a run: when each worker finished which number of rows. begun: when the run did."""

    begun: float = field(default_factory=time.perf_counter)
    started: float = float("inf")
    finished: dict[int, list[tuple[float, int]]] = field(default_factory=dict)

    def __call__(self, step: Progress) -> None:
        """Take the time of a finished shard."""
        if step.finished is not None:
            now, done = time.perf_counter(), step.finished
            self.started = min(self.started, now - done.seconds)
            self.finished.setdefault(done.worker, []).append((now, done.report.rows + done.report.rejected))

    @property
    def start_s(self) -> float:
        """Seconds until the first shard was begun, that is, until all workers were ready."""
        return self.started - self.begun

    def rate(self) -> float:
        """Rows per second of all workers, of each from its first finished shard to its last. RuntimeError: too few."""
        rates = []
        for (first, _), *later in self.finished.values():
            if not later:
                raise RuntimeError("a worker finished one shard alone: give more of them")
            rates.append(sum(rows for _, rows in later) / (later[-1][0] - first))
        return sum(rates)

    def shard_ms(self) -> float:
        """Milliseconds from one finished shard to the next, whichever worker had them."""
        times = sorted(time for entries in self.finished.values() for time, _ in entries)
        return 1000 * (times[-1] - times[0]) / (len(times) - 1)


class Together(EncodeWork):
    """Encode workers that begin when all have loaded the model, so that none is measured while another starts."""

    def start(self, worker: int) -> WorkerLoop:
        """See `Work`."""
        work = super().start(worker)
        loaded = Path(f"{self._out}-loaded")
        (loaded / str(worker)).touch()
        while len(list(loaded.iterdir())) < len(self._devices):
            time.sleep(0.02)
        return work


@dataclass(frozen=True, slots=True)
class Nothing:
    """Work that is done as soon as it is begun."""

    def start(self, worker: int) -> WorkerLoop:
        """See `Work`."""
        return one_by_one(lambda task, listen: TaskReport(tasks=1, rows=1))


@dataclass(frozen=True, slots=True)
class Bench:
    """What every run shares."""

    data: Path
    out: Path
    config: EncoderConfig
    tasks: int

    def encode(self, executor: str, workers: int) -> Clock:
        """The encode job into an empty folder."""
        for folder in (self.out, loaded := Path(f"{self.out}-loaded")):
            shutil.rmtree(folder, ignore_errors=True)
        loaded.mkdir(parents=True)
        config = EncodeConfig(self.config, gpus=0, executor=executor, workers=workers, threads_per_worker=1)
        clock = Clock()
        with mock.patch.object(job, "EncodeWork", Together):
            done = job.encode(str(self.data), str(self.out), config, clock)
        if done.failed_tasks or len(clock.finished) != workers:
            raise RuntimeError(f"{executor}: {len(clock.finished)} of {workers} workers took part")
        return clock

    def nothing(self, executor: str, workers: int) -> Clock:
        """Shards without rows."""
        clock = Clock()
        with open_places(executor, ResourceRequest(workers=workers, threads=1)) as (opened, _):
            opened.run(Nothing(), [Task(number, str(number), None) for number in range(self.tasks)], clock)
        return clock


def in_turns(run: Callable[[str, int], Clock], workers: int, rounds: int) -> dict[str, list[Clock]]:
    """One run of each executor in each round; every other round begins with the other."""
    clocks: dict[str, list[Clock]] = {name: [] for name in EXECUTORS}
    for number in range(rounds):
        for name in EXECUTORS if number % 2 == 0 else reversed(EXECUTORS):
            clocks[name].append(run(name, workers))
    return clocks


def encode_table(bench: Bench, counts: Sequence[int], rounds: int) -> str:
    """Encoding: one row for each number of workers."""
    rows = []
    for workers in counts:
        clocks = in_turns(bench.encode, workers, rounds)
        pairs = list(zip(*clocks.values(), strict=True))
        over = [100 * (ours.rate() / theirs.rate() - 1) for ours, theirs in pairs]
        rows.append(
            (
                workers,
                *(measure.spread([clock.rate() for clock in clocks[name]]) for name in EXECUTORS),
                " ".join(f"{percent:+.1f}" for percent in over),
                f"{statistics.median(over):+.1f} %",
                *(measure.spread([clock.start_s for clock in clocks[name]], 1) for name in EXECUTORS),
            )
        )
    head = ("workers", "processes, samples/s", "ray, samples/s", "ray takes longer by, %, each round", "median")
    return report.table((*head, "processes, start s", "ray, start s"), rows)


def nothing_table(bench: Bench, counts: Sequence[int], rounds: int) -> str:
    """Milliseconds for a shard without rows."""
    rows = []
    for workers in counts:
        clocks = in_turns(bench.nothing, workers, rounds)
        rows.append((workers, *(measure.spread([clock.shard_ms() for clock in clocks[name]], 3) for name in EXECUTORS)))
    return report.table(("workers", "processes, ms a shard", "ray, ms a shard"), rows)


def main() -> None:
    """Measure both and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=120, help="photos")
    parser.add_argument("--shards", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--tasks", type=int, default=2000, help="shards without rows")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--model", default="ViT-B-32", help="an open_clip name (random weights), or a folder")
    parser.add_argument("--work", type=Path, default=Path("build/benchmarks"), help="for data, weights and outputs")
    parser.add_argument("--results", type=Path, default=report.RESULTS)
    options = parser.parse_args()
    started = report.start("benchmarks.ray_overhead", measure.use_cores(options.cores))
    work = options.work.resolve()
    data = photos.make(work / f"photos-{options.n}-{options.shards}", photos.PhotoSet(options.n, options.shards))
    weights = "" if Path(options.model).is_dir() else str(embeddings.random_weights(options.model, work))
    bench = Bench(data, work / "out" / "ray", EncoderConfig(options.model, weights), options.tasks)
    encoding = encode_table(bench, options.workers, options.rounds)
    shutil.rmtree(bench.out, ignore_errors=True)
    each = f"{options.n / options.shards:g}"
    report.write(
        "ray_overhead",
        f"{options.model}, {options.shards} shards of {each} photos, a cluster on this machine, ray {version('ray')}",
        [
            f"## Encoding\n\n{encoding}\n\nEach worker has one thread. Median (smallest–largest) of {options.rounds} "
            "rounds. Start: until the first shard is begun, Ray's own start included.",
            f"## Shards without rows\n\n{nothing_table(bench, options.workers, options.rounds)}\n\n"
            f"{options.tasks:,} of them: nothing but handing out, telling and adding up.",
        ],
        started,
        not_measured=["More than one machine, and GPUs.", "A cluster that was there already: its start would be less."],
        folder=options.results,
    )


if __name__ == "__main__":
    main()
