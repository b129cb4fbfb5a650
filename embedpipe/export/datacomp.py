"""DataComp's metadata folder (Gadre et al., 2304.14108): a table and an .npz of the same name for each part.

    OUT/00000000.parquet   uid, url, text, original_width, original_height, clip_l14_similarity_score, and the rest
    OUT/00000000.npz       l14_img, l14_txt: [n, dim]

Its tools read uid as 32 hex digits, the two halves of a 128-bit number.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import OptionError
from ..load import EmbeddingDataset
from ..manifest import FileRecord, ShardManifest, shard_name
from ..store.hashed_writer import write_hashed, write_parquet
from ..uid import uid
from .base import ExportConfig, ExportPart, PlannedPart, avoid_name_clash

_DIGITS = 8
_UID = r"^[0-9a-f]{32}$"


class DataComp:
    """A parquet file and an .npz for each part."""

    folders: tuple[str, ...] = ("",)

    def __init__(self, dataset: EmbeddingDataset, plan: Sequence[PlannedPart], config: ExportConfig) -> None:
        self._name = config.model_name or short_name(dataset.card.model)
        if not re.fullmatch(r"[A-Za-z0-9_]+", self._name):
            raise OptionError(
                f"`model_name={self._name!r}` becomes part of column names", "Use letters, digits and underscores"
            )
        self.options: dict[str, Any] = {"model_name": self._name}

    def write(self, out: str, part: ExportPart) -> tuple[FileRecord, ...]:
        """The arrays, then the table: its readers list tables."""
        name = shard_name(part.planned.number, _DIGITS)
        sides = {f"{self._name}_img": part.image, f"{self._name}_txt": part.text}
        arrays: dict[str, Any] = {side: array for side, array in sides.items() if array is not None}
        return (
            write_hashed(out, f"{name}.npz", lambda stream: np.savez(stream, **arrays)),
            write_parquet(out, f"{name}.parquet", self._table(part.metadata)),
        )

    def finish(self, out: str, written: Sequence[ShardManifest]) -> None:
        """Nothing."""

    def opened_by(self, out: str) -> str:
        """pandas and numpy, as DataComp's baselines do."""
        return f'pandas.read_parquet("{out}/00000000.parquet"), numpy.load("{out}/00000000.npz")'

    def _table(self, metadata: pa.Table) -> pa.Table:
        """DataComp's columns, then the data set's own; image_path is the key again and left out."""
        there = metadata.column_names
        own = {
            "uid": _uids(metadata),
            "url": metadata["url"],
            "text": metadata["caption"],
            # If the input has none, the stored image's size: DataComp's filters need numbers.
            "original_width": metadata["original_width" if "original_width" in there else "width"],
            "original_height": metadata["original_height" if "original_height" in there else "height"],
            f"clip_{self._name}_similarity_score": metadata["similarity"],
        }
        moved = {"uid", "url", "caption", "original_width", "original_height", "similarity", "image_path"}
        rest = metadata.select([name for name in there if name not in moved])
        # DataComp's sha256 is that of the image as downloaded; ours is that of the stored one.
        rest = rest.rename_columns(["stored_sha256" if name == "sha256" else name for name in rest.column_names])
        rest = avoid_name_clash(rest, {*own, "sha256"})
        return pa.table({**own, **dict(zip(rest.column_names, rest.columns, strict=True))})


def short_name(model: str) -> str:
    """DataComp's name of a model: `l14` for ViT-L-14. Others: the lower-case name, of a path the last part."""
    found = re.fullmatch(r"ViT-([A-Za-z]+)-([0-9]+)(-quickgelu)?", model)
    if found is not None:
        return f"{found[1]}{found[2]}".lower()
    return re.sub(r"[^a-z0-9]+", "_", model.rstrip("/").rpartition("/")[2].lower()).strip("_") or "clip"


def _uids(metadata: pa.Table) -> pa.ChunkedArray:
    """The column uid where it has 32 hex digits, otherwise the uid that `fetch` would have computed.

    Rows without a url are distinguished by their source location, since captions alone repeat.
    """
    urls, captions = metadata["url"].to_pylist(), metadata["caption"].to_pylist()
    places = [f"{shard}#{key}" for shard, key in zip(*_where(metadata), strict=True)]
    made = pa.array([uid(url or place, text) for url, place, text in zip(urls, places, captions, strict=True)])
    if "uid" not in metadata.column_names or not pa.types.is_string(metadata["uid"].type):
        return pa.chunked_array([made])
    theirs = metadata["uid"]
    return pc.if_else(pc.fill_null(pc.match_substring_regex(theirs, _UID), False), theirs, made)


def _where(metadata: pa.Table) -> tuple[list[str], list[str]]:
    return metadata["src_shard"].to_pylist(), metadata["key"].to_pylist()
