"""The scale of image embeddings: decoders of diffusers take them raw, priors and files may have them of norm 1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dalle2_core.errors import CheckpointError
from dalle2_core.files import read_tensors
from embedpipe import files
from embedpipe.errors import EmbedpipeError, InputError
from embedpipe.load import EmbeddingDataset

from ..models import Models
from .folder import PipelineFolder

_TOLERANCE = 0.01
_ROWS = 4096


def of_unit_norm(rows: Tensor) -> bool:
    """Whether all rows [n, d] are of norm 1."""
    return bool(((rows.norm(dim=-1) - 1).abs() < _TOLERANCE).all())


def raw_norm(models: Models, folder: PipelineFolder, facts: Mapping[str, Any] | None) -> float:
    """The mean norm of the encoder's image embeddings before they are normalised.

    As given, else of the data set that the prior's run was trained on, else as the decoder's own statistics say.
    Raises InputError where none of them knows it.
    """
    found = models.image_norm
    if found is None:
        found = _of_data(facts) or _of_normalizer(folder)
    if found is None:
        raise InputError(
            f"{folder.named}: takes image embeddings as CLIP's projection gives them, and these are of norm 1; what "
            "norm they had is not known",
            "Give `image_norm`: the mean of the column image_norm of a data set of this encoder",
        )
    if not (np.isfinite(found) and found > 0):
        raise InputError(f"`image_norm={found}`: must be a number above 0", "Leave it out, or give another")
    return float(found)


def _of_data(facts: Mapping[str, Any] | None) -> float | None:
    """Of some rows of the run's data set, where it is still there and of the same encoder."""
    place = (facts or {}).get("data")
    if facts is None or not isinstance(place, str) or not files.exists(place):
        return None
    try:
        dataset = EmbeddingDataset(place)
        if dataset.card.fingerprint() != facts["fingerprint"] or (norms := dataset.norms("image")) is None:
            return None
        return float(norms(np.unique(np.linspace(0, len(dataset) - 1, _ROWS).astype(np.int64))).mean())
    except EmbedpipeError:
        return None


def _of_normalizer(folder: PipelineFolder) -> float | None:
    """Of the mean and deviation that Stable unCLIP standardises raw embeddings by."""
    place = folder.path / "image_normalizer"
    for file in sorted(place.glob("*.safetensors")):
        tensors = read_tensors(file)
        if not {"mean", "std"} <= tensors.keys():
            raise CheckpointError(f"{file}: holds no mean and std of image embeddings")
        squared = torch.stack([tensors[name].float().square().sum() for name in ("mean", "std")]).sum()
        return float(squared.sqrt())
    return None
