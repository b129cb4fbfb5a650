"""Does `embedpipe encode`, killed at random moments and run again, write the bytes of an undisturbed run?

Real processes and real SIGKILLs. Every run is a fork of this process, which has imported torch already, and its workers
are forked too (instead of started afresh): otherwise nine seconds in ten would go to imports. With one worker the run
is killed; with two, by turns the whole group of processes (as when a container ends), the process that hands out the
work (its workers have to notice and go), or one worker alone (as the OOM killer does it), which the run has to survive.
After each death the output must verify.

    python -m benchmarks.encode_kills --kills 100
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import multiprocessing
import os
import random
import shutil
import signal
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NoReturn

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a pool of threads does not survive a fork

from embedpipe_cli import main as cli

import embedpipe.encode.loading  # noqa: F401 - so that no fork has to
from embedpipe import lock
from embedpipe.execute import processes
from embedpipe.verify import verify
from tests import shards, tiny_clip

from . import report

SHARDS, PER_SHARD = 8, 40
_LONGEST_S = 60


@dataclass(slots=True)
class Tally:
    """What happened with one number of workers."""

    workers: int
    kills: int = 0
    worker_kills: int = 0
    runs: int = 0
    outputs: int = 0
    different: list[str] = field(default_factory=list)
    committed_at_death: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Bench:
    """The input, the model, the bytes to expect, and how long an undisturbed run takes (s)."""

    source: Path
    model: str
    work: Path
    expected: dict[str, bytes]
    seconds: dict[int, float]
    rng: random.Random


def begin(source: Path, out: Path, model: str, workers: int) -> int:
    """Start `embedpipe encode` in a fork, a group of its own. Returns its pid."""
    arguments = ["encode", source, out, "--model", model, "--gpus", "0", "--threads", "1", "--batch-size", "4"]
    pid = os.fork()
    if pid:
        while os.getpgid(pid) != pid:  # so that the group can be killed from now on
            time.sleep(0.0005)
        return pid
    try:
        os.setsid()
        quiet = os.open(os.devnull, os.O_RDWR)
        os.dup2(quiet, 1)
        os.dup2(os.open(f"{out}.stderr", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
        faulthandler.register(signal.SIGUSR1, sys.stderr)
        _fork_workers()
        sys.argv = ["embedpipe", *map(str, arguments), "--workers", str(workers)]
        os._exit(cli._run())
    finally:
        os._exit(99)


def _fork_workers() -> None:
    """Let the executor fork its workers, with nothing open but what a fresh process would have."""
    forking = multiprocessing.get_context("fork")
    processes.multiprocessing.get_context = lambda _: forking
    serve = processes._serve

    def serve_alone(work: object, worker: int, connection: Connection, *more: object) -> None:
        keep = {0, 1, 2, connection.fileno()}
        for name in os.listdir("/proc/self/fd"):
            if int(name) not in keep:
                with contextlib.suppress(OSError):  # the listing itself
                    os.close(int(name))
        lock._held.clear()  # they name the files closed just now
        serve(work, worker, connection, *more)

    processes._serve = serve_alone


def ended(pid: int) -> int | None:
    """The exit code of a run (negative: of a signal), or None while it goes on."""
    found, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def wait_for(pid: int, seconds: float) -> int | None:
    """Give a run so much time. Returns as `ended`."""
    deadline = time.monotonic() + seconds
    while (code := ended(pid)) is None and time.monotonic() < deadline:
        time.sleep(0.002)
    return code


def children(pid: int) -> Iterator[int]:
    """The processes that `pid` started and that are still there."""
    with contextlib.suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            yield from map(int, (thread / "children").read_text().split())


def kill_group(pid: int) -> None:
    """End a run and all it started, at once."""
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    wait_for_orphans(pid)


def wait_for_orphans(group: int) -> None:
    """Until none of a group is left; whoever does not go by itself is an error."""
    deadline = time.monotonic() + 20
    while any(state not in "ZX" for state in _states(group)):
        if time.monotonic() > deadline:
            os.killpg(group, signal.SIGKILL)
            raise SystemExit(f"workers of run {group} outlive it")
        time.sleep(0.002)


def _states(group: int) -> Iterator[str]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                state, _, found = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
                if int(found) == group:
                    yield state


def torment(bench: Bench, out: Path, tally: Tally, most: int) -> None:
    """Run into `out` and kill, until a run comes to its end or `most` kills are reached. Notes what became of it."""
    while (code := run_and_kill(bench, out, tally, most)) != 0:
        if code != -signal.SIGKILL:
            said = Path(f"{out}.stderr").read_text()[-500:]
            raise SystemExit(f"{out}: a run ended with exit code {code}: {said}")
        tally.committed_at_death.append(len(list(out.glob("manifest/*.json"))))
        if (out / "embedpipe.json").exists() and not verify(str(out), shards.DEEP).whole:
            tally.different.append(f"{out.name}: not whole after a kill")
    tally.outputs += 1
    if shards.tree(out) != bench.expected:
        tally.different.append(f"{out.name}: other bytes")


def run_and_kill(bench: Bench, out: Path, tally: Tally, most: int) -> int:
    """One run, which is killed at a random moment unless it ends before. Returns its exit code, -9 if it was killed."""
    tally.runs += 1
    pid = begin(bench.source, out, bench.model, tally.workers)
    worker_deaths = 0
    while tally.kills < most:
        code = wait_for(pid, bench.rng.uniform(0, bench.seconds[tally.workers]))
        if code is not None:
            return code
        workers = list(children(pid)) if tally.workers > 1 else []
        whom = bench.rng.choice(("all", "parent", "worker") if workers else ("all",))
        if whom != "worker":
            tally.kills += 1
            if whom == "all":
                kill_group(pid)
            else:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                wait_for_orphans(pid)
            return -signal.SIGKILL
        if worker_deaths < 2:  # the third on one shard would set it aside, as it should
            with contextlib.suppress(ProcessLookupError):  # it ended just now, with the run
                os.kill(bench.rng.choice(workers), signal.SIGKILL)
                worker_deaths += 1
                tally.worker_kills += 1
                tally.kills += 1
    code = wait_for(pid, _LONGEST_S)
    return give_up(pid, out) if code is None else code


def give_up(pid: int, out: Path) -> NoReturn:
    """End a run that does not end, and say where its processes hang."""
    os.killpg(pid, signal.SIGUSR1)  # each writes its stacks to stderr
    time.sleep(1)
    kill_group(pid)
    raise SystemExit(f"{out}: a run did not end in {_LONGEST_S} s:\n{Path(f'{out}.stderr').read_text()}")


def prepare(work: Path, seed: int) -> Bench:
    """Input, model, and what undisturbed runs make of them."""
    shutil.rmtree(work, ignore_errors=True)
    source = work / "shards"
    for i in range(SHARDS):
        members = shards.samples(PER_SHARD, first=i * PER_SHARD)
        shards.write_tar(source / f"{i:05d}.tar", [*members, (f"bad{i}.jpg", b"x"), (f"bad{i}.txt", b"bad")])
    model = tiny_clip.write(work / "model")
    expected: dict[str, bytes] = {}
    seconds: dict[int, float] = {}
    for workers in (1, 2):
        out = work / f"undisturbed-{workers}"
        begun = time.monotonic()
        pid = begin(source, out, model, workers)
        code = wait_for(pid, _LONGEST_S)
        if code is None:
            give_up(pid, out)
        seconds[workers] = time.monotonic() - begun
        tree = shards.tree(out)
        if code != 0 or tree != (expected or tree):
            raise SystemExit(
                f"the undisturbed run with {workers} workers: exit code {code}, or other bytes than with one"
            )
        expected = tree
    return Bench(source, model, work, expected, seconds, random.Random(seed))


def measure(bench: Bench, workers: int, kills: int) -> Tally:
    """As many outputs as it takes to send `kills` SIGKILLs."""
    tally = Tally(workers)
    while tally.kills < kills:
        torment(bench, bench.work / f"out-{workers}-{tally.outputs:03d}", tally, kills)
    return tally


def row(tally: Tally) -> tuple[object, ...]:
    """One line of the table."""
    moments = tally.committed_at_death
    spread = f"{min(moments)} · {statistics.median(moments):g} · {max(moments)}" if moments else ""
    return (
        tally.workers,
        tally.kills,
        tally.worker_kills,
        tally.runs,
        tally.outputs,
        tally.outputs - sum("bytes" in said for said in tally.different),
        spread,
    )


def main() -> None:
    """Kill, compare, write the result; exit code 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="SIGKILLs in all, half of them with two workers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("build/benchmarks/kills"), help="emptied first")
    parser.add_argument("--results", type=Path, default=report.RESULTS)
    options = parser.parse_args()
    started = report.start("benchmarks.encode_kills", sorted(os.sched_getaffinity(0)))
    bench = prepare(options.work.resolve(), options.seed)
    tallies = [measure(bench, 1, options.kills - options.kills // 2), measure(bench, 2, options.kills // 2)]
    head = (
        "workers",
        "SIGKILLs",
        "of them to one worker",
        "runs",
        "outputs",
        "same bytes",
        "shards committed at death",
    )
    different = [said for tally in tallies for said in tally.different]
    report.write(
        "encode_kills",
        f"{sum(tally.kills for tally in tallies)} SIGKILLs, {len(different)} outputs that differ",
        [
            report.table(head, [row(tally) for tally in tallies]),
            f"{SHARDS} shards of {PER_SHARD} samples and one reject, a tiny CLIP; undisturbed, a run takes "
            f"{bench.seconds[1]:.1f} s with one worker and {bench.seconds[2]:.1f} s with two. Moments are drawn evenly "
            "from that time, from each start or kill on. All files are compared but the lock, and `timing_s` in "
            "manifests and their checksums; the last column gives the smallest, the median and the largest number.",
            *different,
        ],
        started,
        not_measured=["Power failures: what the kernel had not written is not lost here.", "Object stores.", "CUDA."],
        folder=options.results,
    )
    if different:
        sys.exit(1)


if __name__ == "__main__":
    main()
