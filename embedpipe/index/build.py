"""Embedding shards → a faiss index, with a card that says which data it was built from."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass

import faiss
import numpy as np
import pydantic

from .. import files
from ..errors import DatasetError, InputError
from ..load import EmbeddingDataset
from ..progress import Listener, Progress, silent


@dataclass(frozen=True, slots=True)
class IndexCard:
    """What an index holds. ids are row numbers of the data set; `data` hashes the shards it was built from."""

    modality: str
    kind: str
    metric: str
    rows: int
    dim: int
    fingerprint: str
    data: str
    sha256: str
    format_version: int = 1


def index_paths(path: str, modality: str) -> tuple[str, str]:
    """Where the index of a data set and its card lie: `index/image.faiss`, `index/image.json`."""
    return files.join(path, "index", f"{modality}.faiss"), files.join(path, "index", f"{modality}.json")


def data_digest(dataset: EmbeddingDataset) -> str:
    """Hex sha256 over the numbers and checksums of all shards: what an index was built from."""
    digest = hashlib.sha256()
    for shard in dataset.shards:
        for record in shard.manifest.files:
            digest.update(f"{shard.manifest.number}\0{record.path}\0{record.sha256}\n".encode())
    return digest.hexdigest()


def build_index(path: str, modality: str = "image", listen: Listener = silent) -> IndexCard:
    """Build the exact (Flat, inner product) index of one modality of the data set `path`, beside its shards.

    An index that is up to date is left as it is. Raises DatasetError for an empty data set, one without `modality`, or
    with rows that are not of norm 1.
    """
    dataset = EmbeddingDataset(path)
    dataset.require_rows()
    dataset.require(modality)
    dataset.require_normalised(modality)
    index_path, card_path = index_paths(path, modality)
    current = read_card(path, modality)
    if current is not None and current.data == data_digest(dataset) and files.exists(index_path):
        return current
    index = faiss.IndexFlatIP(dataset.card.dim)
    listen(Progress(planned=len(dataset.shards)))
    for number, shard in enumerate(dataset.shards):
        index.add(np.asarray(dataset.array(number, modality), np.float32))
        listen(Progress(rows=shard.stop - shard.start, tasks=1))
    # The card goes first and comes back last: an index is never found under a card it does not fit.
    files.remove(card_path)
    written = files.write_bytes(index_path, faiss.serialize_index(index).tobytes())
    card = IndexCard(
        modality=modality,
        kind="Flat",
        metric="inner_product",
        rows=index.ntotal,
        dim=dataset.card.dim,
        fingerprint=dataset.card.fingerprint(),
        data=data_digest(dataset),
        sha256=written.sha256,
    )
    files.write_bytes(card_path, (json.dumps(dataclasses.asdict(card), indent=1) + "\n").encode())
    return card


def read_card(path: str, modality: str) -> IndexCard | None:
    """The card of a data set's index, or None where there is none (or none that can be read)."""
    try:
        return pydantic.TypeAdapter(IndexCard).validate_json(files.read_bytes(index_paths(path, modality)[1]))
    except (InputError, pydantic.ValidationError):
        return None


def open_index(dataset: EmbeddingDataset, modality: str) -> faiss.Index:
    """The index of `dataset`. Raises DatasetError when there is none, it is damaged, or it is not of this data."""
    card = read_card(dataset.path, modality)
    index_path, _ = index_paths(dataset.path, modality)
    remedy = f"Run `embedpipe index {dataset.path}`"
    if card is None or not files.exists(index_path):
        raise DatasetError(f"{dataset.path}: no {modality} index", remedy)
    if card.data != data_digest(dataset):
        raise DatasetError(f"{index_path}: built from other data: the data set has changed since", remedy)
    data = files.read_bytes(index_path)
    if hashlib.sha256(data).hexdigest() != card.sha256:
        raise DatasetError(f"{index_path}: damaged: its checksum does not match", f"Remove it. {remedy}")
    return faiss.deserialize_index(np.frombuffer(data, np.uint8))
