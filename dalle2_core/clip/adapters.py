"""CLIP as priors and decoders use it: `embed_text` and `embed_image`, for those who did not store embeddings.

Names are DALLE2-pytorch's. Frozen in use: embeddings carry no gradient.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dalle2_core.clip.trainable import load_open_clip
from dalle2_core.errors import ConfigError, ShapeError
from dalle2_core.inputs import RangeCheck, as_tensor
from dalle2_core.types import EmbeddedImage, EmbeddedText


class OpenClipEncoders(nn.Module):
    """An open_clip model with a causal text tower that is read at the end token: OpenAI's, LAION's, one's own."""

    mean: Tensor
    std: Tensor
    image_size: int

    def __init__(self, model: Any, mean: tuple[float, ...], std: tuple[float, ...], image_size: int) -> None:
        """mean, std: per channel, of values in 0..1. image_size: height and width that the image tower takes."""
        super().__init__()
        self.model = model
        self.image_size = image_size
        self._range = RangeCheck()
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        if not (hasattr(self._text_tower, "ln_final") and hasattr(self._text_tower, "transformer")):
            raise ConfigError(
                "the text towers of other libraries keep their states to themselves; take open_clip's own"
            )

    @property
    def dim_latent(self) -> int:
        """Width of the embeddings."""
        return int(self.model.visual.output_dim)

    @property
    def image_channels(self) -> int:
        """Channels of the images."""
        return 3

    @property
    def max_text_len(self) -> int:
        """Tokens of a text, those of start and end among them."""
        return int(self._text_tower.context_length)

    @property
    def _text_tower(self) -> Any:
        return getattr(self.model, "text", self.model)

    @torch.no_grad()
    def embed_text(self, text: Tensor) -> EmbeddedText:
        """text: [b, l] integer tokens of the model's tokenizer."""
        text = as_tensor(text, "text")
        if text.is_floating_point() or text.ndim != 2:
            raise ShapeError(f"text is {text.dtype} {tuple(text.shape)}; give integer tokens [b, l]")
        embed, states, mask = self._text_states(text)
        states = states.float().masked_fill(~mask[:, :, None], 0.0)
        return EmbeddedText(F.normalize(embed.float(), dim=-1), states, mask)

    def _text_states(self, text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings [b, d] as the tower gives them, states of all places [b, l, w], and which are real [b, l]."""
        with last_states(self._text_tower.transformer) as seen:
            embed = self.model.encode_text(text.to(self.mean.device, torch.long))
        states = self._text_tower.ln_final(seen[0])
        # The end token has the largest number; what is behind it is padding, which a causal tower never saw.
        ends = text.to(states.device).argmax(dim=-1, keepdim=True)
        return embed, states, torch.arange(states.shape[1], device=states.device) <= ends

    @torch.no_grad()
    def embed_image(self, image: Tensor) -> EmbeddedImage:
        """image: [b, 3, h, w], uint8 or float in [0, 1]; brought to the tower's size, its shorter side first."""
        image = as_tensor(image, "image")
        if image.ndim != 4 or image.shape[1] != 3:
            raise ShapeError(f"images are {tuple(image.shape)}; give [b, 3, h, w]")
        self._range.see(image)
        return EmbeddedImage(F.normalize(self.model.encode_image(self._inputs(image)).float(), dim=-1))

    def _inputs(self, image: Tensor) -> Tensor:
        """What the image tower takes: of its size, less the mean, by the deviation."""
        pixels = image.to(self.mean.device)
        pixels = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels.float()
        height, width = pixels.shape[2:]
        if (height, width) != (self.image_size, self.image_size):
            scale = self.image_size / min(height, width)
            size = (max(self.image_size, round(height * scale)), max(self.image_size, round(width * scale)))
            pixels = F.interpolate(pixels, size, mode="bicubic", antialias=True, align_corners=False)
            top, left = ((side - self.image_size) // 2 for side in size)
            pixels = pixels[:, :, top : top + self.image_size, left : left + self.image_size]
        return (pixels - self.mean) / self.std


@contextmanager
def last_states(transformer: Any) -> Iterator[list[Tensor]]:
    """What a tower's blocks give, [b, l, w], while the block runs."""
    seen: list[Tensor] = []
    hook = transformer.register_forward_hook(lambda module, inputs, out: seen.append(out))
    try:
        yield seen
    finally:
        hook.remove()


class OpenClipAdapter(OpenClipEncoders):
    """A pretrained model of open_clip, in eval mode. `.tokenizer` turns strings into tokens."""

    def __init__(
        self,
        name: str = "ViT-B-32",
        pretrained: str | None = "laion400m_e32",
        *,
        quick_gelu: bool | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        """name, pretrained: open_clip's, or a checkpoint file; "local-dir:FOLDER" and None for a folder.

        quick_gelu, mean, std: what a checkpoint file was trained with, where the model's tags differ in it.
        Raises ConfigError if open_clip does not know or cannot get it, and where one of these is missing.
        """
        loaded = load_open_clip(name, pretrained, quick_gelu, mean, std)
        super().__init__(loaded.model, loaded.mean, loaded.std, loaded.image_size)
        self.tokenizer = loaded.tokenizer
        self.requires_grad_(False).eval()


class OpenAIClipAdapter(OpenClipAdapter):
    """One of OpenAI's models, by its own name: "ViT-B/32", "ViT-L/14", "RN50" …"""

    def __init__(self, name: str = "ViT-B/32") -> None:
        """Raises ConfigError if open_clip does not know or cannot get it."""
        super().__init__(name.replace("/", "-"), "openai")
