"""How good priors are on held-out rows of an embedding data set: one while it trains, or any number side by side."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dalle2_core.precision import computing, require_precision
from dalle2_core.priors.base import Prior
from dalle2_core.priors.closed_form import BASELINES
from dalle2_core.priors.registry import load_prior
from dalle2_core.rng import PerSampleRNG, derived_seed
from dalle2_core.training import Comparison, compare_priors, evaluate_prior, validation_loss
from dalle2_core.types import PriorBatch, Trainable
from embedpipe.errors import DatasetError, InputError, RunMismatch
from embedpipe.load import EmbeddingDataset
from embedpipe.load.split import VALID
from embedpipe.mirror import local_copy
from embedpipe.plural import plural

from ..data.empty_text import encoder_of_data, teach_empty_text
from ..data.prior_batches import PriorRows
from ..data.row_policy import RowPolicy
from ..data.token_states import token_states
from ..device import default_device
from ..runs.record import made_for, read_run_record
from ..runs.split import SplitConfig
from .held_out_rows import held_out_rows

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
    prior: Prior,
    batches: Iterable[PriorBatch],
    seed: int,
    device: str,
    cond_scale: float = 1.0,
    precision: str = "float32",
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
            with computing(precision, device):
                sampled = prior.sample(
                    part.text_embed,
                    text_encodings=part.text_tokens,
                    text_mask=part.text_mask,
                    cond_scale=cond_scale,
                    normalize=False,
                    generator=draws,
                )
            parts.append(sampled.float())
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
    split_column: str | None = None,
    valid_share: float | None = None,
    common: bool = False,
    precision: str = "float32",
) -> Comparison:
    """The priors of some runs (a folder, or several) beside the baselines, on the rows of `emb` in a split.

    Baselines are fitted on the training rows of `emb`, split as the runs' were, or by `split_column`, or a hash that
    holds out `valid_share`. seed: of the priors' samples. cond_scale: of guidance; 1 is none. common: compare on the
    rows that all runs held out. precision: of the runs' matrix products, float32, tf32 or bfloat16.

    Without `common` RunMismatch is raised when a run was trained on some of these rows, or the
    runs were split in different ways; and always when `emb` was made by another encoder than a run's data.
    """
    device = device or default_device()
    require_precision(precision)
    run_folders = [local_copy(folder) for folder in ([runs] if isinstance(runs, str) else runs)]
    dataset = EmbeddingDataset(emb)
    dataset.require_rows()
    records = {folder: read_run_record(folder, PRIOR_RUN, "train-prior") for folder in run_folders}
    for folder, facts in records.items():
        refuse_another_encoder(folder, facts, dataset, trust_old_card)
    asked = None
    if split_column is not None or valid_share is not None:
        asked = SplitConfig(split_column, 0.05 if valid_share is None else valid_share)
    held = held_out_rows(records, dataset, split_name, asked, common)
    policy = _agreed_policy(records)
    plain = PriorRows(dataset, policy)
    rows = plain.checked(held.rows)
    if len(rows) < 2:
        raise DatasetError(
            f"{emb}: {plural(len(rows), 'row')} to compare on in the split {split_name!r}; two or more are needed"
        )
    fit_text, fit_image = plain.pairs(plain.checked(sample_rows(held.fit, MOST_ROWS_TO_FIT)))
    text, image = plain.pairs(rows)

    predictions = {}
    for folder, title in _titles(records).items():
        prior = load_prior(folder, device).eval()
        tokens = token_states(dataset, device) if records[folder]["recipe"].get("text_tokens") else None
        seen = PriorRows(dataset, policy, tokens).for_raw(prior.raw)
        scale = cond_scale if _can_be_guided(records[folder]) else 1.0
        if scale != 1.0:
            teach_empty_text(prior, lambda: encoder_of_data(dataset))
        predictions[title] = predict(prior, seen.batches(rows), seed, device, scale, precision).cpu()
        _refuse_another_width(folder, predictions[title], image)
    for name, baseline in BASELINES.items():
        if name not in predictions:
            fitted = baseline().fit(fit_text, fit_image)
            predictions[name] = fitted.sample(text, normalize=False)  # as runs are, so that norms compare
    return dataclasses.replace(compare_priors(predictions, image, text, seed=seed), notes=held.notes)


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


def _agreed_policy(runs: Mapping[str, Mapping[str, Any]]) -> RowPolicy:
    """The policy that all runs were trained with; the default where there are none."""
    found = {folder: RowPolicy(**facts.get("rows", {})) for folder, facts in runs.items()}
    first = next(iter(found), None)
    for folder, policy in found.items():
        if first is not None and policy != found[first]:
            raise RunMismatch(
                f"{folder}: trained with {policy}, {first} with {found[first]}", "Compare runs of the same"
            )
    return RowPolicy() if first is None else found[first]


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
