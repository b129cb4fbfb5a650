"""The image tower whose embeddings a pretrained decoder takes, and whether an encoder is that tower."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from embedpipe.clip_model.encoder_card import EncoderCard
from embedpipe.clip_model.open_clip_tables import known_name, model_configs
from embedpipe.errors import RunMismatch

# What published decoders take, by the width of its embeddings: (how it is called, how encode takes it).
_PUBLISHED = {
    1280: ("OpenCLIP's ViT-bigG-14", "ViT-bigG-14 laion2b_s39b_b160k"),
    1024: ("OpenCLIP's ViT-H-14", "ViT-H-14 laion2b_s32b_b79k"),
    768: ("OpenAI's ViT-L-14", "ViT-L-14 openai"),
}
# Of a tower without a configuration in the folder: (hidden size, layers, patch size).
_SIZES = {1280: (1664, 48, 14)}


@dataclass(frozen=True, slots=True)
class Tower:
    """width: of its embeddings. hidden, layers, patch: of the transformer; None where nothing says them."""

    width: int
    hidden: int | None = None
    layers: int | None = None
    patch: int | None = None

    @property
    def said(self) -> str:
        """What it is, for a message."""
        name = _PUBLISHED.get(self.width, (f"a tower of {self.width} values",))[0]
        sizes = f"hidden size {self.hidden}, {self.layers} layers, patches of {self.patch}"
        return f"{name} ({self.width} values{'' if self.hidden is None else f'; {sizes}'})"

    @property
    def remedy(self) -> str:
        """What to do with embeddings of another."""
        known = _PUBLISHED.get(self.width)
        return "Give a prior and embeddings of it" + (f": encode with {known[1]}" if known else "")


def tower_of(width: int, config: Mapping[str, Any] | None) -> Tower:
    """The tower of a decoder for embeddings of that width. config: of the `image_encoder` beside it, or None.

    Raises ValueError, KeyError or TypeError for a configuration that does not go with the width.
    """
    if config is None:
        return Tower(width, *_SIZES.get(width, (None, None, None)))
    if int(config.get("projection_dim", width)) != width:
        raise ValueError(f"its image_encoder projects to {config['projection_dim']} values, its unet takes {width}")
    return Tower(width, *(int(config[name]) for name in ("hidden_size", "num_hidden_layers", "patch_size")))


def refuse_another_tower(tower: Tower, decoder: str, width: int, whose: str, card: EncoderCard | None = None) -> None:
    """Raise RunMismatch where embeddings `width` wide of `whose`, made by the encoder of `card`, are another tower's.

    Sizes are compared for open_clip's own models; of a folder or checkpoint the width alone is known.
    """
    if width != tower.width:
        raise RunMismatch(
            f"{whose}: image embeddings of {width} values, but {decoder} takes those of {tower.said}", tower.remedy
        )
    name = None if card is None or not card.known else known_name(card.model)
    if name is None or tower.hidden is None:
        return
    vision = model_configs()[name]["vision_cfg"]
    found = tuple(vision.get(key) for key in ("width", "layers", "patch_size"))
    if found != (tower.hidden, tower.layers, tower.patch):
        raise RunMismatch(f"{whose}: embeddings of {name}, but {decoder} takes those of {tower.said}", tower.remedy)
