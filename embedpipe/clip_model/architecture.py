"""The towers, image size and tokenizer that an open_clip model configuration describes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .encoder_card import TextPreprocessSpec


@dataclass(frozen=True, slots=True)
class TowerSpec:
    """The expected properties of a tower. activation: None where another library (timm, transformers) decides it."""

    activation: str | None
    pooling: str


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Everything that determines a model's outputs, apart from its weights.

    model: open_clip's name, or `hf-hub:…`, `local-dir:…`. preprocess: mean, std, interpolation and resize_mode; None
    where the model's own configuration sets them. size: of its images, (height, width). dim: of its embeddings.
    needs_transformers: whether the package is required.
    """

    model: str
    quick_gelu: bool
    preprocess: dict[str, Any] | None
    size: tuple[int, int]
    dim: int
    context_length: int
    image_tower: TowerSpec
    text_tower: TowerSpec
    text_preprocess: TextPreprocessSpec
    needs_transformers: bool


def of_config(
    name: str, config: Mapping[str, Any], preprocess: dict[str, Any] | None, quick_gelu: bool | None = None
) -> ModelSpec:
    """The spec of a model configuration. quick_gelu: None uses the configuration's value."""
    quick = bool(config.get("quick_gelu", False)) if quick_gelu is None else quick_gelu
    text = config["text_cfg"]
    size = config["vision_cfg"].get("image_size", 224)
    hf_tokenizer, clean, options = _tokenizing(name, text)
    return ModelSpec(
        model=name,
        quick_gelu=quick,
        preprocess=preprocess,
        size=(int(size[0]), int(size[1])) if isinstance(size, list | tuple) else (int(size), int(size)),
        dim=int(config["embed_dim"]),
        context_length=int(text.get("context_length", 77)),
        image_tower=_image_tower(config["vision_cfg"], quick),
        text_tower=_text_tower(text, quick),
        text_preprocess=TextPreprocessSpec(clean, options),
        needs_transformers=hf_tokenizer or "hf_model_name" in text,
    )


def takes_quick_gelu(config: Mapping[str, Any]) -> bool:
    """Whether `quick_gelu` changes any tower: those of timm and transformers have their own activation."""
    vision, text = config["vision_cfg"], config["text_cfg"]
    own_vision = not vision.get("timm_model_name") and not isinstance(vision.get("layers"), list | tuple)
    return own_vision or not text.get("hf_model_name")


def _image_tower(vision: Mapping[str, Any], quick_gelu: bool) -> TowerSpec:
    if vision.get("timm_model_name"):
        return TowerSpec(None, vision.get("timm_pool", "avg") or "own")
    if isinstance(vision.get("layers"), list | tuple):
        return TowerSpec("relu", "attention")
    attentional = vision.get("attentional_pool", False)
    if attentional:
        pooling = "attention" if attentional is True else f"attention_{attentional}"
    else:
        pooling = vision.get("pool_type", "tok") + "+norm" * bool(vision.get("final_ln_after_pool"))
    return TowerSpec(_activation(quick_gelu, vision.get("act_kwargs")), pooling)


def _text_tower(text: Mapping[str, Any], quick_gelu: bool) -> TowerSpec:
    if text.get("hf_model_name"):
        return TowerSpec(None, str(text.get("hf_pooler_type", "mean_pooler")).removesuffix("_pooler"))
    pooling = "cls" if text.get("embed_cls") else text.get("pool_type", "argmax")
    return TowerSpec(_activation(quick_gelu, text.get("act_kwargs")), pooling)


def _activation(quick_gelu: bool, settings: Mapping[str, Any] | None) -> str:
    if quick_gelu:
        return "quick_gelu"
    return "gelu_tanh" if (settings or {}).get("approximate") == "tanh" else "gelu"


def _tokenizing(name: str, text: Mapping[str, Any]) -> tuple[bool, str, dict[str, Any]]:
    """Whether the tokenizer is from transformers, its caption cleaning, and its other options."""
    options = dict(text.get("tokenizer_kwargs") or {})
    if text.get("tokenizer_mode"):
        options["mode"] = text["tokenizer_mode"]
    if text.get("hf_tokenizer_name"):
        return True, options.pop("clean", "whitespace"), options
    if ":" not in name and "siglip" in name.lower():
        return True, "canonicalize", {}
    return False, options.pop("clean", "lower"), options
