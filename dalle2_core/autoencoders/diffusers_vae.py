"""An autoencoder in a folder of diffusers (AutoencoderKL, VQModel), in the place of a VQGanVAE."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dalle2_core.errors import CheckpointError, ConfigError
from dalle2_core.files import read_json

CLASSES = ("AutoencoderKL", "VQModel")


class DiffusersAutoencoder(nn.Module):
    """An `Autoencoder`: latents are the posterior's mean (AutoencoderKL), or those before quantising (VQModel).

    latent_mean, latent_std: [latent_channels], from the model's shift_factor and scaling_factor.
    """

    latent_mean: Tensor
    latent_std: Tensor

    def __init__(self, model: Any) -> None:
        """model: of diffusers. Raises ConfigError for one of another class."""
        super().__init__()
        name = type(model).__name__
        if name not in CLASSES:
            raise ConfigError(f"a {name} of diffusers cannot be used as an autoencoder; known: {', '.join(CLASSES)}")
        self.model = model
        settings = model.config
        self.quantises = name == "VQModel"
        self.latent_channels = int(settings.latent_channels)
        self.downsampling = int(2 ** (len(settings.block_out_channels) - 1))
        shift, scale = settings.get("shift_factor") or 0.0, settings.get("scaling_factor") or 1.0
        self.register_buffer("latent_mean", torch.full((self.latent_channels,), float(shift)))
        self.register_buffer("latent_std", torch.full((self.latent_channels,), 1.0 / float(scale)))

    @classmethod
    def load(cls, folder: Path | str, device: torch.device | str = "cpu") -> DiffusersAutoencoder:
        """Read what diffusers' `save_pretrained` wrote; nothing is downloaded.

        Raises ConfigError (diffusers is not installed, another class), CheckpointError (damaged).
        """
        try:
            import diffusers
        except ImportError as problem:
            raise ConfigError(
                f"{folder}: a folder of diffusers needs that package (pip install 'embedpipe[diffusers]'): {problem}"
            ) from problem
        name = diffusers_class(folder)
        if name not in CLASSES:
            raise ConfigError(f"{folder}: holds a {name} of diffusers; known: {', '.join(CLASSES)}")
        kind: Callable[..., Any] = getattr(diffusers, str(name)).from_pretrained
        try:
            model = kind(str(folder), local_files_only=True, use_safetensors=True)
        # What diffusers raises for files that are missing, damaged, or do not fit each other.
        except (OSError, ValueError, RuntimeError) as problem:
            raise CheckpointError(f"{folder}: diffusers cannot load it: {' '.join(str(problem).split())}") from problem
        return cls(model).to(device).eval()

    def encode(self, pixels: Tensor) -> Tensor:
        """See `Autoencoder`."""
        encoded = self.model.encode(pixels)
        latents: Tensor = encoded.latents if self.quantises else encoded.latent_dist.mode()
        return latents

    def decode(self, latents: Tensor) -> Tensor:
        """See `Autoencoder`."""
        pixels: Tensor = self.model.decode(latents).sample
        return pixels


def diffusers_class(folder: Path | str) -> str | None:
    """The class that a folder's config.json names for diffusers; None where it is no such folder."""
    content = read_json(Path(folder) / "config.json")
    name = content.get("_class_name") if isinstance(content, dict) else None
    return None if name is None else str(name)
