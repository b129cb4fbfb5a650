"""How good priors are on held-out rows of an embedding data set: one while it trains, or any number side by side."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dalle2_core.priors.base import Prior
from dalle2_core.priors.closed_form import BASELINES
from dalle2_core.priors.registry import load_prior
from dalle2_core.rng import PerSampleRNG, derived_seed
from dalle2_core.training import Comparison, compare_priors, evaluate_prior, validation_loss
from dalle2_core.types import PriorBatch, Trainable
from embedpipe.errors import DatasetError, InputError, RunMismatch
from embedpipe.load import EmbeddingDataset, rows_of_split, splits
from embedpipe.load.split import TRAIN, VALID
from embedpipe.mirror import local_copy

from ..data.prior_batches import PriorRows
from ..data.row_policy import RowPolicy
from ..data.token_states import token_states
from ..device import default_device
from ..runs.record import made_for, read_run_record

PRIOR_RUN = "prior"

# Scaling statistics and regressions settle long before this many rows.
MOST_ROWS_TO_FIT = 200_000
_ROWS_AT_ONCE = 4096


def sample_rows(rows: np.ndarray, most: int) -> np.ndarray:
    """All rows, or `most` of them drawn with a fixed seed, ascending."""
    if len(rows) <= most:
        return rows
    return np.sort(np.random.default_rng(0).choice(rows, most, replace=False))


def predict(
    prior: Prior, batches: Iterable[PriorBatch], seed: int, device: str, cond_scale: float = 1.0
) -> torch.Tensor:
    """Predicted image embeddings [n, d] as sampled, not normalised.

    What is drawn for a row depends on the seed and its place among all rows, not on how they are cut into batches.
    """
    parts = []
    done = 0
    for batch in batches:
        for start in range(0, len(batch), _ROWS_AT_ONCE):
            part = batch.part(start, min(start + _ROWS_AT_ONCE, len(batch))).to(torch.device(device))
            draws = PerSampleRNG(derived_seed(seed, "predict"), done, len(part), torch.device(device))
            parts.append(
                prior.sample(
                    part.text_embed,
                    text_encodings=part.text_tokens,
                    text_mask=part.text_mask,
                    cond_scale=cond_scale,
                    normalize=False,
                    generator=draws,
                )
            )
            done += len(part)
    return torch.cat(parts)


def watch(model: Any, batches: Sequence[PriorBatch], seed: int, device: str) -> dict[str, float]:
    """Held-out loss, where the model has one, and how good samples are, with the same draws each time."""
    on_device = [batch.to(torch.device(device)) for batch in batches]
    loss = {}
    if isinstance(model, Trainable):
        loss = {"loss": validation_loss(model, on_device, torch.device(device), seed=seed)}
    predicted = predict(model, on_device, seed, device)
    text, image = (torch.cat([getattr(b, name) for b in on_device]) for name in ("text_embed", "image_embed"))
    scores = evaluate_prior(predicted, image, text, seed=seed)
    return loss | {name: float(value) for name, value in dataclasses.asdict(scores).items() if name != "n"}


def evaluate_priors(
    runs: str | Sequence[str],
    emb: str,
    split_name: str = VALID,
    device: str | None = None,
    seed: int = 0,
    cond_scale: float = 1.0,
    trust_old_card: bool = False,
) -> Comparison:
    """The priors of some runs (a folder, or several) beside the baselines, on the rows of `emb` in a split.

    Baselines are fitted on the training rows of `emb`, split as the runs' were. seed: of the priors' samples.
    cond_scale: of guidance; 1 is none. Raises RunMismatch when `emb` was made by another encoder than a run's data, or
    the runs do not agree on what was held out.
    """
    device = device or default_device()
    run_folders = [local_copy(folder) for folder in ([runs] if isinstance(runs, str) else runs)]
    dataset = EmbeddingDataset(emb)
    dataset.require_rows()
    records = {folder: read_run_record(folder, PRIOR_RUN, "train-prior") for folder in run_folders}
    for folder, facts in records.items():
        refuse_another_encoder(folder, facts, dataset, trust_old_card)
    split, policy = _agreed(records)
    names = splits(dataset, split["column"], split["valid_share"])
    plain = PriorRows(dataset, policy)
    rows = plain.checked(rows_of_split(names, split_name, emb))
    if len(rows) < 2:
        raise DatasetError(f"{emb}: one row in the split {split_name!r}; two or more are needed to compare")
    fit_text, fit_image = plain.pairs(plain.checked(sample_rows(rows_of_split(names, TRAIN, emb), MOST_ROWS_TO_FIT)))
    text, image = plain.pairs(rows)

    predictions = {}
    for folder, title in _titles(records).items():
        prior = load_prior(folder, device).eval()
        tokens = token_states(dataset, device) if records[folder]["recipe"].get("text_tokens") else None
        seen = PriorRows(dataset, policy, tokens)
        scale = cond_scale if _can_be_guided(records[folder]) else 1.0
        predictions[title] = predict(prior, seen.batches(rows), seed, device, scale).cpu()
        _refuse_another_width(folder, predictions[title], image)
    for name, baseline in BASELINES.items():
        if name not in predictions:
            predictions[name] = baseline().fit(fit_text, fit_image).predict(text)
    return compare_priors(predictions, image, text, seed=seed)


def refuse_another_encoder(
    folder: str, facts: Mapping[str, Any], dataset: EmbeddingDataset, trust_old_card: bool = False
) -> None:
    """Raise RunMismatch unless `dataset` holds embeddings, not predicted, of the encoder the run's prior knows."""
    if dataset.card.predicted_by is not None:
        raise RunMismatch(
            f"{dataset.path}: its image embeddings were predicted by a {dataset.card.predicted_by.kind}",
            "Give the data set they were predicted for",
        )
    if not made_for(folder, facts, dataset.path, dataset.card, trust_old_card):
        raise RunMismatch(
            f"{folder}: trained on embeddings of another encoder ({facts['encoder']['model']}) than {dataset.path} "
            f"holds ({dataset.card.model})",
            "Give the data set it was trained on, or one of the same encoder",
        )


def _agreed(runs: Mapping[str, Mapping[str, Any]]) -> tuple[dict[str, Any], RowPolicy]:
    """The split and the policy that all runs were trained with; the defaults where there are none."""
    found: dict[str, Any] = {}
    for folder, facts in runs.items():
        settings = {"split": facts["split"], "rows": facts.get("rows", {})}
        if found and found["settings"] != settings:
            raise RunMismatch(
                f"{folder}: trained on another split ({settings['split']}) than {found['folder']} "
                f"({found['settings']['split']}): what one held out, the other may have seen",
                "Compare runs of the same split",
            )
        found = found or {"folder": folder, "settings": settings}
    settings = found["settings"] if found else {"split": {"column": None, "valid_share": 0.05}, "rows": {}}
    return settings["split"], RowPolicy(**settings["rows"])


def _titles(runs: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """What each run is called in a table: `prior` where it is alone, else its folder's name, or its path."""
    if len(runs) == 1:
        return {next(iter(runs)): "prior"}
    names = [Path(folder).name for folder in runs]
    return {folder: name if names.count(name) == 1 else folder for folder, name in zip(runs, names, strict=True)}


def _can_be_guided(facts: Mapping[str, Any]) -> bool:
    return str(facts["recipe"].get("prior", "diffusion")) not in BASELINES


def _refuse_another_width(folder: str, predicted: torch.Tensor, image: torch.Tensor) -> None:
    if predicted.shape != image.shape:
        raise InputError(f"{folder}: predicts {predicted.shape[1]} values, the embeddings have {image.shape[1]}")
