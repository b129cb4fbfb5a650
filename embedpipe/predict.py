"""Derive a data set with predicted image embeddings: same rows, same text embeddings.

The caller provides the prediction function (a prior, unknown to this package). Shards are committed and resumed like
those of `encode`.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch

from . import files, manifest
from .clip_model.encoder_card import PredictionCard
from .columns import IMAGE_NORM, MEASURED, TEXT_NORM, measured
from .errors import DatasetError, RunMismatch
from .execute import Task, WorkerLoop, one_by_one, open_executor, see_only, torch_threads
from .load import EmbeddingDataset
from .lock import exclusive
from .manifest import EMBEDDINGS, RunCard, ShardManifest
from .progress import CutCaptions, Listener, Progress, TaskReport, silent
from .ragged import RaggedRows
from .store import open_format
from .store.cleanup import sweep_dataset_temporaries, sweep_leftovers
from .taken_down import refuse_interrupted
from .types import EmbeddingShard

_OTHER_RUN = "Give the same as before, or another output folder"


@dataclass(frozen=True, slots=True)
class StoredTexts:
    """The texts of a shard: embeddings [n, dim] as stored, their norms [n] and the states of their tokens, if known."""

    embed: np.ndarray
    norms: np.ndarray | None
    tokens: RaggedRows | None


class Predictor(Protocol):
    """Image embeddings for the texts of one shard."""

    def __call__(self, shard: str, text: StoredTexts, listen: Listener) -> np.ndarray:
        """float32 [n, dim], not normalised, for the texts of a shard; deterministic.

        shard: the name of the input shard. listen: receives progress.
        """
        ...


@dataclass(frozen=True, slots=True)
class PredictReport:
    """The result of a run of `predict_images`. already: shards committed before. rows: in the whole output.

    cut: captions that were truncated to the encoder's context_length when the data set was encoded.
    """

    shards: int
    already: int
    rows: int
    cut: CutCaptions
    context_length: int
    seconds: float


def predict_images(
    emb: str,
    out: str,
    predicted_by: PredictionCard,
    load: Callable[[str], Predictor],
    devices: Sequence[str] = ("cpu",),
    listen: Listener = silent,
) -> PredictReport:
    """Write the data set `out`: the rows of `emb` with predicted image embeddings. A repeated run resumes.

    load: creates a predictor on a device, once per worker; picklable if there are several devices.

    Raises DatasetError (`emb` has no text embeddings), RunMismatch (`out` was made from other data, by another prior or
    with other sampler options), OutputBusy, DiskFull.
    """
    begun = time.perf_counter()
    source = _opened(emb)
    with exclusive(out):
        refuse_interrupted(out)
        run = _run_card(out, source, predicted_by)
        committed, broken = _committed(out, run, source)
        for number in broken:
            manifest.retract(out, number, run.shard_digits)
        todo = [
            Task(entry.number, entry.source.name, None) for entry in source.manifests if entry.number not in committed
        ]
        sweep_dataset_temporaries(out)
        sweep_leftovers(out, run.shard_digits, [task.number for task in todo])
        manifest.write_run(out, manifest.with_pending(out, run))
        rows = {entry.number: entry.rows_out for entry in source.manifests}
        listen(Progress(planned=len(todo), planned_rows=sum(rows[task.number] for task in todo)))
        threads = max(1, len(os.sched_getaffinity(0)) // len(devices))
        work = PredictWork(emb, out, run, load, tuple(devices), threads)
        outcome = open_executor("auto", len(devices)).run(work, todo, listen)
        manifest.settle(out)
        if outcome.failed_tasks:
            raise DatasetError(f"{emb}: {outcome.failed_tasks[0].reason}", "Run `embedpipe verify` on it")
    return PredictReport(
        shards=len(source.manifests),
        already=len(committed),
        rows=sum(rows.values()),
        cut=sum((entry.cut() for entry in source.manifests), CutCaptions()),
        context_length=source.card.context_length,
        seconds=time.perf_counter() - begun,
    )


def plan_predict(emb: str, out: str, predicted_by: PredictionCard) -> list[int]:
    """The numbers of the shards that `predict_images` would predict. Raises as `predict_images` does."""
    source = _opened(emb)
    run = _run_card(out, source, predicted_by)
    whole, _ = _committed(out, run, source)
    return [entry.number for entry in source.manifests if entry.number not in whole]


def _opened(emb: str) -> EmbeddingDataset:
    source = EmbeddingDataset(emb)
    source.require("text")
    if source.card.predicted_by is not None:
        raise DatasetError(f"{emb}: its image embeddings were predicted already", "Give the data set they came from")
    return source


class PredictWork:
    """A worker factory, picklable if `load` is."""

    def __init__(
        self,
        emb: str,
        out: str,
        run: RunCard,
        load: Callable[[str], Predictor],
        devices: tuple[str, ...],
        threads: int,
    ) -> None:
        assert run.encoder is not None
        self._emb = emb
        self._out = out
        self._run = run
        self._card = run.encoder
        self._load = load
        self._devices = devices
        self._threads = threads
        self._in_own_process = False

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_in_own_process": True}

    def start(self, worker: int) -> WorkerLoop:
        """Load the predictor on this worker's device and open the data set."""
        device = see_only(self._devices[worker]) if self._in_own_process else self._devices[worker]
        # A single worker runs in the caller's process, with the caller's number of threads.
        threads = self._threads if len(self._devices) > 1 else torch.get_num_threads()
        with torch_threads(threads):
            predict = self._load(device)
        source = EmbeddingDataset(self._emb)

        def do(task: Task, listen: Listener) -> TaskReport:
            with torch_threads(threads):
                return self._do(source, predict, task.number, listen)

        return one_by_one(do)

    def _do(self, source: EmbeddingDataset, predict: Predictor, number: int, listen: Listener) -> TaskReport:
        place = {shard.manifest.number: i for i, shard in enumerate(source.shards)}.get(number)
        entry = next(it for it in source.manifests if it.number == number)
        begun = time.perf_counter()
        if place is None:  # all rows were rejected
            written: tuple[manifest.FileRecord, ...] = ()
        else:
            shard = self._shard(source, predict, place, listen)
            store = open_format(str(self._run.options["format"]))
            written = store.write(self._out, shard, entry.source.name, self._run.columns, self._run.shard_digits)
        done = ShardManifest(
            number=number,
            source=entry.source,
            source_sha256=_digest(entry),
            rows_in=entry.rows_out,
            rows_out=entry.rows_out,
            rows_rejected=0,
            rejects={},
            files=written,
            dim=self._card.dim,
            dtype=self._card.dtype,
            fingerprint=self._card.fingerprint(),
            captions_cut=entry.captions_cut,
            tokens_cut=entry.tokens_cut,
            timing_s={"all": round(time.perf_counter() - begun, 3)},
        )
        manifest.commit(self._out, done, self._run.shard_digits)
        return TaskReport(tasks=1, rows=entry.rows_out, bytes=done.bytes())

    def _shard(self, source: EmbeddingDataset, predict: Predictor, place: int, listen: Listener) -> EmbeddingShard:
        entry = source.shards[place].manifest
        text = np.array(source.array(place, "text"))
        tokens = source.token_states(place) if source.text_tokens is not None else None
        texts = StoredTexts(text, _norms_of(source, place), tokens)
        image = predict(entry.source.name, texts, listen)
        if image.shape != text.shape or not np.isfinite(image).all():
            raise DatasetError(
                f"{self._emb}: shard {entry.number}: the prior gave no finite {text.shape} for its texts"
            )
        raw = torch.from_numpy(image)
        image = torch.nn.functional.normalize(raw, dim=-1).numpy().astype(self._card.dtype)
        metadata: dict[str, list[Any]] = source.metadata(place).to_pydict()
        metadata["similarity"] = np.einsum("nd,nd->n", image, text, dtype=np.float32).tolist()
        if IMAGE_NORM in measured(self._run.columns):
            metadata[IMAGE_NORM] = torch.linalg.vector_norm(raw, dim=-1).tolist()
        return EmbeddingShard(entry.number, image, text, metadata, ())


def _norms_of(source: EmbeddingDataset, place: int) -> np.ndarray | None:
    """float32 [n] of a shard's texts; None where they were not stored."""
    table = source.metadata(place)
    if TEXT_NORM not in table.column_names or table.column(TEXT_NORM).null_count:
        return None
    return np.asarray(table.column(TEXT_NORM).to_numpy(), np.float32)


def _run_card(out: str, source: EmbeddingDataset, predicted_by: PredictionCard) -> RunCard:
    """The run card of `out`. Raises RunMismatch if it was started with other inputs or options."""
    card = replace(source.card, predicted_by=predicted_by)
    options = {"images": True, "texts": True, "format": source.run.options.get("format", "npy")}
    before = manifest.read_run(out)
    if before is None:
        if manifest.committed_numbers(out):
            raise RunMismatch(f"{out}: has manifests but no embedpipe.json", "Give another output folder")
        return replace(
            source.run,
            options=options,
            columns={IMAGE_NORM: MEASURED[IMAGE_NORM], **source.run.columns},
            encoder=card,
            source=files.absolute(source.path),
            token_width=None,
        )
    if before.format != EMBEDDINGS or before.encoder is None:
        raise RunMismatch(f"{out}: holds {before.format}, not {EMBEDDINGS}", "Give another output folder")
    if before.encoder.predicted_by is None:
        raise RunMismatch(f"{out}: holds embeddings of real images", "Give another output folder")
    manifest.refuse_difference(out, before.encoder.facts(), card.facts(), "encoder, prior or sampling", _OTHER_RUN)
    manifest.refuse_difference(out, before.options, options, "set of options", _OTHER_RUN)
    names = [[shard.name for shard in run.plan] for run in (before, source.run)]
    if names[0] != names[1][: len(names[0])]:
        raise RunMismatch(f"{out}: was predicted from other shards than {source.path} holds", _OTHER_RUN)
    return replace(before, plan=source.run.plan)


def _committed(out: str, run: RunCard, source: EmbeddingDataset) -> tuple[set[int], set[int]]:
    """(committed shards, damaged shards with missing or truncated files, to be predicted again)."""
    there = {entry.number: entry for entry in source.manifests}
    committed: set[int] = set()
    broken: set[int] = set()
    for number in manifest.committed_numbers(out):
        entry = manifest.read_manifest(out, number, run.shard_digits)
        if number in there and entry.source_sha256 != _digest(there[number]):
            raise RunMismatch(
                f"{out}: shard {number} of {source.path} has changed since it was predicted",
                f"Give another output folder, or remove {out}/manifest/"
                f"{manifest.shard_name(number, run.shard_digits)}.json to redo it",
            )
        whole = number not in there or manifest.files_are_there(out, entry)
        (committed if whole else broken).add(number)
    return committed, broken


def _digest(entry: ShardManifest) -> str:
    """Hex sha256 of the file records in a shard's manifest: identifies its contents without reading them."""
    digest = hashlib.sha256()
    for record in entry.files:
        digest.update(f"{record.path}\0{record.sha256}\n".encode())
    return digest.hexdigest()
