"""The rows on which runs may be compared: those that all of them held out, and none trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from embedpipe.errors import DatasetError, InputError, RunMismatch
from embedpipe.load import EmbeddingDataset, hash_split, rows_of_split
from embedpipe.load.identity import row_marks
from embedpipe.load.images.parts import original_name
from embedpipe.load.split import TRAIN
from embedpipe.plural import plural

from ..runs.split import SplitConfig
from ..runs.trained_rows import read_trained_rows

Records = Mapping[str, Mapping[str, Any]]
"""The record of each run, by its folder."""


@dataclass(frozen=True, slots=True)
class HeldOutRows:
    """rows: to compare on; fit: the training rows of the data set, for baselines; int64, ascending. notes: to show."""

    rows: np.ndarray
    fit: np.ndarray
    notes: tuple[str, ...]


def held_out_rows(
    records: Records, dataset: EmbeddingDataset, split_name: str, asked: SplitConfig | None = None, common: bool = False
) -> HeldOutRows:
    """The rows of `dataset` in the split `split_name`, as the runs were split, or as `asked`.

    Raises RunMismatch where the runs were split in different ways, or one was trained on some of these rows. common:
    then take the rows that all held out.
    """
    splits = {folder: asked or SplitConfig.of(facts["split"]) for folder, facts in records.items()}
    named = {split: split.names(dataset, folder if asked is None else "") for folder, split in splits.items()}
    first = next(iter(named.values())) if named else (asked or SplitConfig()).names(dataset)
    rows = rows_of_split(first, split_name, dataset.path)
    for names in named.values():
        rows = np.intersect1d(rows, np.flatnonzero(names == split_name), assume_unique=True)
    trained = {folder: trained_on(folder, facts, dataset)[rows] for folder, facts in records.items()}
    unseen = rows[~np.logical_or.reduce([*trained.values(), np.zeros(len(rows), bool)])]
    if not common:
        _refuse(splits, trained, dataset.path, len(unseen))
    notes = (f"{plural(len(unseen), 'row')} held out by all {len(records)} priors",) if len(records) > 1 else ()
    return HeldOutRows(unseen, rows_of_split(first, TRAIN, dataset.path), notes)


def _refuse(splits: Mapping[str, SplitConfig], trained: Mapping[str, np.ndarray], path: str, common: int) -> None:
    """Raise RunMismatch if the runs hold out different rows, or some rows were trained on by one of them."""
    together = f"Compare runs of the same split, or give `common=True`: {plural(common, 'row')} were held out by all"
    folders = list(splits)
    for folder in folders[1:]:
        if splits[folder] != splits[folders[0]]:
            raise RunMismatch(
                f"{folder}: trained on another split ({splits[folder].facts()}) than {folders[0]} "
                f"({splits[folders[0]].facts()}): what one held out, the other may have seen",
                together,
            )
    for folder, mask in trained.items():
        if mask.any():
            raise RunMismatch(
                f"{folder}: was trained on {int(mask.sum()):,} of the {plural(len(mask), 'held-out row')} of {path}",
                together if len(folders) > 1 else "Give the data set that it was trained on, or `common=True`",
            )


def trained_on(folder: str, facts: Mapping[str, Any], dataset: EmbeddingDataset) -> np.ndarray:
    """bool [n]: the rows of `dataset` that the run was trained on; none for a converted one, whose rows are not known.

    A run of an earlier version did not record them. Where its data are gone, its split tells: of a merged data set's
    row by either name, since the run may have seen it before or after merging.
    """
    if facts.get("converted"):
        return np.zeros(len(dataset), bool)
    stored = read_trained_rows(folder)
    split = SplitConfig.of(facts["split"])
    if stored is None and (data := _data_of(facts)) is not None:
        stored = row_marks(data, np.flatnonzero(split.names(data) == TRAIN))
    if stored is not None:
        return np.isin(row_marks(dataset), stored)
    if split.column is not None and split.column not in dataset.column_names():
        return np.zeros(len(dataset), bool)
    seen: np.ndarray = split.names(dataset) == TRAIN
    if dataset.run.merged and split.column is None:
        pairs = zip(dataset.column("src_shard").to_pylist(), dataset.keys(), strict=True)
        names = [hash_split(f"{original_name(dataset.run, shard)}\0{key}", split.valid_share) for shard, key in pairs]
        seen |= np.array(names, dtype=object) == TRAIN
    return seen


def _data_of(facts: Mapping[str, Any]) -> EmbeddingDataset | None:
    """The data set that a run was trained on, if it is still there with all that the run saw."""
    try:
        data = EmbeddingDataset(str(facts["data"]))
        names = SplitConfig.of(facts["split"]).names(data)
    except (KeyError, InputError, DatasetError):
        return None
    same = data.card.fingerprint() == facts.get("fingerprint")
    return data if same and int((names == TRAIN).sum()) >= facts.get("train_rows", 0) else None
