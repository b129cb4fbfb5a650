"""Plan an index build: create an index, add to the existing one, or do nothing."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field

from ..errors import OptionError
from ..execute import Cluster
from ..load import EmbeddingDataset
from ..load.row_blocks import can_look_up
from ..plural import plural
from .card import IndexCard, IndexedShard, index_path, indexed_shards, read_card
from .index_file import index_faults
from .index_types import KINDS, IndexType, choose_index_type, parse_bytes
from .train import tried

DEFAULT_RECALL = 0.95
NOTHING, BUILD, ADD = "nothing", "build", "add"
_LEAST_MEMORY = 256 << 20
_PART_ROWS = 1_000_000


@dataclass(frozen=True, slots=True)
class IndexConfig:
    """modality: image or text. kind: auto, a name in KINDS, or a faiss factory string. memory: the budget, such as 8G.

    recall: recall@10 that searches should reach; None: as before, or DEFAULT_RECALL. rebuild: start over, whatever
    exists. executor: a name in EXECUTORS or auto, to encode rows for inverted lists with `workers` workers; cluster:
    its address, for ray. An in-memory index is built by this process alone.
    """

    modality: str = "image"
    kind: str = "auto"
    memory: str = "4G"
    recall: float | None = None
    rebuild: bool = False
    executor: str = "auto"
    workers: int = 1
    cluster: Cluster = field(default_factory=Cluster)

    def __post_init__(self) -> None:
        if self.recall is not None and not 0 < self.recall <= 1:
            raise OptionError(f"`recall={self.recall}`: must be above 0 and at most 1")
        if self.memory_bytes < _LEAST_MEMORY:
            raise OptionError(f"`memory={self.memory!r}`: an index is not built in less than 256M", "Give more")

    @property
    def memory_bytes(self) -> int:
        """The budget in bytes."""
        return parse_bytes(self.memory)

    @property
    def sharing(self) -> int:
        """How many workers share the budget: on a cluster each has its own."""
        return 1 if self.executor == "ray" else self.workers


@dataclass(frozen=True, slots=True)
class BuildPlan:
    """action: nothing, build or add; why: the reason. kind: the index type.

    add: shards to add. gone: numbers of shards to remove, since they were rewritten or no longer exist. rows: in the
    index afterwards. index_bytes: its approximate size. part_rows: rows between two commits. recall: the target. base:
    the card of the index to extend.
    """

    action: str
    why: str
    kind: IndexType
    add: tuple[IndexedShard, ...]
    gone: tuple[int, ...]
    rows: int
    index_bytes: int
    part_rows: int
    recall: float
    base: IndexCard | None


def plan_index(path: str, config: IndexConfig | None = None) -> BuildPlan:
    """What `build_index` would do. Raises as `build_index` does."""
    return plan_for(EmbeddingDataset(path), config or IndexConfig())


def plan_for(dataset: EmbeddingDataset, config: IndexConfig, home: str | None = None) -> BuildPlan:
    """What a build would do for an opened data set. Raises InputError, DatasetError.

    home: the location whose `index` folder is used; None for the data set's own.
    """
    home = home or dataset.path
    dataset.require_rows()
    dataset.require(config.modality)
    dataset.require_normalised(config.modality)
    card = None if config.rebuild else read_card(home, config.modality)
    look_up = can_look_up(dataset)
    chosen = choose_index_type(config.kind, len(dataset), dataset.card.dim, config.memory_bytes, look_up)
    why = "a rebuild was requested" if config.rebuild else f"no {config.modality} index yet"
    if card is not None:
        why = _why_not_kept(dataset, home, card, config, chosen, look_up)
    if card is None or why:
        chosen = tried(chosen, dataset.card.dim)
        return _plan(BUILD, why, chosen, indexed_shards(dataset), (), dataset, config, None)
    kept = _kept_kind(card, chosen, look_up)
    have, want = {shard.number: shard for shard in card.shards}, indexed_shards(dataset)
    add = tuple(shard for shard in want if have.get(shard.number) != shard)
    stays = {shard.number for shard in want} - {shard.number for shard in add}
    gone = tuple(number for number in have if number not in stays)
    if gone and not kept.lists:
        why = f"shards {_listed(gone)} were made again or are gone, and {card.kind} cannot forget rows"
        return _plan(BUILD, why, chosen, want, (), dataset, config, None)
    if not add and not gone and config.recall in (None, card.recall_target):
        return _plan(NOTHING, "it is up to date", kept, (), (), dataset, config, card)
    said = [f"{plural(len(add), 'shard')} to add"] * bool(add) + [f"shards {_listed(gone)} to forget"] * bool(gone)
    why = ", ".join(said) or f"recall {config.recall} is asked for now, not {card.recall_target:g}"
    return _plan(ADD, why, kept, add, gone, dataset, config, card)


def _plan(
    action: str,
    why: str,
    kind: IndexType,
    add: tuple[IndexedShard, ...],
    gone: tuple[int, ...],
    dataset: EmbeddingDataset,
    config: IndexConfig,
    base: IndexCard | None,
) -> BuildPlan:
    size = kind.index_bytes(len(dataset), dataset.card.dim)
    # A part in memory: its codes and ids, unsorted and sorted.
    rows = config.memory_bytes // config.sharing // 8 // (2 * (max(kind.row_bytes, 64) + 16))
    recall = config.recall or (base.recall_target if base is not None else DEFAULT_RECALL)
    return BuildPlan(action, why, kind, add, gone, len(dataset), size, min(_PART_ROWS, rows), recall, base)


def _why_not_kept(
    dataset: EmbeddingDataset, home: str, card: IndexCard, config: IndexConfig, chosen: IndexType, look_up: bool
) -> str:
    """Why the existing index cannot be extended; empty if it can."""
    if card.fingerprint != dataset.card.fingerprint() or card.dim != dataset.card.dim:
        return "the one there is of another model's embeddings"
    faults = index_faults(home, card)
    if faults:
        return faults[0].removeprefix(index_path(home, card)).removeprefix(": ") or faults[0]
    if card.candidates and not look_up:
        return "the one there compares found rows again, and rows cannot be looked up one by one here"
    if config.kind == "auto":
        # An automatically chosen small type is reconsidered as the data grow; a trained one is kept.
        outgrown = card.chosen and "IVF" not in card.kind and chosen.factory != card.kind
        return f"the data have outgrown {card.kind}" if outgrown else ""
    same = _family(chosen.factory) == _family(card.kind) if config.kind in KINDS else chosen.factory == card.kind
    return "" if same else f"{config.kind} is asked for, the one there is {card.kind}"


def _family(factory: str) -> str:
    """A type without its sizes: an index with 1,024 lists keeps its type even if 2,048 would be chosen now."""
    return re.sub(r"\d+", "", factory.replace("_HNSW32", ""))


def _kept_kind(card: IndexCard, chosen: IndexType, look_up: bool) -> IndexType:
    lists = re.search(r"IVF(\d+)", card.kind)
    count = int(lists[1]) if lists else 0
    row_bytes = max(1, (card.bytes - count * card.dim * 4) // max(1, card.rows))
    return dataclasses.replace(
        chosen,
        factory=card.kind,
        lists=count,
        row_bytes=row_bytes,
        training_rows=card.trained_on,
        candidates=bool(lists) and look_up,
    )


def _listed(numbers: tuple[int, ...]) -> str:
    shown = ", ".join(map(str, numbers[:5]))
    return f"{shown} …" if len(numbers) > 5 else shown
