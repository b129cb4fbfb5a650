"""A pipeline of diffusers on disk or on the hub: which decoder it is, and whether its files may be loaded.

Only JSON is read here. Classes are taken from a closed list, never from the folder; weights are safetensors.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dalle2_core.errors import CheckpointError
from dalle2_core.files import read_json, sha256
from embedpipe import consent
from embedpipe.consent import HUB
from embedpipe.errors import InputError, MissingExtra, ModelError, OptionError, UntrustedModel, did_you_mean

from .adapter import Adapter
from .tower import Tower, tower_of

PREFIX = "diffusers:"
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_INDEX = "model_index.json"
_SCHEDULER = "…Scheduler"
_NO_MODEL = ("tokenizer", "tokenizer_2", "feature_extractor")
_KANDINSKY = {"unet": "UNet2DConditionModel", "movq": "VQModel", "scheduler": _SCHEDULER}
_STABLE_UNCLIP = {
    "unet": "UNet2DConditionModel",
    "vae": "AutoencoderKL",
    "scheduler": _SCHEDULER,
    "image_normalizer": "StableUnCLIPImageNormalizer",
    "image_noising_scheduler": _SCHEDULER,
    "tokenizer": "CLIPTokenizer",
    "text_encoder": "CLIPTextModel",
}
_BASE_MODEL = {
    "unet": "UNet2DConditionModel",
    "vae": "AutoencoderKL",
    "scheduler": _SCHEDULER,
    "tokenizer": "CLIPTokenizer",
    "text_encoder": "CLIPTextModel",
}
_BASE_MODEL_XL = _BASE_MODEL | {"tokenizer_2": "CLIPTokenizer", "text_encoder_2": "CLIPTextModelWithProjection"}


@dataclass(frozen=True, slots=True)
class Family:
    """Decoders that draw alike. components: name → class; steps, guidance: those of diffusers' pipeline.

    strength: diffusers' own where pictures can begin with another one, else None. adapted: it takes image embeddings by
    an IP-Adapter alone, and fills pictures in whatever its channels are.
    """

    name: str
    components: Mapping[str, str]
    steps: int
    guidance: float
    reads_text: bool
    autoencoder: str
    strength: float | None = None
    adapted: bool = False


KANDINSKY = Family("Kandinsky 2.2", _KANDINSKY, 100, 4.0, False, "movq", 0.3)
STABLE_UNCLIP = Family("Stable unCLIP", _STABLE_UNCLIP, 20, 10.0, True, "vae")
BASE_MODEL = Family("Stable Diffusion", _BASE_MODEL, 50, 7.5, True, "vae", 0.8, True)
BASE_MODEL_XL = Family("Stable Diffusion XL", _BASE_MODEL_XL, 50, 5.0, True, "vae", 0.3, True)
FAMILIES = {
    "KandinskyV22Pipeline": KANDINSKY,
    "KandinskyV22Img2ImgPipeline": KANDINSKY,
    "KandinskyV22InpaintPipeline": KANDINSKY,
    "StableUnCLIPImg2ImgPipeline": STABLE_UNCLIP,
    "StableDiffusionPipeline": BASE_MODEL,
    "StableDiffusionInpaintPipeline": BASE_MODEL,
    "StableDiffusionXLPipeline": BASE_MODEL_XL,
    "StableDiffusionXLInpaintPipeline": BASE_MODEL_XL,
}


@dataclass(frozen=True, slots=True)
class PipelineFolder:
    """A decoder of diffusers, not yet loaded.

    named: as the user named it. path: its folder on this machine. repository: of the hub, or None. classes: component →
    class of diffusers or transformers. tower: whose embeddings it takes. fills_in: it is for inpainting alone. size:
    pixels of a side, its own; sizes are multiples of `multiple`. adapter: of a base model.
    """

    named: str
    path: Path
    repository: str | None
    family: Family
    classes: Mapping[str, str]
    tower: Tower
    fills_in: bool
    size: int
    multiple: int
    adapter: Adapter | None = None

    def checked_size(self, size: int | None) -> int:
        """The size, or the decoder's own for None. Raises InputError for one that it cannot draw."""
        if size is None:
            return self.size
        if size < 1 or size % self.multiple:
            raise InputError(
                f"{self.named}: draws pictures whose sides are multiples of {self.multiple}, not of {size} pixels",
                f"Give `image_size={max(1, round(size / self.multiple)) * self.multiple}`",
            )
        return size

    def with_weights(self) -> PipelineFolder:
        """The same, with its weights on this machine: fetched from the hub where they are not.

        Raises ModelError where there are none, or they are pickles.
        """
        if self.repository is not None:
            _fetch(self.repository, [f"{name}/*{end}" for name in self.classes for end in (".safetensors", ".txt")])
        for name, kind in self.classes.items():
            if kind.endswith("Scheduler") or name in _NO_MODEL:
                continue
            if self.repository is not None and not any((self.path / name).glob("*.safetensors")):
                _fetch(self.repository, [f"{name}/*.fp16.safetensors"], leave=())
            _refuse_pickles(self.path / name)
        return self

    def digest(self) -> str:
        """Of all files that are loaded."""
        digest = hashlib.sha256(b"" if self.adapter is None else self.adapter.digest().encode())
        for name in sorted(self.classes):
            for file in sorted((self.path / name).iterdir()):
                if file.suffix in (".json", ".safetensors", ".txt"):
                    digest.update(f"{name}/{file.name}{sha256(file)}".encode())
        return digest.hexdigest()


def is_pretrained(decoder: str) -> bool:
    """Whether a decoder is named as one of diffusers: diffusers:FOLDER or diffusers:ORG/NAME."""
    return decoder.startswith(PREFIX)


def open_pipeline(named: str, adapter: Adapter | None = None) -> PipelineFolder:
    """What `diffusers:FOLDER`, or `diffusers:ORG/NAME` of the hub, is; no weights are read.

    adapter: the IP-Adapter of a base model, which needs one. Raises OptionError for one without it, or another with it.
    Raises InputError (no such folder), UntrustedModel (of the hub, without consent: nothing is asked of it then),
    MissingExtra, ModelError (no decoder that is known, classes of its own), CheckpointError (damaged).
    """
    place = named.removeprefix(PREFIX)
    repository = None if not place.startswith(HUB) and Path(place).exists() else place.removeprefix(HUB)
    if repository is not None:
        _require_consent(named, place, repository)
    _require_diffusers(named)
    path = Path(place) if repository is None else _fetch(repository, [_INDEX, "*/*.json"])
    family, classes = _classes(path / _INDEX)
    if family.adapted and adapter is None:
        raise OptionError(
            f"{named}: {family.name} draws from texts; of image embeddings it draws by an IP-Adapter",
            "Give its file with `ip_adapter`",
        )
    if adapter is not None and not family.adapted:
        raise OptionError(f"{named}: {family.name} takes image embeddings as it is", "Leave `ip_adapter` out")
    settings = _settings(path, "unet")
    try:
        return _described(named, path, repository, family, classes, settings, adapter)
    except (KeyError, TypeError, ValueError, AttributeError) as problem:
        raise CheckpointError(f"{path}: its unet and {family.autoencoder} are described in no way that is known "
                              f"({type(problem).__name__}: {problem})") from problem  # fmt: skip


def _described(
    named: str,
    path: Path,
    repository: str | None,
    family: Family,
    classes: Mapping[str, str],
    unet: Mapping[str, Any],
    adapter: Adapter | None,
) -> PipelineFolder:
    autoencoder = _settings(path, family.autoencoder)
    scale = int(2 ** (len(autoencoder["block_out_channels"]) - 1))
    channels, latents = int(unet["in_channels"]), int(autoencoder["latent_channels"])
    if family is KANDINSKY:
        if unet.get("encoder_hid_dim_type") != "image_proj":
            raise ModelError(f"{named}: its unet takes no image embedding", "Give a decoder of Kandinsky 2.2")
        width = int(unet["encoder_hid_dim"])
    elif adapter is not None:
        width = adapter.width
    else:
        # The noise level's embedding, as wide as the image's, follows it.
        width = int(unet["projection_class_embeddings_input_dim"]) // 2
    fills_in = channels == 2 * latents + 1
    if not fills_in and channels != latents:
        raise ModelError(f"{named}: its unet takes {channels} channels beside latents of {latents}", "Give another")
    size = int(unet["sample_size"]) * scale
    multiple = scale**2 if family is KANDINSKY else scale
    # The encoder that may lie beside a base model is of some adapter, and need not be of this one.
    beside = adapter is None and (path / "image_encoder" / "config.json").exists()
    tower = tower_of(width, _settings(path, "image_encoder") if beside else None)
    return PipelineFolder(named, path, repository, family, classes, tower, fills_in, size, multiple, adapter)


def _classes(index: Path) -> tuple[Family, dict[str, str]]:
    """The family, and the class of each component that is loaded. Raises ModelError for others than are listed."""
    if not index.exists():
        raise ModelError(f"{index.parent}: no {_INDEX}, so it is no pipeline of diffusers", "Check the path")
    content = read_json(index)
    name = content.get("_class_name") if isinstance(content, dict) else None
    if not isinstance(name, str):
        raise ModelError(f"{index}: names a class of its own ({name}), and no code of a model is run", "Give another")
    if name not in FAMILIES:
        raise ModelError(f"{index}: a {name} draws from no image embedding that is known", did_you_mean(name, FAMILIES))
    family = FAMILIES[name]
    found = {}
    for component, expected in family.components.items():
        said = content.get(component)
        kind = said[1] if isinstance(said, Sequence) and not isinstance(said, str) and len(said) == 2 else None
        known = isinstance(kind, str) and (kind == expected or (expected == _SCHEDULER and _is_scheduler(kind)))
        if not known or said[0] not in ("diffusers", "transformers", "stable_diffusion"):
            raise ModelError(f"{index}: {component} is {said}, not a {expected} of diffusers' own", "Give another")
        found[component] = str(kind)
    return family, found


def _is_scheduler(name: str) -> bool:
    return name.isidentifier() and name.endswith("Scheduler") and not name.startswith("_")


def _settings(path: Path, component: str) -> Mapping[str, Any]:
    content = read_json(path / component / "config.json")
    if not isinstance(content, dict):
        raise CheckpointError(f"{path / component / 'config.json'}: holds no settings")
    return content


def _refuse_pickles(folder: Path) -> None:
    if any(folder.glob("*.safetensors")):
        return
    pickles = sorted(it.name for it in folder.glob("*.bin"))
    if pickles:
        raise ModelError(
            f"{folder}: its weights are a pickle ({pickles[0]}), which could run code", "Save them as safetensors first"
        )
    raise ModelError(f"{folder}: holds no weights", "Fetch the folder whole")


def _require_consent(named: str, place: str, repository: str) -> None:
    if not _REPOSITORY.fullmatch(repository):
        raise InputError(f"{place}: no such folder, nor the name of a repository", "Check the path")
    if not consent.consents(HUB + repository, "the decoder"):
        raise UntrustedModel(
            f"{named}: no such folder here, and the hub's {repository} was not used on this machine before, so nothing "
            "is asked of the hub",
            f"If you mean and trust it, say so once with `embedpipe.trust_model({HUB + repository!r})`",
        )


def _require_diffusers(named: str) -> None:
    for package in ("diffusers", "transformers"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtra(f"{named}: {package} is not installed", 'pip install "embedpipe[diffusers]"')


def _fetch(repository: str, patterns: Sequence[str], leave: Sequence[str] = ("*.fp16.*", "*non_ema*")) -> Path:
    """The folder of a repository of the hub, with the files of some patterns but for those to leave."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(snapshot_download(repository, allow_patterns=list(patterns), ignore_patterns=list(leave)))
    except (HfHubHTTPError, OSError, ValueError) as problem:
        said = " ".join(str(problem).split())
        raise ModelError(
            f"{repository}: the hub did not give it: {said}", "Check the name and the network"
        ) from problem
