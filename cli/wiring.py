"""Where the two rooms meet: embeddings on disk (`embedpipe`) become batches for models (`dalle2_core`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dalle2_core.baselines import BASELINES
from dalle2_core.presets import PriorRecipe
from dalle2_core.prior import DiffusionPrior
from dalle2_core.training import (
    Comparison,
    Run,
    StepReport,
    compare,
    evaluate_prior,
    load_trained,
    train,
    validation_loss,
)
from dalle2_core.types import PriorBatch
from embedpipe.errors import DatasetError, InputError, RunMismatch
from embedpipe.load import EmbeddingDataset, EmbeddingLoader, RaggedColumn, rows_of, splits
from embedpipe.load.split import TRAIN, VALID
from embedpipe.lock import exclusive
from embedpipe.types import EmbeddingBatch

from .provenance import read_run, write_run

PRIOR_RUN = "prior"

# Scaling statistics and baselines settle long before this many rows.
_MOST_ROWS_TO_FIT = 200_000
_MOST_ROWS_TO_WATCH = 1000
_NORM_TOLERANCE = 0.01
# Rows whose token states are padded together where all rows of a split are looked at.
_ROWS_WITH_TOKENS = 256


@dataclass(frozen=True, slots=True)
class SplitConfig:
    """Which rows train and which are held out: a metadata column's values, or a share by a hash of the key."""

    column: str | None = None
    valid_share: float = 0.05


@dataclass(frozen=True, slots=True)
class PriorOutcome:
    """What train-prior did. best_step: the checkpoint that was kept; metrics: its evaluation on held-out rows."""

    out: str
    steps: int
    best_step: int
    train_rows: int
    valid_rows: int
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
    on_step: Callable[[StepReport], None],
) -> PriorOutcome:
    """Train a prior on the embeddings `emb` into the folder `out`; run again, it goes on.

    Raises DatasetError (no rows, one side missing, rows that are not finite or not of norm 1), CheckpointError (`out`
    holds another run), NonFiniteLoss.
    """
    dataset = EmbeddingDataset(emb)
    dataset.require_rows()
    names = splits(dataset, split.column, split.valid_share)
    train_rows, valid_rows = rows_of(names, TRAIN, emb), rows_of(names, VALID, emb)
    if recipe.train.batch_size > len(train_rows):
        raise InputError(
            f"{emb}: {len(train_rows)} training rows are fewer than a batch of {recipe.train.batch_size}",
            f"Give --set train.batch_size={max(1, len(train_rows) // 4)}",
        )
    tokens = _tokens(dataset, recipe) if recipe.text_tokens else None
    fit_text, fit_image = _pairs(dataset, _sample(train_rows, _MOST_ROWS_TO_FIT))
    watched = list(_batches(dataset, tokens, _sample(valid_rows, _MOST_ROWS_TO_WATCH)))

    with exclusive(out):
        torch.manual_seed(recipe.train.seed)
        prior = recipe.build(dataset.card.dim)
        prior.fit_scaling(fit_text, fit_image)
        prior.to(device)
        loader = EmbeddingLoader(dataset, train_rows, recipe.train.batch_size, recipe.train.seed, recipe.text_tokens)
        facts = {
            "recipe": dataclasses.asdict(recipe),
            "split": dataclasses.asdict(split),
            "data": emb,
            "encoder": dataclasses.asdict(dataset.card),
            "fingerprint": dataset.card.fingerprint(),
            "train_rows": len(train_rows),
            "valid_rows": len(valid_rows),
        }
        run = Run(Path(out), describes=_describes(facts))

        def evaluate(model: Any) -> dict[str, float]:
            return _watch(model, watched, recipe.train.seed, device)

        state = train(
            prior,
            lambda step: map(_prior_batch, loader.batches(step)),
            run,
            recipe.train,
            recipe.optim,
            evaluate=evaluate,
            on_step=on_step,
        )
        best_step = load_trained(prior, run.checkpoints, "best")
        prior.eval()
        prior.save(out)
        write_run(out, PRIOR_RUN, facts | {"best_step": best_step})
        metrics = evaluate(prior)
    parameters = sum(weight.numel() for weight in prior.parameters())
    return PriorOutcome(out, state.step, best_step, len(train_rows), len(valid_rows), parameters, metrics)


def _describes(facts: dict[str, Any]) -> dict[str, Any]:
    """What must stay the same for a run to be continued, besides the training settings."""
    recipe = facts["recipe"]
    return {
        "network": recipe["network"],
        "diffusion": recipe["diffusion"],
        "split": facts["split"],
        "fingerprint": facts["fingerprint"],
        "train_rows": facts["train_rows"],
        # Absent rather than false: runs begun before there was this setting go on without it.
        **({"text_tokens": True} if recipe["text_tokens"] else {}),
    }


def _prior_batch(batch: EmbeddingBatch) -> PriorBatch:
    assert batch.text is not None
    assert batch.image is not None
    return PriorBatch(
        torch.from_numpy(batch.text),
        torch.from_numpy(batch.image),
        torch.from_numpy(batch.text_tokens) if batch.text_tokens is not None else None,
        torch.from_numpy(batch.text_mask) if batch.text_mask is not None else None,
    )


def _tokens(dataset: EmbeddingDataset, recipe: PriorRecipe) -> RaggedColumn:
    """The token states. Raises DatasetError where there are none, InputError where the network cannot take them."""
    column = dataset.require_text_tokens()
    network = recipe.network.for_embeddings(dataset.card.dim)
    if column.width != network.dim:
        raise InputError(
            f"{dataset.path}: text tokens are {column.width} wide, but network.dim is {network.dim}",
            f"Give --set network.dim={column.width}",
        )
    longest = int(column.lengths().max(initial=0))
    if longest > network.max_text_len:
        raise InputError(
            f"{dataset.path}: the longest text has {longest} tokens, but network.max_text_len is "
            f"{network.max_text_len}",
            f"Give --set network.max_text_len={longest}",
        )
    return column


def _batches(dataset: EmbeddingDataset, tokens: RaggedColumn | None, rows: np.ndarray) -> Iterator[PriorBatch]:
    """Some rows in order: all at once without tokens, else in parts. Raises DatasetError, see `_pairs`."""
    if tokens is None:
        yield PriorBatch(*_pairs(dataset, rows))
        return
    for start in range(0, len(rows), _ROWS_WITH_TOKENS):
        part = rows[start : start + _ROWS_WITH_TOKENS]
        states, mask = tokens.batch(part)
        yield PriorBatch(*_pairs(dataset, part), torch.from_numpy(states.astype(np.float32)), torch.from_numpy(mask))


def _watch(model: DiffusionPrior, batches: list[PriorBatch], seed: int, device: str) -> dict[str, float]:
    """Held-out loss, and how good samples are, with the same draws each time."""
    on_device = [batch.to(torch.device(device)) for batch in batches]
    loss = validation_loss(model, on_device, torch.device(device), seed=seed)
    predicted = predict(model, on_device, seed, device)
    text, image = (torch.cat([getattr(b, name) for b in on_device]) for name in ("text_embed", "image_embed"))
    scores = evaluate_prior(predicted, image, text, seed=seed)
    numbers = {name: float(value) for name, value in dataclasses.asdict(scores).items() if name != "n"}
    return {"loss": loss, **numbers}


def predict(
    prior: DiffusionPrior,
    batches: Iterable[PriorBatch],
    seed: int,
    device: str,
    cond_scale: float = 1.0,
    rows_at_once: int = 4096,
) -> torch.Tensor:
    """Predicted image embeddings [n, d] as sampled (not normalised), best of two, drawn from `seed`."""
    generator = torch.Generator(device).manual_seed(seed)

    def sample(
        text: torch.Tensor, states: torch.Tensor | None = None, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        return prior.sample(
            text,
            text_encodings=states,
            text_mask=mask,
            cond_scale=cond_scale,
            normalize=False,
            generator=generator,
        )

    parts = []
    for batch in (batch.to(torch.device(device)) for batch in batches):
        if batch.text_tokens is None:
            parts += [sample(part) for part in torch.split(batch.text_embed, rows_at_once)]
        else:
            parts.append(sample(batch.text_embed, batch.text_tokens, batch.text_mask))
    return torch.cat(parts)


def evaluate_priors(
    run_folder: str, emb: str, split_name: str, device: str, seed: int = 0, cond_scale: float = 1.0
) -> Comparison:
    """The prior of a run beside the baselines, on the rows of `emb` in the split `split_name`.

    Baselines are fitted on the training rows of `emb`, split as the run's were. Raises RunMismatch when `emb` was made
    by another encoder than the run's data.
    """
    facts = read_run(run_folder, PRIOR_RUN, "train-prior")
    dataset = EmbeddingDataset(emb)
    dataset.require_rows()
    if facts["fingerprint"] != dataset.card.fingerprint():
        raise RunMismatch(
            f"{run_folder}: trained on embeddings of another encoder ({facts['encoder']['model']}) than {emb} holds "
            f"({dataset.card.model})",
            "Give the data set it was trained on, or one of the same encoder",
        )
    split = SplitConfig(**facts["split"])
    names = splits(dataset, split.column, split.valid_share)
    rows = rows_of(names, split_name, emb)
    if len(rows) < 2:
        raise DatasetError(f"{emb}: one row in the split {split_name!r}; two or more are needed to compare")
    fit_text, fit_image = _pairs(dataset, _sample(rows_of(names, TRAIN, emb), _MOST_ROWS_TO_FIT))
    text, image = _pairs(dataset, rows)

    prior = DiffusionPrior.load(run_folder, device).eval()
    tokens = dataset.require_text_tokens() if facts["recipe"].get("text_tokens") else None
    predictions = {"prior": predict(prior, _batches(dataset, tokens, rows), seed, device, cond_scale).cpu()}
    for name, baseline in BASELINES.items():
        predictions[name] = baseline().fit(fit_text, fit_image).predict(text)
    return compare(predictions, image, text, seed=seed)


def _sample(rows: np.ndarray, most: int) -> np.ndarray:
    """All rows, or `most` of them drawn with a fixed seed, ascending."""
    if len(rows) <= most:
        return rows
    return np.sort(np.random.default_rng(0).choice(rows, most, replace=False))


def _pairs(dataset: EmbeddingDataset, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Text and image embeddings of some rows, float32 [n, d]. Raises DatasetError for rows no model should see."""
    text, image = (dataset.require(side)[rows].astype(np.float32) for side in ("text", "image"))
    for side, array in (("text", text), ("image", image)):
        broken = int((~np.isfinite(array).all(axis=1)).sum())
        if broken:
            raise DatasetError(f"{dataset.path}: {broken} {side} rows hold NaN or infinity", "Run `embedpipe verify`")
        off = int((np.abs(np.linalg.norm(array, axis=1) - 1) > _NORM_TOLERANCE).sum())
        if off:
            raise DatasetError(f"{dataset.path}: {off} {side} rows are not of norm 1", "Encode them again")
    return torch.from_numpy(text), torch.from_numpy(image)
