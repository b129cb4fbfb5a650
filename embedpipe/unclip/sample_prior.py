"""A trained prior (`dalle2_core`) predicts the image side of a whole data set (`embedpipe`)."""

from __future__ import annotations

import hashlib
import inspect
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dalle2_core.files import sha256
from dalle2_core.precision import computing, require_precision
from dalle2_core.priors.base import Prior
from dalle2_core.priors.registry import load_prior
from dalle2_core.priors.unclip import UnclipPrior
from dalle2_core.rng import PerSampleRNG, derived_seed
from dalle2_core.types import EmbeddedText
from embedpipe.callable_package import callable_as
from embedpipe.clip_model.encoder_card import PredictionCard
from embedpipe.errors import DatasetError, InputError, OptionError
from embedpipe.load import EmbeddingDataset
from embedpipe.mirror import local_copy
from embedpipe.predict import Predictor, PredictReport, StoredTexts, plan_predict, predict_images
from embedpipe.progress import Listener, Progress, silent
from embedpipe.ragged import RaggedRows

from .data.empty_text import empty_text_of, encoder_of_data, lacks_empty_text
from .evaluate.priors import PRIOR_RUN, refuse_another_encoder
from .runs.record import read_run_record


@dataclass(frozen=True, slots=True)
class SamplingConfig:
    """How a prior is sampled. None leaves it to the prior.

    seed: what is drawn for a row depends on it, the row's shard and its place there. steps, sampler: of diffusion.
    candidates: drawn for each text; the one nearest to it is kept. cond_scale: of guidance; 1 is none. precision: of
    matrix products, float32, tf32 or bfloat16.
    """

    seed: int = 0
    steps: int | None = None
    candidates: int | None = None
    sampler: str | None = None
    cond_scale: float = 1.0
    precision: str = "float32"

    def __post_init__(self) -> None:
        require_precision(self.precision)

    def recorded(self) -> dict[str, Any]:
        """As the card of an output has it: without the precision where that is float32, as older ones are."""
        return {name: it for name, it in asdict(self).items() if (name, it) != ("precision", "float32")}

    def keywords(self, prior: Prior) -> dict[str, Any]:
        """What is handed to `prior.sample`. Raises InputError for what a prior of its kind does not have."""
        wanted = {"steps": self.steps, "num_samples_per_batch": self.candidates, "sampler": self.sampler}
        known = inspect.signature(prior.sample).parameters
        named = {"steps": "`steps`", "num_samples_per_batch": "`candidates`", "sampler": "`sampler`"}
        for name, value in wanted.items():
            if value is not None and name not in known:
                raise InputError(f"a {prior.KIND} has no {named[name]}", f"Leave {named[name]} out")
        return {name: value for name, value in wanted.items() if value is not None} | {"cond_scale": self.cond_scale}


@dataclass(frozen=True, slots=True)
class LoadPredictor:
    """Makes a `Predictor` of a run's prior; picklable, for workers.

    batch_size: rows sampled at once. empty_text: what guidance leads away from, where the prior has to be told.
    """

    run_folder: str
    sampling: SamplingConfig
    batch_size: int
    text_tokens: bool
    empty_text: EmbeddedText | None = None

    def __call__(self, device: str) -> Predictor:
        """Load the prior on `device`."""
        prior = load_prior(self.run_folder, device).eval()
        if self.empty_text is not None and isinstance(prior, UnclipPrior):
            prior.set_null_text(self.empty_text.to(torch.device(device)))
        keywords = self.sampling.keywords(prior)
        on = torch.device(device)

        def predict(shard: str, text: StoredTexts, listen: Listener) -> np.ndarray:
            embeds, tokens = _embeddings(prior, shard, text), text.tokens
            seed = derived_seed(self.sampling.seed, "sample", shard)
            parts = []
            for start in range(0, len(embeds), self.batch_size):
                rows = slice(start, min(start + self.batch_size, len(embeds)))
                embed = torch.from_numpy(embeds[rows]).to(on)
                draws = PerSampleRNG(seed, start, len(embed), on)
                states, mask = _states(tokens, rows, on) if self.text_tokens and tokens is not None else (None, None)
                with computing(self.sampling.precision, on):
                    found = prior.sample(
                        embed, text_encodings=states, text_mask=mask, normalize=False, generator=draws, **keywords
                    )
                parts.append(found.float().cpu().numpy())
                listen(Progress(rows=len(embed)))
            return np.concatenate(parts)

        return predict


def sample_prior(
    prior: str,
    emb: str,
    out: str,
    sampling: SamplingConfig = SamplingConfig(),
    batch_size: int = 1024,
    gpus: int | None = None,
    workers: int = 1,
    listen: Listener = silent,
    trust_old_card: bool = False,
    device: str | None = None,
) -> PredictReport:
    """Predict image embeddings for all texts of the data set `emb` into the data set `out`; run again, it goes on.

    prior: a folder of `train_prior`. batch_size: rows sampled at once.
    gpus: how many CUDA devices to use; None takes all there are, 0 the CPU with so many `workers`. device: a single
    one instead, such as cuda:1.

    Raises RunMismatch where `emb` is of another encoder than the prior was trained with, or `out` was made in another
    way, InputError where the prior cannot be sampled so.
    """
    run_folder = local_copy(prior)
    text_tokens, predicted_by = _looked_at(run_folder, emb, sampling, trust_old_card)
    empty = _empty_text(run_folder, emb, sampling)
    load = LoadPredictor(run_folder, sampling, batch_size, text_tokens, empty)
    return predict_images(emb, out, predicted_by, load, _devices(gpus, workers, device), listen)


def plan_sampling(
    prior: str,
    emb: str,
    out: str,
    sampling: SamplingConfig = SamplingConfig(),
    gpus: int | None = None,
    workers: int = 1,
    trust_old_card: bool = False,
    device: str | None = None,
) -> dict[str, Any]:
    """What `sample_prior` would do, without doing it, as plain values. Raises as it does."""
    _, predicted_by = _looked_at(local_copy(prior), emb, sampling, trust_old_card)
    _devices(gpus, workers, device)
    to_predict = plan_predict(emb, out, predicted_by)
    dataset = EmbeddingDataset(emb)
    shards = len(dataset.manifests)
    return {"shards": shards, "rows": len(dataset), "to_predict": to_predict, "predicted_by": asdict(predicted_by)}


def _looked_at(
    run_folder: str, emb: str, sampling: SamplingConfig, trust_old_card: bool
) -> tuple[bool, PredictionCard]:
    """Whether the prior reads text tokens, and what the output will say of it. Raises where it is not for `emb`."""
    facts = read_run_record(run_folder, PRIOR_RUN, "train-prior")
    dataset = EmbeddingDataset(emb)
    refuse_another_encoder(run_folder, facts, dataset, trust_old_card)
    text_tokens = bool(facts["recipe"].get("text_tokens"))
    if text_tokens:
        dataset.require_text_tokens()
    return text_tokens, card_of(run_folder, sampling)


def _empty_text(run_folder: str, emb: str, sampling: SamplingConfig) -> EmbeddedText | None:
    """By the encoder of `emb`, for a prior that is to be guided and does not know it. Raises as `encoder_of` does."""
    prior = load_prior(run_folder)
    if sampling.cond_scale == 1.0 or not lacks_empty_text(prior):
        return None
    return empty_text_of(prior, encoder_of_data(EmbeddingDataset(emb)))


def card_of(run_folder: str, sampling: SamplingConfig) -> PredictionCard:
    """What a data set will say of the prior that predicted it. Raises InputError where it cannot be sampled so."""
    prior = load_prior(run_folder)
    sampling.keywords(prior)
    digest = hashlib.sha256()
    for name in ("config.json", "model.safetensors"):
        digest.update(sha256(Path(run_folder) / name).encode())
    return PredictionCard(prior.KIND, digest.hexdigest(), sampling.recorded())


def _embeddings(prior: Prior, shard: str, text: StoredTexts) -> np.ndarray:
    """float32 [n, d], as the prior takes them. Raises DatasetError where it wants raw ones and norms are not known."""
    embeds = text.embed.astype(np.float32)
    if not prior.raw:
        return embeds
    if text.norms is None:
        raise DatasetError(
            f"{shard}: this prior takes raw embeddings, and the norms of the texts were not stored",
            "Encode the data set again",
        )
    return np.asarray(embeds * text.norms[:, None])


def _states(tokens: RaggedRows, rows: slice, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    states, mask = tokens.take(np.arange(rows.start, rows.stop)).padded()
    return torch.from_numpy(states.astype(np.float32)).to(device), torch.from_numpy(mask).to(device)


def _devices(gpus: int | None, workers: int, device: str | None) -> list[str]:
    if device is not None:
        if gpus is not None or workers != 1:
            raise OptionError(
                "`device` is where a single worker samples", "Leave `gpus` and `workers` out, or `device`"
            )
        return [device]
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    wanted = there if gpus is None else gpus
    if wanted > there:
        raise InputError(
            f"{wanted} GPUs asked for, {there} found", "Give `gpus=0` and `workers=N` to sample on the CPU"
        )
    return [f"cuda:{i}" for i in range(wanted)] or ["cpu"] * workers


callable_as(__name__, ":sample_prior")
