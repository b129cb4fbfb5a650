"""How much faster than img2dataset's own command is `embedpipe fetch`, its guard included?

Whole process against whole process, in turns, over the same JPEGs from the same server on loopback, with the same
options: keep_ratio 256 only if bigger, captions, one column passed through, processes × threads, no retries.

    python -m benchmarks.fetch_vs_img2dataset
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tests import web

from . import measure, report

TIMEOUT_S = 10
_ENVIRONMENT = {"NO_ALBUMENTATIONS_UPDATE": "1", "OMP_NUM_THREADS": "1"}


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two programs: its command line for a table of urls and an output."""

    name: str
    ours: bool

    def command(self, urls: Path, out: Path, options: argparse.Namespace) -> list[str]:
        """The command line."""
        per_shard = -(-options.n // options.shards)
        if self.ours:
            command = [sys.executable, "-m", "embedpipe_cli.main", "fetch", str(urls), str(out), "--json"]
            command += ["--allow-host", "127.0.0.1", "--retries", "0", "--timeout", str(TIMEOUT_S)]
            command += ["--samples-per-shard", str(per_shard), "--per-host", str(options.per_host)]
            return [*command, "--processes", str(options.processes), "--threads", str(options.threads)]
        command = [str(Path(sys.executable).parent / "img2dataset"), f"--url_list={urls}", f"--output_folder={out}"]
        command += ["--input_format=parquet", "--url_col=url", "--caption_col=caption", "--output_format=webdataset"]
        command += ["--save_additional_columns=['number']", "--image_size=256", "--resize_mode=keep_ratio"]
        command += ["--resize_only_if_bigger=True", "--extract_exif=False", "--retries=0", f"--timeout={TIMEOUT_S}"]
        command += [f"--number_sample_per_shard={per_shard}", f"--processes_count={options.processes}"]
        return [*command, f"--thread_count={options.threads}"]

    def succeeded(self, out: Path, run: measure.Measured) -> int:
        """Images that are there afterwards."""
        if self.ours:
            return int(json.loads(run.stdout)["succeeded"])
        return sum(json.loads(path.read_text())["successes"] for path in out.glob("*_stats.json"))


SIDES = (Side("img2dataset", False), Side("embedpipe fetch", True))


def run_once(side: Side, urls: Path, work: Path, options: argparse.Namespace) -> measure.Measured:
    """One run into an empty folder. Raises RuntimeError when it fails or images are missing."""
    out = work / side.name.replace(" ", "-")
    shutil.rmtree(out, ignore_errors=True)
    logs = work / f"{out.name}.log"
    run = measure.run(side.command(urls, out, options), logs, timeout_s=options.timeout, environment=_ENVIRONMENT)
    run.require(side.name)
    there = side.succeeded(out, run)
    if there != options.n:
        raise RuntimeError(f"{side.name}: {there} images of {options.n}, so times do not compare")
    return run


def make_table(site: web.Site, work: Path, n: int) -> Path:
    """A url table of `n` JPEGs. Each is asked for once, so that the server has them all at hand."""
    work.mkdir(parents=True, exist_ok=True)
    rows = [{"url": site.url(f"/photo/{i}.jpg"), "caption": f"caption {i}", "number": i} for i in range(n)]
    pq.write_table(pa.Table.from_pylist(rows), work / "urls.parquet")
    site.prepare(n)
    return work / "urls.parquet"


def sections(runs: dict[Side, list[measure.Measured]], n: int) -> list[str]:
    """What was found."""
    head = ("", "images/s", "wall s", "CPU s")
    rows = [
        (
            side.name,
            measure.spread([n / run.wall_s for run in done], 0),
            measure.spread([run.wall_s for run in done], 1),
            measure.spread([run.cpu_s for run in done], 1),
        )
        for side, done in runs.items()
    ]
    theirs, ours = (runs[side] for side in SIDES)
    pairs = list(zip(ours, theirs, strict=True))
    ratios = [
        ("images/s, ours / theirs", measure.spread([b.wall_s / a.wall_s for a, b in pairs])),
        ("each round", " ".join(f"{b.wall_s / a.wall_s:.2f}" for a, b in pairs)),
        ("CPU seconds, theirs / ours", measure.spread([b.cpu_s / a.cpu_s for a, b in pairs])),
    ]
    loads = [run.load for done in runs.values() for run in done]
    load = f"Load average before a run: {min(loads):.1f} to {max(loads):.1f}, median {statistics.median(loads):.1f}."
    return [
        f"Median (smallest–largest) of the rounds. {load}\n\n{report.table(head, rows)}",
        report.table(("", ""), ratios),
    ]


def main() -> None:
    """Run the rounds and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=4000, help="images")
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--threads", type=int, default=32, help="of each process")
    parser.add_argument("--per-host", type=int, default=8, help="ours only: the other has no such limit")
    parser.add_argument("--timeout", type=float, default=600, help="seconds for one run")
    parser.add_argument("--work", type=Path, default=Path("build/benchmarks/fetch"))
    parser.add_argument("--results", type=Path, default=report.RESULTS)
    options = parser.parse_args()
    started = report.start("benchmarks.fetch_vs_img2dataset", measure.use_cores(options.cores))
    work = options.work.resolve()
    runs: dict[Side, list[measure.Measured]] = {side: [] for side in SIDES}
    with web.serving() as site:
        urls = make_table(site, work, options.n)
        for number in range(options.rounds):
            for side, done in runs.items():
                done.append(run_once(side, urls, work, options))
                print(f"round {number + 1}: {side.name}: {done[-1].wall_s:.1f} s, load before {done[-1].load:.1f}")
    report.write(
        "fetch_vs_img2dataset",
        f"{options.n:,} JPEGs from loopback, {options.shards} shards, {options.processes} × {options.threads} threads,"
        f" {options.rounds} rounds in turns",
        sections(runs, options.n),
        started,
        peers=[f"img2dataset {version('img2dataset')}, as a command"],
        not_measured=[
            "A network: the server is a Python program on the same cores, and takes its share of them on both sides.",
            "Our guard's checks of addresses: 127.0.0.1 is allowed by name. TLS, redirects and slow servers.",
            "Memory: our download processes have sessions of their own, which the measure does not follow.",
        ],
        folder=options.results,
    )


if __name__ == "__main__":
    main()
