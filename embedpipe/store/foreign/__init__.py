"""Data sets of other tools. LAYOUTS maps a name to the function that groups the layout's files."""

from __future__ import annotations

from collections.abc import Sequence

from ... import files
from ...errors import DatasetError, did_you_mean
from .arrays import clip_retrieval, npy, parquet_npy
from .base import NOTE, Foreign, ForeignShard, Layout
from .tables import datacomp, parquet

LAYOUTS: dict[str, Layout] = {
    "clip-retrieval": clip_retrieval,
    "npy": npy,
    "parquet": parquet,
    "parquet_npy": parquet_npy,
    "datacomp": datacomp,
}

# Beside the data: the output of `embedpipe index`, which includes arrays, and the record of `embedpipe export`.
_BESIDE = ("index/", ".embedpipe/")

__all__ = ["LAYOUTS", "NOTE", "Foreign", "ForeignShard", "Layout", "find_shards"]


def find_shards(path: str, how: Foreign) -> tuple[str, list[ForeignShard]]:
    """(layout, shards) of the data set at `path`. Raises DatasetError if it has no known layout."""
    names = [name for name in files.walk(path) if not name.startswith(_BESIDE)]
    layout = how.layout or _guess(path, how, names)
    if layout not in LAYOUTS:
        raise DatasetError(f"{path}: no layout {layout!r}", did_you_mean(layout, LAYOUTS))
    shards = LAYOUTS[layout](path, how, names)
    if not shards:
        raise DatasetError(f"{path}: no files of the layout {layout} in it", f"Known layouts: {', '.join(LAYOUTS)}")
    return layout, shards


def _guess(path: str, how: Foreign, names: Sequence[str]) -> str:
    suffixes = {name.rpartition(".")[2] for name in names}
    below = next((name for name in names if name.endswith("/embedpipe.json")), None)
    if below is not None:
        inside = files.join(path, below.removesuffix("/embedpipe.json"))
        raise DatasetError(f"{path}: no embedpipe.json in it, but in a folder of it", f"Give {inside}")
    # A data set of embedpipe that is being removed, its card first, is not another tool's.
    if not suffixes & {"npy", "npz", "parquet"} or any(name.startswith("manifest/") for name in names):
        raise DatasetError(
            f"{path}: no embedpipe.json in it, and no .npy, .npz or .parquet of others",
            "Give a folder written by `embedpipe encode`, or one of clip-retrieval's, embedding-reader's or DataComp's",
        )
    if "npz" in suffixes:
        return "datacomp"
    if "npy" not in suffixes:
        return "parquet"
    if any(name.endswith(".npy") and ("img_emb_" in name or "text_emb_" in name) for name in names):
        return "clip-retrieval"
    return "parquet_npy" if "parquet" in suffixes or how.metadata is not None else "npy"
