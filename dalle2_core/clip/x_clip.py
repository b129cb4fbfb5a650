"""CLIP: a CLIP of one's own by DALLE2-pytorch's keywords, whose CLIP was x-clip's. Radford et al. 2103.00020."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dalle2_core.clip.adapters import OpenClipEncoders, last_states
from dalle2_core.clip.objectives import ClipObjective, Sides, VisualSsl, contrast, random_view
from dalle2_core.clip.trainable import MAX_LOG_SCALE, ClipConfig, TrainableClip, save_open_clip, tokenize
from dalle2_core.errors import ConfigError, ShapeError
from dalle2_core.files import disk_errors
from dalle2_core.keywords import from_keywords, near
from dalle2_core.serialization import read_settings, read_weights, settings_of, write_model

KIND = "clip"


@dataclass(frozen=True, slots=True)
class ClipSizes:
    """The sizes of both towers; the names are x-clip's.

    dim_text, dim_image, dim_latent: widths of the towers and of their joint space. num_text_tokens: strings need the
    49,408 of the tokenizer. The start and the end token are its last two; a text is read off at its largest number.
    text_seq_len: tokens of a text. enc_depth, heads: layers and heads. visual_image_size, visual_patch_size: pixels.
    """

    dim_text: int = 512
    dim_image: int = 512
    dim_latent: int = 512
    num_text_tokens: int = 49408
    text_enc_depth: int = 6
    text_seq_len: int = 256
    text_heads: int = 8
    visual_enc_depth: int = 6
    visual_image_size: int = 256
    visual_patch_size: int = 32
    visual_heads: int = 8

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be 1 or more")
        for whole, part in (
            ("dim_text", "text_heads"),
            ("dim_image", "visual_heads"),
            ("visual_image_size", "visual_patch_size"),
        ):
            if getattr(self, whole) % getattr(self, part):
                raise ConfigError(
                    f"{whole} is {getattr(self, whole)}; it must be a multiple of {part}, {getattr(self, part)}"
                )

    def open_clip(self) -> dict[str, Any]:
        """As open_clip's model configuration."""
        return {
            "embed_dim": self.dim_latent,
            "vision_cfg": {
                "image_size": self.visual_image_size,
                "patch_size": self.visual_patch_size,
                "width": self.dim_image,
                "layers": self.visual_enc_depth,
                "head_width": self.dim_image // self.visual_heads,
            },
            "text_cfg": {
                "context_length": self.text_seq_len,
                "vocab_size": self.num_text_tokens,
                "width": self.dim_text,
                "heads": self.text_heads,
                "layers": self.text_enc_depth,
            },
        }


class CLIP(OpenClipEncoders):
    """A CLIP with random weights, to be trained: `clip(text, images, return_loss=True)`."""

    def __init__(self, **keywords: Any) -> None:
        """Keywords: the fields of ClipSizes and of ClipObjective. An unknown one is a TypeError with the near ones."""
        of_sizes, of_objective = ({item.name for item in fields(kind)} for kind in (ClipSizes, ClipObjective))
        for name in keywords:
            if name not in of_sizes | of_objective:
                raise TypeError(f"CLIP has no keyword {name!r}; {near(name, of_sizes | of_objective)}")
        sizes = from_keywords(ClipSizes, "CLIP", {name: it for name, it in keywords.items() if name in of_sizes})
        objective = {name: it for name, it in keywords.items() if name in of_objective}
        config = ClipConfig(sizes.open_clip())
        super().__init__(TrainableClip(config).clip, config.mean, config.std, sizes.visual_image_size)
        self.sizes, self.objective = sizes, from_keywords(ClipObjective, "CLIP", objective)
        self.config = config
        # What only the objective needs.
        self.extra_projections = nn.ParameterDict()
        if self.objective.extra_latent_projection:
            for name, width in (("text", sizes.dim_text), ("image", sizes.dim_image)):
                self.extra_projections[name] = nn.Parameter(torch.randn(width, sizes.dim_latent) * width**-0.5)
        self.visual_ssl = (
            VisualSsl(sizes.dim_image, self.objective.visual_ssl_type) if self.objective.use_visual_ssl else None
        )

    def tokenizer(self, texts: Sequence[str]) -> Tensor:
        """Tokens [b, text_seq_len] int32 with start and end tokens, zeros behind; longer texts are cut.

        Raises ConfigError where the model has too few tokens for them.
        """
        tokens = tokenize(texts, self.config)
        if int(tokens.max()) >= self.sizes.num_text_tokens:
            raise ConfigError(
                f"num_text_tokens is {self.sizes.num_text_tokens}, and strings need the tokenizer's 49408; "
                "make the CLIP with as many, or give tokens of your own"
            )
        return tokens

    def forward(self, text: Tensor, image: Tensor, return_loss: bool = True) -> Tensor:
        """The training loss of the pairs, a scalar; or, without return_loss, their cosines [b].

        text: [b, l] integer tokens. image: [b, 3, h, w], uint8 or float in [0, 1].
        """
        if len(text) != len(image):
            raise ShapeError(f"{len(text)} texts and {len(image)} images are no pairs")
        if not return_loss:
            return (self.embed_text(text).text_embed * self.embed_image(image).image_embed).sum(dim=-1)
        pixels = self._inputs(image)
        _, text_states, mask = self._text_states(text)
        states = text_states, self._image_states(pixels)
        sides = back = _sides(*states, mask, self.model.text_projection, self.model.visual.proj)
        if self.objective.extra_latent_projection:
            back = _sides(*states, mask, self.extra_projections["text"], self.extra_projections["image"])
        loss = contrast(sides, back, self.model.logit_scale.clamp(max=MAX_LOG_SCALE).exp(), self.objective)
        if self.visual_ssl is None:
            return loss
        one, other = (self._image_states(random_view(pixels))[:, 0] for _ in range(2))
        similar: Tensor = self.visual_ssl(one, other)
        return loss + self.objective.image_ssl_loss_weight * similar

    def _image_states(self, pixels: Tensor) -> Tensor:
        """States of the whole image and of its patches, [b, 1 + p, w]."""
        with last_states(self.model.visual.transformer) as seen:
            self.model.encode_image(pixels)
        states: Tensor = self.model.visual.ln_post(seen[0])
        return states

    def save(self, folder: Path | str) -> None:
        """Write config.json and model.safetensors, and beside them what open_clip loads as `local-dir:folder`.

        Raises CheckpointError if the disk refuses.
        """
        settings = {"sizes": asdict(self.sizes), "objective": asdict(self.objective)}
        with disk_errors(Path(folder)):
            save_open_clip(self.model, self.config, folder)
        write_model(folder, KIND, settings, self.state_dict())

    @classmethod
    def load(cls, folder: Path | str, device: torch.device | str = "cpu") -> CLIP:
        """Read what `save` wrote. Raises CheckpointError if it is not a whole CLIP of this format."""
        settings = read_settings(folder, KIND, "a CLIP")
        with settings_of(folder):
            clip = cls(**settings["sizes"], **settings["objective"])
        read_weights(folder, clip)
        return clip.to(device)


def _sides(
    text_states: Tensor, image_states: Tensor, mask: Tensor, text_projection: Tensor, image_projection: Tensor
) -> Sides:
    """States [b, l, w] and [b, 1 + p, w] in the joint space of some projections."""
    tokens = F.normalize(text_states @ text_projection, dim=-1)
    patches = F.normalize(image_states @ image_projection, dim=-1)
    ends = mask.sum(dim=1) - 1
    rows = torch.arange(len(tokens), device=tokens.device)
    return Sides(tokens[rows, ends], patches[:, 0], tokens, mask, patches[:, 1:])
