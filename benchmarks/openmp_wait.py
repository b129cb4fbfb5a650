"""How long should OpenMP's idle threads spin before they sleep, alone and on a machine that others use too?

Whole commands on all cores, with each setting in turn: by themselves, and beside processes that keep as many cores
busy. A setting is good when it loses little to the best one in both.

    python -m benchmarks.openmp_wait
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from embedpipe.openmp import SPIN_COUNT
from tests.embeddings import write_dataset

from . import measure, photos, report

DEFAULT, OURS = "library's default", f"embedpipe's (spin {SPIN_COUNT})"
# KMP_BLOCKTIME says nothing to libgomp, but is a choice: embedpipe then sets nothing of its own.
SETTINGS: dict[str, dict[str, str]] = {
    DEFAULT: {"KMP_BLOCKTIME": "200"},
    "never spin": {"OMP_WAIT_POLICY": "passive"},
    OURS: {},
    "spin 3000": {"GOMP_SPINCOUNT": "3000"},
    "spin 10000": {"GOMP_SPINCOUNT": "10000"},
}
_ROWS, _DIM = 4_000, 512


def commands(work: Path, steps: int, n: int) -> dict[str, list[str]]:
    """The commands to time, by name: many small operations, and few large ones. Their inputs are made here."""
    draw = np.random.default_rng(0)
    text = draw.standard_normal((_ROWS, _DIM), np.float32)
    emb = work / "embeddings"
    shutil.rmtree(emb, ignore_errors=True)
    write_dataset(str(emb), text + draw.standard_normal((_ROWS, _DIM), np.float32), text, shards=2)
    shards = photos.make(work / f"photos-{n}", photos.PhotoSet(n, 2))
    return {
        "train-prior": ["train-prior", str(emb), "OUT", "--steps", str(steps)],
        "encode ViT-B-32": ["encode", str(shards), "OUT", "--model", "ViT-B-32", "--pretrained", "random"],
    }


@contextlib.contextmanager
def company(processes: int) -> Iterator[None]:
    """That many processes which do nothing but keep a core busy."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def once(command: Sequence[str], setting: Mapping[str, str], work: Path, timeout_s: float) -> measure.Measured:
    """One run of a command into a new folder."""
    out = work / "out"
    shutil.rmtree(out, ignore_errors=True)
    words = [str(out) if word == "OUT" else word for word in command]
    run = [sys.executable, "-m", "embedpipe_cli", *words]
    return measure.run(run, work / "log", timeout_s=timeout_s, environment=setting).require(command[0])


def compare(
    name: str, command: Sequence[str], others: int, rounds: int, work: Path, timeout_s: float
) -> list[list[str]]:
    """Rows of a table: each setting's time over the round's shortest, its median over the best median, its CPU time."""
    taken: dict[str, list[measure.Measured]] = {setting: [] for setting in SETTINGS}
    with company(others):
        for number in range(rounds):
            settings = list(SETTINGS.items())
            for setting, variables in settings if number % 2 == 0 else reversed(settings):
                taken[setting].append(once(command, variables, work, timeout_s))
                print(f"{name}, {others} others, {setting}: {taken[setting][-1].wall_s:.1f} s", file=sys.stderr)
    walls = {setting: [run.wall_s for run in runs] for setting, runs in taken.items()}
    best = min(statistics.median(wall) for wall in walls.values())
    fastest = [min(wall[number] for wall in walls.values()) for number in range(rounds)]
    rows = []
    for setting, wall in walls.items():
        ratios = [one / quickest for one, quickest in zip(wall, fastest, strict=True)]
        cpu = statistics.median(run.cpu_s / run.wall_s for run in taken[setting])
        over = statistics.median(wall) / best
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        rows.append([setting, f"{over:.2f}", spread, f"{cpu:.2f}"])
    return rows


def main() -> None:
    """Compare, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=150, help="of train-prior")
    parser.add_argument("--n", type=int, default=200, help="photos to encode")
    parser.add_argument("--others", type=int, nargs="+", default=[0, 1, 2], help="busy processes beside")
    parser.add_argument("--only", help="name of one command")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=900, help="seconds for one run")
    parser.add_argument("--work", type=Path, default=Path("build/benchmarks"), help="for data and outputs")
    parser.add_argument("--results", type=Path, default=report.RESULTS)
    options = parser.parse_args()
    started = report.start("benchmarks.openmp_wait", measure.use_cores(options.cores))
    work = options.work.resolve() / "openmp"
    head = ("setting", "median over the best", "over the round's best", "cores kept busy")
    sections = []
    for name, command in commands(work, options.steps, options.n).items():
        if options.only in (None, name):
            for others in options.others:
                rows = compare(name, command, others, options.rounds, work, options.timeout)
                sections.append(f"## {name}, {others} busy processes beside\n\n{report.table(head, rows)}")
    report.write(
        "openmp_wait",
        "wall time of whole commands by how long OpenMP's threads spin",
        sections,
        started,
        not_measured=["other OpenMP libraries than the libgomp that torch brings", "more than two cores"],
        folder=options.results,
    )


if __name__ == "__main__":
    main()
