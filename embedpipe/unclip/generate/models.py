"""The models that make pictures: a prior's run, a decoder's run, and the encoder that both were trained for."""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dalle2_core import Decoder, load_decoder, load_prior
from dalle2_core.dalle2 import check_pair
from dalle2_core.decoder.loading import VAE
from dalle2_core.errors import ConfigError
from dalle2_core.files import sha256
from dalle2_core.precision import computing, require_precision
from dalle2_core.priors.base import Prior
from embedpipe import files
from embedpipe.clip_model.encoder_card import BEFORE_ACTIVATION, EncoderCard, card_from
from embedpipe.clip_model.spec import ModelOptions
from embedpipe.encode import Encoder
from embedpipe.errors import DatasetError, InputError, OptionError, RunMismatch
from embedpipe.images.decode import DecodedImage, decode
from embedpipe.index import encoder_of

from ..evaluate.priors import PRIOR_RUN
from ..runs.record import RUN_FILE, made_for, read_run_record
from .outputs import png
from .pretrained.folder import PipelineFolder, is_pretrained

logger = logging.getLogger(__name__)
STAGE_RUN = "decoder-stage"
_PICTURES_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class Models:
    """Where the models are.

    decoder: a folder of train-decoder, or diffusers:FOLDER or diffusers:ORG/NAME, then opened as `pipeline`. prior: one
    of train-prior, or None. model, pretrained: where the encoder is now, if not where it was, or if no run says which
    it is. device: that all of them run on. options: what a checkpoint file does not say of itself. trust_old_card: take
    a run of version 0.1 for one of the same encoder where all else agrees. precision: of matrix products of prior and
    decoder, float32, tf32 or bfloat16; the encoder has its own.
    Of a decoder of diffusers: offload: "model" keeps each of its networks in the machine's memory but for its turn,
    "sequential" each layer; decoder_dtype: that it computes in; auto is float16 on CUDA and float32 elsewhere.
    image_size: pixels of a side, None for its own. image_norm: mean norm of the encoder's image embeddings before they
    are normalised, for a prior or embeddings of norm 1; None takes what is stored.
    """

    decoder: str
    prior: str | None = None
    model: str | None = None
    pretrained: str | None = None
    device: str = "cpu"
    options: ModelOptions = field(default_factory=ModelOptions)
    trust_old_card: bool = False
    decoder_dtype: str = "auto"
    image_size: int | None = None
    image_norm: float | None = None
    pipeline: PipelineFolder | None = None
    offload: str = "none"
    precision: str = "float32"

    def __post_init__(self) -> None:
        require_precision(self.precision)
        if self.pipeline is not None:
            if self.precision != "float32":
                raise OptionError("`precision` is not for a decoder of diffusers", "Give `decoder_dtype`")
            return
        of_pipelines = {"decoder_dtype": "auto", "image_size": None, "image_norm": None, "offload": "none"}
        for name, usual in of_pipelines.items():
            if getattr(self, name) != usual:
                raise OptionError(f"`{name}` is for a decoder of diffusers", "Leave it out")


@dataclass(frozen=True, slots=True)
class OpenedModels:
    """The models, opened. encoder: loads it when it is first called. facts: what they are, as plain values."""

    decoder: Decoder
    prior: Prior | None
    encoder: Callable[[], Encoder]
    prior_reads_text: bool
    device: str
    precision: str = "float32"
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def reads_text(self) -> bool:
        """Whether the decoder is told the text's tokens besides the image embedding."""
        return any(stage.unet.config.cond_on_text_encodings for stage in self.decoder.cascade)


def text_is_read(parts: OpenedModels) -> bool:
    """Whether anything reads the states of a text's tokens."""
    return parts.reads_text or parts.prior_reads_text


OnDoing = Callable[[str], None]
"""Hears what goes on, such as the loading of a model."""


def unheard(doing: str) -> None:
    """An `OnDoing` that tells nobody."""


def open_models(models: Models, on_doing: OnDoing = unheard) -> OpenedModels:
    """Load prior and decoder, and find out which encoder they belong to.

    Raises InputError or CheckpointError for folders that hold none, RunMismatch where they are of different encoders.
    """
    prior_facts = None
    if models.prior is not None:
        prior_facts = read_run_record(models.prior, PRIOR_RUN, "train-prior")
    of_decoder = decoder_facts(models.decoder)
    _refuse_different(models, prior_facts, of_decoder)
    on_doing(f"loading the decoder {models.decoder}")
    decoder = load_decoder(models.decoder, device=models.device).eval()
    # Of these alone: the encoder, which is asked in between, computes as its data set was encoded.
    compute = computing(models.precision, models.device)
    prior = None
    if models.prior is not None:
        on_doing(f"loading the prior {models.prior}")
        prior = load_prior(models.prior, models.device).eval()
        try:
            check_pair(prior, decoder)
        except ConfigError as problem:
            raise RunMismatch(f"{models.prior} and {models.decoder}: {problem}") from problem
        prior.sample = compute(prior.sample)  # type: ignore[method-assign]
    decoder.sample = compute(decoder.sample)  # type: ignore[method-assign]
    known = prior_facts or of_decoder
    return OpenedModels(
        decoder=decoder,
        prior=prior,
        encoder=functools.cache(lambda: encoder_for(models, known, on_doing)),
        prior_reads_text=bool((prior_facts or {}).get("recipe", {}).get("text_tokens")),
        device=models.device,
        precision=models.precision,
        facts=_facts(models, prior, decoder, known),
    )


def encoded_pictures(encoder: Encoder, images: Tensor) -> Tensor:
    """Embeddings [n, d] of images [n, c, h, w] in [0, 1], on the CPU: as `encode` would embed them, stored as PNG."""
    parts = []
    for some in torch.split(images, _PICTURES_AT_ONCE):
        decoded = [decode(png(image), encoder.card.preprocess, encoder.card.rules) for image in some]
        pixels = torch.stack([it.pixels for it in decoded if isinstance(it, DecodedImage)])
        assert len(pixels) == len(some)
        parts.append(torch.from_numpy(encoder.images(pixels).wait().rows))
    return torch.cat(parts)


def decoder_facts(folder: str) -> dict[str, Any] | None:
    """What the first stage's run says; None for a decoder that says nothing: saved from Python, or of diffusers."""
    if is_pretrained(folder):
        return None
    if not files.exists(folder):
        raise InputError(f"{folder}: no such folder", "Check the path")
    stage = files.join(folder, "stage-1")
    if not files.exists(files.join(stage, RUN_FILE)):
        return None
    return read_run_record(stage, STAGE_RUN, "train-decoder")


def _refuse_different(models: Models, prior: dict[str, Any] | None, decoder: dict[str, Any] | None) -> None:
    if prior is None or decoder is None or prior["fingerprint"] == decoder["fingerprint"]:
        return
    card = card_of_run(models, prior)
    if not made_for(models.decoder, decoder, str(models.prior), card, models.trust_old_card):
        raise RunMismatch(
            f"{models.prior} and {models.decoder}: trained on embeddings of different encoders "
            f"({prior['encoder']['model']} and {decoder['encoder']['model']})",
            "Give a prior and a decoder of one encoder",
        )


def encoder_for(models: Models, known: dict[str, Any] | None, on_doing: OnDoing) -> Encoder:
    """The encoder that a run's facts name, or that `models` does. Raises as `encoder_of` does."""
    name = models.model if known is None else models.model or str(known["encoder"].get("model"))
    on_doing(f"loading the encoder {name}")
    try:
        return _encoder(models, known)
    finally:
        on_doing("making pictures")


def _encoder(models: Models, known: dict[str, Any] | None) -> Encoder:
    if known is not None:
        card, where = card_of_run(models, known), _name(models)
        if card.dated:
            logger.warning("%s: %s: its encoder is built as version 0.1 built it", where, BEFORE_ACTIVATION)
        return encoder_of(card, where, models.model, models.pretrained, models.device, options=models.options)
    if models.model is None:
        raise InputError(
            f"{models.decoder}: does not say which encoder its image embeddings are of", "Give `model` and `pretrained`"
        )
    from embedpipe.encode import EncoderConfig, load_encoder

    return load_encoder(EncoderConfig(models.model, models.pretrained or "", options=models.options), models.device)


def card_of_run(models: Models, known: dict[str, Any]) -> EncoderCard:
    """The card of the encoder that a run's facts name. Raises DatasetError where they name none."""
    try:
        return card_from(known["encoder"]).of_encoder()
    except (KeyError, ValueError) as problem:
        raise DatasetError(f"{_name(models)}: its {RUN_FILE} names no encoder: {problem}") from problem


def _name(models: Models) -> str:
    return models.prior or models.decoder


def _facts(models: Models, prior: Prior | None, decoder: Decoder, known: dict[str, Any] | None) -> dict[str, Any]:
    stages = range(1, len(decoder.cascade) + 1)
    return {
        "prior": None
        if prior is None or models.prior is None
        else {"folder": models.prior, "kind": prior.KIND, "sha256": model_digest(Path(models.prior))},
        "decoder": {
            "folder": models.decoder,
            "image_sizes": [stage.config.image_size for stage in decoder.cascade],
            "sha256": [model_digest(Path(models.decoder) / f"stage-{number}") for number in stages],
        },
        "encoder": None if known is None else known["encoder"],
        "device": models.device,
        "precision": models.precision,
    }


def model_digest(folder: Path) -> str:
    """Of a model's configuration and weights, and of the autoencoder's in whose latents it works."""
    digest = hashlib.sha256()
    autoencoder = sorted(path for path in (folder / VAE).rglob("*") if path.is_file())
    for path in (folder / "config.json", folder / "model.safetensors", *autoencoder):
        digest.update(sha256(path).encode())
    return digest.hexdigest()
