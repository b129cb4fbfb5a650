"""Do the programs that exports are for open them, and find the same numbers beside the same key?

Tars with some broken pictures are encoded, the data set is exported to every layout through the command line, and each
program, in its own environment, opens its export and compares every row with the stored one (`peers/read_export.py`).

    python -m benchmarks.outside_readers --peers benchmarks/peers
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests import shards, tiny_clip

from . import report

TARS, PER_TAR, EVERY_BROKEN = 12, 100, 17
_TIMEOUT_S = 600

# name → options of `embedpipe export`.
EXPORTS = {
    "hf": ("--to", "hf", "--splits", "valid=0.1,test=0.05"),
    "parquet": ("--to", "parquet"),
    "parquet-float32": ("--to", "parquet", "--embedding-dtype", "float32"),
    "datacomp": ("--to", "datacomp", "--model-name", "l14"),
    "lance": ("--to", "lance"),
    "clip-retrieval": ("--to", "clip-retrieval"),
    "aligned": ("--to", "aligned"),
}
# (environment, reader, export); the environment "" is this one.
CASES = (
    ("", "datasets", "hf"),
    ("", "datasets, streaming", "hf"),
    ("", "lance", "lance"),
    ("tables", "lancedb", "lance"),
    ("", "embedding-reader npy", "clip-retrieval"),
    ("", "embedding-reader parquet_npy", "clip-retrieval"),
    ("", "embedding-reader parquet", "parquet"),
    ("clip-retrieval", "embedding-reader npy", "clip-retrieval"),
    ("clip-retrieval", "embedding-reader parquet_npy", "clip-retrieval"),
    ("clip-retrieval", "embedding-reader parquet", "parquet-float32"),
    ("clip-retrieval", "autofaiss", "clip-retrieval"),
    ("clip-retrieval", "clip-retrieval index", "clip-retrieval"),
    ("dalle2-pytorch", "DALLE2-pytorch prior loader", "clip-retrieval"),
    ("dalle2-pytorch", "DALLE2-pytorch decoder loader", "aligned"),
    ("", "DataComp's calls", "datacomp"),
    ("", "pandas", "parquet"),
    ("tables", "duckdb", "parquet"),
    ("tables", "spark", "parquet-float32"),
)


def main() -> None:
    """Export, read, report."""
    options = _arguments()
    started = report.start("benchmarks.outside_readers", sorted(os.sched_getaffinity(0)))
    work = options.work.absolute()
    images, emb = work / "images", work / "emb"
    broken = _encode(work, images, emb)
    truth = work / "truth.npz"
    rows = _truth(emb, truth)
    for name, words in EXPORTS.items():
        _embedpipe("export", emb, work / name, *words)
    results, failed = [], 0
    for environment, reader, export in CASES:
        python = options.peers.absolute() / environment / "bin" / "python" if environment else Path(sys.executable)
        outcome, good = _read(python, reader, work / export, truth, images)
        failed += not good
        results.append((reader, export, environment or "this one", outcome))
        print(*results[-1], sep=" | ", flush=True)
    report.write(
        "outside_readers",
        "are exports what the programs they are for expect?",
        [
            f"{rows:,} rows of {TARS} tars, embeddings of {_dim(truth)} numbers; {broken} pictures of them broken, one "
            "tar entirely. All rows were compared with the stored ones: both embeddings to the bit (as float32), by "
            "key and with the caption where the program hands these out, else by their place.",
            report.table(("program", "export", "environment", "outcome"), results),
        ],
        started,
        not_measured=[
            "DataComp's own programs, which are no package. What they call was called on the columns they name.",
            "Loading from a hub or an object store: exports were read from a local disk.",
        ],
        folder=options.results,
    )
    sys.exit(1 if failed else 0)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, default=Path(__file__).parent / "peers", help="where setup.sh put them")
    parser.add_argument("--work", type=Path, default=Path("build/benchmarks/outside_readers"))
    parser.add_argument("--results", type=Path, default=report.RESULTS)
    return parser.parse_args()


def _encode(work: Path, images: Path, emb: Path) -> int:
    """Write tars as img2dataset names them and encode them with a small random model. Returns the broken pictures."""
    broken = 0
    for tar in range(TARS):
        members = []
        for i in range(PER_TAR):
            number = tar * PER_TAR + i
            bad = number % EVERY_BROKEN == 0 or tar == TARS - 2
            broken += bad
            members += shards.sample(number, f"{tar:05d}{i:04d}", picture=b"no picture" if bad else None)
        shards.write_tar(images / f"{tar:05d}.tar", members)
    model = work / "model"
    if not model.exists():
        tiny_clip.write(model)
    _embedpipe("encode", images, emb, "--model", model, "--gpus", "0", "--precision", "fp32")
    return broken


def _embedpipe(*words: object) -> None:
    subprocess.run([sys.executable, "-m", "embedpipe_cli", *map(str, words)], check=True)


def _truth(emb: Path, place: Path) -> int:
    """Keys, embeddings and captions as they are stored, read file by file with numpy and pyarrow."""
    tables = [pq.read_table(path) for path in sorted((emb / "metadata").iterdir())]
    arrays = {
        side: np.concatenate([np.load(path) for path in sorted((emb / folder).iterdir())])
        for side, folder in (("image", "img_emb"), ("text", "text_emb"))
    }
    whole = pa.concat_tables([table.select(["key", "caption"]) for table in tables])
    columns = {name: np.array(whole[name].to_pylist()) for name in whole.column_names}
    np.savez(place, **arrays, **columns)
    return len(columns["key"])


def _dim(truth: Path) -> int:
    return int(np.load(truth)["image"].shape[1])


def _read(python: Path, reader: str, export: Path, truth: Path, images: Path) -> tuple[str, bool]:
    """What the program found, in words, and whether that is what it should."""
    if not python.exists():
        return f"not run: no environment at {python.parents[1].name} (peers/setup.sh makes it)", True
    words = [reader, export, truth, *((images,) if "decoder" in reader else ())]
    script = Path(__file__).parent / "peers" / "read_export.py"
    done = subprocess.run(
        [str(python), str(script), *map(str, words)], capture_output=True, text=True, timeout=_TIMEOUT_S
    )
    if done.returncode:
        return f"FAILED: {' '.join(done.stderr.split())[-300:]}", False
    found = json.loads(done.stdout.strip().splitlines()[-1])
    versions = ", ".join(f"{name} {version}" for name, version in found.pop("versions").items())
    return f"{found.pop('rows'):,} rows equal" + "".join(
        f"; {n}: {v}" for n, v in found.items()
    ) + f" ({versions})", True


if __name__ == "__main__":
    main()
