"""What sees likeness between images: the encoder of a data set, another one in a folder, or Inception from a file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dalle2_core.images import resized
from embedpipe.encode import Encoder, EncoderConfig, load_encoder
from embedpipe.errors import ModelError, RunMismatch
from embedpipe.index import query_encoder
from embedpipe.load import EmbeddingDataset
from embedpipe.pickled import REMEDY, pickle_refusal

ENCODER, INCEPTION = "encoder", "inception:"
_INCEPTION_SIZE = 299
_INCEPTION_MEAN, _INCEPTION_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, slots=True)
class ImageFeatures:
    """name: what its numbers are called after. of: images [n, 3, s, s] in [0, 1] → float32 [n, d].

    same_space: they are of the encoder that made the data set's embeddings, with which they can be compared.
    """

    name: str
    of: Callable[[Tensor], Tensor]
    same_space: bool = False


def open_features(what: str, dataset: EmbeddingDataset, device: str) -> ImageFeatures:
    """`encoder` (the data set's own, loaded from where its card says), an encoder's folder, or `inception:WEIGHTS`.

    Raises ModelError, InputError, RunMismatch.
    """
    if what.startswith(INCEPTION):
        return ImageFeatures("inception", _inception(Path(what.removeprefix(INCEPTION)), device))
    if what == ENCODER:
        return ImageFeatures(ENCODER, _encoder_features(query_encoder(dataset, device=device)), same_space=True)
    try:
        return ImageFeatures(ENCODER, _encoder_features(query_encoder(dataset, what, device=device)), same_space=True)
    except RunMismatch:
        encoder = load_encoder(EncoderConfig(what), device)
        return ImageFeatures("encoder", _encoder_features(encoder))


def _encoder_features(encoder: Encoder) -> Callable[[Tensor], Tensor]:
    def features(images: Tensor) -> Tensor:
        pixels = resized(images, encoder.card.preprocess.size[0])
        return torch.from_numpy(encoder.images((pixels * 255).round().to(torch.uint8)).wait().rows)

    return features


def _inception(weights: Path, device: str) -> Callable[[Tensor], Tensor]:
    """The 2,048 pooled features of torchvision's Inception v3, with a state dict as torchvision publishes it."""
    from torchvision.models import inception_v3

    network = inception_v3(weights=None, init_weights=False, transform_input=True)
    try:
        network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    except FileNotFoundError as problem:
        raise ModelError(f"{weights}: no such file", "Give inception:FILE with torchvision's inception_v3") from problem
    except Exception as problem:  # a pickle may fail in any way
        if (pickled := pickle_refusal(problem)) is not None:
            raise ModelError(f"{weights}: {pickled}", f"Give torchvision's inception_v3. {REMEDY}") from problem
        raise ModelError(
            f"{weights}: no weights of torchvision's inception_v3 ({type(problem).__name__})",
            "Give a state dict as torchvision publishes it",
        ) from problem
    network.fc = torch.nn.Identity()
    network.eval().requires_grad_(False).to(device)
    mean, std = (torch.tensor(it, device=device).view(1, 3, 1, 1) for it in (_INCEPTION_MEAN, _INCEPTION_STD))

    def features(images: Tensor) -> Tensor:
        found: Tensor = network((resized(images.to(device), _INCEPTION_SIZE) - mean) / std)
        return found.float().cpu()

    return features
