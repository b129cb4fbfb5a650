"""Priors of diffusers ↔ ours: Karlo's, Kandinsky 2's, ECLIPSE's and λ-ECLIPSE's folders, weight for weight.

A folder is that of a pipeline (with `prior` and `scheduler` in it) or of its prior alone. Weights are read from
safetensors; nothing is imported from diffusers, and nothing in a folder is run.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from dalle2_core.errors import CheckpointError, ConfigError
from dalle2_core.files import disk_errors, read_json, read_tensors, write_json, write_tensors
from dalle2_core.keywords import from_keywords
from dalle2_core.networks.unclip_transformer import UnclipTransformerConfig
from dalle2_core.priors.unclip import UnclipConfig, UnclipPrior

_CONFIG, _WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
_SCHEDULER = "scheduler_config.json"
_CLASS = "PriorTransformer"
# ECLIPSE's class has the same name, and no time among its settings.
_OF_TIME = ("time_embed_act_fn", "time_embed_dim")
_NETWORK_FIELDS = {item.name for item in fields(UnclipTransformerConfig)} - {"reads_time"}


@dataclass(frozen=True, slots=True)
class ConvertedDiffusers:
    """prior: with the folder's weights. assumed: what the folder does not say, as sentences."""

    prior: UnclipPrior
    assumed: tuple[str, ...]

    def report(self) -> dict[str, Any]:
        """What was found, as plain JSON values."""
        return {
            "kind": self.prior.KIND,
            "parameters": sum(weight.numel() for weight in self.prior.net.parameters()),
            **self.prior.settings(),
            "assumed": list(self.assumed),
        }


def is_diffusers_prior(folder: Path | str) -> bool:
    """Whether a folder is a prior of diffusers, or a pipeline with one."""
    try:
        return bool(read_json(_prior_folder(Path(folder)) / _CONFIG).get("_class_name") == _CLASS)
    except (CheckpointError, AttributeError):
        return False


def read_diffusers_prior(folder: Path | str) -> ConvertedDiffusers:
    """The prior in a folder of diffusers.

    Raises CheckpointError if it holds none, or its weights are missing, damaged or no safetensors; ConfigError for
    settings that are not known.
    """
    folder = Path(folder)
    home = _prior_folder(folder)
    settings = read_json(home / _CONFIG)
    if not isinstance(settings, dict) or settings.get("_class_name") != _CLASS:
        found = settings.get("_class_name") if isinstance(settings, dict) else settings
        raise CheckpointError(f"{home / _CONFIG}: a {found}, and no {_CLASS} of diffusers")
    network = _network(home, settings)
    config, assumed = _diffusion(folder, home, network)
    prior = UnclipPrior(network, config)
    tensors = _weights(home)
    try:
        prior.net.load_state_dict(tensors)
    except RuntimeError as problem:
        raise CheckpointError(f"{home}: weights and {_CONFIG} do not belong together ({problem})") from problem
    return ConvertedDiffusers(prior.to(next(iter(tensors.values())).dtype), assumed)


def write_diffusers_prior(prior: UnclipPrior, out: Path | str) -> None:
    """Write `prior` and `scheduler` folders that diffusers loads. Raises CheckpointError if the disk refuses.

    The empty text's embedding is left out: diffusers' pipelines make it by their own text encoder.
    """
    out = Path(out)
    network = asdict(prior.net.config)
    if not network.pop("reads_time"):
        for name in _OF_TIME:
            del network[name]
    config = prior.config
    bound = config.clip_sample_range
    scheduler = {
        "_class_name": "UnCLIPScheduler",
        "num_train_timesteps": config.timesteps,
        "variance_type": "fixed_small_log",
        "clip_sample": bound is not None,
        "clip_sample_range": 1.0 if bound is None else bound,
        "prediction_type": "sample",
        "beta_schedule": "squaredcos_cap_v2",
    }
    with disk_errors(out):
        write_tensors(out / "prior" / _WEIGHTS, prior.net.state_dict(), {"format": "pt"})
        write_json(out / "prior" / _CONFIG, {"_class_name": _CLASS, **network})
        if prior.net.config.reads_time:
            write_json(out / "scheduler" / _SCHEDULER, scheduler)


def _prior_folder(folder: Path) -> Path:
    return folder / "prior" if (folder / "prior").is_dir() else folder


def _network(home: Path, settings: dict[str, Any]) -> UnclipTransformerConfig:
    told = {name: value for name, value in settings.items() if not name.startswith("_")}
    unknown = sorted(told.keys() - _NETWORK_FIELDS)
    if unknown:
        raise ConfigError(f"{home / _CONFIG}: settings that are not known: {', '.join(unknown)}")
    reads_time = any(name in told for name in _OF_TIME)
    # Old folders leave the settings of the time out; the places behind the text tell them from ECLIPSE's.
    reads_time = reads_time or told.get("additional_embeddings", 4) > 2 + (
        told.get("added_emb_type", "prd") is not None
    )
    return from_keywords(UnclipTransformerConfig, "network", told | {"reads_time": reads_time})


def _diffusion(folder: Path, home: Path, network: UnclipTransformerConfig) -> tuple[UnclipConfig, tuple[str, ...]]:
    """What the scheduler says, and what is assumed where there is none."""
    sizes: dict[str, Any] = {
        "raw": True,
        "num_layers": network.num_layers,
        "num_attention_heads": network.num_attention_heads,
        "attention_head_dim": network.attention_head_dim,
        "reads_time": network.reads_time,
        "reads_tokens": network.encoder_hid_proj_type is not None,
    }
    if not network.reads_time:
        return UnclipConfig(clip_sample_range=None, **sizes), ()
    for place in (folder / "scheduler", folder / "prior_scheduler", home.parent / "scheduler"):
        if (place / _SCHEDULER).exists():
            told = read_json(place / _SCHEDULER)
            break
    else:
        usual = 10.0 if network.embedding_dim >= 1024 else 5.0
        said = f"no scheduler in {folder}: estimates are kept within {usual:g}, of 1000 timesteps"
        return UnclipConfig(clip_sample_range=usual, **sizes), (said,)
    for name, known in (("prediction_type", "sample"), ("variance_type", "fixed_small_log")):
        if told.get(name, known) != known:
            raise ConfigError(f"{place / _SCHEDULER}: {name} is {told[name]!r}; a prior's is {known!r}")
    bound = float(told.get("clip_sample_range", 1.0)) if told.get("clip_sample", True) else None
    timesteps = int(told.get("num_train_timesteps", 1000))
    return UnclipConfig(timesteps=timesteps, sample_timesteps=min(25, timesteps), clip_sample_range=bound, **sizes), ()


def _weights(home: Path) -> dict[str, Any]:
    """Of one file or several, the half-precision variant where it is the only one."""
    for name in (_WEIGHTS, "diffusion_pytorch_model.fp16.safetensors"):
        if (home / name).exists():
            return read_tensors(home / name)
        index = home / f"{name}.index.json"
        if index.exists():
            parts = sorted(set(read_json(index)["weight_map"].values()))
            return {key: it for part in parts for key, it in read_tensors(_inside(home, part)).items()}
    pickled = sorted(it.name for it in home.glob("*.bin"))
    if pickled:
        raise CheckpointError(
            f"{home}: its weights are a pickle ({pickled[0]}), which could run code; save them as safetensors first"
        )
    raise CheckpointError(f"{home / _WEIGHTS}: no such file")


def _inside(home: Path, name: str) -> Path:
    path = home / name
    if Path(name).name != name:
        raise CheckpointError(f"{home}: its index names {name!r}, which is no file of this folder")
    return path
