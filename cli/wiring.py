"""Where the two rooms meet: embeddings on disk (`embedpipe`) become batches for models (`dalle2_core`)."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from dalle2_core.presets import PriorRecipe
from dalle2_core.prior_base import Prior
from dalle2_core.priors import PRIORS
from dalle2_core.training import Processes, Run, StepReport, join_processes, load_trained, train
from dalle2_core.types import PriorBatch, Trainable
from embedpipe import files
from embedpipe.errors import InputError, RunMismatch
from embedpipe.load import EmbeddingLoader, rows_of, splits
from embedpipe.load.split import TRAIN, VALID
from embedpipe.lock import exclusive
from embedpipe.manifest import refuse_difference

from .nonfinite import naming_rows
from .prior_rows import PriorRows, open_rows
from .prior_scores import MOST_ROWS_TO_FIT, PRIOR_RUN, some_of, watch
from .provenance import RUN_FILE, read_run, write_run
from .row_policy import RowPolicy

_MOST_ROWS_TO_WATCH = 1000


@dataclass(frozen=True, slots=True)
class SplitConfig:
    """Which rows train and which are held out: a metadata column's values, or a share by a hash of the key."""

    column: str | None = None
    valid_share: float = 0.05


@dataclass(frozen=True, slots=True)
class PriorOutcome:
    """What train-prior did. best_step: the checkpoint that was kept; metrics: its evaluation on held-out rows.

    steps and best_step are 0 for a prior in closed form. dropped: rows left out because they were not finite.
    """

    out: str
    prior: str
    steps: int
    best_step: int
    train_rows: int
    valid_rows: int
    dropped: int
    parameters: int
    metrics: dict[str, float]


def default_device() -> str:
    """The first CUDA device, or the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def train_prior(
    emb: str,
    out: str,
    recipe: PriorRecipe,
    split: SplitConfig,
    device: str,
    on_step: Callable[[StepReport], None] | None = None,
    policy: RowPolicy | None = None,
    processes: Processes | None = None,
) -> PriorOutcome | None:
    """Train a prior on the embeddings `emb` into the folder `out`; run again, it goes on.

    Under torchrun every process calls it; all but the first return None.

    Raises DatasetError (no rows, one side missing, rows that are not finite or not of norm 1), InputError (fewer rows
    than a batch, token states that do not fit), CheckpointError (`out` holds another run, the disk is full),
    NonFiniteLoss (its rows are named in a file in `out`).
    """
    if not files.is_local(out):
        raise InputError(f"{out}: training writes to a local folder", "Give a path on this machine")
    together = processes or join_processes(device)
    if together.world > 1:
        device = str(together.device)
    seen = open_rows(emb, recipe, policy or RowPolicy(), device, together.is_first)
    names = splits(seen.dataset, split.column, split.valid_share)
    there = {name: rows_of(names, name, emb) for name in (TRAIN, VALID)}
    good = seen.checked(np.sort(np.concatenate(list(there.values()))))
    rows = {name: np.intersect1d(found, good, assume_unique=True) for name, found in there.items()}
    _refuse_few(emb, rows, recipe, trained=hasattr(PRIORS[recipe.prior], "loss"))
    watched = list(seen.batches(some_of(rows[VALID], _MOST_ROWS_TO_WATCH)))

    with exclusive(out) if together.is_first else contextlib.nullcontext():
        torch.manual_seed(recipe.train.seed)
        prior: Prior = recipe.build(seen.dataset.card.dim)
        prior.fit(*seen.pairs(some_of(rows[TRAIN], MOST_ROWS_TO_FIT)))
        prior.to(device)
        facts = {
            "recipe": dataclasses.asdict(recipe),
            "split": dataclasses.asdict(split),
            "rows": dataclasses.asdict(seen.policy),
            "data": emb,
            "encoder": dataclasses.asdict(seen.dataset.card),
            "fingerprint": seen.dataset.card.fingerprint(),
            "train_rows": len(rows[TRAIN]),
            "valid_rows": len(rows[VALID]),
        }
        if together.is_first:
            _refuse_another_run(out, facts, trained=isinstance(prior, Trainable))
        steps = best_step = 0
        if isinstance(prior, Trainable):
            run = Run(Path(out), describes=_describes(facts))
            judge = functools.partial(watch, batches=watched, seed=recipe.train.seed, device=device)
            steps = _learn(prior, seen, rows[TRAIN], run, recipe, judge, on_step, together)
            if together.is_first:
                best_step = load_trained(prior, run.checkpoints, "best")
        if not together.is_first:
            return None
        prior.eval()
        prior.save(out)
        write_run(out, PRIOR_RUN, facts | {"best_step": best_step})
        metrics = watch(prior, watched, recipe.train.seed, device)
    return PriorOutcome(
        out=out,
        prior=recipe.prior,
        steps=steps,
        best_step=best_step,
        train_rows=len(rows[TRAIN]),
        valid_rows=len(rows[VALID]),
        dropped=sum(len(there[name]) - len(rows[name]) for name in rows),
        parameters=sum(weight.numel() for weight in (*prior.parameters(), *_fitted(prior))),
        metrics=metrics,
    )


def _learn(
    prior: Prior,
    seen: PriorRows,
    rows: np.ndarray,
    run: Run,
    recipe: PriorRecipe,
    judge: Callable[[Any], dict[str, float]],
    on_step: Callable[[StepReport], None] | None,
    together: Processes,
) -> int:
    """Train on some rows of the data; the steps that are done then."""
    loader = functools.partial(
        EmbeddingLoader,
        seen.dataset,
        rows,
        recipe.train.batch_size,
        recipe.train.seed,
        text_tokens=recipe.text_tokens and seen.dataset.text_tokens is not None,
    )
    mine = loader(rank=together.rank, world=together.world)

    def rows_of_step(step: int) -> np.ndarray:
        found = next(loader().batches(step)).rows
        assert found is not None
        return found

    with naming_rows(str(run.folder), seen.dataset, rows_of_step, together):
        state = train(
            cast("Trainable[PriorBatch]", prior),
            lambda step: map(seen.prior_batch, mine.batches(step)),
            run,
            recipe.train,
            recipe.optim,
            evaluate=judge,
            on_step=on_step if together.is_first else None,
            processes=together,
        )
    return state.step


def _refuse_another_run(out: str, facts: dict[str, Any], trained: bool) -> None:
    """Raise RunMismatch where `out` holds another prior; checkpoints are the training's own to compare."""
    if files.exists(files.join(out, RUN_FILE)):
        found = read_run(out, PRIOR_RUN, "train-prior")
        refuse_difference(out, _describes(found), _describes(facts), "recipe or data")
    elif not trained and files.exists(files.join(out, "checkpoints")):
        raise RunMismatch(f"{out}: holds a training of another prior", "Give another output folder")


def _refuse_few(emb: str, rows: Mapping[str, np.ndarray], recipe: PriorRecipe, trained: bool) -> None:
    if trained and recipe.train.batch_size > len(rows[TRAIN]):
        raise InputError(
            f"{emb}: {len(rows[TRAIN])} training rows are fewer than a batch of {recipe.train.batch_size}",
            f"Give --set train.batch_size={max(1, len(rows[TRAIN]) // 4)}",
        )
    if len(rows[VALID]) < 2:
        raise InputError(
            f"{emb}: {len(rows[VALID])} held-out rows; two or more are needed", "Give a larger --valid-share"
        )


def _fitted(prior: Prior) -> list[torch.Tensor]:
    """What a prior in closed form has instead of parameters."""
    return [] if isinstance(prior, Trainable) else [it for it in prior.buffers() if it is not None]


def _describes(facts: dict[str, Any]) -> dict[str, Any]:
    """What must stay the same for a run to be continued, besides the training settings."""
    recipe, usual = facts["recipe"], dataclasses.asdict(PriorRecipe())
    # Absent rather than said: runs begun before there was a setting go on without it.
    shaping = {
        name: value
        for name, value in recipe.items()
        if name in ("network", "diffusion") or (name not in ("train", "optim") and value != usual[name])
    }
    rows = {"rows": facts["rows"]} if facts["rows"] != dataclasses.asdict(RowPolicy()) else {}
    return shaping | rows | {name: facts[name] for name in ("split", "fingerprint", "train_rows")}
