"""How fast is a prior here beside DALLE2-pytorch's, and how much memory does it take?

Width 512, 6 layers, 8 heads, batch 64, float32. Each run is a process of its own, in turns; each side trains with its
own optimizer, and is timed after a warm-up. One case for each call, as the peer's defaults take half a minute a step:

    embeddings   training on embeddings alone: the peer as it is (256 tokens of padding), and told max_text_len=1
    text         training with 77 text tokens: the peer as it is, and told max_text_len=77; ours with real captions, too
    sampling     16 steps of sampling for 8 texts (--texts), from embeddings alone
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks import embeddings, measure, photos, report

PEER = Path(__file__).parent / "peers" / "dalle2-pytorch"
ROOT = Path(__file__).parent.parent
FULL = 77
# Threads that wait sleep, on both sides: otherwise CPU seconds hold waiting, and other programs make it longer.
_ENVIRONMENT = {"PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}


@dataclass(frozen=True, slots=True)
class Configuration:
    """One side of a comparison. need: by how much ours (the first configuration) should be faster."""

    name: str
    ours: bool
    max_text_len: int = 256
    lengths: tuple[tuple[int, ...], ...] | None = None
    rows: int = 64
    sample_steps: int = 0
    warmups: int = 1
    repeats: int = 5
    need: float | None = None

    def command(self, threads: int) -> list[str]:
        """The process that runs it."""
        told = {name: getattr(self, name) for name in self.__dataclass_fields__} | {"threads": threads}
        if self.ours:
            return [sys.executable, "-m", "benchmarks.prior_runs", json.dumps(told)]
        return [str(PEER / "bin" / "python"), str(Path(__file__).with_name("prior_runs.py")), json.dumps(told)]


@dataclass(frozen=True, slots=True)
class Round:
    """One process: medians of its repetitions in seconds, and the peak of its memory."""

    wall: float
    cpu: float
    peak_mib: float
    load: float


def caption_lengths(batches: int, rows: int) -> tuple[tuple[int, ...], ...]:
    """Tokens of the captions that `benchmarks.photos` writes, start and end token included."""
    import open_clip

    captions = [photos.picture(number)[1] for number in range(batches * rows)]
    tokens = open_clip.SimpleTokenizer()(captions)
    lengths = [int(it) for it in (tokens != 0).sum(dim=1)]
    return tuple(tuple(lengths[start : start + rows]) for start in range(0, len(lengths), rows))


def configurations(case: str, slow_repeats: int, texts: int) -> list[Configuration]:
    """The sides of a case; the first is ours, which the others are measured against."""
    full = ((FULL,) * 64,)
    slow = {"ours": False, "repeats": slow_repeats}
    if case == "embeddings":
        return [
            Configuration("embedpipe", True, repeats=20),
            Configuration("DALLE2-pytorch, max_text_len=1", False, max_text_len=1, repeats=10, need=1.3),
            Configuration("DALLE2-pytorch as it is", **slow, need=60),
        ]
    if case == "text":
        told = {"max_text_len": FULL, "lengths": full, "repeats": 2}
        return [
            Configuration("embedpipe, 77 tokens", True, lengths=full, repeats=2),
            Configuration("embedpipe, captions as they are", True, lengths=caption_lengths(4, 64), repeats=4),
            Configuration("DALLE2-pytorch, max_text_len=77", False, **told, need=1.3),
            Configuration("DALLE2-pytorch as it is", **slow, lengths=full, need=6),
        ]
    sampling = {"rows": texts, "sample_steps": 16}
    # A call of the last one takes minutes for many texts: its sixteen steps warm each other up.
    slow["warmups"] = 1 if texts <= 8 else 0
    return [
        Configuration("embedpipe", True, **sampling, repeats=20),
        Configuration("DALLE2-pytorch, max_text_len=1", False, max_text_len=1, **sampling),
        Configuration("DALLE2-pytorch as it is", **slow, **sampling, need=40),
    ]


def run_round(configuration: Configuration, threads: int, work: Path, timeout_s: float) -> Round:
    """Raises RuntimeError when it fails."""
    made = measure.run(
        configuration.command(threads), work / "run", timeout_s=timeout_s, environment=_ENVIRONMENT
    ).require(configuration.name)
    told = json.loads(made.stdout.splitlines()[-1])
    return Round(statistics.median(told["wall"]), statistics.median(told["cpu"]), told["peak_mib"], made.load)


def tables(rounds: dict[Configuration, list[Round]]) -> list[str]:
    """What each took, and how it compares with ours, round by round."""
    ours = next(iter(rounds.values()))
    took = [
        (
            it.name,
            measure.spread([r.wall for r in done], 3),
            measure.spread([r.cpu for r in done], 3),
            measure.spread([r.peak_mib for r in done], 0),
        )
        for it, done in rounds.items()
    ]
    compared = []
    for it, done in list(rounds.items())[1:]:
        pairs = list(zip(done, ours, strict=True))
        wall = [theirs.wall / mine.wall for theirs, mine in pairs]
        met = "" if it.need is None else f"{it.need:g}: {'met' if statistics.median(wall) >= it.need else 'not met'}"
        compared.append(
            (
                f"{it.name} / {next(iter(rounds)).name}",
                measure.spread(wall),
                measure.spread([theirs.cpu / mine.cpu for theirs, mine in pairs]),
                measure.spread([mine.peak_mib / theirs.peak_mib for theirs, mine in pairs]),
                met,
            )
        )
    return [
        "Median (smallest–largest) of the rounds; of a round, the median of its repetitions.\n\n"
        + report.table(("", "wall s", "CPU s", "peak MiB of the process"), took),
        report.table(("", "wall, times as long", "CPU, times as much", "our peak / its", "wanted (wall)"), compared),
    ]


def main() -> None:
    """Run the rounds of one case and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=("embeddings", "text", "sampling"))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--slow-repeats", type=int, default=1, help="of the peer as it is, in a round")
    parser.add_argument("--texts", type=int, default=8, help="sampled at once")
    parser.add_argument("--without-slow", action="store_true", help="leave out the peer as it is")
    parser.add_argument("--timeout", type=float, default=900, help="seconds for one process")
    parser.add_argument("--work", type=Path, default=Path("build/benchmarks"), help="for logs")
    parser.add_argument("--results", type=Path, default=report.RESULTS)
    options = parser.parse_args()
    started = report.start("benchmarks.prior_vs_dalle2_pytorch", measure.use_cores(options.cores))
    if not (PEER / "bin" / "python").exists():
        sys.exit("the peer is not installed: run benchmarks/peers/setup.sh dalle2-pytorch")
    sides = configurations(options.case, options.slow_repeats, options.texts)
    chosen = [it for it in sides if not (options.without_slow and "as it is" in it.name)]
    rounds: dict[Configuration, list[Round]] = {it: [] for it in chosen}
    for number in range(options.rounds):
        for configuration, done in rounds.items():
            done.append(run_round(configuration, options.cores, options.work.resolve(), options.timeout))
            print(
                f"round {number + 1}: {configuration.name}: {done[-1].wall:.3f} s, load {done[-1].load:.1f}", flush=True
            )
    loads = [r.load for done in rounds.values() for r in done]
    lengths = [it.lengths for it in rounds if it.ours and it.lengths and "captions" in it.name]
    facts = [("load average before a run", f"{min(loads):.1f} to {max(loads):.1f}")]
    for batches in lengths:
        every = [length for batch in batches for length in batch]
        facts.append(("tokens of the captions", f"{min(every)} to {max(every)}, median {statistics.median(every):.0f}"))
        facts.append(("longest caption of a batch", ", ".join(str(max(batch)) for batch in batches)))
    report.write(
        f"prior_vs_dalle2_pytorch_{options.case}{'' if options.texts == 8 else f'_{options.texts}'}",
        f"width 512, 6 layers, batch {chosen[0].rows}, float32, {options.rounds} rounds in turns",
        [*tables(rounds), report.table(("", ""), facts)],
        started,
        peers=[embeddings.peer_versions(PEER, ("dalle2-pytorch", "torch", "rotary-embedding-torch"))],
        not_measured=[
            "CUDA: both sides ran on the CPU. Lower precisions.",
            "Averages of the weights, gradient clipping and loading data, which both sides do in their trainers.",
        ],
        folder=options.results,
    )


if __name__ == "__main__":
    main()
