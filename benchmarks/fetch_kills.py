"""Does `embedpipe fetch`, killed at random and run again, write an undisturbed run's bytes and leave no process?

Real processes, a real web server on loopback that answers the same every time (urls twice, missing pages and identical
images among them), and real SIGKILLs to the command alone: its download processes have to notice and go. After each
death none of them may be left after five seconds, and the output must verify. Half of the outputs are killed while
they are fetched, half while what failed is retried.

    python -m benchmarks.fetch_kills --kills 20
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from embedpipe.verify import verify
from tests import web
from tests.shards import DEEP

from . import report

SHARDS, PER_SHARD = 12, 25
_LONGEST_S = 120
_GONE_WITHIN_S = 5


@dataclass(slots=True)
class Tally:
    """What happened to the outputs of one kind of run."""

    what: str
    kills: int = 0
    runs: int = 0
    outputs: int = 0
    processes: int = 0
    slowest_to_go_s: float = 0.0
    different: list[str] = field(default_factory=list)
    committed_at_death: list[int] = field(default_factory=list)


def begin(urls: Path, out: Path, *more: str) -> subprocess.Popen[bytes]:
    """Start `embedpipe fetch`."""
    options = ["--samples-per-shard", str(PER_SHARD), "--allow-host", "127.0.0.1", "--threads", "4", "--processes", "2"]
    call = [sys.executable, "-m", "embedpipe_cli", "fetch", str(urls), str(out), *options, "--retries", "0", *more]
    return subprocess.Popen(call, stdout=subprocess.DEVNULL, stderr=Path(f"{out}.stderr").open("ab"))


def children(pid: int) -> list[int]:
    """The processes that `pid` started."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(stat.parent.name))
    return found


def seconds_to_go(pids: list[int]) -> float:
    """How long it takes until none of these is left; an error after `_GONE_WITHIN_S`."""
    begun = time.monotonic()
    while any(_alive(pid) for pid in pids):
        if time.monotonic() - begun > _GONE_WITHIN_S:
            raise SystemExit(f"download processes {pids} outlive their command")
        time.sleep(0.005)
    return time.monotonic() - begun


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def data_of(out: Path) -> dict[str, bytes]:
    """All files but those that tell of single runs."""
    found = {path.relative_to(out).as_posix(): path for path in out.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if not name.startswith((".", "reports/"))}


def finish(urls: Path, out: Path, *more: str) -> float:
    """One run that is left alone. How long it took (s)."""
    begun = time.monotonic()
    code = begin(urls, out, *more).wait(_LONGEST_S)
    if code != 0:
        raise SystemExit(f"{out}: exit code {code}: {Path(f'{out}.stderr').read_text()[-500:]}")
    return time.monotonic() - begun


def torment(urls: Path, out: Path, tally: Tally, most: int, usual_s: float, rng: random.Random, *more: str) -> None:
    """Run and kill until a run comes to its end or `most` kills are reached; then let it end."""
    while tally.kills < most:
        tally.runs += 1
        run = begin(urls, out, *not_begun(out, more))
        try:
            code = run.wait(rng.uniform(0.1, usual_s))
        except subprocess.TimeoutExpired:
            started = children(run.pid)
            run.kill()
            run.wait()
            tally.kills += 1
            tally.processes += len(started)
            tally.slowest_to_go_s = max(tally.slowest_to_go_s, seconds_to_go(started))
            tally.committed_at_death.append(len(list(out.glob("manifest/*.json"))))
            if (out / "embedpipe.json").exists() and not verify(str(out), DEEP).whole:
                tally.different.append(f"{out.name}: not whole after a kill")
            continue
        if code != 0:
            raise SystemExit(f"{out}: exit code {code}: {Path(f'{out}.stderr').read_text()[-500:]}")
        return
    tally.runs += 1
    finish(urls, out, *not_begun(out, more))


def not_begun(out: Path, more: tuple[str, ...]) -> tuple[str, ...]:
    """The options that begin a round of retries, unless it has begun: any run finishes it, they ask for another."""
    card = out / "embedpipe.json"
    return () if card.exists() and '"retry:1"' in card.read_text() else more


def table_of_urls(site: web.Site, path: Path) -> None:
    """Pictures, the same ones under a second url, urls that come twice, and pages that are not there."""
    rows = []
    for i in range(SHARDS * PER_SHARD):
        if i % 7 == 3:
            page = f"/status/{(404, 410, 403)[i % 3]}?{i}"
        elif i % 5 == 1:
            page = f"/photo/{i // 2}.jpg"  # comes again
        else:
            page = f"/paced/{i % 90}.jpg?{i}"
        rows.append(f"{site.url(page)},caption {i}\n")
    path.write_text("url,caption\n" + "".join(rows))


def row(tally: Tally) -> tuple[object, ...]:
    """One line of the table."""
    moments = tally.committed_at_death
    spread = f"{min(moments)} · {statistics.median(moments):g} · {max(moments)}" if moments else ""
    same = tally.outputs - sum("bytes" in said for said in tally.different)
    slowest = f"{tally.slowest_to_go_s:.2f} s"
    return tally.what, tally.kills, tally.runs, tally.outputs, same, spread, tally.processes, slowest


def measure(what: str, work: Path, kills: int, rng: random.Random, urls: Path, *more: str) -> tuple[Tally, float]:
    """As many outputs as it takes to send `kills` SIGKILLs; and how long an undisturbed run takes (s)."""
    tally = Tally(what)
    name = what.replace(" ", "-")
    undisturbed = work / f"{name}-undisturbed"
    begun = work / f"{name}-begun"
    if more:
        finish(urls, begun)
        shutil.copytree(begun, undisturbed)
    usual_s = finish(urls, undisturbed, *more)
    expected = data_of(undisturbed)
    while tally.kills < kills:
        out = work / f"{name}-{tally.outputs:03d}"
        if more:
            shutil.copytree(begun, out)
        torment(urls, out, tally, kills, usual_s, rng, *more)
        tally.outputs += 1
        if data_of(out) != expected:
            tally.different.append(f"{out.name}: other bytes")
    return tally, usual_s


def main() -> None:
    """Kill, compare, write the result; exit code 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("build/benchmarks/fetch_kills"), help="emptied first")
    parser.add_argument("--results", type=Path, default=report.RESULTS)
    options = parser.parse_args()
    started = report.start("benchmarks.fetch_kills", sorted(os.sched_getaffinity(0)))
    work = options.work.resolve()
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    rng = random.Random(options.seed)
    with web.serving() as site:
        table_of_urls(site, work / "urls.csv")
        half = options.kills // 2
        fetched = measure("fetch", work, options.kills - half, rng, work / "urls.csv")
        retried = measure("retry", work, half, rng, work / "urls.csv", "--retry-failed")
    tallies = (fetched[0], retried[0])
    different = [said for tally in tallies for said in tally.different]
    head = ("killed during", "SIGKILLs", "runs", "outputs", "same bytes", "shards committed at death")
    report.write(
        "fetch_kills",
        f"{sum(tally.kills for tally in tallies)} SIGKILLs, {len(different)} outputs that differ",
        [
            report.table((*head, "processes left alone", "the slowest to go"), [row(tally) for tally in tallies]),
            f"{SHARDS * PER_SHARD} urls in {SHARDS} shards, 2 processes × 4 threads; undisturbed, a fetch takes "
            f"{fetched[1]:.1f} s and a round of retries {retried[1]:.1f} s. Moments are drawn evenly from that time. "
            "All files are compared but what hides behind a dot and `reports/`; the sixth column gives the smallest, "
            "the median and the largest number.",
            *different,
        ],
        started,
        not_measured=["Power failures: what the kernel had not written is not lost here.", "Object stores."],
        folder=options.results,
    )
    if different:
        sys.exit(1)


if __name__ == "__main__":
    main()
