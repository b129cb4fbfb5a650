"""Decoders from folders: a whole one, or stages that were trained apart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from dalle2_core.autoencoders.registry import load_autoencoder
from dalle2_core.decoder.decoder import KIND, Decoder, stage_folder
from dalle2_core.decoder.stage import KIND as STAGE_KIND
from dalle2_core.decoder.stage import DecoderStage
from dalle2_core.errors import CheckpointError
from dalle2_core.serialization import read_kind, read_settings, settings_of, write_settings
from dalle2_core.types import ClipEncoders

# Where a stage that works in latents keeps its autoencoder.
VAE = "vae"


def load_decoder(*folders: Path | str, device: torch.device | str = "cpu", clip: ClipEncoders | None = None) -> Decoder:
    """A decoder from its folder, or from folders of stages, the smallest first; autoencoders come along with them.

    Raises CheckpointError for what is neither, or not finished, ConfigError if one stage does not follow another.
    """
    stages = [load_stage(folder, device) for folder in _stage_folders(folders)]
    return Decoder.from_stages(stages, clip)


def load_stage(folder: Path | str, device: torch.device | str = "cpu") -> DecoderStage:
    """A stage, with the autoencoder in its folder if it has one. Raises CheckpointError, ConfigError."""
    inside = Path(folder) / VAE
    vae = load_autoencoder(inside, device) if inside.is_dir() else None
    return DecoderStage.load(folder, device, vae=vae)


def finish_decoder(folder: Path | str, stages: int) -> bool:
    """Make a folder with `stages` trained stages a decoder's; False while one of them is missing.

    Raises CheckpointError if one is damaged, ConfigError if one does not follow another.
    """
    parts = [stage_folder(Path(folder), number) for number in range(1, stages + 1)]
    if not all((part / "config.json").is_file() for part in parts):
        return False
    load_decoder(*parts)
    write_settings(folder, KIND, {"stages": stages})
    return True


def _stage_folders(folders: Sequence[Path | str]) -> list[Path]:
    if not folders:
        raise CheckpointError("no folder to load a decoder from")
    if len(folders) == 1 and read_kind(folders[0]) == KIND:
        settings = read_settings(folders[0], KIND, "a decoder")
        with settings_of(folders[0]):
            return [stage_folder(Path(folders[0]), number) for number in range(1, int(settings["stages"]) + 1)]
    for folder in folders:
        kind = read_kind(folder)
        if kind != STAGE_KIND:
            raise CheckpointError(f"{folder}: holds a {kind!r}; give one decoder, or the stages of one")
    return [Path(folder) for folder in folders]
