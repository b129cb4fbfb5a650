"""Named, complete configurations of a decoder. All values are plain JSON: a file or a command line can change each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch

from dalle2_core.autoencoders.base import Autoencoder
from dalle2_core.decoder.stage import DecoderStage
from dalle2_core.decoder.stage_config import LowresConfig, StageConfig
from dalle2_core.errors import ConfigError
from dalle2_core.keywords import chosen
from dalle2_core.networks.unet import Unet
from dalle2_core.networks.unet_config import UnetConfig
from dalle2_core.presets import DECODER_PRESETS
from dalle2_core.rng import derived_seed
from dalle2_core.training.config import TrainConfig
from dalle2_core.training.optim import OptimConfig


@dataclass(frozen=True, slots=True)
class StageRecipe:
    """Everything the training of one stage is told, besides the data.

    What follows from the stage's place and the data is filled in: channels, the smaller image's size, widths of
    embeddings and tokens. network.cond_on_image_embeds None: told the image embedding if it is the first.
    text_tokens: read the states of the captions' tokens, too (network.cond_on_text_encodings, without their width).
    """

    network: UnetConfig
    stage: StageConfig
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    text_tokens: bool = False

    @property
    def reads_text(self) -> bool:
        """Whether token states are a condition."""
        return self.text_tokens or self.network.cond_on_text_encodings


@dataclass(frozen=True, slots=True)
class DecoderRecipe:
    """The stages of a decoder, the smallest first. Raises ConfigError if their sizes do not grow."""

    stages: tuple[StageRecipe, ...]

    def __post_init__(self) -> None:
        if not self.stages:
            raise ConfigError("a decoder needs one stage or more")
        sizes = [it.stage.image_size for it in self.stages]
        if any(small >= large for small, large in pairwise(sizes)):
            raise ConfigError(
                f"the stages' sizes {', '.join(map(str, sizes))} do not grow; order them from small to large"
            )

    def part(self, number: int) -> StageRecipe:
        """Stage `number`, from 1. Raises ConfigError if there is none such."""
        if not 1 <= number <= len(self.stages):
            raise ConfigError(f"there is no stage {number}; this decoder has stages 1 to {len(self.stages)}")
        return self.stages[number - 1]

    def changed(self, **values: Sequence[Any]) -> DecoderRecipe:
        """With other sizes, dims, timesteps or objectives: one value, or one for each stage.

        Several sizes decide how many stages there are; further ones are like the last. Raises ConfigError otherwise.
        """
        sizes = values.get("sizes", ())
        count = len(sizes) or len(self.stages)
        stages = [*self.stages, *[self.stages[-1]] * count][:count]
        if count > len(self.stages) == 1:
            stages = [stages[0], *(_as_upsampler(it) for it in stages[1:])]
        given = {name: _spread(name, of_each, count) for name, of_each in values.items() if of_each}
        for name, of_each in given.items():
            stages = [_CHANGES[name](it, value) for it, value in zip(stages, of_each, strict=True)]
        if sizes:
            stages = [stages[0], *(_from_size(it, before) for it, before in zip(stages[1:], sizes, strict=False))]
        return DecoderRecipe(tuple(stages))

    def fitted(self, number: int, embed_dim: int, token_width: int | None, vae: Autoencoder | None) -> StageRecipe:
        """Stage `number` with what follows from its place, the data and its autoencoder.

        embed_dim: width of the image embeddings. token_width: of the text tokens, None where there are none. Raises
        ConfigError if the recipe says something else.
        """
        recipe = self.part(number)
        network, config = recipe.network, recipe.stage
        sees = number == 1 if network.cond_on_image_embeds is None else network.cond_on_image_embeds
        channels = 3 if vae is None else vae.latent_channels
        widths = {
            "channels": (channels, network.channels if network.channels != 3 else None),
            "channels_out": (channels * (2 if config.learned_variance else 1), network.channels_out),
            "image_embed_dim": (embed_dim if sees else None, network.image_embed_dim),
            "text_embed_dim": (token_width if recipe.reads_text else None, network.text_embed_dim),
        }
        for name, (there, asked) in widths.items():
            if asked is not None and there not in (None, asked):
                raise ConfigError(f"stage {number}: network.{name} is {asked}, but its data and place ask for {there}")
        filled: dict[str, Any] = {name: there for name, (there, _) in widths.items()}
        lowres = self._lowres(number)
        return replace(
            recipe,
            stage=replace(config, lowres=lowres),
            network=replace(
                network,
                **filled,
                cond_on_image_embeds=sees,
                cond_on_text_encodings=recipe.reads_text,
                lowres_cond=lowres is not None,
                lowres_noise_cond=network.lowres_noise_cond and lowres is not None,
            ),
        )

    def _lowres(self, number: int) -> LowresConfig | None:
        """What a stage starts from. Raises ConfigError if that is not what the one before makes."""
        lowres = self.part(number).stage.lowres
        if number == 1:
            if lowres is not None:
                raise ConfigError("stage 1 is the first and starts from noise alone; leave stage.lowres out")
            return None
        before = self.part(number - 1).stage.image_size
        if lowres is None:
            return LowresConfig(before)
        if lowres.size != before:
            raise ConfigError(
                f"stage {number} starts from an image of {lowres.size} pixels (stage.lowres.size), but stage "
                f"{number - 1} makes one of {before}; `sizes` sets both"
            )
        return lowres

    def build(
        self, number: int, embed_dim: int, token_width: int | None = None, vae: Autoencoder | None = None
    ) -> DecoderStage:
        """A new stage for such data, the same weights whether or not others are built. Raises ConfigError."""
        recipe = self.fitted(number, embed_dim, token_width, vae)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed(recipe.train.seed, "stage", number))
            return DecoderStage(Unet.from_config(recipe.network), recipe.stage, vae)


def _as_upsampler(recipe: StageRecipe) -> StageRecipe:
    return replace(recipe, stage=replace(recipe.stage, learned_variance=False))


def _spread(name: str, values: Sequence[Any], count: int) -> list[Any]:
    if len(values) not in (1, count) or (name == "sizes" and len(values) != count):
        raise ConfigError(f"{name}: {len(values)} values for {count} stages; give one, or one for each")
    return list(values) * (count if len(values) == 1 else 1)


def _sized(recipe: StageRecipe, size: int) -> StageRecipe:
    # The smaller image's size comes later; it must not be in the way.
    lowres = None if recipe.stage.lowres is None else replace(recipe.stage.lowres, size=1)
    crop = recipe.stage.random_crop_size
    cropped = None if crop is None or crop >= size else crop
    return replace(recipe, stage=replace(recipe.stage, image_size=size, lowres=lowres, random_crop_size=cropped))


def _from_size(recipe: StageRecipe, before: int) -> StageRecipe:
    lowres = recipe.stage.lowres
    if lowres is None or before >= recipe.stage.image_size:
        return recipe  # The sizes do not grow, which the decoder's recipe refuses.
    return replace(recipe, stage=replace(recipe.stage, lowres=replace(lowres, size=before)))


_CHANGES: dict[str, Any] = {
    "sizes": _sized,
    "dims": lambda recipe, dim: replace(recipe, network=replace(recipe.network, dim=dim)),
    "timesteps": lambda recipe, steps: replace(
        recipe,
        stage=replace(recipe.stage, timesteps=steps, sample_timesteps=min(steps, recipe.stage.sample_timesteps or 50)),
    ),
    "objectives": lambda recipe, predicts: replace(recipe, stage=replace(recipe.stage, predicts=predicts)),
}


def tiny() -> DecoderRecipe:
    """Two small stages, 32 and 64 px, for a CPU and some thousand images."""
    network = {"dim_mults": (1, 2, 4), "num_resnet_blocks": 1, "resnet_groups": 4, "attn_heads": 4}
    optim = OptimConfig(lr=1e-3, betas=(0.9, 0.99), warmup_steps=50, schedule="cosine")
    train = TrainConfig(steps=1000, batch_size=32, log_every=20, evaluate_every=250, save_every=250, ema_decay=0.99)
    return DecoderRecipe(
        (
            StageRecipe(
                UnetConfig(dim=32, **network),  # type: ignore[arg-type]
                StageConfig(32, timesteps=1000, sample_timesteps=25),
                optim,
                train,
            ),
            StageRecipe(
                UnetConfig(dim=16, lowres_cond=True, attend_at_middle=False, **network),  # type: ignore[arg-type]
                StageConfig(64, LowresConfig(32), timesteps=1000, sample_timesteps=15),
                optim,
                replace(train, batch_size=16),
            ),
        )
    )


def quick() -> DecoderRecipe:
    """Two stages, 32 and 64 px, for a CPU and some thousand images: simple shapes are recognised.

    Few blocks on patches of pixels see many more images in the same time than `tiny`'s do; see docs/experiments.md.
    """
    network: dict[str, Any] = {
        "num_resnet_blocks": 0,
        "resnet_groups": 4,
        "attn_heads": 4,
        "init_cross_embed": False,
        "init_conv_kernel_size": 3,
    }
    stage: dict[str, Any] = {
        "timesteps": 1000,
        "beta_schedule": "flow",
        "predicts": "flow",
        "timestep_sampling": "logit-normal",
    }
    optim = OptimConfig(lr=2e-3, betas=(0.9, 0.99), warmup_steps=50, schedule="cooldown")
    train = TrainConfig(steps=1200, batch_size=64, log_every=20, evaluate_every=300, save_every=300, ema_decay=0.998)
    return DecoderRecipe(
        (
            StageRecipe(
                UnetConfig(dim=48, dim_mults=(1, 2, 3), patch_size=2, **network),
                StageConfig(32, sample_timesteps=30, **stage),
                optim,
                train,
            ),
            StageRecipe(
                UnetConfig(dim=24, dim_mults=(1, 2), patch_size=2, lowres_cond=True, attend_at_middle=False, **network),
                # The image itself: to predict noise as well, the network would have to carry it through.
                StageConfig(64, LowresConfig(32), sample_timesteps=15, **{**stage, "predicts": "x0"}),
                optim,
                replace(train, steps=400, batch_size=32, evaluate_every=200, save_every=200),
            ),
        )
    )


def tiny_latent() -> DecoderRecipe:
    """One stage of 64 px, for a CPU, some thousand images and the latents of `train-vae`'s preset `tiny`.

    Predicting the image itself counts errors at high noise, where the embedding has something to say, more than
    predicting v does.
    """
    network = UnetConfig(
        dim=32,
        dim_mults=(1, 2, 4),
        num_resnet_blocks=1,
        resnet_groups=4,
        attn_heads=4,
        cond_dim=128,
        num_image_tokens=8,
        init_cross_embed=False,
    )
    optim = OptimConfig(lr=2e-3, betas=(0.9, 0.99), warmup_steps=50, schedule="cosine")
    train = TrainConfig(steps=3000, batch_size=16, log_every=20, evaluate_every=500, save_every=250, ema_decay=0.995)
    stage = StageConfig(64, timesteps=1000, sample_timesteps=25, predicts="x0")
    return DecoderRecipe((StageRecipe(network, stage, optim, train),))


def base() -> DecoderRecipe:
    """Two stages, 64 and 256 px, for one GPU and some million images. Expected cost: not measured."""
    optim = OptimConfig(lr=1e-4, betas=(0.9, 0.99), warmup_steps=1000, max_grad_norm=0.5)
    train = TrainConfig(
        steps=300_000,
        batch_size=128,
        log_every=100,
        evaluate_every=5000,
        save_every=5000,
        ema_decay=0.9999,
        precision="bfloat16",
    )
    return DecoderRecipe(
        (
            StageRecipe(
                UnetConfig(dim=192, dim_mults=(1, 2, 3, 4), self_attn=(False, False, True, True)),
                StageConfig(64, timesteps=1000),
                optim,
                train,
            ),
            StageRecipe(
                UnetConfig(
                    dim=96, dim_mults=(1, 2, 3, 4), lowres_cond=True, attend_at_middle=False, memory_efficient=True
                ),
                StageConfig(256, LowresConfig(64), timesteps=1000, sample_timesteps=27, random_crop_size=64),
                optim,
                replace(train, batch_size=64),
            ),
        )
    )


def paper() -> DecoderRecipe:
    """The unCLIP paper's shape (2204.06125, table 3): 64, 256 and 1024 px, upsamplers without attention on crops.

    Widths 512, 320 and 192; 800K, 1M and 1M steps of 2048, 1024 and 512 rows. Expected cost: not measured; meant for a
    cluster.
    """
    optim = OptimConfig(lr=1.2e-4, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, warmup_steps=1000)
    train = TrainConfig(
        steps=800_000,
        batch_size=2048,
        log_every=100,
        evaluate_every=10_000,
        save_every=5000,
        ema_decay=0.9999,
        precision="bfloat16",
    )
    return DecoderRecipe(
        (
            StageRecipe(
                UnetConfig(dim=512, dim_mults=(1, 2, 3, 4), num_resnet_blocks=3, self_attn=(False, True, True, True)),
                StageConfig(64, timesteps=1000, learned_variance=True, text_cond_drop_prob=0.5),
                optim,
                train,
            ),
            StageRecipe(
                UnetConfig(dim=320, dim_mults=(1, 2, 3, 4), lowres_cond=True, attend_at_middle=False),
                StageConfig(256, LowresConfig(64), timesteps=1000, sample_timesteps=27, random_crop_size=64),
                optim,
                replace(train, steps=1_000_000, batch_size=1024),
            ),
            StageRecipe(
                UnetConfig(dim=192, dim_mults=(1, 1, 2, 2, 4, 4), lowres_cond=True, attend_at_middle=False),
                StageConfig(
                    1024,
                    LowresConfig(256, degradation="bsr"),
                    timesteps=1000,
                    sample_timesteps=15,
                    beta_schedule="linear",
                    random_crop_size=256,
                ),
                optim,
                replace(train, steps=1_000_000, batch_size=512),
            ),
        )
    )


IN_LATENTS = {"tiny-latent"}  # made for an autoencoder's latents; in pixels they are the wrong network


def decoder_preset(name: str) -> DecoderRecipe:
    """The recipe of that name. Raises ConfigError naming the near ones."""
    return chosen(DECODER_PRESETS, name, "decoder preset")()
