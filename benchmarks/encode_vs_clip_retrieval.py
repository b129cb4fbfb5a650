"""How much faster than `clip-retrieval inference` is `embedpipe encode`, and are the embeddings the same?

Whole process against whole process, start-up and model loading included, on the same cores, the same photos and
the same random weights, in turns. clip-retrieval runs as it is: its model name takes the path of a weights file.

    benchmarks/peers/setup.sh clip-retrieval
    python -m benchmarks.encode_vs_clip_retrieval
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import shutil
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import embeddings, measure, photos, report

PEER = Path(__file__).parent / "peers" / "clip-retrieval"
_ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}


@dataclass(frozen=True, slots=True)
class Configuration:
    """One way to encode: a name for the table, and the command that encodes `data` into `out`."""

    name: str
    ours: bool
    options: tuple[str, ...]

    def out(self, work: Path) -> Path:
        """Its output folder."""
        return work / "out" / re.sub(r"[^a-z0-9.]+", "-", self.name)

    def command(self, data: Path, out: Path, model: str, weights: Path) -> list[str]:
        """The command line."""
        if self.ours:
            command = [sys.executable, "-m", "embedpipe_cli", "encode", str(data), str(out), "--json", "--gpus", "0"]
            return [*command, "--model", model, "--pretrained", str(weights), "--gelu", *self.options]
        tars = [path.stem for path in sorted(data.glob("*.tar"))]
        # "open_clip:<model>/<checkpoint>", where an absolute path is a checkpoint, too.
        command = [str(PEER / "bin" / "clip-retrieval"), "inference", "--input_format=webdataset"]
        command += [f"--input_dataset={data}/{{{tars[0]}..{tars[-1]}}}.tar", f"--output_folder={out}"]
        return [*command, "--enable_metadata=True", f"--clip_model=open_clip:{model}/{weights}", *self.options]


def configurations(also: list[str], peer_batches: list[int], prepro_workers: int) -> list[Configuration]:
    """Ours (default, fp32 where it can be asked for, `also`) and the peer's (its batch sizes), in turns."""
    ours = [Configuration("embedpipe, default", True, ())]
    if "--precision" in _encode_help():
        ours.append(Configuration("embedpipe, fp32", True, ("--precision", "fp32")))
    ours += [Configuration(f"embedpipe {options}", True, tuple(shlex.split(options))) for options in also]
    workers = f"--num_prepro_workers={prepro_workers}"
    theirs = [
        Configuration(f"clip-retrieval, batch {size}", False, (workers, f"--batch_size={size}"))
        for size in peer_batches
    ]
    pairs = max(len(ours), len(theirs))
    return [side[i] for i in range(pairs) for side in (theirs, ours) if i < len(side)]


def _encode_help() -> str:
    from click.testing import CliRunner
    from embedpipe_cli.main import cli

    return CliRunner().invoke(cli, ["encode", "--help"]).output


@dataclass(frozen=True, slots=True)
class Round:
    """One run of one configuration. loop_rate: samples/s as the tool itself times its work, start-up left out."""

    run: measure.Measured
    rate: float
    loop_rate: float


def run_round(configuration: Configuration, data: Path, work: Path, options: argparse.Namespace, n: int) -> Round:
    """Run one configuration into an empty folder. Raises RuntimeError when it fails or rows are missing."""
    out = configuration.out(work)
    shutil.rmtree(out, ignore_errors=True)
    command = configuration.command(data, out, options.model, embeddings.random_weights(options.model, work))
    made = measure.run(command, out, timeout_s=options.timeout, environment=_ENVIRONMENT)
    made.require(configuration.name)
    rows = len(embeddings.read(out).keys)
    if rows != n:
        raise RuntimeError(f"{configuration.name}: {rows} rows of {n} samples, so times do not compare")
    return Round(made, n / made.wall_s, n / _loop_s(configuration, out, made))


def _loop_s(configuration: Configuration, out: Path, made: measure.Measured) -> float:
    if configuration.ours:
        return float(json.loads(made.stdout)["seconds"])  # with loading the model, without starting Python
    # The peer sums these over its batches: reading, model and gathering; neither start-up nor writing.
    return float(json.loads((out / "stats" / "0.json").read_text())["total_duration"])


def speed_table(rounds: dict[Configuration, list[Round]]) -> str:
    """One row for each configuration."""
    head = ("", "samples/s", "wall s", "CPU s", "its own loop, samples/s", "largest process, MiB", "all, MiB (PSS)")
    rows = [
        (
            configuration.name,
            measure.spread([r.rate for r in done]),
            measure.spread([r.run.wall_s for r in done], 1),
            measure.spread([r.run.cpu_s for r in done], 1),
            measure.spread([r.loop_rate for r in done]),
            measure.spread([r.run.largest_mib for r in done], 0),
            measure.spread([r.run.together_mib for r in done], 0),
        )
        for configuration, done in rounds.items()
    ]
    return report.table(head, rows)


def ratio_table(rounds: dict[Configuration, list[Round]]) -> str:
    """Ours over theirs, round by round, and against the peer's best loop with its start-up left out."""
    ours = {c: done for c, done in rounds.items() if c.ours}
    theirs = {c: done for c, done in rounds.items() if not c.ours}
    rows = []
    for mine, my_rounds in ours.items():
        for other, their_rounds in theirs.items():
            pairs = list(zip(my_rounds, their_rounds, strict=True))
            rows.append(
                (
                    f"{mine.name} / {other.name}",
                    " ".join(f"{a.rate / b.rate:.2f}" for a, b in pairs),
                    measure.spread([a.rate / b.rate for a, b in pairs]),
                    measure.spread([b.run.cpu_s / a.run.cpu_s for a, b in pairs]),
                    measure.spread([a.rate / b.loop_rate for a, b in pairs]),
                )
            )
    head = ("", "each round", "whole process", "samples per CPU s", "our whole process / its loop alone")
    return report.table(head, rows)


def agreement_table(rounds: dict[Configuration, list[Round]], work: Path, direct: embeddings.Embeddings) -> str:
    """1 − cos of what each configuration wrote, to open_clip called directly and to the peer's rows."""
    written = {c: embeddings.read(c.out(work)) for c in rounds}
    peer = next(made for c, made in written.items() if not c.ours)
    rows = []
    for configuration, made in written.items():
        for side in ("image", "text"):
            rows.append(
                (
                    f"{configuration.name}, {side}",
                    embeddings.distances(made, direct, side),
                    embeddings.distances(made, peer, side) if configuration.ours else "",
                )
            )
    head = ("1 − cos: largest (median)", f"to fp32 open_clip, {len(direct.keys)} rows", "to clip-retrieval, all rows")
    return report.table(head, rows)


def main() -> None:
    """Run the rounds and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=2000, help="photos")
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--model", default="ViT-B-32")
    parser.add_argument("--peer-batches", type=int, nargs="+", default=[256, 64], help="its default is 256")
    parser.add_argument(
        "--also", action="append", default=[], metavar="OPTIONS", help="ours once more, as in --also='--decode fast'"
    )
    parser.add_argument("--check-rows", type=int, default=256, help="rows compared with open_clip called directly")
    parser.add_argument("--timeout", type=float, default=3600, help="seconds for one run")
    parser.add_argument("--work", type=Path, default=Path("build/benchmarks"), help="for data, weights and outputs")
    parser.add_argument("--results", type=Path, default=report.RESULTS)
    options = parser.parse_args()
    started = report.start("benchmarks.encode_vs_clip_retrieval", measure.use_cores(options.cores))
    if not (PEER / "bin" / "clip-retrieval").exists():
        sys.exit("the peer is not installed: run benchmarks/peers/setup.sh clip-retrieval")
    work = options.work.resolve()
    data = photos.make(work / f"photos-{options.n}", photos.PhotoSet(options.n, options.shards))
    weights = embeddings.random_weights(options.model, work)
    rounds: dict[Configuration, list[Round]] = {
        c: [] for c in configurations(options.also, options.peer_batches, min(options.cores, options.shards))
    }
    for number in range(options.rounds):
        for configuration, done in rounds.items():
            done.append(run_round(configuration, data, work, options, options.n))
            last = done[-1]
            print(f"round {number + 1}: {configuration.name}: {last.rate:.2f}/s, load before {last.run.load:.1f}")
    direct, tokens = embeddings.direct_rows(data, options.model, weights, options.check_rows)
    apart = embeddings.between_rows(direct)
    low, middle, high = np.percentile(tokens, (0, 50, 100))
    loads = [r.run.load for done in rounds.values() for r in done]
    cards = {c.name: embeddings.card(c.out(work)) for c in rounds if c.ours}
    facts = [
        *photos.describe(data).items(),
        ("caption, tokens of 77", f"{low:.0f} · {middle:.0f} · {high:.0f}"),
        *((f"{name}, as its card says", said) for name, said in cards.items()),
        ("load average before a run", f"{min(loads):.1f} to {max(loads):.1f}, median {statistics.median(loads):.1f}"),
    ]
    report.write(
        "encode_vs_clip_retrieval",
        f"{options.model}, image and text, {options.n:,} photos, {options.rounds} rounds in turns",
        [
            f"Median (smallest–largest) of the rounds.\n\n{speed_table(rounds)}",
            ratio_table(rounds),
            f"{agreement_table(rounds, work, direct)}\n\nDifferent samples are {apart} apart (median 1 − cos). "
            "Rows are stored as float16 by both, which alone makes up to about 3e-7.",
            "## Data\n\n" + report.table(("", "smallest · 5 % · median · 95 % · largest"), facts),
        ],
        started,
        peers=[embeddings.peer_versions(PEER)],
        not_measured=[
            "CUDA: both sides ran on the CPU.",
            "Trained weights: random ones cost the same, but a trained tower may feel a lower precision more.",
            "A cold disk: the photos were in the page cache. More than one worker, or other numbers of cores.",
            "Captions that fill all 77 tokens, where cutting to the longest gains nothing.",
        ],
        folder=options.results,
    )


if __name__ == "__main__":
    main()
