"""Where a stage's diffusion works: in pixels, or in the latents of an autoencoder."""

from __future__ import annotations

from typing import Protocol, cast

import torch
from torch import Tensor, nn

from dalle2_core.errors import ConfigError
from dalle2_core.inputs import dtype_of


class Autoencoder(Protocol):
    """What a stage needs of an autoencoder.

    latent_mean, latent_std: [latent_channels], of the data's latents, so that (latents - mean) / std has unit variance.
    """

    latent_channels: int
    downsampling: int
    latent_mean: Tensor
    latent_std: Tensor

    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels [b, c, h, w] in [-1, 1] → latents [b, latent_channels, h / downsampling, w / downsampling]."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Latents → pixels [b, c, h, w] in about [-1, 1]."""
        ...


_MEMBERS = ("latent_channels", "downsampling", "latent_mean", "latent_std", "encode", "decode")


class Space(Protocol):
    """Between pixels in [0, 1] and what the network works on. factor: sides shrink by so much on the way in."""

    factor: int

    def into(self, pixels: Tensor) -> Tensor: ...

    def out_of(self, x: Tensor) -> Tensor: ...


class PixelSpace:
    """Pixels themselves, in [-1, 1]."""

    factor = 1

    def into(self, pixels: Tensor) -> Tensor:
        return pixels * 2.0 - 1.0

    def out_of(self, x: Tensor) -> Tensor:
        return ((x + 1.0) / 2.0).clamp(0.0, 1.0)


class LatentSpace:
    """An autoencoder's latents, scaled to mean 0 and variance 1 in each channel."""

    def __init__(self, autoencoder: Autoencoder) -> None:
        """Raises ConfigError as `check_autoencoder` does."""
        check_autoencoder(autoencoder)
        self.autoencoder = autoencoder
        self.factor = autoencoder.downsampling

    @torch.no_grad()
    def into(self, pixels: Tensor) -> Tensor:
        latents = self.autoencoder.encode((pixels * 2.0 - 1.0).to(self._dtype)).to(pixels.dtype)
        return (latents - self._shaped("latent_mean", latents)) / self._shaped("latent_std", latents)

    @torch.no_grad()
    def out_of(self, x: Tensor) -> Tensor:
        latents = x * self._shaped("latent_std", x) + self._shaped("latent_mean", x)
        decoded = self.autoencoder.decode(latents.to(self._dtype)).to(x.dtype)
        return ((decoded + 1.0) / 2.0).clamp(0.0, 1.0)

    @property
    def _dtype(self) -> torch.dtype:
        model = self.autoencoder
        return dtype_of(model) if isinstance(model, nn.Module) else torch.get_default_dtype()

    def _shaped(self, name: str, like: Tensor) -> Tensor:
        statistic: Tensor = getattr(self.autoencoder, name)
        return statistic.to(like.device, like.dtype).view(1, -1, 1, 1)


def check_autoencoder(autoencoder: object) -> None:
    """Raises ConfigError if it lacks what the protocol asks for, or a channel's deviation is not above 0."""
    # Not by isinstance: it looks at classes alone, and a module's buffers are none of its class's attributes.
    missing = [name for name in _MEMBERS if not hasattr(autoencoder, name)]
    if missing:
        raise ConfigError(f"the autoencoder {type(autoencoder).__name__} lacks {', '.join(missing)}")
    if not bool((torch.as_tensor(cast(Autoencoder, autoencoder).latent_std) > 0).all()):
        raise ConfigError("the autoencoder's latent_std must be above 0 in every channel; measure it on the data")


def frozen(autoencoder: Autoencoder) -> Autoencoder:
    """The same, in eval mode and without gradients, if it is a module."""
    if isinstance(autoencoder, nn.Module):
        autoencoder.eval().requires_grad_(False)
    return autoencoder
