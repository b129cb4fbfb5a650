"""How long does `embedpipe index` take beside autofaiss, in how much memory, and how much does each then find?

Both index the same float16 rows with the same budget on the same cores, each through its own front door, whole process
against whole process. Afterwards each answers the same queries, which are no rows of the data, and is held to exact
search by row: recall@10, and the time of a query asked alone. autofaiss runs twice over: as it is by default, where a
graph in memory is its choice, and asked for an index that can be memory-mapped, as ours is.

    benchmarks/peers/setup.sh autofaiss
    python -m benchmarks.index_vs_autofaiss
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import measure, report, vectors

PEER = Path(__file__).parent / "peers" / "autofaiss"
RESULTS_K = 10
# The peer adds a reserve to what it is told: with more, it says that there is not enough memory in the budget.
_PEER_INDEX = {"4G": "2500M"}

_PEER_BUILD = """
import json, sys, autofaiss
data, out, index_memory, memory, mapped, cores = sys.argv[1:]
_, infos = autofaiss.build_index(embeddings=data, index_path=out + "/knn.index", index_infos_path=out + "/infos.json",
    metric_type="ip", max_index_memory_usage=index_memory, current_memory_available=memory,
    should_be_memory_mappable=mapped == "yes", nb_cores=int(cores))
assert infos is not None, "autofaiss gave up"
"""

_PEER_SEARCH = """
import json, sys, time, faiss, numpy as np
index_path, infos, queries, out = sys.argv[1:]
mapped = json.load(open(infos))["index_key"].find("IVF") >= 0
index = faiss.read_index(index_path, faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY if mapped else 0)
faiss.ParameterSpace().set_index_parameters(index, json.load(open(infos))["index_param"])
queries = np.load(queries)
index.search(queries[:20], 10)
rows, times = [], []
for query in queries:
    begun = time.perf_counter()
    rows.append(index.search(query[None], 10)[1][0])
    times.append(time.perf_counter() - begun)
np.savez(out, rows=np.array(rows), times=np.array(times))
"""

_OUR_SEARCH = """
import sys, time, numpy as np
from embedpipe.index import Searcher
from embedpipe.load import EmbeddingDataset
emb, queries, out = sys.argv[1:]
searcher = Searcher(EmbeddingDataset(emb))
assert searcher.card is not None
queries = np.load(queries)
searcher.nearest(queries[:20], 10)
rows, times = [], []
for query in queries:
    begun = time.perf_counter()
    rows.append(searcher.nearest(query[None], 10).ids[0])
    times.append(time.perf_counter() - begun)
np.savez(out, rows=np.array(rows), times=np.array(times))
"""


@dataclass(frozen=True, slots=True)
class Contender:
    """One side: its name; whether it is ours; for the peer, whether its index is to be memory-mappable."""

    name: str
    ours: bool
    mapped: bool = True

    def out(self, work: Path) -> Path:
        """Where its files go."""
        return work / "index" / re.sub(r"[^a-z]+", "-", self.name.lower()).strip("-")

    def build(self, data: Path, work: Path, memory: str, cores: int) -> list[str]:
        """The command that builds its index of `data`."""
        if self.ours:
            return [
                sys.executable,
                "-m",
                "embedpipe_cli",
                "index",
                str(data),
                "--memory",
                memory,
                "--rebuild",
                "--json",
            ]
        index_memory = _PEER_INDEX.get(memory, memory) if not self.mapped else _PEER_MAPPED
        arguments = [str(data / "img_emb"), str(self.out(work)), index_memory, memory, "yes" if self.mapped else "no"]
        return [str(PEER / "bin" / "python"), "-c", _PEER_BUILD, *arguments, str(cores)]

    def search(self, data: Path, work: Path, queries: Path) -> list[str]:
        """The command that asks it all queries, one by one."""
        found = str(self.out(work) / "found.npz")
        if self.ours:
            return [sys.executable, "-c", _OUR_SEARCH, str(data), str(queries), found]
        place = self.out(work)
        arguments = [str(place / "knn.index"), str(place / "infos.json"), str(queries), found]
        return [str(PEER / "bin" / "python"), "-c", _PEER_SEARCH, *arguments]


# With 1G and more the peer asks for more memory than the budget; what it chooses below is the same down to 300M.
_PEER_MAPPED = "600M"
OURS = Contender("embedpipe index", True)
PEERS = {
    "default": Contender("autofaiss", False, mapped=False),
    "mapped": Contender("autofaiss, memory-mappable", False),
}


@dataclass(frozen=True, slots=True)
class Round:
    """One build and the searches after it. key: the index type and how it is searched. mib: size of the index."""

    built: measure.Measured
    searched: measure.Measured
    key: str
    mib: float
    recall: float
    said: str
    alone_ms: float


def run_round(contender: Contender, data: Path, work: Path, asked: Asked, options: argparse.Namespace) -> Round:
    """Build into an empty folder, then search. Raises RuntimeError when either fails."""
    out = contender.out(work)
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    if contender.ours:
        shutil.rmtree(data / "index", ignore_errors=True)
    threads = {"OMP_NUM_THREADS": str(options.cores)}
    command = contender.build(data, work, options.memory, options.cores)
    built = measure.run(command, out / "build", timeout_s=options.timeout, environment=threads)
    built.require(contender.name)
    command = contender.search(data, work, asked.place)
    searched = measure.run(command, out / "search", timeout_s=options.timeout, environment=threads)
    searched.require(f"{contender.name}, searching")
    with np.load(out / "found.npz") as found:
        recall = float(
            np.mean([len(set(a) & set(b)) / RESULTS_K for a, b in zip(asked.truth, found["rows"], strict=True)])
        )
        alone_ms = 1000 * float(np.median(found["times"]))
    if contender.ours:
        card = json.loads(built.stdout)
        key = f"{card['kind']}, nprobe {card['nprobe']}, {card['candidates']} compared again"
        said = f"{card['recall']['image']:.3f}"
        return Round(built, searched, key, card["bytes"] / 2**20, recall, said, alone_ms)
    infos = json.loads((out / "infos.json").read_text())
    key = f"{infos['index_key']}, {infos['index_param']}"
    size = (out / "knn.index").stat().st_size / 2**20
    said = "1-recall@20 {:.3f}".format(infos["1-recall@20"]) if "1-recall@20" in infos else "nothing"
    return Round(built, searched, key, size, recall, said, alone_ms)


@dataclass(frozen=True, slots=True)
class Asked:
    """The queries (a file) and the rows that are truly nearest to each: int64 [q, 10]."""

    place: Path
    truth: np.ndarray


def ask(data: Path, work: Path, spec: vectors.VectorSet, count: int) -> Asked:
    """Draw the queries, and find their neighbours with numpy alone."""
    place, kept = work / f"queries-{spec.rows}-{count}.npy", work / f"truth-{spec.rows}-{count}.npy"
    if not kept.exists():
        drawn = vectors.queries(spec, count)
        np.save(place, drawn)
        np.save(kept, _nearest(data, drawn))
    return Asked(place, np.load(kept))


def _nearest(data: Path, queries: np.ndarray, block: int = 10_000) -> np.ndarray:
    scores, rows, first = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64), 0
    for path in sorted((data / "img_emb").glob("*.npy")):
        stored = np.load(path, mmap_mode="r")
        for start in range(0, len(stored), block):
            part = queries @ np.asarray(stored[start : start + block], np.float32).T
            best = np.argpartition(-part, min(RESULTS_K, part.shape[1] - 1), axis=1)[:, :RESULTS_K]
            scores = np.hstack((scores, np.take_along_axis(part, best, 1)))
            rows = np.hstack((rows, best + first + start))
            order = np.argsort(-scores, axis=1, kind="stable")[:, :RESULTS_K]
            scores, rows = np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)
        first += len(stored)
    return rows


def tables(rounds: dict[Contender, list[Round]]) -> list[str]:
    """What each did, and ours beside theirs."""
    head = ("", "wall s", "CPU s", "largest process, MiB", "index, MiB", "recall@10", "a query alone, ms")
    built = [
        (
            contender.name,
            measure.spread([r.built.wall_s for r in done], 1),
            measure.spread([r.built.cpu_s for r in done], 1),
            measure.spread([r.built.largest_mib for r in done], 0),
            measure.spread([r.mib for r in done], 0),
            measure.spread([r.recall for r in done], 4),
            measure.spread([r.alone_ms for r in done], 2),
        )
        for contender, done in rounds.items()
    ]
    keys = [
        (contender.name, done[0].key, done[0].said, measure.spread([r.searched.largest_mib for r in done], 0))
        for contender, done in rounds.items()
    ]
    ratios = []
    for contender, done in rounds.items():
        if not contender.ours:
            pairs = list(zip(rounds[OURS], done, strict=True))
            ratios.append(
                (
                    f"{contender.name} / {OURS.name}",
                    measure.spread([b.built.wall_s / a.built.wall_s for a, b in pairs]),
                    measure.spread([b.built.cpu_s / a.built.cpu_s for a, b in pairs]),
                    measure.spread([b.built.largest_mib / a.built.largest_mib for a, b in pairs]),
                    measure.spread([b.mib / a.mib for a, b in pairs]),
                )
            )
    return [
        report.table(head, built),
        report.table(("", "wall", "CPU", "memory", "index"), ratios),
        report.table(("", "what it chose", "recall it tells of itself", "searching, largest process, MiB"), keys),
    ]


def main() -> None:
    """Run the rounds and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=1_000_000, help="rows")
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--shards", type=int, default=20)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--memory", default="4G", help="the budget of both")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--peers", nargs="*", choices=list(PEERS), default=list(PEERS))
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=7200, help="seconds for one run")
    parser.add_argument("--work", type=Path, default=Path("build/benchmarks"), help="for data, queries and indexes")
    parser.add_argument("--results", type=Path, default=report.RESULTS)
    options = parser.parse_args()
    started = report.start("benchmarks.index_vs_autofaiss", measure.use_cores(options.cores))
    if options.peers and not (PEER / "bin" / "python").exists():
        sys.exit("the peer is not installed: run benchmarks/peers/setup.sh autofaiss")
    os.environ.setdefault("OMP_NUM_THREADS", str(options.cores))
    work = options.work.resolve()
    spec = vectors.VectorSet(options.n, options.dim, options.shards)
    data = vectors.make(work / f"vectors-{options.n}-{options.dim}", spec)
    asked = ask(data, work, spec, options.queries)
    contenders = [OURS, *(PEERS[name] for name in options.peers)]
    rounds: dict[Contender, list[Round]] = {contender: [] for contender in contenders}
    for number in range(options.rounds):
        for contender, done in rounds.items():
            done.append(run_round(contender, data, work, asked, options))
            last = done[-1]
            print(
                f"round {number + 1}: {contender.name}: {last.built.wall_s:.0f} s, {last.built.largest_mib:.0f} MiB, "
                f"recall {last.recall:.4f}, {last.alone_ms:.2f} ms, load before {last.built.load:.1f}",
                flush=True,
            )
    loads = [r.built.load for done in rounds.values() for r in done]
    shown = tables(rounds)
    report.write(
        "index_vs_autofaiss",
        f"{options.n:,} × {options.dim} rows, {options.memory} of memory, {options.rounds} rounds in turns",
        [
            f"Median (smallest–largest) of the rounds. Load average before a build: {min(loads):.1f} to "
            f"{max(loads):.1f}, median {statistics.median(loads):.1f}.\n\n{shown[0]}",
            shown[1],
            shown[2],
            f"recall@10 is of {options.queries:,} queries of the rows' distribution, none of them a row, against exact "
            "search with numpy. A query alone: the median, one at a time, model and start of the process left out, "
            "files in the page cache. The largest process is by the kernel's peak of resident pages, those of "
            "memory-mapped files included.",
        ],
        started,
        peers=[_peer()] if options.peers else [],
        not_measured=[
            "A cold disk: rows and index were in the page cache, for building and for searching.",
            "Rows of a trained encoder: these are made up (`benchmarks/vectors.py`), in clusters of very unequal size.",
            "Queries of another side, such as captions.",
            "More than two cores, and a GPU.",
        ],
        folder=options.results,
    )


def _peer() -> str:
    lines = (PEER / "installed.txt").read_text().splitlines()
    versions = dict(line.split("==", 1) for line in lines if "==" in line)
    return ", ".join(f"{name} {versions[name]}" for name in ("autofaiss", "faiss-cpu", "numpy", "embedding-reader"))


if __name__ == "__main__":
    main()
