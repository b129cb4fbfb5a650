"""Every autoencoder that a folder can hold, by the kind that its config.json names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from dalle2_core.autoencoders import vqgan
from dalle2_core.autoencoders.base import Autoencoder, check_autoencoder
from dalle2_core.autoencoders.diffusers_vae import DiffusersAutoencoder, diffusers_class
from dalle2_core.errors import CheckpointError
from dalle2_core.serialization import read_kind

Load = Callable[[Path, torch.device | str], Autoencoder]

AUTOENCODERS: dict[str, Load] = {vqgan.KIND: vqgan.VQGanVAE.load}


def load_autoencoder(folder: Path | str, device: torch.device | str = "cpu") -> Autoencoder:
    """The autoencoder in a folder, which may be one of diffusers.

    Raises CheckpointError if there is none, ConfigError if it is not finished.
    """
    if diffusers_class(folder) is not None:
        return DiffusersAutoencoder.load(folder, device)
    if not (Path(folder) / "config.json").exists():
        raise CheckpointError(f"{folder}: no autoencoder's folder (no config.json in it); `train-vae` writes one")
    kind = read_kind(folder)
    if kind not in AUTOENCODERS:
        known = f"known: {', '.join(sorted(AUTOENCODERS))}" if AUTOENCODERS else "this version knows none"
        raise CheckpointError(f"{folder}: holds a {kind!r}, which is no autoencoder; {known}")
    autoencoder = AUTOENCODERS[kind](Path(folder), device)
    check_autoencoder(autoencoder)
    return autoencoder
