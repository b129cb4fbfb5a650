"""Hugging Face datasets: parquet files named by split, and a dataset card.

OUT/data/train-00000-of-00012.parquet   OUT/README.md   OUT/croissant.json
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .. import files
from ..errors import InputError, OptionError
from ..load import EmbeddingDataset
from ..load.identity import identities_in
from ..load.split import CONTENT, TRAIN, hash_place
from ..manifest import FileRecord, ShardManifest
from .base import ExportConfig, ExportPart, PlannedPart
from .croissant import write_croissant
from .dataset_card import Split, dataset_card
from .parquet import write_table

_CARD = "README.md"


class HuggingFace:
    """A parquet file per part and split, and README.md."""

    folders: tuple[str, ...] = ("data", "")

    def __init__(self, dataset: EmbeddingDataset, plan: Sequence[PlannedPart], config: ExportConfig) -> None:
        self._dataset = dataset
        self._shares = parse_shares(config.splits)
        self._by = config.split_by
        self.options: dict[str, Any] = {"splits": [list(share) for share in self._shares]}
        if self._shares and self._by == CONTENT:
            self.options["split_by"] = CONTENT
        rows = [self._rows_by_split(part, self._identities(part)) for part in plan] if self._shares else []
        self._numbers = _numbers(rows) if self._shares else {TRAIN: {part.number: part.number for part in plan}}
        for name in self._names():
            if name not in self._numbers:
                raise InputError(
                    f"split {name}: not one of {sum(p.rows for p in plan):,} rows falls into it",
                    "Give it a larger share, or leave it out",
                )

    def write(self, out: str, part: ExportPart) -> tuple[FileRecord, ...]:
        """One file for each split with rows in the part."""
        if not self._shares:
            return (write_table(out, self._path(TRAIN, part.planned.number), part),)
        split_of = self._rows_by_split(part.planned, self._identities_of(part.metadata))
        return tuple(
            write_table(out, self._path(name, part.planned.number), _chosen(part, rows))
            for name, rows in split_of.items()
        )

    def finish(self, out: str, written: Sequence[ShardManifest]) -> None:
        """The descriptions for Croissant and the hub, last; existing ones, possibly edited, are kept."""
        write_croissant(out, "croissant.json", self._dataset, written, "data/*.parquet")
        location = files.join(out, _CARD)
        if files.exists(location):
            return
        paths = [record.path for entry in written for record in entry.files]
        with files.reading(files.join(out, paths[0])) as stream:
            schema = pq.read_schema(stream)
        splits = [_split(out, name, paths) for name in self._names()]
        files.write_bytes(location, dataset_card(self._dataset, schema, splits).encode())

    def opened_by(self, out: str) -> str:
        """Datasets."""
        return f'datasets.load_dataset("{out}")'

    def _names(self) -> list[str]:
        return [TRAIN, *(name for name, _ in self._shares)]

    def _path(self, split: str, part: int) -> str:
        numbers = self._numbers[split]
        return f"data/{split}-{numbers[part]:05d}-of-{len(numbers):05d}.parquet"

    def _identities(self, part: PlannedPart) -> list[str]:
        uid = ("uid",) if "uid" in self._dataset.column_names() else ()
        found = self._dataset.metadata(part.shard, ("sha256", "src_shard", "key", *uid))
        return self._identities_of(found if part.places is None else found.take(pa.array(part.places)))

    def _identities_of(self, metadata: pa.Table) -> list[str]:
        if self._by == CONTENT:
            return identities_in(self._dataset, metadata)
        pairs = zip(metadata["src_shard"].to_pylist(), metadata["key"].to_pylist(), strict=True)
        return [f"{shard}\0{key}" for shard, key in pairs]

    def _rows_by_split(self, part: PlannedPart, identities: Sequence[str]) -> dict[str, np.ndarray]:
        """The rows of a part in each split, int64 ascending; empty splits are left out."""
        names = np.array([share_of(identity, self._shares) for identity in identities], dtype=object)
        found = {name: np.flatnonzero(names == name) for name in self._names()}
        return {name: rows for name, rows in found.items() if len(rows)}


def parse_shares(text: str | None) -> tuple[tuple[str, float], ...]:
    """`valid=0.05,test=0.05` → (("valid", 0.05), ("test", 0.05)); the rest is `train`. Raises InputError."""
    shares: list[tuple[str, float]] = []
    for item in (text or "").split(",") if text else []:
        name, _, share = item.strip().partition("=")
        try:
            value = float(share)
        except ValueError:
            value = 0.0
        # `datasets` allows only word characters, and finds the name in file names between dashes.
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name) or not 0 < value < 1 or name == TRAIN:
            raise OptionError(
                f"`splits`: {item.strip()!r} is no split", "Write valid=0.05,test=0.05; the rest is train"
            )
        shares.append((name, value))
    if sum(share for _, share in shares) >= 1 or len({name for name, _ in shares}) < len(shares):
        raise OptionError(f"`splits={text!r}`: shares must add up to less than 1, each name once", "The rest is train")
    return tuple(shares)


def share_of(identity: str, shares: Sequence[tuple[str, float]]) -> str:
    """The split of a row, by its identity alone. The first share equals the held-out rows of `--valid-share`."""
    place, border = hash_place(identity), 0.0
    for name, share in shares:
        border += share
        if place < border:
            return name
    return TRAIN


def _numbers(rows: Sequence[dict[str, np.ndarray]]) -> dict[str, dict[int, int]]:
    """Per split: part → number of its file; parts without rows of the split have none."""
    numbers: dict[str, dict[int, int]] = {}
    for part, found in enumerate(rows):
        for name in found:
            numbers.setdefault(name, {})[part] = len(numbers.get(name, {}))
    return numbers


def _chosen(part: ExportPart, rows: np.ndarray) -> ExportPart:
    planned = PlannedPart(
        part.planned.number,
        part.planned.shard,
        rows if part.planned.places is None else part.planned.places[rows],
        len(rows),
        part.planned.source,
    )
    return ExportPart(
        planned,
        part.image[rows] if part.image is not None else None,
        part.text[rows] if part.text is not None else None,
        part.text_tokens.take(rows) if part.text_tokens is not None else None,
        part.metadata.take(pa.array(rows)),
    )


def _split(out: str, name: str, paths: Sequence[str]) -> Split:
    """Rows and bytes of a split, from the footers of its files."""
    counts: Counter[str] = Counter()
    for path in paths:
        if path.startswith(f"data/{name}-"):
            with files.reading(files.join(out, path)) as stream:
                footer = pq.ParquetFile(stream).metadata
            counts["rows"] += footer.num_rows
            counts["bytes"] += sum(footer.row_group(group).total_byte_size for group in range(footer.num_row_groups))
    return Split(name, counts["rows"], counts["bytes"])
