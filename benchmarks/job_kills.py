"""Do merge, dedup, filter, export, index and train-prior, killed at random and run again, give the same bytes?

Real processes on made-up embeddings, each killed (SIGKILL, with all that it started or the command alone) at some
moment of the time that it usually takes, and run again until it comes to its end. Files that say when or how long
(logs, times in manifests and reports) are left out of the comparison; embeddings must verify.

    python -m benchmarks.job_kills --kills 40
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from embedpipe.verify import verify
from tests.embeddings import write_dataset
from tests.shards import DEEP

from . import report

_LONGEST_S = 300
_NUMBER = re.compile(r"\b(image|text)-\d{5}\.")
_TIMED = re.compile(r'"(timing_s|seconds|at|began|ended|took|source|versions|modified|change|checksum)":')


@dataclass(slots=True)
class Tally:
    """What happened to the outputs of one command."""

    kills: int = 0
    runs: int = 0
    outputs: int = 0
    different: list[str] = field(default_factory=list)


def commands(work: Path) -> dict[str, list[str]]:
    """Each command on its inputs, which are made here; OUT stands for the output."""
    draw = np.random.default_rng(0)
    parts = []
    for name in ("one", "other"):
        text = draw.standard_normal((3_000, 64), np.float32)
        image = text + 0.5 * draw.standard_normal((3_000, 64), np.float32)
        image[1::7] = image[::7][: len(image[1::7])] + 1e-3
        names = [f"{name}-{number:05d}.tar" for number in range(6)]
        parts.append(write_dataset(str(work / name), image, text, shards=6, names=names))
    one, other = parts
    steps = ["--set", "train.save_every=10", "--device", "cpu"]
    return {
        "merge": ["merge", one, other, "OUT"],
        "dedup": ["dedup", one, "OUT", "--confirm", "none"],
        "filter": ["filter", one, "OUT", "--top", "0.5", "--by", "similarity", "--materialise"],
        "export": ["export", one, "OUT", "--to", "hf"],
        "index": ["index", "OUT"],
        "train-prior": ["train-prior", one, "OUT", "--steps", "60", *steps],
    }


def begin(words: list[str], out: Path) -> subprocess.Popen[bytes]:
    """Start a command."""
    call = [sys.executable, "-m", "embedpipe_cli", *(str(out) if word == "OUT" else word for word in words)]
    log = Path(f"{out}.stderr").open("ab")  # noqa: SIM115  the child's
    return subprocess.Popen(call, stdout=subprocess.DEVNULL, stderr=log, start_new_session=True)


def finish(words: list[str], out: Path) -> float:
    """One run that is left alone. How long it took (s)."""
    begun = time.monotonic()
    code = begin(words, out).wait(_LONGEST_S)
    if code != 0:
        raise SystemExit(f"{' '.join(words)}: exit code {code}: {Path(f'{out}.stderr').read_text()[-600:]}")
    return time.monotonic() - begun


def fresh(words: list[str], work: Path, out: Path) -> None:
    """What is there before the command: nothing, or the data set that it adds to."""
    if words[0] == "index":
        shutil.copytree(work / "one", out)


def data_of(out: Path) -> dict[str, bytes]:
    """The output, without what tells of times and places.

    The files of an index have a number, the next one after a run that was killed before it was committed.
    """
    found = {}
    for path in sorted(it for it in out.rglob("*") if it.is_file()):
        name = _NUMBER.sub(r"\1-N.", path.relative_to(out).as_posix())
        if path.suffix in (".jsonl", ".log", ".html", ".png", ".md") or name.split("/")[-1].startswith(".lock"):
            continue
        data = path.read_bytes()
        if path.suffix == ".json":
            text = json.dumps(_plain(json.loads(data)), sort_keys=True).replace(str(out), "OUT")
            data = _NUMBER.sub(r"\1-N.", text).encode()
        found[f"{name} again" if name in found else name] = data
    return found


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {name: _plain(it) for name, it in value.items() if not _TIMED.match(f'"{name}":') and "sha" not in name}
    return [_plain(it) for it in value] if isinstance(value, list) else value


def torment(words: list[str], work: Path, kills: int, dice: random.Random) -> tuple[Tally, float]:
    """As many outputs as it takes to send `kills` SIGKILLs; and how long an undisturbed run takes (s)."""
    tally, whole = Tally(), work / f"{words[0]}-whole"
    fresh(words, work, whole)
    usual_s = finish(words, whole)
    expected = data_of(whole)
    while tally.kills < kills:
        out = work / f"{words[0]}-{tally.outputs:03d}"
        fresh(words, work, out)
        for _ in range(4):
            if tally.kills >= kills:
                break
            run = begin(words, out)
            tally.runs += 1
            try:
                run.wait(dice.uniform(0.3, 1.0) * usual_s)
                break
            except subprocess.TimeoutExpired:
                (os.killpg if dice.random() < 0.5 else os.kill)(run.pid, signal.SIGKILL)
                run.wait()
                tally.kills += 1
        finish(words, out)
        tally.runs += 1
        tally.outputs += 1
        found = data_of(out)
        wrong = [name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)]
        if wrong:
            tally.different.append(f"{out.name}: {', '.join(sorted(wrong)[:4])}")
        if (out / "manifest").is_dir() and not verify(str(out), DEEP).whole:
            tally.different.append(f"{out.name}: not whole")
        shutil.rmtree(out)
    return tally, usual_s


def main() -> None:
    """Kill, compare, write the result; exit code 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=40, help="over all commands")
    parser.add_argument("--only", nargs="+", help="names of commands")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("build/benchmarks/job_kills"), help="emptied first")
    parser.add_argument("--results", type=Path, default=report.RESULTS)
    options = parser.parse_args()
    started = report.start("benchmarks.job_kills", sorted(os.sched_getaffinity(0)))
    work = options.work.resolve()
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    dice, rows, different = random.Random(options.seed), [], []
    made = {name: words for name, words in commands(work).items() if name in (options.only or [name])}
    for name, words in made.items():
        tally, usual_s = torment(words, work, -(-options.kills // len(made)), dice)
        rows.append((name, tally.kills, tally.runs, tally.outputs, len(tally.different), f"{usual_s:.1f} s"))
        different += tally.different
        print(name, rows[-1], tally.different, flush=True)
    report.write(
        "job_kills",
        f"{sum(row[1] for row in rows)} SIGKILLs, {len(different)} outputs that differ",
        [
            report.table(("command", "SIGKILLs", "runs", "outputs", "that differ", "an undisturbed run"), rows),
            *different,
        ],
        started,
        not_measured=["Power failures.", "Object stores.", "fetch and encode, which have scripts of their own."],
        folder=options.results,
    )
    if different:
        sys.exit(1)


if __name__ == "__main__":
    main()
