"""A DALLE2-pytorch prior → ours, giving the same output.

Sizes are read off the shapes, the noise schedule off its buffers. What no tensor says (version, target, scale) comes
from the file, the training's JSON, or the caller; what is then assumed is said.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from dalle2_core.convert.unpickle import load_checkpoint, pickled_release
from dalle2_core.convert.versions import VersionRange, era_of, eras_with
from dalle2_core.diffusion.parameterization import PARAMETERIZATIONS
from dalle2_core.diffusion.schedules import SCHEDULES, NoiseSchedule
from dalle2_core.errors import CheckpointError, ConfigError
from dalle2_core.files import read_json, sha256, write_json
from dalle2_core.keywords import chosen
from dalle2_core.networks.causal_transformer import PriorNetworkConfig
from dalle2_core.networks.layers import Rotary
from dalle2_core.priors.config import PriorConfig
from dalle2_core.priors.diffusion import DiffusionPrior

_BODY = "causal_transformer"
_LAYER = f"{_BODY}.layers.0"
_WEIGHTS = ("ema", "model")


@dataclass(frozen=True, slots=True)
class ConvertConfig:
    """What the caller knows; None leaves it to the file, to the training's JSON, or to an assumption that is reported.

    version: of DALLE2-pytorch that trained the prior, such as "1.1.0".
    weights: "ema" averages where the file has them, or "model", the last ones.
    predicts: what the network gives, "x0", "v" or "noise". timesteps, beta_schedule: where the file has no schedule.
    image_embed_scale: what embeddings were multiplied by; None means sqrt(dim).
    cond_drop_prob: share of rows that were trained without text; 0 rules guidance out.
    self_cond: the network was trained with self-conditioning, which leaves no trace in the weights.
    training_config: DALLE2-pytorch's JSON of the training.
    """

    version: str | None = None
    weights: Literal["ema", "model"] = "ema"
    predicts: Literal["x0", "v", "noise"] | None = None
    timesteps: int | None = None
    beta_schedule: str | None = None
    image_embed_scale: float | None = None
    cond_drop_prob: float | None = None
    self_cond: bool | None = None
    training_config: Path | None = None

    def __post_init__(self) -> None:
        chosen(dict.fromkeys(_WEIGHTS), self.weights, "kind of weights")
        if self.predicts is not None:
            chosen(PARAMETERIZATIONS, self.predicts, "prediction target")
        if self.beta_schedule is not None:
            chosen(SCHEDULES, self.beta_schedule, "noise schedule")


@dataclass(frozen=True, slots=True)
class Converted:
    """A converted prior. version: the first version of its era. weights: "ema" or "model", what was taken.

    assumed: what neither the file nor the caller said, one sentence each.
    """

    prior: DiffusionPrior
    version: str
    weights: str
    assumed: tuple[str, ...]

    def report(self) -> dict[str, Any]:
        """Plain JSON: what was read, and what was assumed."""
        return {
            "dalle2_pytorch": self.version,
            "weights": self.weights,
            "assumed": list(self.assumed),
            "network": asdict(self.prior.net.config),
            "diffusion": asdict(self.prior.config),
        }


def save_converted(converted: Converted, checkpoint: Path | str, out: Path | str) -> None:
    """Save the prior into `out`, and conversion.json beside it: the file it came from, and the report.

    Raises CheckpointError if `out` holds a model already, or the disk refuses.
    """
    out = Path(out)
    if (out / "config.json").exists():
        raise CheckpointError(f"{out}: holds a model already; name another folder")
    converted.prior.save(out)
    source = {"file": str(checkpoint), "sha256": sha256(Path(checkpoint))}
    write_json(out / "conversion.json", {**source, **converted.report()})


def convert_prior(checkpoint: Path | str, config: ConvertConfig | None = None) -> Converted:
    """Read a prior of DALLE2-pytorch 0.16 or later: a trainer's checkpoint, a tracker's model file or a state dict.

    Nothing in the file is run. Raises CheckpointError if it is not loadable safely, is no prior, lacks or has further
    weights, is too old, or does not fit what the caller says; ConfigError for a config that cannot be.
    """
    config = config or ConvertConfig()
    path = Path(checkpoint)
    content = load_checkpoint(path)
    weights, state = _state_dict(path, content, config.weights)
    net, schedule = _parts(path, state)
    told = _told(config)
    assumed: list[str] = []
    era = _era(path, net, content.get("version"), told, assumed)
    network = _network(path, net, era, bool(told.get("self_cond", False)))
    diffusion = _diffusion(path, schedule, era, told, assumed)
    prior = DiffusionPrior.from_configs(network, diffusion)
    _fill(path, prior, net, era)
    return Converted(prior.eval(), era.name, weights, tuple(assumed))


def _state_dict(path: Path, content: Mapping[str, Any], wanted: str) -> tuple[str, dict[str, Tensor]]:
    """Which weights, and all their tensors by name without the prefixes of wrappers."""
    averages = content.get("ema_model")
    if averages is None and isinstance(content.get("ema"), dict):
        marked = {name: it for name, it in content["ema"].items() if name.startswith("ema_model.")}
        averages = {name.removeprefix("ema_model."): it for name, it in marked.items()} or None
    plain = content.get("model", content)
    source, found = ("ema", averages) if wanted == "ema" and averages is not None else ("model", plain)
    if not isinstance(found, dict) or not all(isinstance(it, Tensor) for it in found.values()):
        raise CheckpointError(f"{path}: no weights in it; it has {', '.join(map(str, list(content)[:8]))}")
    clean: dict[str, Tensor] = {}
    for name, tensor in found.items():
        for wrapper in ("module.", "_orig_mod."):
            name = str(name).removeprefix(wrapper)
        clean[name] = tensor
    return source, clean


def _parts(path: Path, state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The network's weights and the schedule's buffers. A CLIP in the file is left out."""
    if any(name.startswith("unets.") for name in state):
        raise CheckpointError(f"{path}: a decoder's weights (unets.…); this converts priors")
    if "learned_query" in state:
        return state, {}
    net, schedule, others = {}, {}, []
    for name, tensor in state.items():
        part, _, rest = name.partition(".")
        if part == "net":
            net[rest] = tensor
        elif part == "noise_scheduler":
            schedule[rest] = tensor
        elif part != "clip":
            others.append(name)
    if others or "learned_query" not in net:
        what = f"it has {', '.join(others[:5])}" if others else "it has no net.learned_query"
        raise CheckpointError(f"{path}: not the weights of a DALLE2-pytorch prior of 0.16 or later: {what}")
    return net, schedule


def _told(config: ConvertConfig) -> dict[str, Any]:
    """What the training's JSON says, and over it what the caller says."""
    told: dict[str, Any] = {}
    if config.training_config is not None:
        content = read_json(Path(config.training_config))
        prior = content.get("prior", content) if isinstance(content, dict) else None
        if not isinstance(prior, dict) or not isinstance(prior.get("net"), dict):
            raise CheckpointError(
                f"{config.training_config}: no prior.net in it; is it the JSON of a prior's training?"
            )
        said = {name: prior.get(name) for name in ("timesteps", "beta_schedule", "image_embed_scale", "cond_drop_prob")}
        said["sample_timesteps"] = prior.get("sample_timesteps")
        said["self_cond"] = prior["net"].get("self_cond")
        if "predict_x_start" in prior or "predict_v" in prior:
            target = "x0" if prior.get("predict_x_start", True) else "noise"
            said["predicts"] = "v" if prior.get("predict_v") else target
        told |= {name: value for name, value in said.items() if value is not None}
    names = ("version", "predicts", "timesteps", "beta_schedule", "image_embed_scale", "cond_drop_prob", "self_cond")
    return told | {name: getattr(config, name) for name in names if getattr(config, name) is not None}


def _era(path: Path, net: dict[str, Tensor], stored: Any, told: dict[str, Any], assumed: list[str]) -> VersionRange:
    null_text = next((name for name in ("null_text_encodings", "null_text_embed") if name in net), None)
    possible = eras_with(null_text)
    version = pickled_release(told.get("version", stored))
    if version is None and "version" in told:
        raise ConfigError(f"version is {told['version']!r}; give numbers, such as 1.1.0")
    if version is None:
        # Where the timestep has learned vectors, the latest eras share one forward pass.
        if null_text != "null_text_encodings" or "to_time_embeds.0.weight" not in net:
            raise CheckpointError(
                f"{path}: does not say its version, and these weights compute other things from "
                f"{', '.join(era.name for era in possible)} on; give the version (LAION's released priors: 1.1.0)"
            )
        assumed.append(f"version: {possible[-1].name} or later (the file does not say)")
        return possible[-1]
    era = era_of(version)
    if era is None:
        raise CheckpointError(f"{path}: of version {'.'.join(map(str, version))}; 0.16.0 and later can be converted")
    if era not in possible:
        raise CheckpointError(
            f"{path}: version {'.'.join(map(str, version))} does not have these weights, which are of one from "
            f"{possible[0].name} on ({null_text or 'no learned text tokens'})"
        )
    return era


def _network(path: Path, net: dict[str, Tensor], era: VersionRange, self_cond: bool) -> PriorNetworkConfig:
    """The sizes, from the shapes. Raises CheckpointError if a weight that tells one is missing or shaped otherwise."""
    if self_cond and not era.self_cond:
        raise CheckpointError(
            f"{path}: self-conditioning before 1.12.1 replaced the learned query, which is not supported"
        )
    try:
        (dim,) = net["learned_query"].shape
        inner, _ = net[f"{_LAYER}.0.to_q.weight"].shape
        _, dim_head = net[f"{_LAYER}.0.null_kv"].shape
        _, hidden = net[f"{_LAYER}.1.5.weight"].shape
        _, heads = net[f"{_BODY}.rel_pos_bias.relative_attention_bias.weight"].shape
        learned_time = "to_time_embeds.0.weight" in net
        time = net["to_time_embeds.0.weight" if learned_time else "to_time_embeds.0.1.net.2.weight"].shape
        counts = {
            side: net[f"to_{side}_embeds.0.weight"].shape[0] // dim if f"to_{side}_embeds.0.weight" in net else 1
            for side in ("text", "image")
        }
        max_text_len = 256 if era.null_text is None else net[era.null_text].shape[1]
    except KeyError as missing:
        raise CheckpointError(f"{path}: not a whole prior: {missing} is missing") from None
    except ValueError as problem:
        raise CheckpointError(f"{path}: a weight has too many or too few dimensions ({problem})") from None
    if inner != heads * dim_head or hidden % dim:
        raise CheckpointError(f"{path}: {heads} heads of {dim_head} and a hidden width of {hidden} do not fit {dim}")
    layers = {int(name.split(".")[2]) for name in net if name.startswith(f"{_BODY}.layers.")}
    return PriorNetworkConfig(
        dim=dim,
        depth=len(layers),
        heads=heads,
        dim_head=dim_head,
        ff_mult=hidden // dim,
        embed_dim=dim,
        num_timesteps=time[0] if learned_time else None,
        num_time_embeds=(time[1] if learned_time else time[0]) // dim,
        num_image_embeds=counts["image"],
        num_text_embeds=counts["text"],
        max_text_len=max_text_len,
        self_cond=self_cond,
        norm_in=f"{_BODY}.init_norm.g" in net,
        norm_out=f"{_BODY}.norm.g" in net,
        final_proj=f"{_BODY}.project_out.weight" in net,
        normformer=f"{_LAYER}.1.3.g" in net,
        rotary_emb=f"{_LAYER}.0.rotary_emb.freqs" in net,
        attention=era.attention,
        bias_scale=era.bias_scale,
        scaled_norms=era.scaled_norms,
        text_padding=era.text_padding,
        truncated_time=era.truncated_time,
    )


def _diffusion(
    path: Path, buffers: dict[str, Tensor], era: VersionRange, told: dict[str, Any], assumed: list[str]
) -> PriorConfig:
    if "alphas_cumprod" in buffers:
        name, timesteps = _named(path, buffers["alphas_cumprod"])
        for what, found in (("beta_schedule", name), ("timesteps", timesteps)):
            if told.get(what, found) != found:
                raise CheckpointError(f"{path}: its {what} is {found}, not {told[what]}")
    else:
        name, timesteps = told.get("beta_schedule", "cosine"), told.get("timesteps", 1000)
        if not {"beta_schedule", "timesteps"} <= told.keys():
            assumed.append(f"noise schedule: {name}, {timesteps} timesteps (the file has none)")
    if "predicts" not in told:
        assumed.append("predicts: x0 (DALLE2-pytorch's default)")
    drop = told.get("cond_drop_prob", 0.0) if era.drops_text else 0.0
    if era.drops_text and "cond_drop_prob" not in told:
        assumed.append("cond_drop_prob: 0, so that guidance is refused (DALLE2-pytorch's default)")
    if told.get("cond_drop_prob") and not era.drops_text:
        assumed.append(
            f"cond_drop_prob: 0 in spite of what was said, since versions like {era.name} never dropped text"
        )
    return PriorConfig(
        timesteps=timesteps,
        sample_timesteps=told.get("sample_timesteps"),
        cond_drop_prob=drop,
        predicts=told.get("predicts", "x0"),
        beta_schedule=name,
        image_embed_scale=told.get("image_embed_scale"),
        # It scaled the image embedding alone.
        text_embed_scale=1.0,
    )


def _named(path: Path, alphas_cumprod: Tensor) -> tuple[Any, int]:
    """The schedule with these numbers, and its length."""
    timesteps = len(alphas_cumprod)
    if alphas_cumprod.ndim == 1 and timesteps >= 2 and bool(torch.isfinite(alphas_cumprod).all()):
        for name in SCHEDULES:
            ours = NoiseSchedule(name, timesteps).alpha(torch.arange(timesteps)) ** 2
            if torch.allclose(ours, alphas_cumprod.float(), atol=2e-3, rtol=0):
                return name, timesteps
    raise CheckpointError(
        f"{path}: its noise schedule of {timesteps} timesteps is none of {', '.join(SCHEDULES)}, or not finite"
    )


def _fill(path: Path, prior: DiffusionPrior, net: dict[str, Tensor], era: VersionRange) -> None:
    """Put the weights into the network. Raises CheckpointError for names missing or unknown, or other shapes."""
    found = {name: it.float() for name, it in net.items() if not name.endswith(".rotary_emb.freqs")}
    _check_rotary(path, prior, net)
    found.pop("null_image_embed", None)  # stood for a dropped image, which guidance here never drops
    if era.null_text == "null_text_embed":
        found["null_text_encodings"] = found.pop("null_text_embed")
    # Never seen in training by these versions, which kept the text or hid it.
    found.setdefault("null_text_embeds", torch.zeros_like(prior.net.null_text_embeds))
    try:
        missing, unknown = prior.net.load_state_dict(found, strict=False)
    except RuntimeError as problem:
        raise CheckpointError(
            f"{path}: weights do not fit each other: {' '.join(str(problem).split())[:300]}"
        ) from None
    if missing or unknown:
        parts = [f"{word} {', '.join(names[:5])}" for word, names in (("lacks", missing), ("has", unknown)) if names]
        raise CheckpointError(f"{path}: {' and '.join(parts)}; not a prior that this version knows")


def _check_rotary(path: Path, prior: DiffusionPrior, net: dict[str, Tensor]) -> None:
    rotary = prior.net.causal_transformer.rotary
    for name, freqs in net.items():
        if name.endswith(".rotary_emb.freqs") and (
            not isinstance(rotary, Rotary)
            or freqs.shape != rotary.freqs.shape
            or not torch.allclose(freqs.float(), rotary.freqs, rtol=1e-4, atol=0)
        ):
            raise CheckpointError(f"{path}: {name} holds other frequencies than the standard ones")
