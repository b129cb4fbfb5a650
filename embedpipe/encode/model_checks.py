"""Check the model that open_clip built against its spec: a version that builds a different model is an error."""

from __future__ import annotations

import dataclasses
from typing import Any

import open_clip
import torch

from ..clip_model.architecture import ModelSpec, TowerSpec
from ..clip_model.encoder_card import EncoderCard, TowerCard
from ..clip_model.spec import BARE_PREPROCESS, refuse_other
from ..errors import ModelError
from ..images.rules import WHITE, image_rules
from .base import EncoderConfig

# Activation classes of several libraries by name, in lower case. Sigmoids and softmaxes of gates and scores are left
# out.
_ACTIVATIONS = {
    "gelu": "gelu",
    "geluactivation": "gelu",
    "quickgelu": "quick_gelu",
    "quickgeluactivation": "quick_gelu",
    "gelutanh": "gelu_tanh",
    "newgeluactivation": "gelu_tanh",
    "fastgeluactivation": "gelu_tanh",
    "pytorchgelutanh": "gelu_tanh",
    "relu": "relu",
    "relu6": "relu6",
    "leakyrelu": "leaky_relu",
    "silu": "silu",
    "siluactivation": "silu",
    "swish": "silu",
    "hardswish": "hard_swish",
    "mish": "mish",
}
# A caption that distinguishes the cleaning functions, and its result under each.
_UNCLEAN = "  A_b,  C! "
_CLEANED = {"a_b, c!": "lower", "A_b, C!": "whitespace", "a b c": "canonicalize"}


def checked(config: EncoderConfig, spec: ModelSpec, card: EncoderCard, model: Any, tokenizer: Any) -> EncoderCard:
    """The card with all current fields. Raises ModelError if the built model differs from `spec`."""
    found = {field: getattr(card.preprocess, field) for field in BARE_PREPROCESS}
    if spec.preprocess is None:
        refuse_other(config.model, spec, found, config.options)
    image = TowerCard(activations(model.visual), spec.image_tower.pooling)
    text = TowerCard(activations(text_tower(model)), spec.text_tower.pooling)
    pooled = pooling(model, spec.image_tower, spec.text_tower)
    clean = cleaning(tokenizer)
    named = f"{config.model} {config.pretrained}".strip()
    built: dict[str, tuple[Any, Any]] = {
        "activation of the image tower": (spec.image_tower.activation or image.activation, image.activation),
        "activation of the text tower": (spec.text_tower.activation or text.activation, text.activation),
        "pooling of the image tower": (image.pooling, pooled[0]),
        "pooling of the text tower": (text.pooling, pooled[1]),
        "preprocessing": (spec.preprocess or found, found),
        "image size": (spec.size, card.preprocess.size),
        "width": (spec.dim, card.dim),
        "context length": (spec.context_length, card.context_length),
        "cleaning of captions": (spec.text_preprocess.clean, clean),
    }
    for what, (wanted, there) in built.items():
        if wanted != there:
            raise ModelError(
                f"{named}: open_clip {open_clip.__version__} built another model than its tables say: {what} {there}, "
                f"not {wanted}",
                "Install the version of open_clip that this embedpipe was tested with",
            )
    rules = config.image_rules or image_rules(config.background or WHITE)
    return dataclasses.replace(
        card, image_tower=image, text_tower=text, text_preprocess=spec.text_preprocess, image_rules=rules
    )


def text_tower(model: Any) -> Any:
    """The module that encodes texts: `.text`, or the transformer of a plain CLIP."""
    return getattr(model, "text", None) or model.transformer


def activations(tower: torch.nn.Module) -> str:
    """Canonical names of the activations in a tower, in alphabetical order, joined by `+`; `none` without any.

    Functional activations, called without a module, are not detected.
    """
    found = set()
    for module in tower.modules():
        word = _ACTIVATIONS.get(type(module).__name__.lower())
        if word == "gelu" and getattr(module, "approximate", "none") == "tanh":
            word = "gelu_tanh"
        if word is not None:
            found.add(word)
    return "+".join(sorted(found)) or "none"


def cleaning(tokenizer: Any) -> str:
    """The caption cleaning of a tokenizer, found by running it: lower, whitespace or canonicalize."""
    clean = getattr(tokenizer, "clean_fn", None)
    if clean is None:
        return "canonicalize" if type(tokenizer).__name__ == "SigLipTokenizer" else "none"
    return _CLEANED.get(clean(_UNCLEAN), "unknown")


def pooling(model: Any, image: TowerSpec, text: TowerSpec) -> tuple[str, str]:
    """Pooling of a model's image and text tower: their own attributes, else their specs."""
    return _image_pooling(model, image), _text_pooling(model, text)


def _image_pooling(model: Any, spec: TowerSpec) -> str:
    """The image tower's own attribute, if it is open_clip's; else the value of `spec`."""
    visual = model.visual
    if not hasattr(visual, "pool_type"):
        return spec.pooling
    if getattr(visual, "attn_pool", None) is not None:
        kind = getattr(visual, "attn_pool_type", "")
        return f"attention_{kind}" if kind else "attention"
    return str(visual.pool_type) + "+norm" * bool(getattr(visual, "final_ln_after_pool", False))


def _text_pooling(model: Any, spec: TowerSpec) -> str:
    tower = getattr(model, "text", model)
    pooling = getattr(tower, "text_pool_type", None) or getattr(tower, "pool_type", None)
    if pooling is None:
        return spec.pooling
    return "cls" if getattr(tower, "cls_emb", None) is not None else str(pooling)
