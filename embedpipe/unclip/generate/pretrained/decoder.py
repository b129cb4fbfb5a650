"""Decoders of diffusers behind one call: raw image embeddings in, pictures out, by diffusers' own pipelines."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dalle2_core.errors import CheckpointError
from embedpipe.errors import ModelError

from .folder import KANDINSKY, PipelineFolder

OnDrawn = Callable[[int], None]
"""Hears how many steps are done."""


@dataclass(frozen=True, slots=True)
class Drawing:
    """How pictures are drawn.

    size: pixels of a side. guidance: away from `negative` [1, d] (Kandinsky) or the empty text (Stable unCLIP); 1 is
    none. known: a picture [3, size, size] in [0, 1], and where it is kept, [size, size] bool.
    """

    steps: int
    guidance: float
    size: int
    negative: Tensor | None = None
    known: tuple[Tensor, Tensor] | None = None


class PretrainedDecoder:
    """Draws pictures of image embeddings that are raw: as CLIP's projection gives them, not normalised."""

    def __init__(self, folder: PipelineFolder, device: str, dtype: torch.dtype) -> None:
        """Load it. Raises ModelError or CheckpointError where that cannot be done; nothing is asked of the network."""
        self.folder, self.device, self.dtype = folder, device, dtype
        self._parts = {name: self._loaded(name, kind) for name, kind in folder.classes.items()}

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
        told = on_drawn or (lambda done: None)
        draw = self._by_kandinsky if self.folder.family is KANDINSKY else self._by_stable_unclip
        return draw(rows, list(generators), how, list(texts or [""] * len(rows)), told)

    def _by_kandinsky(
        self, rows: Tensor, generators: list[torch.Generator], how: Drawing, texts: list[str], told: OnDrawn
    ) -> Tensor:
        import diffusers

        def at_step(pipeline: Any, step: int, time: Any, values: dict[str, Any]) -> dict[str, Any]:
            told(step + 1)
            return {}

        negative = torch.zeros_like(rows[:1]) if how.negative is None else how.negative.to(rows)
        keywords: dict[str, Any] = {
            "image_embeds": rows,
            "negative_image_embeds": negative.expand(len(rows), -1),
            "height": how.size,
            "width": how.size,
            "num_inference_steps": how.steps,
            "guidance_scale": how.guidance,
            "generator": generators,
            "output_type": "pt",
            "callback_on_step_end": at_step,
        }
        kind = diffusers.KandinskyV22Pipeline if how.known is None else diffusers.KandinskyV22InpaintPipeline
        if how.known is not None:
            picture, kept = how.known
            keywords["image"] = (picture * 2 - 1).repeat(len(rows), 1, 1, 1)
            keywords["mask_image"] = (~kept).float().repeat(len(rows), 1, 1, 1)
        made: Tensor = (_quiet(kind(**self._parts))(**keywords).images.float() / 2 + 0.5).clamp(0, 1).cpu()
        if how.known is None:
            return made
        # What is kept went through the autoencoder, which does not give back the same pixels.
        return torch.where(how.known[1], how.known[0], made)

    def _by_stable_unclip(
        self, rows: Tensor, generators: list[torch.Generator], how: Drawing, texts: list[str], told: OnDrawn
    ) -> Tensor:
        import diffusers

        encoder = _NoEncoder(self.device, self.dtype)
        kind: Any = diffusers.StableUnCLIPImg2ImgPipeline
        pipeline = kind(feature_extractor=None, image_encoder=encoder, **self._parts)
        made: Tensor = _quiet(pipeline)(
            prompt=texts,
            image_embeds=rows,
            height=how.size,
            width=how.size,
            num_inference_steps=how.steps,
            guidance_scale=how.guidance,
            generator=generators,
            output_type="pt",
            callback=lambda step, time, latents: told(step + 1),
        ).images
        return made.float().cpu()

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
        return (part if "torch_dtype" in keywords else part.to(self.dtype)).to(self.device).eval()


class _NoEncoder(nn.Module):
    """In the place of an image encoder that is asked for its device and dtype alone, where embeddings are given."""

    def __init__(self, device: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.device, self.dtype = torch.device(device), dtype
        self.weight = nn.Parameter(torch.zeros(1, device=device, dtype=dtype))


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


def _quiet(pipeline: Any) -> Any:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
