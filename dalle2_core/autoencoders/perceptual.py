"""Perceptual loss: how far two images are apart to a network that was trained to see. Johnson et al. 1603.08155."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dalle2_core.errors import CheckpointError
from dalle2_core.files import read_tensors

# VGG16's convolutions up to relu3_3, the paper's choice; None halves the size. Simonyan & Zisserman 1409.1556.
_VGG_WIDTHS = (64, 64, None, 128, 128, None, 256, 256, 256)
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class VggFeatures(nn.Module):
    """Pixels [b, 3, h, w] in [0, 1] → feature maps of VGG16 at relu3_3."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        """Random weights; see `vgg_from`."""
        super().__init__()
        # In torchvision's order, and so by its names.
        parts: list[nn.Module] = []
        before = 3
        for width in _VGG_WIDTHS:
            if width is None:
                parts.append(nn.MaxPool2d(2))
            else:
                parts += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
                before = width
        self.features = nn.Sequential(*parts)
        self.register_buffer("mean", torch.tensor(_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(_STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        features: Tensor = self.features((pixels - self.mean) / self.std)
        return features


def vgg_from(given: nn.Module | Path | str) -> nn.Module:
    """A frozen network from pixels in [0, 1] to features: the one given, or VGG16 with the weights of a file.

    given: a module, or a file with torchvision's weights of vgg16, .safetensors or .pth. Nothing is ever downloaded.
    Raises CheckpointError if the file is missing or not VGG16's.
    """
    if isinstance(given, nn.Module):
        return given.eval().requires_grad_(False)
    path = Path(given)
    stored = read_tensors(path) if path.suffix == ".safetensors" else _read_pickled(path)
    network = VggFeatures()
    for name, weights in network.state_dict().items():
        found = stored.get(name)
        if not isinstance(found, Tensor) or found.shape != weights.shape:
            raise CheckpointError(f"{path}: not torchvision's weights of vgg16; {name} is missing or of another shape")
        weights.copy_(found)
    return network.eval().requires_grad_(False)


def perceptual_distance(network: nn.Module, pixels: Tensor, others: Tensor) -> Tensor:
    """Mean squared difference of features, a scalar; pixels in [0, 1], grey ones are taken as three equal channels."""
    seen = [it.expand(-1, 3, -1, -1) if it.shape[1] == 1 else it for it in (pixels, others)]
    with torch.no_grad():
        target = network(seen[0])
    return F.mse_loss(network(seen[1]), target)


def _read_pickled(path: Path) -> dict[str, Tensor]:
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    # What torch raises for a file that is no checkpoint, or one that holds more than tensors.
    except Exception as problem:
        raise CheckpointError(f"{path}: cannot be read as weights ({type(problem).__name__})") from problem
    if not isinstance(stored, dict):
        raise CheckpointError(f"{path}: holds no weights by name")
    return stored
