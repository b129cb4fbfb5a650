"""Image shards (`embedpipe`) become batches for an autoencoder (`dalle2_core`)."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dalle2_core.conditions import DecoderBatch
from dalle2_core.files import sha256
from dalle2_core.training import Processes, Run, StepReport
from dalle2_core.training.vae_training import MOST_IMAGES_TO_MEASURE, train_vae
from dalle2_core.vae import VQGanVAE
from dalle2_core.vae_presets import VaeRecipe
from embedpipe import files
from embedpipe.card import PreprocessSpec
from embedpipe.errors import InputError
from embedpipe.load import rows_of
from embedpipe.load.pictures import PictureOptions, Pictures, batched, open_pictures, pictures_are_decoded
from embedpipe.load.shuffle import batches_from
from embedpipe.load.split import TRAIN, VALID
from embedpipe.progress import Listener, silent

from .prior_scores import some_of
from .provenance import write_run
from .run_folder import run_folder
from .wiring import SplitConfig

VAE_RUN = "vae"
_CACHE = "cache"
_MOST_ROWS_TO_JUDGE = 500
_ROWS_AT_ONCE = 32
_LOOK_EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class VaeSource:
    """How DATA is read: see `PictureOptions`. vgg: file of VGG16's weights for a perceptual loss, or None."""

    input: str
    max_pixels: int
    vgg: str | None = None


@dataclass(frozen=True, slots=True)
class VaeOutcome:
    """What train-vae did. best_step: the checkpoint that was kept; metrics: its evaluation on held-out pictures.

    rejects: samples left out, by reason.
    """

    out: str
    steps: int
    best_step: int
    train_rows: int
    valid_rows: int
    parameters: int
    downsampling: int
    latent_channels: int
    rejects: dict[str, int]
    metrics: dict[str, float]


def train_vae_on(
    data: str,
    out: str,
    recipe: VaeRecipe,
    split: SplitConfig,
    source: VaeSource,
    device: str,
    preparing: Callable[[str], AbstractContextManager[Listener]],
    training: Callable[[], AbstractContextManager[Callable[[StepReport], None] | None]],
    together: Processes,
) -> VaeOutcome | None:
    """Train an autoencoder on the pictures of `data` into the folder `out`, any fsspec url; run again, it goes on.

    preparing, training: open the display of decoding, and that of the training's steps. Under torchrun every process
    calls it; all but the first return None.

    Raises InputError (no data, fewer pictures than a batch), ConfigError, CheckpointError (`out` holds another run),
    NonFiniteLoss.
    """
    if recipe.vae.channels != 3:
        raise InputError(f"vae.channels is {recipe.vae.channels}, but pictures of files have 3", "Leave it at 3")
    if together.world > 1:
        device = str(together.device)
    with run_folder(out, together) as place:
        torch.manual_seed(recipe.train.seed)
        vae = VQGanVAE.from_config(recipe.vae, source.vgg).to(device)
        pictures = _decoded(data, place.folder, _options(recipe, split, source), preparing, together)
        rows = {name: rows_of(pictures.splits, name, data) for name in (TRAIN, VALID)}
        _refuse_few(data, len(rows[TRAIN]), recipe)
        facts = {
            "recipe": dataclasses.asdict(recipe),
            "split": dataclasses.asdict(split),
            "data": data,
            "vgg_sha256": None if source.vgg is None else sha256(Path(source.vgg)),
            "pictures": pictures.fingerprint,
        }
        shaping = {name: facts[name] for name in ("split", "vgg_sha256", "pictures")}
        start, stop = together.share(recipe.train.batch_size)

        def stream(step: int) -> Iterator[DecoderBatch]:
            for batch in batches_from(rows[TRAIN], recipe.train.batch_size, recipe.train.seed, step):
                yield DecoderBatch(_pixels(pictures, batch[start:stop]))

        with training() as on_step:
            trained = train_vae(
                vae,
                stream,
                [_pixels(pictures, some) for some in batched(some_of(rows[VALID], _MOST_ROWS_TO_JUDGE), _ROWS_AT_ONCE)],
                (
                    _pixels(pictures, some)
                    for some in batched(some_of(rows[TRAIN], MOST_IMAGES_TO_MEASURE), _ROWS_AT_ONCE)
                ),
                Run(Path(place.folder), shaping, place.commit),
                recipe.train,
                recipe.optim,
                on_step=on_step,
                processes=together,
            )
        if trained is None:
            return None
        outcome = VaeOutcome(
            out=out,
            steps=trained.steps,
            best_step=trained.best_step,
            train_rows=len(rows[TRAIN]),
            valid_rows=len(rows[VALID]),
            parameters=sum(weight.numel() for weight in vae.parameters()),
            downsampling=vae.downsampling,
            latent_channels=vae.latent_channels,
            rejects=pictures.rejects,
            metrics=trained.metrics,
        )
        write_run(place.folder, VAE_RUN, facts | dataclasses.asdict(outcome))
    return outcome


def _options(recipe: VaeRecipe, split: SplitConfig, source: VaeSource) -> PictureOptions:
    size = recipe.vae.image_size
    spec = PreprocessSpec(
        size=(size, size),
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        interpolation="bicubic",
        resize_mode="shortest",
        fill_color=0,
    )
    return PictureOptions(
        spec, split.column, split.valid_share, input=source.input, max_pixels=source.max_pixels, need_caption=False
    )


def _decoded(
    data: str,
    out: str,
    options: PictureOptions,
    preparing: Callable[[str], AbstractContextManager[Listener]],
    together: Processes,
) -> Pictures:
    """The pictures, decoded by the first process; the others wait for them."""
    cache = files.join(out, _CACHE)
    if together.is_first:
        with preparing("decode") as listener:
            return open_pictures(data, cache, options, listener)
    # Not by `together.wait`: what processes say to each other has time limits, and decoding may take hours.
    while not pictures_are_decoded(data, cache, options):
        time.sleep(_LOOK_EVERY_S)
    return open_pictures(data, cache, options, silent)


def _pixels(pictures: Pictures, rows: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pictures.pixels[rows])


def _refuse_few(data: str, rows: int, recipe: VaeRecipe) -> None:
    if recipe.train.batch_size > rows:
        raise InputError(
            f"{data}: {rows} training pictures are fewer than a batch of {recipe.train.batch_size}",
            f"Give --set train.batch_size={max(1, rows // 4)}",
        )
