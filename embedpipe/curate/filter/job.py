"""The filter job: select the rows of an embedding data set that meet all conditions."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ... import files
from ...errors import InputError, OptionError, did_you_mean
from ...execute import in_order
from ...load import EmbeddingDataset
from ...load.images.source import Images
from ...lock import exclusive
from ...progress import Listener, Progress, silent
from ...subset import KEPT, find_subset
from .. import selection
from ..materialise import refuse_other_output
from ..page import Line, Section, pairs_page
from ..row_cards import row_cards
from .columns import SCORE, column_types, values
from .expression import parse_condition
from .score_head import Head, open_head

_ON_A_LINE = 6  # images per line of examples.html


@dataclass(frozen=True, slots=True)
class FilterConfig:
    """Conditions, all of which a row must meet; None or empty for unused ones.

    min_similarity: of image and caption. where: conditions on columns, see `expression`. top: the share (above 0, up to
    1) of all rows with the largest `by`, a number column. keys, not_keys: files of keys to keep, and to leave out, see
    `subset`; a folder of dedup or filter stands for the rows it kept, and is refused as not_keys. allow_missing: count
    keys missing from the data set instead of refusing them. head: a file of a score head, made for head_model (see
    `open_head`) and applied to the embeddings of `modality`; min_score: of its score.
    trust_old_card: score data sets of version 0.1, whose card does not record the activation. materialise: also write
    the kept rows as an embedding data set. examples: how many rows around each threshold examples.html shows. images:
    where the image shards are now (one place or several), None for where they were. threads: None for one per core.
    """

    min_similarity: float | None = None
    where: tuple[str, ...] = ()
    top: float | None = None
    by: str = "similarity"
    keys: tuple[str, ...] = ()
    not_keys: tuple[str, ...] = ()
    allow_missing: bool = False
    head: str | None = None
    head_model: str | None = None
    trust_old_card: bool = False
    min_score: float | None = None
    modality: str = "image"
    materialise: bool = False
    examples: int = 12
    images: Images = None
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.top is not None and not 0 < self.top <= 1:
            raise OptionError(f"`top={self.top:g}`: must be above 0 and at most 1", "0.3 keeps 30% of the rows")
        if self.min_score is not None and self.head is None:
            raise OptionError("`min_score` needs a head to score with", "Give its file with `head`")
        if self.head_model is not None and self.head is None:
            raise OptionError("`head_model` needs `head`", "Give its file with `head`")
        if not self.conditions():
            raise OptionError(
                "nothing to filter by",
                "Give `min_similarity`, `where`, `top`, `keys`, `not_keys`, or `head` with `min_score`",
            )

    def conditions(self) -> bool:
        """Whether there is any condition."""
        given = (self.min_similarity, self.top, self.min_score)
        return any(value is not None for value in given) or bool(self.where or self.keys or self.not_keys)


@dataclass(frozen=True, slots=True)
class ConditionReport:
    """One condition by itself. drops: rows that do not meet it; unknown: of these, those with an unknown result, as for
    a null; only: of the dropped, those that meet all other conditions. missing: keys not in the data.
    """

    condition: str
    drops: int
    unknown: int
    only: int
    missing: int = 0


@dataclass(frozen=True, slots=True)
class FilterReport:
    """How many rows `filter` kept, and what each condition would do by itself."""

    rows: int
    kept: int
    dropped: int
    conditions: tuple[ConditionReport, ...]


@dataclass(frozen=True, slots=True)
class _Condition:
    """met: bool [n]. unknown: rows with an unknown result. column, cut: the compared column, and the threshold."""

    name: str
    met: np.ndarray
    unknown: int = 0
    missing: int = 0
    column: str | None = None
    cut: float | None = None


@dataclass(slots=True)
class _Rows:
    """Data read from all rows: masks of the conditions, and the numbers that some compare."""

    masks: dict[str, np.ndarray]
    unknown: dict[str, int] = field(default_factory=dict)
    numbers: dict[str, np.ndarray] = field(default_factory=dict)


def filter(path: str, out: str, config: FilterConfig, listen: Listener = silent) -> FilterReport:
    """Write `out`/kept.parquet, examples.html and report.json for the data set `path`, which is not changed.

    Raises InputError (an unknown column, a bad expression, missing keys, no head), RunMismatch (a head for another
    model, `out` is of another data set), DatasetError, OutputBusy, OutputUnwritable, DiskFull.
    """
    dataset, head = _opened(path, config)
    with exclusive(out):
        selection.begin_selection(dataset, out)
        conditions, numbers = _conditions(dataset, config, head, listen)
        kept = np.logical_and.reduce([condition.met for condition in conditions])
        rows = np.flatnonzero(kept)
        selection.write_selected(dataset, rows, out, "filter", config.materialise, config.threads, listen)
        sections = _sections(dataset, conditions, numbers, config)
        files.write_bytes(
            files.join(out, "examples.html"), pairs_page(f"What the filter keeps of {dataset.path}", sections)
        )
        report = _report(dataset, conditions, kept)
        told = {"data": files.absolute(dataset.path), "config": dataclasses.asdict(config)}
        selection.end_selection(out, {**told, **dataclasses.asdict(report)})
    return report


def plan_filter(path: str, config: FilterConfig, listen: Listener = silent, out: str | None = None) -> FilterReport:
    """What `filter` would keep, without writing anything. out: also check that output."""
    dataset, head = _opened(path, config)
    if out is not None:
        refuse_other_output(dataset, out)
    conditions, _ = _conditions(dataset, config, head, listen)
    kept = np.logical_and.reduce([condition.met for condition in conditions])
    if out is not None:
        selection.refuse_other_rows(dataset, np.flatnonzero(kept), out, "filter")
    return _report(dataset, conditions, kept)


def _opened(path: str, config: FilterConfig) -> tuple[EmbeddingDataset, Head | None]:
    """The data set and the head. Raises for invalid conditions, before anything is written."""
    dataset = EmbeddingDataset(path)
    dataset.require_rows()
    head = None
    if config.head is not None:
        dataset.require(config.modality)
        head = open_head(config.head, dataset.card, config.head_model, config.trust_old_card)
    known = column_types(dataset, head is not None)
    for text in config.where:
        parse_condition(text, known)
    if config.top is not None:
        if config.by == SCORE and SCORE not in known:
            raise OptionError("`by='score'` needs a head to score with", "Give its file with `head`")
        if config.by not in known:
            raise InputError(f"`by={config.by!r}`: no such column", did_you_mean(config.by, known))
        if not (pa.types.is_integer(known[config.by]) or pa.types.is_floating(known[config.by])):
            raise InputError(f"`by={config.by!r}`: is {known[config.by]}, not a number", "Give a column of numbers")
    return dataset, head


def _conditions(
    dataset: EmbeddingDataset, config: FilterConfig, head: Head | None, listen: Listener
) -> tuple[list[_Condition], Mapping[str, np.ndarray]]:
    """The conditions, applied, and the numbers that some of them compare, by column."""
    found = _read(dataset, config, head, listen)
    conditions = [_Condition(text, found.masks[text], found.unknown[text]) for text in config.where]
    for column, least in (("similarity", config.min_similarity), (SCORE, config.min_score)):
        if least is not None:
            conditions.append(_at_least(f"{column} >= {least:g}", column, found.numbers[column], least))
    if config.top is not None:
        conditions.append(_top(config.top, config.by, found.numbers[config.by]))
    for kept, paths in ((True, config.keys), (False, config.not_keys)):
        conditions += [_named(dataset, path, kept, config.allow_missing) for path in paths]
    return conditions, found.numbers


def _read(dataset: EmbeddingDataset, config: FilterConfig, head: Head | None, listen: Listener) -> _Rows:
    """Read the columns that the conditions need, shard by shard; each row leaves one bit or number in memory."""
    known = column_types(dataset, head is not None)
    expressions = {text: parse_condition(text, known) for text in config.where}
    compared = (("similarity", config.min_similarity), (SCORE, config.min_score), (config.by, config.top))
    numbers = {name for name, wanted in compared if wanted is not None}
    names = numbers.union(*(expression.columns for expression in expressions.values()))

    def one(shard: int) -> dict[str, pa.Array]:
        columns = values(dataset, shard, names, head, config.modality)
        rows = dataset.shards[shard].stop - dataset.shards[shard].start
        masks = {text: expression.mask(columns, rows) for text, expression in expressions.items()}
        return {**masks, **{name: columns[name] for name in numbers}}

    found = _Rows(
        {text: np.zeros(len(dataset), bool) for text in expressions},
        dict.fromkeys(expressions, 0),
        {name: np.empty(len(dataset), np.float64) for name in numbers},
    )
    shards = range(len(dataset.shards) if names or expressions else 0)
    listen(Progress(planned=len(shards)))
    for shard, columns in in_order(one, shards, config.threads):
        here = slice(dataset.shards[shard].start, dataset.shards[shard].stop)
        for text in expressions:
            found.masks[text][here] = pc.fill_null(columns[text], False).to_numpy(zero_copy_only=False)
            found.unknown[text] += columns[text].null_count
        for name in numbers:
            found.numbers[name][here] = pc.cast(columns[name], pa.float64(), safe=False).to_numpy(zero_copy_only=False)
        listen(Progress(rows=here.stop - here.start, tasks=1))
    return found


def _at_least(name: str, column: str, numbers: np.ndarray, least: float) -> _Condition:
    # Compared in the stored type: a similarity of 0.28 is a float32, while the literal 0.28 is a double.
    met = numbers.astype(np.float32) >= np.float32(least)
    return _Condition(name, met, int(np.isnan(numbers).sum()), column=column, cut=least)


def _top(share: float, column: str, numbers: np.ndarray) -> _Condition:
    """The largest numbers; of equal ones at the threshold the first rows. Rows without a number are never included."""
    known = np.flatnonzero(~np.isnan(numbers))
    count = min(len(known), round(share * len(numbers)))
    order = known[np.argsort(-numbers[known], kind="stable")]
    met = np.zeros(len(numbers), bool)
    met[order[:count]] = True
    cut = float(numbers[order[count - 1]]) if count else None
    return _Condition(f"top {share:g} by {column}", met, len(numbers) - len(known), column=column, cut=cut)


def _named(dataset: EmbeddingDataset, path: str, kept: bool, allow_missing: bool) -> _Condition:
    if not kept and files.is_folder(path):
        dropped = files.join(path, "dropped.parquet")
        both = f", or {dropped} to leave out what it dropped" if files.exists(dropped) else ""
        raise InputError(
            f"{path}: is a folder with the rows that were kept; `not_keys` leaves rows out, so it needs a file",
            f"Name {files.join(path, KEPT)} to leave out what it kept{both}, or give the folder with `keys`",
        )
    found = find_subset(dataset, path)
    if found.absent and not allow_missing:
        raise InputError(
            f"{path}: {found.absent:,} of {found.asked:,} keys are not in {dataset.path}, such as "
            f"{', '.join(found.missing)}",
            "Give a subset of this data set, or `allow_missing=True`",
        )
    met = np.full(len(dataset), not kept)
    met[found.rows] = kept
    return _Condition(f"{'in' if kept else 'not in'} {path}", met, missing=found.absent)


def _report(dataset: EmbeddingDataset, conditions: list[_Condition], kept: np.ndarray) -> FilterReport:
    unmet = np.zeros(len(dataset), np.int16)
    for condition in conditions:
        unmet += ~condition.met
    reports = tuple(
        ConditionReport(
            condition.name,
            int((~condition.met).sum()),
            condition.unknown,
            int(((unmet == 1) & ~condition.met).sum()),
            condition.missing,
        )
        for condition in conditions
    )
    return FilterReport(len(dataset), int(kept.sum()), int((~kept).sum()), reports)


def _sections(
    dataset: EmbeddingDataset, conditions: list[_Condition], numbers: Mapping[str, np.ndarray], config: FilterConfig
) -> list[Section]:
    """For each condition, some rows that it drops and some that it keeps: those nearest to its threshold, if any."""
    chosen = [_around(condition, numbers, config.examples) for condition in conditions]
    about = row_cards(dataset, np.concatenate([rows for pair in chosen for rows in pair]), config.images)
    sections = []
    for condition, pair in zip(conditions, chosen, strict=True):
        lines = [
            Line(_range(condition, numbers, some), dropped, [about[row] for row in some.tolist()])
            for dropped, rows in ((True, pair[0]), (False, pair[1]))
            for some in np.split(rows, range(_ON_A_LINE, len(rows), _ON_A_LINE))
            if len(some)
        ]
        sections.append(Section(condition.name, lines))
    return sections


def _around(condition: _Condition, numbers: Mapping[str, np.ndarray], count: int) -> tuple[np.ndarray, np.ndarray]:
    """(dropped rows, kept rows): those nearest to its threshold or, without one, a few evenly spaced ones."""
    sides = np.flatnonzero(~condition.met), np.flatnonzero(condition.met)
    if condition.column is None or condition.cut is None:
        dropped, met = (rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(np.int64)] for rows in sides)
        return dropped, met
    values = numbers[condition.column]
    below = sides[0][~np.isnan(values[sides[0]])]
    below = below[np.argsort(-values[below], kind="stable")][:count]
    above = sides[1][np.argsort(values[sides[1]], kind="stable")][:count]
    return below, above


def _range(condition: _Condition, numbers: Mapping[str, np.ndarray], rows: np.ndarray) -> str:
    what = "kept" if condition.met[rows[0]] else "dropped"
    if condition.column is None:
        return what
    values = numbers[condition.column][rows]
    return f"{what}: {condition.column} {values.min():.4g} to {values.max():.4g}"
