"""A CLIP of one's own, trained through open_clip and saved as a folder that plain open_clip loads.

Radford et al. 2103.00020; with a locked image trunk, Zhai et al. 2111.07991 (LiT). The only file here that imports
open_clip.

Shapes: b batch, h w pixels, l text length, d embedding width, f width of the image trunk's features.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dalle2_core.clip.packaged_weights import load_trunk
from dalle2_core.errors import ConfigError, ShapeError
from dalle2_core.files import write_json, write_tensors
from dalle2_core.rng import RNG, integers
from dalle2_core.types import StepLoss

RECALL_AT = (1, 5, 10)
MAX_LOG_SCALE = math.log(100)  # 2103.00020, section 2.5: hotter logits make training unstable
_SAME = 1e-6  # cosines of equal captions differ by rounding when they were embedded in different batches
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, slots=True)
class ClipConfig:
    """What the model is. All values are plain JSON.

    model: open_clip's own model configuration: embed_dim, vision_cfg, text_cfg, custom_text.
    mean, std: per RGB channel, for values in 0..1; bicubic resizing of the shorter side and a centre crop besides.
    trunk: name of packaged weights for the image trunk (`PACKAGED_TRUNKS`), or None to begin with random ones.
    lock_trunk: leave the image trunk as it is and train the head on its features, which are then computed once.
    max_shift_px: pictures are moved by up to so many pixels each way in training (not with a locked trunk).
    """

    model: Mapping[str, Any]
    mean: tuple[float, float, float] = _IMAGENET_MEAN
    std: tuple[float, float, float] = _IMAGENET_STD
    trunk: str | None = None
    lock_trunk: bool = False
    max_shift_px: int = 0

    def __post_init__(self) -> None:
        missing = {"embed_dim", "vision_cfg", "text_cfg"} - self.model.keys()
        if missing:
            raise ConfigError(f"clip.model lacks {', '.join(sorted(missing))}; give a whole open_clip model_cfg")
        if (self.trunk or self.lock_trunk) and "timm_model_name" not in self.model["vision_cfg"]:
            raise ConfigError("clip.trunk and clip.lock_trunk need an image tower of timm (vision_cfg.timm_model_name)")
        if self.lock_trunk and self.trunk is None:
            raise ConfigError("clip.lock_trunk without clip.trunk would lock random weights; name a trunk")
        if "hf_model_name" in self.model["text_cfg"] or "hf_tokenizer_name" in self.model["text_cfg"]:
            raise ConfigError("clip.model.text_cfg: towers of transformers are not trained here; give width and layers")
        if self.max_shift_px < 0:
            raise ConfigError(f"clip.max_shift_px is {self.max_shift_px}; it must be 0 or more")

    @property
    def image_size(self) -> int:
        """Height and width of the input, pixels."""
        return int(self.model["vision_cfg"].get("image_size", 224))

    @property
    def preprocess(self) -> dict[str, Any]:
        """open_clip's preprocess_cfg."""
        return {
            "mean": list(self.mean),
            "std": list(self.std),
            "interpolation": "bicubic",
            "resize_mode": "shortest",
            "fill_color": 0,
        }


@dataclass(frozen=True, slots=True)
class ClipBatch:
    """Pairs: row i of both is the same sample.

    image: [b, 3, h, w] uint8 pixels, or [b, f] float32 features of a locked trunk.
    tokens: [b, l] integers from `tokenize`.
    """

    image: Tensor
    tokens: Tensor

    def __post_init__(self) -> None:
        if len(self.image) != len(self.tokens):
            raise ShapeError(f"{len(self.image)} images and {len(self.tokens)} captions are no pairs")

    def __len__(self) -> int:
        return len(self.image)

    def to(self, device: torch.device) -> ClipBatch:
        return ClipBatch(self.image.to(device, non_blocking=True), self.tokens.to(device, non_blocking=True))

    def part(self, start: int, stop: int) -> ClipBatch:
        return ClipBatch(self.image[start:stop], self.tokens[start:stop])


@dataclass(frozen=True, slots=True)
class CutTexts:
    """captions: how many were longer than the context. tokens: how many of theirs were cut off."""

    captions: int
    tokens: int


def count_cut(captions: Sequence[str], tokens: Tensor) -> CutTexts:
    """What `tokenize` cut off, of captions and its [n, l] of them.

    Only rows that are filled to their last place can have been cut; these captions are tokenised once more, in full.
    """
    context_length = tokens.shape[1]
    encode = _tokenizer(context_length).encode
    full = torch.nonzero(tokens[:, -1] != 0)[:, 0].tolist()
    over = [max(0, len(encode(captions[row])) + 2 - context_length) for row in full]  # 2: start and end
    return CutTexts(sum(count > 0 for count in over), sum(over))


def tokenize(captions: Sequence[str], config: ClipConfig) -> Tensor:
    """Captions → [n, l] int32, with open_clip's own BPE; longer ones are cut to the model's context length."""
    context_length = int(config.model["text_cfg"].get("context_length", 77))
    tokens: Tensor = _tokenizer(context_length)(list(captions))
    return tokens.int()


@functools.cache
def _tokenizer(context_length: int) -> Any:
    # Reading its vocabulary takes most of a second.
    return open_clip.SimpleTokenizer(context_length=context_length)


class TrainableClip(nn.Module):
    """An open_clip model (`.clip`) with its training loss. Weights are drawn from torch's global generator."""

    compares_rows = True  # every other picture of the batch is a wrong answer
    mean: Tensor
    std: Tensor

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.config = config
        self.clip = _build(config)
        self.contrast = open_clip.ClipLoss()
        if config.trunk is not None:
            load_trunk(self.clip.visual.trunk, config.trunk)
        if config.lock_trunk:
            # Channels last: 1.5 to 2 times faster on a CPU for the depthwise convolutions of small trunks.
            self.clip.visual.trunk.requires_grad_(False).to(memory_format=torch.channels_last)
        self.train()
        shape = (1, 3, 1, 1)
        self.register_buffer("mean", torch.tensor(config.mean).view(shape), persistent=False)
        self.register_buffer("std", torch.tensor(config.std).view(shape), persistent=False)

    def train(self, mode: bool = True) -> TrainableClip:
        """As torch's; a locked trunk stays in eval mode, or its batch statistics would move."""
        super().train(mode)
        if self.config.lock_trunk:
            self.clip.visual.trunk.eval()
        return self

    def loss(self, batch: ClipBatch, draws: RNG) -> StepLoss:
        """Symmetric cross-entropy over the pairs of the batch (2103.00020, figure 3)."""
        image, text = self._embed(batch, self.training, draws)
        scale = self.clip.logit_scale.clamp(max=MAX_LOG_SCALE).exp()
        return StepLoss(self.contrast(image, text, scale), {"logit_scale": float(scale.detach())})

    def embed(self, batch: ClipBatch) -> tuple[Tensor, Tensor]:
        """(image, text) embeddings, each float [b, d], L2-normalised."""
        return self._embed(batch, moved=False, draws=None)

    def _embed(self, batch: ClipBatch, moved: bool, draws: RNG) -> tuple[Tensor, Tensor]:
        if batch.image.dtype == torch.uint8:
            moved_px = self.config.max_shift_px if moved else 0
            pixels = _shifted(batch.image, moved_px, draws) if moved_px else batch.image
            image = self.clip.encode_image(self._inputs(pixels))
        else:
            image = self.clip.visual.head(batch.image)
        text = self.clip.encode_text(batch.tokens.long())
        return F.normalize(image, dim=-1), F.normalize(text, dim=-1)

    @torch.no_grad()
    def trunk_features(self, pixels: Tensor) -> Tensor:
        """What a locked trunk makes of uint8 [b, 3, h, w]: float32 [b, f]."""
        inputs = self._inputs(pixels).contiguous(memory_format=torch.channels_last)
        features: Tensor = self.clip.visual.trunk(inputs)
        return features

    def _inputs(self, pixels: Tensor) -> Tensor:
        return (pixels.float() / 255 - self.mean) / self.std

    def save_open_clip(self, folder: str | Path) -> None:
        """See the function of that name."""
        save_open_clip(self.clip, self.config, folder)


def save_open_clip(model: nn.Module, config: ClipConfig, folder: str | Path) -> None:
    """Write `open_clip_config.json` and `open_clip_model.safetensors`: open_clip loads `local-dir:folder`."""
    folder = Path(folder)
    write_tensors(folder / "open_clip_model.safetensors", model.state_dict())
    content = {"model_cfg": _plain(config.model), "preprocess_cfg": config.preprocess}
    write_json(folder / "open_clip_config.json", content)


@dataclass(frozen=True, slots=True)
class ClipScores:
    """How well captions and images of held-out pairs find each other, among all n of them.

    Each recall maps k to the share of queries whose own partner is among the k nearest; ties are shared out, so
    that a model which embeds everything alike scores chance. chance: k / n.
    """

    n: int
    text_to_image: Mapping[int, float] = field(default_factory=dict)
    image_to_text: Mapping[int, float] = field(default_factory=dict)

    def chance(self, k: int) -> float:
        """Recall@k of a guess."""
        return min(1.0, k / self.n)

    def numbers(self) -> dict[str, float]:
        """Flat, for a log: text_to_image_recall_at_10 and so on, and `mean_recall` of all six, which is steadier."""
        sides = {"text_to_image": self.text_to_image, "image_to_text": self.image_to_text}
        flat = {f"{side}_recall_at_{k}": value for side, recalls in sides.items() for k, value in recalls.items()}
        return flat | {"mean_recall": sum(flat.values()) / len(flat)}


def score_pairs(image: Tensor, text: Tensor) -> ClipScores:
    """Recall@1, 5 and 10 both ways of normalised embeddings [n, d]. Raises ShapeError below 2 rows."""
    if image.shape != text.shape or image.ndim != 2 or len(image) < 2:
        raise ShapeError(f"image {tuple(image.shape)} and text {tuple(text.shape)} must both be [n, d], n of 2 or more")
    return ClipScores(len(image), _recall(text, image), _recall(image, text))


@torch.no_grad()
def evaluate_clip(model: TrainableClip, batches: Iterable[ClipBatch], device: torch.device) -> ClipScores:
    """Score the pairs of all batches together."""
    embedded = [model.embed(batch.to(device)) for batch in batches]
    if not embedded:
        raise ShapeError("there are no pairs to score")
    image, text = (torch.cat(side) for side in zip(*embedded, strict=True))
    return score_pairs(image, text)


def _recall(query: Tensor, gallery: Tensor, rows_at_once: int = 1024) -> dict[int, float]:
    hits = dict.fromkeys(RECALL_AT, 0.0)
    for start in range(0, len(query), rows_at_once):
        likeness = query[start : start + rows_at_once] @ gallery.T
        own = likeness.diagonal(start)[:, None]
        nearer = (likeness > own + _SAME).sum(dim=1)
        tied = ((likeness - own).abs() <= _SAME).sum(dim=1)  # itself included
        for k in RECALL_AT:
            hits[k] += float(((k - nearer) / tied).clamp(0, 1).sum())
    return {k: hit / len(query) for k, hit in hits.items()}


def _shifted(pixels: Tensor, most: int, draws: RNG) -> Tensor:
    """Each picture [b, 3, h, w] moved by its own whole number of pixels, its border repeated."""
    b, _, h, w = pixels.shape
    moves = integers(-most, most + 1, (b, 2), draws, pixels.device)
    y = (torch.arange(h, device=pixels.device) + moves[:, :1]).clamp(0, h - 1)
    x = (torch.arange(w, device=pixels.device) + moves[:, 1:]).clamp(0, w - 1)
    rows = torch.arange(b, device=pixels.device)[:, None, None]
    return pixels.permute(0, 2, 3, 1)[rows, y[:, :, None], x[:, None, :]].permute(0, 3, 1, 2)


@dataclass(frozen=True, slots=True)
class LoadedClip:
    """A model of open_clip, what its preprocessing subtracts and divides by, and its tokenizer."""

    model: Any
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: int
    tokenizer: Any


def load_open_clip(
    name: str,
    pretrained: str | None,
    quick_gelu: bool | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> LoadedClip:
    """A model by open_clip's names. Raises ConfigError if it does not know or cannot get it.

    A tag's weights get the activation, mean and std that they were trained with, whichever of its names the
    architecture is given by. A checkpoint file does not record them: it gets what all tags of the model agree on; what
    they do not agree on must be given, else ConfigError names the keyword. Keywords that contradict are errors, too.
    """
    _refuse_code(name)
    keywords = {"quick_gelu": quick_gelu, "mean": mean and tuple(mean), "std": std and tuple(std)}
    values = _trained_with(name, pretrained, {key: it for key, it in keywords.items() if it is not None})
    try:
        model = open_clip.create_model(
            name,
            pretrained=pretrained,
            force_quick_gelu=values.pop("quick_gelu", False),
            force_preprocess_cfg=values,
        )
        tokenizer = open_clip.get_tokenizer(name)
    # What open_clip raises for names it does not know and weights it cannot get; OSError is what the network gives.
    except (RuntimeError, ValueError, OSError) as problem:
        raise ConfigError(f"open_clip cannot load {name!r} with {pretrained!r}: {problem}") from problem
    size = model.visual.image_size
    size = size[0] if isinstance(size, (tuple, list)) else size
    return LoadedClip(model, tuple(model.visual.image_mean), tuple(model.visual.image_std), int(size), tokenizer)


# Of a tokenizer, what a model may set of itself; transformers would take more, such as to run the model's own Python.
_TOKENIZER_OPTIONS = frozenset({"additional_special_tokens", "clean", "language", "reduction_mask", "strip_sep_token"})


def _refuse_code(name: str) -> None:
    """Raise ConfigError for a folder or repository whose tokenizer's options are not all known to be harmless."""
    try:
        config = (open_clip.get_model_config(name) if ":" in name else None) or {}
    except (RuntimeError, ValueError, OSError):
        return  # there is none, which loading it says
    options = (config.get("text_cfg") or {}).get("tokenizer_kwargs") or {}
    if strange := sorted(set(options) - _TOKENIZER_OPTIONS):
        raise ConfigError(
            f"{name}: tokenizer_kwargs.{strange[0]} is no option of a tokenizer that a model may set; not loaded"
        )


_QUICK_GELU_SUFFIX = "-quickgelu"


def _trained_with(name: str, pretrained: str | None, said: dict[str, Any]) -> dict[str, Any]:
    """quick_gelu, mean and std of a model with some weights; empty where open_clip itself finds them, or an error."""
    if ":" in name:
        if said:
            raise ConfigError(f"{name} brings its own configuration; drop {_keywords(said)}")
        return {}
    name = name.replace("/", "-")
    config = open_clip.get_model_config(name)
    tag = open_clip.get_pretrained_cfg(name, pretrained) if pretrained else {}
    if config is None or (pretrained and not tag and not Path(pretrained).is_file()):
        return {}
    if tag:
        values = _of_tag(tag, config)
        for key, it in said.items():
            if values[key] != it:
                raise ConfigError(f"{name}: the tag {pretrained!r} has {key} {values[key]}, not {it}; drop {key}=")
        return values
    values = _agreed(name, config, said) if pretrained else _of_tag({}, config) | said
    if config.get("quick_gelu", False) and not values["quick_gelu"]:
        raise ConfigError(f"{name} always has QuickGELU; give {name.removesuffix(_QUICK_GELU_SUFFIX)} for GELU")
    return values


def _of_tag(tag: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """What a tag says; the activation of one that says none is that of the configuration, which it was trained from."""
    return {
        "quick_gelu": bool(tag.get("quick_gelu", config.get("quick_gelu", False))),
        "mean": tuple(map(float, tag.get("mean") or open_clip.OPENAI_DATASET_MEAN)),
        "std": tuple(map(float, tag.get("std") or open_clip.OPENAI_DATASET_STD)),
    }


def _agreed(name: str, config: Mapping[str, Any], said: Mapping[str, Any]) -> dict[str, Any]:
    """What is said of a checkpoint file; else what all tags of the model, and of its `-quickgelu` twin, agree on."""
    tags: dict[str, dict[str, Any]] = {}
    for model in (name, name.removesuffix(_QUICK_GELU_SUFFIX) + _QUICK_GELU_SUFFIX):
        for tag in open_clip.list_pretrained_tags_by_model(model):
            tags.setdefault(tag, _of_tag(open_clip.get_pretrained_cfg(model, tag), open_clip.get_model_config(model)))
    values, differ = dict(said), {}
    for key, default in _of_tag({}, config).items():
        found: dict[Any, list[str]] = {}
        for tag, of_tag in tags.items():
            found.setdefault(of_tag[key], []).append(tag)
        if key not in said and len(found) > 1:
            differ[key] = " or ".join(
                f"{value} ({', '.join(who[:3])}{' …' * (len(who) > 3)})" for value, who in found.items()
            )
        values.setdefault(key, next(iter(found), default))
    if differ:
        raise ConfigError(
            f"{name}: a checkpoint file does not record how it was trained, and the model's tags do not agree: "
            f"{'; '.join(f'{key} is {ways}' for key, ways in differ.items())}; give {_keywords(differ)}"
        )
    return values


def _keywords(names: Iterable[str]) -> str:
    return ", ".join(f"{name}=" for name in names)


def _build(config: ClipConfig) -> Any:
    model = _plain(config.model)
    kind = open_clip.CustomTextCLIP if model.pop("custom_text", False) else open_clip.CLIP
    try:
        return kind(**model)
    # What open_clip and timm raise for settings they do not know or that do not fit together.
    except (TypeError, ValueError, AssertionError, RuntimeError) as problem:
        raise ConfigError(f"clip.model: open_clip cannot build it: {problem}") from problem


def _plain(value: Any) -> Any:
    """A copy with plain dicts: open_clip changes the configuration it is given."""
    return {name: _plain(inner) for name, inner in value.items()} if isinstance(value, Mapping) else value
