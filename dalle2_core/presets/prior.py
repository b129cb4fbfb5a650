"""Named, complete configurations of a prior. All values are plain JSON: a file or a command line can change each."""

from __future__ import annotations

from dataclasses import dataclass, field, make_dataclass
from functools import cache
from typing import Any

from dalle2_core.keywords import chosen
from dalle2_core.networks.causal_transformer import PriorNetworkConfig
from dalle2_core.presets import PRIOR_PRESETS
from dalle2_core.priors.base import Prior
from dalle2_core.priors.config import PriorConfig
from dalle2_core.priors.lora import LoraConfig
from dalle2_core.priors.registry import PRIORS
from dalle2_core.priors.unclip import UnclipConfig
from dalle2_core.training.loop import TrainConfig
from dalle2_core.training.optim import OptimConfig


@dataclass(frozen=True, slots=True)
class PriorRecipe:
    """Everything that a prior's training needs besides the data; `prior_recipe` makes one.

    prior: which one, a name in `dalle2_core.priors.PRIORS`. network: of those with a transformer.
    lora: adapters that are trained in place of the weights that a training begins with, of an unclip prior.
    text_tokens: the prior also reads the states of the captions' tokens, which must be as wide as `network.dim`.
    Besides these, the settings of every prior that has any, under its name: `diffusion`, `ridge` …
    """

    network: PriorNetworkConfig = field(default_factory=PriorNetworkConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    text_tokens: bool = False
    prior: str = "diffusion"
    lora: LoraConfig = field(default_factory=LoraConfig)

    def __post_init__(self) -> None:
        chosen(PRIORS, self.prior, "prior")

    @property
    def raw(self) -> bool:
        """Whether the prior takes raw embeddings, as CLIP's projections give them."""
        return bool(getattr(getattr(self, self.prior, None), "raw", False))

    def build(self, embed_dim: int) -> Any:
        """A new `Prior` for embeddings of this width, its weights drawn from torch's global generator."""
        prior = chosen(PRIORS, self.prior, "prior")
        return prior.from_configs(self.network.for_embeddings(embed_dim), getattr(self, self.prior, None))


def prior_recipe(**settings: Any) -> PriorRecipe:
    """A recipe, with the settings of every registered prior; those that are not given have their defaults."""
    return _recipe_of(tuple(PRIORS.items()))(**settings)


@cache
def _recipe_of(priors: tuple[tuple[str, type[Prior]], ...]) -> type[PriorRecipe]:
    own = [(name, it.CONFIG, field(default_factory=it.CONFIG)) for name, it in priors if it.CONFIG is not None]
    return make_dataclass("PriorRecipe", own, bases=(PriorRecipe,), frozen=True, slots=True)


def tiny() -> PriorRecipe:
    """1.3 million parameters for a CPU and some thousand rows.

    Expected cost: about a minute of one CPU core for 600 steps. On 3,060 synthetic pairs of 256 dimensions (a smooth
    map with noise) recall@1 among 340 held-out images was 0.997, ridge's 0.974; on 3,460 noisier ones of 512
    dimensions 0.985 and 0.944. Sampling 8, 16 or 32 steps made no difference there.
    """
    return prior_recipe(
        network=PriorNetworkConfig(dim=192, depth=3, heads=4, dim_head=32, ff_mult=2, ff_dropout=0.1),
        diffusion=PriorConfig(timesteps=100, sample_timesteps=10, embed_scaling="data"),
        optim=OptimConfig(lr=2e-3, betas=(0.9, 0.98), weight_decay=1e-2, warmup_steps=50, schedule="cosine"),
        train=TrainConfig(steps=600, batch_size=128, log_every=20, evaluate_every=100, save_every=200, ema_decay=0.99),
    )


def base() -> PriorRecipe:
    """25 million parameters for 512-dimensional embeddings (ViT-B), some million pairs.

    Expected cost: not measured. 100 million rows at the preset's steps and batch; meant for one GPU.
    """
    return prior_recipe(
        network=PriorNetworkConfig(dim=512, depth=6, heads=8, dim_head=64),
        diffusion=PriorConfig(timesteps=1000, sample_timesteps=64),
        optim=OptimConfig(
            lr=3e-4, betas=(0.9, 0.96), eps=1e-6, weight_decay=1e-2, warmup_steps=1000, schedule="cosine"
        ),
        train=TrainConfig(
            steps=100_000, batch_size=1024, log_every=100, evaluate_every=2500, save_every=2500, ema_decay=0.9999
        ),
    )


def laion_l14() -> PriorRecipe:
    """The shape of LAION's prior for ViT-L/14: 768 wide, 24 layers, 32 heads, normformer.

    Expected cost: not measured; meant for eight GPUs and a billion rows or more. LAION's guidance after a billion:
    loss at most 0.1, cosine to the true image at least 0.75.
    """
    return prior_recipe(
        network=PriorNetworkConfig(
            dim=768, depth=24, heads=32, dim_head=64, normformer=True, attn_dropout=0.05, ff_dropout=0.05
        ),
        diffusion=PriorConfig(timesteps=1000, sample_timesteps=64),
        optim=OptimConfig(lr=1.1e-4, betas=(0.9, 0.96), eps=1e-6, weight_decay=6.02e-2, warmup_steps=1000),
        train=TrainConfig(
            steps=600_000,
            batch_size=4096,
            log_every=100,
            evaluate_every=10_000,
            save_every=5000,
            ema_decay=0.9999,
            precision="bfloat16",
        ),
    )


def paper() -> PriorRecipe:
    """The unCLIP paper's diffusion prior (2204.06125, table 3): 2048 wide, 24 layers, 32 heads, batch 4096, 600K steps.

    About a billion parameters. Expected cost: not measured; meant for a cluster.
    """
    return prior_recipe(
        network=PriorNetworkConfig(dim=2048, depth=24, heads=32, dim_head=64),
        diffusion=PriorConfig(timesteps=1000, sample_timesteps=64, cond_drop_prob=0.1),
        optim=OptimConfig(lr=1.1e-4, betas=(0.9, 0.96), eps=1e-6, weight_decay=6e-2, warmup_steps=1000),
        train=TrainConfig(
            steps=600_000,
            batch_size=4096,
            log_every=100,
            evaluate_every=10_000,
            save_every=5000,
            ema_decay=0.9999,
            precision="bfloat16",
        ),
    )


def kandinsky_2_2() -> PriorRecipe:
    """Kandinsky 2.2's prior for OpenCLIP's ViT-bigG-14 (1280 values): 20 layers of 32 heads, a billion parameters.

    Meant for fine-tuning: a start brings weights and sizes, and the optimizer and the training of this recipe are those
    of a short, careful run. Without a start it is a new network of that shape. Expected cost: not measured; one GPU.
    """
    return _of_diffusers(clip_sample_range=10.0)


def karlo() -> PriorRecipe:
    """Karlo's prior for OpenAI's ViT-L-14 (768 values), of the same layers as Kandinsky 2.2's; see `kandinsky_2_2`."""
    return _of_diffusers(clip_sample_range=5.0)


def _of_diffusers(clip_sample_range: float) -> PriorRecipe:
    return prior_recipe(
        prior="unclip",
        text_tokens=True,
        unclip=UnclipConfig(
            clip_sample_range=clip_sample_range,
            raw=True,
            num_layers=20,
            num_attention_heads=32,
            attention_head_dim=64,
            reads_tokens=True,
        ),
        optim=OptimConfig(lr=1e-5, betas=(0.9, 0.999), weight_decay=1e-2, warmup_steps=100),
        train=TrainConfig(
            steps=5000,
            batch_size=128,
            log_every=20,
            evaluate_every=500,
            save_every=500,
            ema_decay=0.999,
            precision="bfloat16",
        ),
    )


def prior_preset(name: str) -> PriorRecipe:
    """The recipe of that name. Raises ConfigError naming the near ones."""
    return chosen(PRIOR_PRESETS, name, "prior preset")()
