"""How much processor time does a command take before it answers: an error, a plan, or that there is nothing to do?

Finished outputs as small as they can be (`tests/finished.py`), and whole processes in turns. Processor time, because
wall time says more about what else the machine does.

    python -m benchmarks.startup
    python -m benchmarks.startup --python before=../old/.venv/bin/python --python after=.venv/bin/python
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
from pathlib import Path

from tests import finished

from . import measure, report

GOAL_S = 0.5
_TIMEOUT_S = 120


def once(python: str, line: str, code: int, root: Path, logs: Path) -> measure.Measured:
    """One run of `embedpipe LINE` in the folder of finished outputs; what it wrote goes away again."""
    try:
        command = ["env", "-C", str(root), python, "-m", "embedpipe_cli", *line.split()]
        made = measure.run(command, logs, timeout_s=_TIMEOUT_S, environment={"OMP_NUM_THREADS": "1"})
    finally:
        for new in root.glob("new*"):
            shutil.rmtree(new)
    if made.exit_code != code:
        print(f"{line}: exit code {made.exit_code}, not {code}: {made.stderr[-300:]}", file=sys.stderr)
    return made


def run_all(pythons: dict[str, str], rounds: int, root: Path, logs: Path, only: list[str]) -> dict[str, list[str]]:
    """Rows of the table: command and situation, then the median processor seconds with each python."""
    rows = {}
    for (command, situation), (line, code) in finished.lines().items():
        if only and command not in only:
            continue
        taken: dict[str, list[float]] = {name: [] for name in pythons}
        for _ in range(rounds):
            for name, python in pythons.items():
                taken[name].append(once(python, line, code, root, logs).cpu_s)
        print(f"{command} {situation}: {taken}", file=sys.stderr)
        last = statistics.median(taken[name := list(pythons)[-1]])
        cells = [measure.spread(taken[name]) for name in pythons]
        rows[f"{command} {situation}"] = [command, situation, *cells, "" if last <= GOAL_S else "over"]
    return rows


def main() -> None:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=[], help="commands")
    parser.add_argument("--python", action="append", metavar="NAME=PATH", help="Repeatable. Default: this one.")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("build/benchmarks"), help="for data and outputs")
    parser.add_argument("--results", type=Path, default=report.RESULTS)
    options = parser.parse_args()
    pythons = dict(it.split("=", 1) for it in options.python or [f"CPU seconds={sys.executable}"])
    pythons = {name: str(Path(path).absolute()) for name, path in pythons.items()}
    started = report.start("benchmarks.startup", measure.use_cores(options.cores))
    root = options.work.resolve() / "startup"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    finished.make(root)
    rows = run_all(pythons, options.rounds, root, options.work.resolve() / "logs" / "startup", options.only)
    over = sum(1 for row in rows.values() if row[-1])
    within = (len(rows) - over) / len(rows)
    head = ("command", "situation", *pythons, f"goal {GOAL_S} s")
    summary = f"{len(rows) - over} of {len(rows)} lines are answered within {GOAL_S} seconds of processor time."
    report.write(
        "startup",
        f"processor seconds until a command answers, {options.rounds} rounds in turns",
        [
            summary,
            report.table(("", ""), [("share of lines within the goal", f"{within:.2f}")]),
            report.table(head, list(rows.values())),
        ],
        started,
        not_measured=["`search` by text: it loads a model", "a cold disk: all files are in the page cache"],
        folder=options.results,
    )


if __name__ == "__main__":
    main()
