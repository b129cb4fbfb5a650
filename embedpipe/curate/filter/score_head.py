"""Score heads: a linear layer or an MLP over stored embeddings, such as LAION's aesthetic predictors.

Two state dict layouts are common: `weight`, `bias` of one Linear(d, 1) (LAION-AI/aesthetic-predictor), and
`layers.0.weight` … of several, with dropout and no activation between them
(christophschuhmann/improved-aesthetic-predictor). Both expect L2-normalised embeddings of the model they were trained
on, which the files do not name. A card beside the file (`head.json` beside `head.pth`) can name it:

    {"model": "ViT-L-14", "pretrained": "openai", "weights_sha256": "…", "quick_gelu": true, "activation": "none"}

`activation` is the head's own. The encoder's activation follows from model and tag, or from `quick_gelu`; a head only
scores embeddings computed with the same one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...clip_model import open_clip_tables
from ...clip_model.compatibility import activation_of_version_0_1, activation_word, computes_quick_gelu
from ...clip_model.encoder_card import BEFORE_ACTIVATION, EncoderCard
from ...clip_model.spec import has_quick_gelu, tag_values
from ...errors import InputError, RunMismatch, did_you_mean
from ...pickled import REMEDY, pickle_refusal

# File names of LAION's published heads, and the model each is for.
PUBLISHED = {
    "sa_0_4_vit_l_14_linear": "ViT-L-14/openai",
    "sa_0_4_vit_b_32_linear": "ViT-B-32/openai",
    "sa_0_4_vit_b_16_linear": "ViT-B-16/openai",
    "sac+logos+ava1-l14-linearMSE": "ViT-L-14/openai",
    "ava+logos-l14-linearMSE": "ViT-L-14/openai",
    "ava+logos-l14-reluMSE": "ViT-L-14/openai",
}
ACTIVATIONS = {"none": lambda x: x, "relu": lambda x: np.maximum(x, 0)}

_PARAMETER = re.compile(r"(?:[A-Za-z_]\w*\.)*?(?P<layer>\d+\.)?(?P<kind>weight|bias)")
_SHORTEST_HASH = 12


@dataclass(frozen=True, slots=True)
class Head:
    """layers: (weight float32 [out, in], bias float32 [out]) in order, the last with one output."""

    layers: tuple[tuple[np.ndarray, np.ndarray], ...]
    activation: str

    def score(self, rows: np.ndarray) -> np.ndarray:
        """float32 [n] of L2-normalised float32 rows [n, dim]."""
        for i, (weight, bias) in enumerate(self.layers):
            rows = rows @ weight.T + bias
            if i + 1 < len(self.layers):
                rows = ACTIVATIONS[self.activation](rows)
        scores: np.ndarray = rows[:, 0]
        return scores


def open_head(path: str, card: EncoderCard, model: str | None = None, trust_old_card: bool = False) -> Head:
    """Load the head in a .pth, .pt or .safetensors file, for embeddings of `card`.

    model: the model it was trained for, as MODEL/PRETRAINED or the first digits of the weights' sha256; None uses the
    card beside the file, or the file name. trust_old_card: assume that a data set of version 0.1, which did not record
    the activation, is of that model. Raises InputError if the file is not a head, RunMismatch if it is for another
    model or activation, or for an unknown one.
    """
    about = _read_card(path)
    claim = model or _claim(path, about)
    _refuse_other_model(path, card, claim)
    _refuse_other_activation(path, card, _quick_gelu(claim or "", about), trust_old_card)
    activation = str(about.get("activation", "relu" if "relu" in Path(path).stem.lower() else "none"))
    if activation not in ACTIVATIONS:
        raise InputError(f"{path}: its card names the activation {activation!r}", did_you_mean(activation, ACTIVATIONS))
    layers = _layers(path, _parameters(path))
    width = layers[0][0].shape[1]
    if width != card.dim:
        raise RunMismatch(
            f"{path}: a head for embeddings of {width} values; these have {card.dim}",
            f"Give a head made for {card.model} {card.pretrained}".rstrip(),
        )
    return Head(layers, activation)


def _read_card(path: str) -> dict[str, Any]:
    beside = Path(path).with_suffix(".json")
    if not beside.is_file():
        return {}
    try:
        card = json.loads(beside.read_bytes())
    except ValueError as problem:
        raise InputError(f"{beside}: is not JSON: {problem}", "It says which model the head is for") from problem
    if not isinstance(card, dict):
        raise InputError(f"{beside}: is no JSON object", 'Such as {"model": "ViT-L-14", "pretrained": "openai"}')
    return card


def _claim(path: str, about: dict[str, Any]) -> str | None:
    """The model that a head is for, by its card or, if LAION published it, by its file name."""
    if about.get("weights_sha256"):
        return str(about["weights_sha256"])
    if about.get("model"):
        return f"{about['model']}/{about.get('pretrained') or ''}".rstrip("/")
    return PUBLISHED.get(Path(path).stem)


def _refuse_other_model(path: str, card: EncoderCard, claim: str | None) -> None:
    made_by = f"{card.model}/{card.pretrained}".rstrip("/")
    remedy = (
        f"If it was made for the model of this data set, give `head_model={made_by!r}`, or by its weights, "
        f"`head_model={card.weights_sha256[:_SHORTEST_HASH]!r}`"
    )
    if claim is None:
        raise RunMismatch(f"{path}: nothing says which model this head was made for", remedy)
    by_hash = len(claim) >= _SHORTEST_HASH and card.weights_sha256.startswith(claim.lower())
    if not by_hash and _plain(claim) != _plain(made_by):
        raise RunMismatch(f"{path}: a head for {claim}; the embeddings are of {made_by}", remedy)


def _quick_gelu(claim: str, about: Mapping[str, Any]) -> bool | None:
    """Whether a head is for embeddings computed with QuickGELU; None if neither card nor model and tag tell."""
    if isinstance(about.get("quick_gelu"), bool):
        return bool(about["quick_gelu"])
    by_name = claim if "/" in claim else f"{about.get('model', '')}/{about.get('pretrained', '')}"
    model, _, tag = by_name.rpartition("/")
    name = open_clip_tables.known_name(model)
    if name is not None and has_quick_gelu(name) and open_clip_tables.tag_of(name, tag) is not None:
        return bool(tag_values(name, tag)["quick_gelu"])
    return True if model.endswith(open_clip_tables.QUICK_GELU_SUFFIX) else None


def _refuse_other_activation(path: str, card: EncoderCard, wanted: bool | None, trust_old_card: bool) -> None:
    there = computes_quick_gelu(card)
    if not card.known or (there is None and trust_old_card):
        return
    if wanted is None:
        if has_quick_gelu(card.model):
            these = BEFORE_ACTIVATION if there is None else f"computed with {activation_word(there)}"
            raise RunMismatch(
                f"{path}: nothing says whether this head is for embeddings computed with QuickGELU or GELU; these were "
                f"{these}",
                f'Add "quick_gelu": true or false to {Path(path).with_suffix(".json").name} beside it, or give '
                "`head_model=MODEL/TAG`",
            )
        return
    a_head = f"{path}: a head for embeddings computed with {activation_word(wanted)}"
    if there is None:
        then = activation_of_version_0_1(card)
        said = "" if then is None else f"; version 0.1 computed {card.model} with {activation_word(then)}"
        raise RunMismatch(
            f"{a_head}; these were {BEFORE_ACTIVATION}{said}",
            "Encode again, or give `trust_old_card=True` to score them all the same",
        )
    if there != wanted:
        raise RunMismatch(
            f"{a_head}; these were computed with {activation_word(there)}",
            "Encode with the model and tag that the head was made for, or give a head made for these",
        )


def _plain(model: str) -> str:
    # Both names have the same weights; the activation is checked separately.
    return re.sub(r"[/_]", "-", model).lower().replace("-quickgelu", "")


def _parameters(path: str) -> dict[str, np.ndarray]:
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file", "Check the path")
    try:
        if path.endswith(".safetensors"):
            from safetensors.numpy import load_file

            return {name: np.asarray(value, np.float32) for name, value in load_file(path).items()}
        import torch

        loaded = torch.load(path, map_location="cpu", weights_only=True)
        state = loaded.get("state_dict", loaded)
        return {name: value.float().numpy() for name, value in state.items()}
    except Exception as problem:  # whatever torch raises for a truncated or foreign file
        if (pickled := pickle_refusal(problem)) is not None:
            raise InputError(f"{path}: {pickled}", REMEDY) from problem
        raise InputError(
            f"{path}: no state dict that can be read: {type(problem).__name__}: {problem}",
            "Give the weights of a linear head or an MLP as .pth or .safetensors",
        ) from problem


def _layers(path: str, parameters: dict[str, np.ndarray]) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """Weights and biases in numerical order. Raises InputError if they do not form a chain to one output."""
    found: dict[int, dict[str, np.ndarray]] = {}
    for name, value in parameters.items():
        match = _PARAMETER.fullmatch(name)
        if match is None or value.ndim != (2 if match["kind"] == "weight" else 1):
            raise _no_head(path, f"has the parameter {name} {list(value.shape)}")
        found.setdefault(int((match["layer"] or "0.")[:-1]), {})[match["kind"]] = value
    layers: list[tuple[np.ndarray, np.ndarray]] = []
    for number, layer in sorted(found.items()):
        weight = layer.get("weight")
        if weight is None or (layers and layers[-1][0].shape[0] != weight.shape[1]):
            raise _no_head(path, f"its layer {number} does not take what the one before it gives")
        bias = layer.get("bias", np.zeros(len(weight), np.float32))
        if len(bias) != len(weight):
            raise _no_head(path, f"weight and bias of its layer {number} do not fit")
        layers.append((weight, bias))
    if not layers or layers[-1][0].shape[0] != 1:
        raise _no_head(path, f"it gives {layers[-1][0].shape[0] if layers else 0} numbers, not one score")
    return tuple(layers)


def _no_head(path: str, why: str) -> InputError:
    return InputError(f"{path}: no linear head or MLP: {why}", "Give a state dict of linear layers only")
