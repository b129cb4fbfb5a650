"""Latents of a stage's training images, encoded once and kept: no image is read or decoded after that."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dalle2_core.conditioning import DecoderBatch
from dalle2_core.decoder.stage import DecoderStage
from dalle2_core.training import Processes
from embedpipe import files
from embedpipe.load.images.decoded_cache import cached_rows
from embedpipe.load.images.loader import ImageLoader
from embedpipe.load.prefetch import prefetch
from embedpipe.progress import Listener, Progress

from .decoder_batches import DecoderRows

_BATCHES_AHEAD = 2


@dataclass(frozen=True, slots=True)
class KeptLatents:
    """Training batches in the loader's order.

    latents: float32 [rows, c, h, w], memory-mapped, in the order of the loader's `all`.
    """

    seen: DecoderRows
    loader: ImageLoader
    latents: np.ndarray

    def batches(self, step: int) -> Iterator[DecoderBatch]:
        """This process's rows of the batches from `step` on, without end."""
        return prefetch(self._batches(step), _BATCHES_AHEAD)

    def _batches(self, step: int) -> Generator[DecoderBatch, None, None]:
        for places in self.loader.places(step):
            latents = torch.from_numpy(self.latents[places])
            yield self.seen.told(latents, self.loader.embeddings(places), encoded=True)


def keep_latents(
    stage: DecoderStage,
    autoencoder: str,
    seen: DecoderRows,
    loader: ImageLoader,
    folder: str,
    together: Processes,
    listen: Listener,
) -> KeptLatents:
    """Encode all images of `loader` into the stage's `folder`, unless that was done; the first process does.

    autoencoder: what its weights are, as a checksum. Raises DatasetError for an image that has changed or does not
    decode.
    """
    shape = (len(loader), stage.unet.config.channels, stage.size, stage.size)
    location = files.join(folder, f"latents-{_identity(stage, autoencoder, loader)}.npy")
    if not together.is_first:
        together.wait()
        return KeptLatents(seen, loader, cached_rows(location, (), shape, "float32"))
    for other in Path(folder).glob("latents-*.npy"):
        if other.name != files.local_path(location).name:
            other.unlink()
    listen(Progress(planned_rows=len(loader)))
    latents = cached_rows(location, _encoded(stage, loader, listen), shape, "float32")
    together.wait()
    return KeptLatents(seen, loader, latents)


@torch.no_grad()
def _encoded(stage: DecoderStage, loader: ImageLoader, listen: Listener) -> Iterator[np.ndarray]:
    for batch in loader.all():
        yield stage.encoded(torch.from_numpy(batch.pixels).to(stage.device)).float().cpu().numpy()
        listen(Progress(rows=len(batch.pixels)))


def _identity(stage: DecoderStage, autoencoder: str, loader: ImageLoader) -> str:
    """Of everything that latents depend on, and the order they are kept in."""
    digest = hashlib.sha256(f"{autoencoder} {stage.config.image_size} ".encode())
    digest.update(loader.content().encode())
    return digest.hexdigest()[:16]
