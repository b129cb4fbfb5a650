"""Decoders of diffusers behind one call: raw image embeddings in, pictures out, by diffusers' own pipelines."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dalle2_core.errors import CheckpointError
from embedpipe.errors import ModelError

from .adapter import Adapter
from .calls import CALLS, Drawing, DrawingRequest, OnDrawn
from .folder import BASE_MODEL_XL, STABLE_UNCLIP, PipelineFolder

OFFLOADS = ("none", "model", "sequential")
# What a pipeline is given besides its parts, by the beginning of its name: nothing that looks at pictures.
_BESIDE: dict[str, dict[str, Any]] = {
    "StableDiffusionXL": {"add_watermarker": False},
    "StableDiffusion": {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False},
}


class PretrainedDecoder:
    """Draws pictures of image embeddings that are raw: as CLIP's projection gives them, not normalised."""

    def __init__(self, folder: PipelineFolder, device: str, dtype: torch.dtype, offload: str = "none") -> None:
        """Load it. offload: one of OFFLOADS: what waits in the machine's memory until its turn on the device.

        Raises ModelError or CheckpointError where that cannot be done; nothing is asked of the network.
        """
        self.folder, self.device, self.dtype, self._offload = folder, device, dtype, offload
        self._waits_on = device if offload == "none" else "cpu"
        self._parts = {name: self._loaded(name, kind) for name, kind in folder.classes.items()}
        self._pipelines: dict[str, Any] = {}
        if folder.adapter is not None:
            self._adapt(folder.adapter)

    @torch.no_grad()
    def draw(
        self,
        image_embed: Tensor,
        generators: Sequence[torch.Generator],
        how: Drawing,
        texts: Sequence[str] | None = None,
        on_drawn: OnDrawn | None = None,
    ) -> Tensor:
        """Pictures [n, 3, size, size], float32 in [0, 1] on the CPU, of raw embeddings [n, d].

        generators: one for each picture, of all its draws. texts: one for each, where the decoder reads them; None for
        empty ones.
        """
        rows = image_embed.to(self.device, self.dtype)
        asked = DrawingRequest(rows, generators, texts or [""] * len(rows), how, on_drawn or (lambda done: None))
        call = CALLS[self.folder.family.name](asked)
        made: Tensor = self._pipeline(call.pipeline)(**call.keywords).images.float()
        made = (made / 2 + 0.5).clamp(0, 1).cpu() if call.signed else made.cpu()
        if how.known is None:
            return made
        # What is kept went through the autoencoder, which does not give back the same pixels.
        return torch.where(how.known[1], how.known[0], made)

    def _pipeline(self, name: str) -> Any:
        """A pipeline of the parts, ready to draw; made when it is first asked for."""
        if name not in self._pipelines:
            pipeline = self._made(name)
            if self._offload == "model":
                pipeline.enable_model_cpu_offload(device=self.device)
            elif self._offload == "sequential":
                pipeline.enable_sequential_cpu_offload(device=self.device)
            self._pipelines[name] = pipeline
        return self._pipelines[name]

    def _made(self, name: str) -> Any:
        import diffusers

        beside = next((it for begin, it in _BESIDE.items() if name.startswith(begin)), {})
        if self.folder.family is STABLE_UNCLIP:
            beside = {"feature_extractor": None, "image_encoder": _NoEncoder(self.device, self.dtype)}
        pipeline = getattr(diffusers, name)(**self._parts, **beside)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def _adapt(self, adapter: Adapter) -> None:
        """Put an IP-Adapter into the network. Raises CheckpointError where it does not fit."""
        try:
            with _no_warnings():
                self._parts["unet"]._load_ip_adapter_weights([adapter.weights()])
        # What diffusers raises for weights of another network.
        except (RuntimeError, KeyError, ValueError, IndexError) as problem:
            said = " ".join(str(problem).split())
            raise CheckpointError(f"{adapter.path}: does not fit {self.folder.named}: {said}") from problem
        name = "StableDiffusionXLPipeline" if self.folder.family is BASE_MODEL_XL else "StableDiffusionPipeline"
        self._made(name).set_ip_adapter_scale(adapter.scale)

    def _loaded(self, name: str, kind: str) -> Any:
        """A component, by the class that the closed list allows. Weights are safetensors, or it is refused."""
        import diffusers
        import transformers

        place = self.folder.path / name
        if kind == "StableUnCLIPImageNormalizer":
            from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer

            of: Any = StableUnCLIPImageNormalizer
        else:
            of = getattr(transformers if kind.startswith("CLIP") else diffusers, kind, None)
        if of is None:
            raise ModelError(f"{place}: this version of diffusers has no {kind}", "Install the current one")
        keywords: dict[str, Any] = {"local_files_only": True}
        if any(place.glob("*.safetensors")):
            whole = [it for it in place.glob("*.safetensors") if ".fp16." not in it.name]
            keywords |= {"use_safetensors": True, "variant": None if whole else "fp16"}
        if issubclass(of, diffusers.ModelMixin):
            keywords["torch_dtype"] = self.dtype
        try:
            with _no_bars():
                part = of.from_pretrained(str(place), **keywords)
        # What diffusers and transformers raise for files that are missing, damaged, or do not fit each other.
        except (OSError, ValueError, RuntimeError, KeyError, TypeError) as problem:
            said = " ".join(str(problem).split())
            raise CheckpointError(f"{place}: it cannot be loaded: {said}") from problem
        if not isinstance(part, nn.Module):
            return part
        return (part if "torch_dtype" in keywords else part.to(self.dtype)).to(self._waits_on).eval()


class _NoEncoder(nn.Module):
    """In the place of an image encoder that is asked for its device and dtype alone, where embeddings are given."""

    def __init__(self, device: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.device, self.dtype = torch.device(device), dtype
        self.weight = nn.Parameter(torch.zeros(1, device=device, dtype=dtype))


@contextlib.contextmanager
def _no_warnings() -> Iterator[None]:
    """Without what diffusers warns of for its own calls of `.to()`, which keep a network's dtype here."""
    from diffusers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


@contextlib.contextmanager
def _no_bars() -> Iterator[None]:
    """Without the bars that transformers prints for each model it loads."""
    from transformers.utils import logging

    bars: Any = logging
    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            bars.enable_progress_bar()
