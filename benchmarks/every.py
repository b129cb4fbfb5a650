"""All benchmarks that have a goal, in their small form, one after the other; and the page of what they found.

Each writes its own results page, as it does when it is run by itself. `docs/benchmarks.md` is made of the newest page
of each: a benchmark that cannot run today keeps its last result, with its date and machine, and the page says why.

    python -m benchmarks.every            # about 20 minutes on two idle cores, with all peers installed
    python -m benchmarks.every --only startup fetch_vs_img2dataset
    python -m benchmarks.every --page     # run nothing, write the page again
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from . import report
from .pages import Claim, Page, newest

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
LAST_RUN = "every.json"
_PEERS = Path(__file__).parent / "peers"


@dataclass(frozen=True, slots=True)
class Small:
    """A benchmark in its small form. peer: the environment it needs below `peers/`. most_s: it is ended after that."""

    module: str
    options: str
    peer: str | None = None
    most_s: int = 600

    @property
    def missing(self) -> bool:
        """Whether the peer is not installed."""
        return self.peer is not None and not (_PEERS / self.peer / "bin" / "python").exists()


RUNS = (
    Small("startup", "--rounds 1"),
    Small("fetch_vs_img2dataset", "--n 2000 --rounds 3"),
    Small("load_vs_embedding_reader", "--rounds 3"),
    Small("encode_overlap", "--n 300 --rounds 2 --free-rounds 2"),
    Small("encode_vs_clip_retrieval", "--n 200 --rounds 2 --peer-batches 256", "clip-retrieval"),
    Small("index_vs_autofaiss", "--n 200000 --peers default", "autofaiss"),
    Small("prior_vs_dalle2_pytorch", "embeddings --without-slow", "dalle2-pytorch"),
    Small("prior_vs_dalle2_pytorch", "text --without-slow", "dalle2-pytorch"),
    Small("prior_vs_dalle2_pytorch", "sampling", "dalle2-pytorch"),
    Small("decoder_vs_dalle2_pytorch", "--rounds 2 --steps 3", "dalle2-pytorch"),
)
_CLIP = "clip-retrieval, batch 256"
_TINY, _LONG = "DALLE2-pytorch, max_text_len=1 / embedpipe", "DALLE2-pytorch, max_text_len=77 / embedpipe, 77 tokens"
_READ, _SHUFFLED = (
    f"MB per CPU second, {which}"
    for which in (
        "batches float16 / embedding-reader (its better one)",
        "shuffled loader float16 / batches float16",
    )
)
_WALL = "wall, times as long"
CLAIMS = (
    Claim(
        "encode, whole process / clip-retrieval",
        5,
        "encode_vs_clip_retrieval",
        f"embedpipe, default / {_CLIP}",
        "whole process",
    ),
    Claim("the same in fp32", 3, "encode_vs_clip_retrieval", f"embedpipe, fp32 / {_CLIP}", "whole process"),
    Claim(
        "encode, end to end / its model alone",
        1 / 0.92,
        "encode_overlap",
        "end to end / the longer of the two",
        at_most=True,
    ),
    Claim(
        "DALLE2-pytorch at its best / train-prior, embeddings", 1.6, "prior_vs_dalle2_pytorch_embeddings", _TINY, _WALL
    ),
    Claim("the same with 77 tokens", 1.3, "prior_vs_dalle2_pytorch_text", _LONG, _WALL),
    Claim(
        "DALLE2-pytorch as it is / sampling a prior",
        40,
        "prior_vs_dalle2_pytorch_sampling",
        "DALLE2-pytorch as it is / embedpipe",
        _WALL,
    ),
    Claim("DALLE2-pytorch / decoder, training step", 1.8, "decoder_vs_dalle2_pytorch", "training step", "ratio"),
    Claim("DALLE2-pytorch / decoder, sampling step", 1.8, "decoder_vs_dalle2_pytorch", "sampling step", "ratio"),
    Claim("fetch / img2dataset, images a second", 3, "fetch_vs_img2dataset", "images/s, ours / theirs"),
    Claim("autofaiss / index, wall time", 5, "index_vs_autofaiss", "autofaiss / embedpipe index", "wall"),
    Claim("reading embeddings / embedding-reader, per CPU second", 10, "load_vs_embedding_reader", _READ),
    Claim("shuffled loader / reading in order, per CPU second", 0.4, "load_vs_embedding_reader", _SHUFFLED),
    Claim("lines answered within half a CPU second, share", 1, "startup", "share of lines within the goal"),
)


def run_small(small: Small, results: Path, timeout_s: float) -> str:
    """Run one in a process of its own. Returns how it went: `measured in 3 min`, or `not measured: …`."""
    if small.missing:
        return f"not measured: peers not installed (`benchmarks/peers/setup.sh {small.peer}`)"
    command = [sys.executable, "-m", f"benchmarks.{small.module}", *small.options.split(), "--results", str(results)]
    begun = time.monotonic()
    try:
        done = subprocess.run(command, stdout=subprocess.DEVNULL, timeout=min(timeout_s, small.most_s))
    except subprocess.TimeoutExpired:
        return f"not measured: not finished after {min(timeout_s, small.most_s) / 60:.0f} minutes"
    if done.returncode != 0:
        return f"not measured: ended with {done.returncode}"
    return f"measured in {(time.monotonic() - begun) / 60:.0f} min"


def last_runs(results: Path) -> dict[str, list[str]]:
    """How each benchmark went when it was last asked for: when, the load average then, the commit, and its end."""
    path = results / LAST_RUN
    found: dict[str, list[str]] = json.loads(path.read_text()) if path.exists() else {}
    return found


def page(results: Path) -> str:
    """The page, from the newest results of each benchmark and the record of the last run."""
    found: dict[str, Page] = {}
    for claim in CLAIMS:
        if claim.benchmark not in found and (it := newest(results, claim.benchmark)) is not None:
            found[claim.benchmark] = it
    rows = [claim.row(found.get(claim.benchmark)) for claim in CLAIMS]
    head = ("ratio", "goal", "median (smallest–largest)", "goal met", "measured", "load then")
    machines: dict[str, set[str]] = {}
    for it in found.values():
        machines.setdefault(it.fact("machine"), set()).add(it.day)
    steps = [(f"`{name}`", *it) for name, it in last_runs(results).items()]
    return (
        "\n\n".join(
            [
                "# Benchmarks",
                "Written by `make bench`, which runs each benchmark beside its peer, in turns, in its small form. What "
                "could not run keeps its last result, with its date. `benchmarks/results/` has the rest: times, "
                "memory, versions, commands.",
                report.table(head, rows),
                "Load is the average number of busy processes when the benchmark began: with more than the machine has "
                "cores, ratios of wall time vary, and goals that are set for an idle machine may be missed.",
                "## Machines",
                "\n".join(f"- {', '.join(sorted(days))}: {machine}" for machine, days in machines.items()),
                "## The last runs",
                report.table(("benchmark", "begun", "load", "commit", "how it went"), steps),
                "## Not measured",
                "\n".join(
                    [
                        "- CUDA: no benchmark here was run on a GPU.",
                        "- Networks and cold disks: servers are on loopback, files in the page cache.",
                        *(f"- {claim.what}: no result" for claim in CLAIMS if claim.benchmark not in found),
                    ]
                ),
            ]
        )
        + "\n"
    )


def run_all(only: Sequence[str], results: Path, minutes: float) -> None:
    """Run them, or `only` some, and record how each went. minutes: for all; what then is left out is said to be."""
    until = time.monotonic() + 60 * minutes
    for small in RUNS:
        if only and small.module not in only:
            continue
        begun, load = f"{datetime.datetime.now():%Y-%m-%d %H:%M}", f"{os.getloadavg()[0]:.1f}"
        left = until - time.monotonic()
        how = run_small(small, results, left) if left > 1 else f"not measured: the {minutes:.0f} minutes were over"
        print(f"{small.module} {small.options}: {how}", file=sys.stderr, flush=True)
        record = {**last_runs(results), f"{small.module} {small.options}": [begun, load, report.revision(), how]}
        (results / LAST_RUN).write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def main() -> None:
    """Run, record, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], choices=sorted({it.module for it in RUNS}))
    parser.add_argument("--page", action="store_true", help="run nothing, write the page again")
    parser.add_argument("--minutes", type=float, default=40, help="for all of them; on an idle machine half suffices")
    parser.add_argument("--results", type=Path, default=report.RESULTS)
    parser.add_argument("--out", type=Path, default=PAGE)
    options = parser.parse_args()
    if not options.page:
        run_all(options.only, options.results, options.minutes)
    options.out.write_text(page(options.results))
    print(f"written to {options.out}")


if __name__ == "__main__":
    main()
