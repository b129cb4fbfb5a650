"""Build a faiss index from embedding shards, part by part; a killed build resumes.

Finished work is in `index/image.building/`. The new index gets a new file name, and the card, written last, makes it
current. Until then searches use the previous index.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np

from .. import files
from ..containment import refuse_outward_link
from ..load import EmbeddingDataset
from ..manifest import FileRecord
from ..mirror import Scope, at_work
from ..progress import Listener, Progress, silent
from ..store.hashed_writer import write_hashed
from . import recall
from .add import PLAN, Trained, add_parts
from .card import IndexCard, IndexedShard, ends_digest, folder_of, index_path, write_card
from .in_memory import add_whole, write_stream
from .index_file import OpenIndex, open_file
from .inverted_lists import IndexSource, ListSource, PartSource, merge_parts
from .library import faiss
from .plan import NOTHING, BuildPlan, IndexConfig, plan_for
from .train import trained_index


def build_index(path: str, config: IndexConfig | None = None, listen: Listener = silent) -> IndexCard:
    """Create or update the index of one modality of the data set `path`, stored in `path`/index.

    New shards are added, rewritten ones are replaced; an up-to-date index is left alone. If `path` is in an object
    store, the index is built in a local working folder, and then uploaded. Raises InputError (no such data set, type or
    budget), DatasetError (no rows, no such modality, a row that is not finite), OutputBusy, OutputUnwritable, DiskFull,
    StorageFailed.
    """
    config = config or IndexConfig()
    dataset = EmbeddingDataset(path)
    plan = plan_for(dataset, config)
    if plan.action == NOTHING and plan.base is not None and not _left_over(path, plan.base):
        return plan.base  # works on a read-only disk, too
    side = config.modality
    scope = Scope((f"{side}.json", f"{side}-*.faiss", f"{side}-*.npz"), rest=False, name=side)
    refuse_outward_link(path, folder_of(path))
    with at_work(folder_of(path), scope) as place:
        files.sweep_temporaries(place.folder)
        home = str(Path(place.folder).parent)
        return _carry_out(dataset, home, config, plan_for(dataset, config, home), listen)


def _carry_out(
    dataset: EmbeddingDataset, home: str, config: IndexConfig, plan: BuildPlan, listen: Listener
) -> IndexCard:
    if plan.action == NOTHING and plan.base is not None:
        _sweep(home, plan.base)  # leftovers of a run that was killed after its last step
        return plan.base
    building = files.join(folder_of(home), f"{config.modality}.building")
    _begin(building, dataset, config, plan)
    adding = sum(shard.rows for shard in plan.add)
    anew = plan.base is None or bool(plan.gone)  # then the ground truth is computed over all rows again
    listen(Progress(planned_rows=adding + (len(dataset) if anew else adding)))
    name = f"{config.modality}-{_next_number(home, config.modality):05d}.faiss"
    written, trained_on = _write_index(dataset, home, config, plan, building, name, listen)
    queries = _queries(dataset, home, config.modality, plan, anew, listen)
    location = files.join(folder_of(home), written.path)
    opened = OpenIndex(open_file(location, bool(plan.kind.lists)))
    setting = recall.tune(opened, dataset, config.modality, queries, plan.recall, plan.kind.candidates)
    with files.writing(_queries_path(home, written.path)) as stream:
        np.savez(stream, **recall.packed(queries))
    card = IndexCard(
        modality=config.modality,
        kind=plan.kind.factory,
        chosen=config.kind == "auto" and (plan.base is None or plan.base.chosen),
        metric="inner_product",
        rows=opened.rows,
        dim=dataset.card.dim,
        fingerprint=dataset.card.fingerprint(),
        shards=_all_shards(plan),
        file=written.path,
        bytes=written.bytes,
        sha256=written.sha256,
        ends=ends_digest(location, written.bytes),
        nprobe=setting.effort if plan.kind.lists else None,
        ef_search=setting.effort if not plan.kind.lists else None,
        candidates=setting.candidates,
        recall=setting.recall,
        recall_queries=len(queries[0].vectors),
        recall_target=plan.recall,
        trained_on=trained_on,
        rows_then=plan.base.rows_then if plan.base is not None else len(dataset),
        versions={"faiss": faiss.__version__, "numpy": np.__version__},
    )
    write_card(home, card)
    _sweep(home, card)
    return card


def _all_shards(plan: BuildPlan) -> tuple[IndexedShard, ...]:
    kept = [shard for shard in plan.base.shards if shard.number not in plan.gone] if plan.base is not None else []
    return tuple(sorted((*kept, *plan.add), key=lambda shard: shard.number))


def _begin(building: str, dataset: EmbeddingDataset, config: IndexConfig, plan: BuildPlan) -> None:
    """Create the build folder, and remove leftovers of another build."""
    identity = {
        "kind": plan.kind.factory,
        "training_rows": plan.kind.training_rows,
        "fingerprint": dataset.card.fingerprint(),
        "base": plan.base.sha256 if plan.base is not None else None,
        "gone": list(plan.gone),
        "rebuild": config.rebuild,
        # Parts record their shards; an in-memory index only records shard numbers.
        "shards": [dataclasses.asdict(shard) for shard in plan.add] if not plan.kind.lists else None,
    }
    place = files.join(building, PLAN)
    said = (json.dumps(identity, indent=1) + "\n").encode()
    if files.exists(place) and files.read_bytes(place) == said:
        files.sweep_temporaries(building)
        return
    _remove_folder(building)
    files.write_bytes(place, said)


def _write_index(
    dataset: EmbeddingDataset,
    home: str,
    config: IndexConfig,
    plan: BuildPlan,
    building: str,
    name: str,
    listen: Listener,
) -> tuple[FileRecord, int]:
    """Write the index file `name`; returns (what was written, the number of training rows)."""
    folder = folder_of(home)
    if plan.base is not None and not plan.add and not plan.gone:  # only the search settings change
        base = files.local_path(index_path(home, plan.base))
        return FileRecord(base.name, plan.base.bytes, plan.base.sha256), plan.base.trained_on
    if not plan.kind.lists:
        index = add_whole(dataset, home, config.modality, plan, building, listen)
        written = write_hashed(folder, name, lambda stream: write_stream(index, stream))
        return written, plan.kind.training_rows if plan.base is None else plan.base.trained_on
    trained = _trained(dataset, home, config.modality, plan, building)
    parts = add_parts(dataset, config, plan, building, trained, listen)
    sources: list[ListSource] = [PartSource(building, part) for part in parts]
    if plan.base is not None:
        before = open_file(index_path(home, plan.base), lists=True)
        sources.insert(0, IndexSource(before, plan.gone))
    empty = trained.opened()
    return write_hashed(folder, name, lambda stream: merge_parts(empty, sources, stream)), plan.kind.training_rows


def _trained(dataset: EmbeddingDataset, home: str, modality: str, plan: BuildPlan, building: str) -> Trained:
    """The trained index for encoding rows: the one being extended, or one that is trained once and stored."""
    if plan.base is not None:
        return Trained(index_path(home, plan.base), plan.base.sha256, full=True)
    place = files.join(building, "trained.faiss")
    if not files.exists(place):
        index = trained_index(plan.kind, dataset, modality)
        write_hashed(building, "trained.faiss", lambda stream: write_stream(index, stream))
    return Trained(place, files.sha256(place), full=False)


def _queries(
    dataset: EmbeddingDataset, home: str, modality: str, plan: BuildPlan, anew: bool, listen: Listener
) -> tuple[recall.Queries, ...]:
    """Queries and their true neighbours: those of the index being extended, updated for new rows, or newly drawn."""
    if not anew and plan.base is not None:
        kept = _kept_queries(home, plan.base)
        if kept:
            new = {shard.number for shard in plan.add}
            places = [place for place, shard in enumerate(dataset.shards) if shard.manifest.number in new]
            return recall.with_truth(kept, dataset, modality, places, listen) if places else kept
    return recall.with_truth(recall.draw(dataset, modality), dataset, modality, listen=listen)


def _kept_queries(home: str, base: IndexCard) -> tuple[recall.Queries, ...]:
    try:
        with np.load(files.local_path(_queries_path(home, base.file)), allow_pickle=False) as arrays:
            return recall.unpacked(arrays)
    except (OSError, ValueError, KeyError):
        return ()  # they can always be redrawn


def _queries_path(path: str, index_file: str) -> str:
    return files.join(folder_of(path), f"{index_file.removesuffix('.faiss')}.npz")


def _next_number(path: str, modality: str) -> int:
    """One more than any existing index file of that modality: a file that a search has open is never overwritten."""
    found = (re.fullmatch(rf"{modality}-(\d+)\.faiss", name) for name in files.names(folder_of(path)))
    return 1 + max((int(match[1]) for match in found if match), default=0)


def _sweep(path: str, card: IndexCard) -> None:
    """Remove the files of earlier indexes, and the build folder."""
    for location in _left_over(path, card):
        if files.is_folder(location):
            _remove_folder(location)
        else:
            files.remove(location)


def _left_over(path: str, card: IndexCard) -> list[str]:
    """Files of that modality in the index folder that are not part of the index."""
    folder = folder_of(path)
    names = rf"{card.modality}(-\d+)?\.(faiss|npz)|{card.modality}\.building"
    keep = {files.join(folder, card.file), _queries_path(path, card.file)}
    found = (files.join(folder, name) for name in files.names(folder) if re.fullmatch(names, name))
    return [location for location in found if location not in keep]


def _remove_folder(location: str) -> None:
    try:
        shutil.rmtree(files.local_path(location))
    except FileNotFoundError:
        pass
    except OSError as problem:
        raise files.unwritable(location, problem) from problem
