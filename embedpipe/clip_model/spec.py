"""Resolve a model name, weights and explicit options to a ModelSpec, from open_clip's tables.

`(model, tag or file, explicit options) → ModelSpec`. A tag brings its own values, including the activation. A
checkpoint file takes the values on which all tags of the model agree; where they differ, the user must choose. Nothing
is loaded, not even torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ModelError, did_you_mean
from ..plural import in_full
from . import open_clip_tables
from .architecture import ModelSpec, of_config, takes_quick_gelu
from .name import unknown_model
from .open_clip_tables import INTERPOLATIONS, QUICK_GELU_SUFFIX, RESIZE_MODES

# `--pretrained random`: weights drawn from the seed, for tests, benchmarks and rehearsals without a network.
RANDOM = "random"
# open_clip's defaults, at inference and in training.
BARE_PREPROCESS: dict[str, Any] = {
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}

_FIELDS = ("quick_gelu", *BARE_PREPROCESS)


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """Explicit model options, None where not given. like_tag: the tag whose values a checkpoint file takes.

    quick_gelu: True for QuickGELU, False for GELU. mean, std: per RGB channel, for values in 0..1. interpolation: one
    of INTERPOLATIONS. resize_mode: one of RESIZE_MODES.
    """

    quick_gelu: bool | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    interpolation: str | None = None
    resize_mode: str | None = None
    like_tag: str | None = None

    def __post_init__(self) -> None:
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and not all(math.isfinite(v) and (name == "mean" or v > 0) for v in values):
                wanted = "three numbers above 0" if name == "std" else "three finite numbers"
                raise ModelError(f"{name} {in_full(values)}: no {_word(name)} of pixels", f"Give {wanted}")

    def said(self) -> dict[str, Any]:
        """The given values by name, without `like_tag`."""
        return {name: getattr(self, name) for name in _FIELDS if getattr(self, name) is not None}


def resolve_spec(model: str, pretrained: str, options: ModelOptions | None = None) -> ModelSpec:
    """The spec of an open_clip model with a tag, a checkpoint file, or `random`.

    Raises ModelError: no such model or tag, options that contradict the tag or the name, or a file with unknown
    activation or preprocessing.
    """
    options = options or ModelOptions()
    name = require_weights(model, pretrained)
    config = open_clip_tables.model_configs()[name]
    named = f"{model} {pretrained}"
    if pretrained == RANDOM:
        values = _completed(named, name, options, _by_bare(name, config))
    elif open_clip_tables.tag_of(name, pretrained) is not None:
        values = _of_tag(named, name, pretrained, options)
    else:
        values = _completed(named, name, options, _by_value(name) or _by_bare(name, config))
    _refuse_what_cannot_be(named, name, config, values, options)
    preprocess = {field: values[field] for field in BARE_PREPROCESS}
    return of_config(name, config, preprocess, quick_gelu=values["quick_gelu"])


def tag_values(name: str, tag: str) -> dict[str, Any]:
    """quick_gelu, mean, std, interpolation and resize_mode that a model's tag was trained with.

    A tag without an activation uses that of the model's configuration, from which it was trained.
    """
    said = open_clip_tables.tag_of(name, tag)
    assert said is not None
    bare = _bare(open_clip_tables.model_configs()[name])
    return {field: _plain(said.get(field, bare[field])) for field in _FIELDS}


def _bare(config: Mapping[str, Any]) -> dict[str, Any]:
    return {"quick_gelu": bool(config.get("quick_gelu", False)), **BARE_PREPROCESS}


def _plain(value: Any) -> Any:
    return tuple(float(part) for part in value) if isinstance(value, list | tuple) else value


# Values by tag: field → value → the tags that have it.
_ByValue = dict[str, dict[Any, list[str]]]


def _by_value(name: str) -> _ByValue:
    """The values of a model's tags and its QuickGELU sibling's tags; empty if it has none."""
    found: _ByValue = {}
    siblings = [name] if name.endswith(QUICK_GELU_SUFFIX) else [name, open_clip_tables.sibling_model(name)]
    for model in filter(None, siblings):
        for tag in open_clip_tables.pretrained_tags().get(model, {}):
            for field, value in tag_values(model, tag).items():
                tags = found.setdefault(field, {}).setdefault(value, [])
                if tag not in tags:
                    tags.append(tag)
    if found and not takes_quick_gelu(open_clip_tables.model_configs()[name]):
        found["quick_gelu"] = {False: [name]}  # other libraries decide: the tags' value has no effect
    return found


def _by_bare(name: str, config: Mapping[str, Any]) -> _ByValue:
    return {field: {value: [name]} for field, value in _bare(config).items()}


def _of_tag(named: str, name: str, tag: str, options: ModelOptions) -> dict[str, Any]:
    values = tag_values(name, tag)
    if options.like_tag is not None and options.like_tag.lower().replace("-", "_") != tag.lower().replace("-", "_"):
        raise ModelError(f"{named}: `like_tag` is for checkpoint files, and {tag!r} is a tag", "Drop `like_tag`")
    _refuse_contradictions(f"{named}: its tag says", values, options.said(), "Drop the option")
    return values


def _completed(named: str, name: str, options: ModelOptions, by_value: _ByValue) -> dict[str, Any]:
    """The values of a file: explicit ones, those of `like_tag`, or those common to all tags."""
    if options.like_tag is not None:
        like = _like(named, name, options.like_tag)
        _refuse_contradictions(f"{named}: the tag {options.like_tag} says", like, options.said(), "Drop one of them")
        return like
    values = {field: next(iter(found)) for field, found in by_value.items() if len(found) == 1} | options.said()
    missing = [field for field in _FIELDS if field not in values]
    if missing:
        there = "; ".join(f"{_word(field)}: {_alternatives(by_value[field])}" for field in missing)
        ways = ", ".join(f"`{field}`" for field in missing)
        raise ModelError(
            f"{named}: a checkpoint file does not record how it was trained, and the model's tags do not agree: "
            f"{there}",
            f"Give {ways}, or `like_tag` with the tag whose settings it was trained with",
        )
    return values


def _like(named: str, name: str, tag: str) -> dict[str, Any]:
    for model in filter(None, (name, open_clip_tables.sibling_model(name))):
        if open_clip_tables.tag_of(model, tag) is not None:
            return tag_values(model, tag)
    known = [
        *open_clip_tables.pretrained_tags().get(name, {}),
        *open_clip_tables.pretrained_tags().get(open_clip_tables.sibling_model(name) or "", {}),
    ]
    raise ModelError(f"{named}: the model has no tag {tag!r} for `like_tag`", did_you_mean(tag, set(known)))


def _alternatives(found: Mapping[Any, list[str]]) -> str:
    shown = []
    for value, tags in found.items():
        some = ", ".join(tags[:3]) + " …" * (len(tags) > 3)
        shown.append(f"{_shown(value)} ({some})")
    return " or ".join(shown)


def _refuse_contradictions(who: str, values: Mapping[str, Any], said: Mapping[str, Any], remedy: str) -> None:
    """Raise ModelError if an explicit option contradicts the values. who: the source of the values."""
    for field, value in said.items():
        if values[field] != value:
            raise ModelError(
                f"{who} {_word(field)} {_shown(values[field], field)}, and {_shown(value, field)} was asked for", remedy
            )


def refuse_other(named: str, spec: ModelSpec, found: Mapping[str, Any], options: ModelOptions) -> None:
    """Raise ModelError if options contradict a model with its own configuration. found: its preprocessing."""
    if options.like_tag is not None:
        raise ModelError(f"{named}: brings its own configuration, not a tag's", "Drop `like_tag`")
    values = {"quick_gelu": spec.quick_gelu, **found}
    _refuse_contradictions(f"{named}: its own configuration says", values, options.said(), "Drop the option")


def require_weights(model: str, pretrained: str) -> str:
    """open_clip's name of a model in its tables. Raises ModelError if the name, tag or file does not exist."""
    name = open_clip_tables.known_name(model)
    if name is None:
        raise unknown_model(model)
    tags = list(open_clip_tables.pretrained_tags().get(name, {}))
    if not pretrained:
        known = f"a tag ({', '.join(tags[:4])} …)" if tags else "a checkpoint file"
        raise ModelError(f"{model}: no weights given", f"Give `pretrained`: {known}, a file, or `random`")
    if pretrained == RANDOM or open_clip_tables.tag_of(name, pretrained) is not None or Path(pretrained).is_file():
        return name
    other = open_clip_tables.sibling_model(name)
    if other is not None and open_clip_tables.tag_of(other, pretrained) is not None:
        trained = "QuickGELU" if tag_values(other, pretrained)["quick_gelu"] else "GELU"
        raise ModelError(
            f"{model} {pretrained}: the tag was trained with {trained}, the name {name} says otherwise",
            f"Give `model={other!r}` and `pretrained={pretrained!r}`",
        )
    raise ModelError(
        f"{model}: no pretrained tag or checkpoint file {pretrained!r}",
        did_you_mean(pretrained, [*tags, RANDOM])
        if tags
        else "This model has no tags: give a checkpoint file, or `random`",
    )


def _refuse_what_cannot_be(
    named: str, name: str, config: Mapping[str, Any], values: Mapping[str, Any], options: ModelOptions
) -> None:
    if options.quick_gelu is not None and not takes_quick_gelu(config):
        raise ModelError(
            f"{named}: its towers come from timm and transformers, which set the activation",
            "Drop `quick_gelu`",
        )
    if config.get("quick_gelu", False) and not values["quick_gelu"]:
        base = name.removesuffix(QUICK_GELU_SUFFIX)
        remedy = f"Give `model={base!r}`" if base != name else "Drop `quick_gelu=False`"
        raise ModelError(f"{named}: {name} always uses QuickGELU", remedy)
    for field, known in (("interpolation", INTERPOLATIONS), ("resize_mode", RESIZE_MODES)):
        if values[field] not in known:
            raise ModelError(f"{named}: {_word(field)} {values[field]!r}", f"Known: {', '.join(known)}")


def is_checkpoint(model: str, pretrained: str) -> bool:
    """Whether a model of open_clip's tables loads its weights from a file, which does not record how it was trained."""
    name = open_clip_tables.known_name(model)
    return name is not None and open_clip_tables.tag_of(name, pretrained) is None and Path(pretrained).is_file()


def has_quick_gelu(model: str) -> bool:
    """Whether `quick_gelu` changes anything in a model of open_clip's tables."""
    name = open_clip_tables.known_name(model)
    return name is not None and takes_quick_gelu(open_clip_tables.model_configs()[name])


def _word(field: str) -> str:
    return "activation" if field == "quick_gelu" else field.replace("_", " ")


def _shown(value: Any, field: str = "") -> str:
    if isinstance(value, bool):
        return "QuickGELU" if value else "GELU"
    return in_full(value) if isinstance(value, tuple) else str(value)
