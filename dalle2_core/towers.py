"""CLIP as priors and decoders use it: `embed_text` and `embed_image`, for those who did not store embeddings.

Names are DALLE2-pytorch's. Frozen in use: embeddings carry no gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dalle2_core.clip import ClipBatch, ClipConfig, TrainableClip, load_open_clip
from dalle2_core.errors import ConfigError, ShapeError
from dalle2_core.keywords import from_keywords
from dalle2_core.types import EmbeddedImage, EmbeddedText


class OpenClipTowers(nn.Module):
    """An open_clip model with a causal text tower that is read at the end token: OpenAI's, LAION's, one's own."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: Any, mean: tuple[float, ...], std: tuple[float, ...], image_size: int) -> None:
        """mean, std: per channel, of values in 0..1. image_size: height and width that the image tower takes."""
        super().__init__()
        self.model = model
        self.image_size = image_size
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        if not (hasattr(self._text_tower, "ln_final") and hasattr(self._text_tower, "transformer")):
            raise ConfigError(
                "the text towers of other libraries keep their states to themselves; take open_clip's own"
            )

    @property
    def _text_tower(self) -> Any:
        return getattr(self.model, "text", self.model)

    @torch.no_grad()
    def embed_text(self, text: Tensor) -> EmbeddedText:
        """text: [b, l] integer tokens of the model's tokenizer."""
        if text.is_floating_point() or text.ndim != 2:
            raise ShapeError(f"text is {text.dtype} {tuple(text.shape)}; give integer tokens [b, l]")
        seen: list[Tensor] = []
        hook = self._text_tower.transformer.register_forward_hook(lambda module, inputs, out: seen.append(out))
        try:
            embed = self.model.encode_text(text.to(self.mean.device, torch.long))
        finally:
            hook.remove()
        states = self._text_tower.ln_final(seen[0])
        # The end token has the largest number; what is behind it is padding, which a causal tower never saw.
        ends = text.to(states.device).argmax(dim=-1, keepdim=True)
        mask = torch.arange(states.shape[1], device=states.device) <= ends
        states = states.float().masked_fill(~mask[:, :, None], 0.0)
        return EmbeddedText(F.normalize(embed.float(), dim=-1), states, mask)

    @torch.no_grad()
    def embed_image(self, image: Tensor) -> EmbeddedImage:
        """image: [b, 3, h, w], uint8 or float in [0, 1]; brought to the tower's size, its shorter side first."""
        if image.ndim != 4 or image.shape[1] != 3:
            raise ShapeError(f"images are {tuple(image.shape)}; give [b, 3, h, w]")
        pixels = image.to(self.mean.device)
        pixels = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels.float()
        height, width = pixels.shape[2:]
        if (height, width) != (self.image_size, self.image_size):
            scale = self.image_size / min(height, width)
            size = (max(self.image_size, round(height * scale)), max(self.image_size, round(width * scale)))
            pixels = F.interpolate(pixels, size, mode="bicubic", antialias=True, align_corners=False)
            top, left = ((side - self.image_size) // 2 for side in size)
            pixels = pixels[:, :, top : top + self.image_size, left : left + self.image_size]
        return EmbeddedImage(F.normalize(self.model.encode_image((pixels - self.mean) / self.std).float(), dim=-1))


class OpenClipAdapter(OpenClipTowers):
    """A pretrained model of open_clip, in eval mode. `.tokenizer` turns strings into tokens."""

    def __init__(self, name: str = "ViT-B-32", pretrained: str | None = "laion400m_e32") -> None:
        """name, pretrained: open_clip's; "local-dir:FOLDER" and None for a folder.

        Raises ConfigError if open_clip does not know or cannot get it.
        """
        loaded = load_open_clip(name, pretrained)
        super().__init__(loaded.model, loaded.mean, loaded.std, loaded.image_size)
        self.tokenizer = loaded.tokenizer
        self.requires_grad_(False).eval()


@dataclass(frozen=True, slots=True)
class ClipSizes:
    """The sizes of a CLIP of one's own; the names are DALLE2-pytorch's, whose CLIP was x-clip's."""

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


class CLIP(OpenClipTowers):
    """A CLIP with random weights, to be trained: `clip(text, images, return_loss=True)`. Radford et al. 2103.00020."""

    def __init__(self, **keywords: Any) -> None:
        """Keywords: the fields of ClipSizes. An unknown one is a TypeError that names the near ones."""
        sizes = from_keywords(ClipSizes, "CLIP", keywords)
        trainable = TrainableClip(ClipConfig(sizes.open_clip()))
        super().__init__(trainable.clip, trainable.config.mean, trainable.config.std, sizes.visual_image_size)
        # In a tuple, so that its weights are not counted twice.
        self._trainable = (trainable,)

    def forward(self, text: Tensor, image: Tensor, return_loss: bool = True) -> Tensor:
        """The contrastive loss of the pairs, a scalar; or, without return_loss, their cosines [b].

        text: [b, l] integer tokens. image: [b, 3, h, w], uint8 or float in [0, 1].
        """
        if not return_loss:
            return (self.embed_text(text).text_embed * self.embed_image(image).image_embed).sum(dim=-1)
        pixels = image if image.dtype == torch.uint8 else (image * 255).round().clamp(0, 255).to(torch.uint8)
        return self._trainable[0].loss(ClipBatch(pixels, text), None).loss
