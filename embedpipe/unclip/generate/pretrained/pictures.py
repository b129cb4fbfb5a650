"""Pictures by a decoder of diffusers: what is asked for becomes raw image embeddings, and those are drawn."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dalle2_core.chunking import run_in_chunks
from dalle2_core.dalle2 import PRIOR
from dalle2_core.decoder.manipulations import slerp, text_diff
from dalle2_core.generation import Generated, GenerationConfig
from dalle2_core.priors.base import Prior
from dalle2_core.priors.drawn import check_finite_rows, drawn_embeds
from dalle2_core.priors.registry import load_prior
from dalle2_core.rng import derived_seed
from embedpipe.encode import Encoder
from embedpipe.index import read_embeddings

from ...evaluate.priors import PRIOR_RUN
from ...runs.record import read_run_record
from ..embedded import diff_shares, embedded_texts, texts_for_prior
from ..models import Models, card_of_run, encoded_pictures, encoder_for, model_digest
from ..outputs import known_of, picture_of
from ..request import Made, Request, Watching
from .calls import Drawing
from .checks import check_pretrained, steps_of
from .decoder import PretrainedDecoder
from .folder import KANDINSKY, PipelineFolder
from .raw_image import embedding_of_nothing, raw_embedding
from .scale import of_unit_norm, raw_norm
from .tower import refuse_another_tower

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class _Parts:
    """The models, opened, but for the decoder's weights. facts: of the prior's run."""

    folder: PipelineFolder
    models: Models
    prior: Prior | None
    facts: Mapping[str, Any] | None
    encoder: Callable[[], Encoder]
    watching: Watching

    @property
    def norm(self) -> float:
        """See `raw_norm`."""
        return raw_norm(self.models, self.folder, self.facts)

    @property
    def dtype(self) -> str:
        """What the decoder computes in."""
        usual = "float16" if self.models.device.startswith("cuda") else "float32"
        return usual if self.models.decoder_dtype == "auto" else self.models.decoder_dtype


@dataclass(frozen=True, slots=True)
class _Asked:
    """What is drawn: raw embeddings [n, d], a label and a prompt for each.

    text: which text, for each, and their embeddings of norm 1 [b, d]; None where pictures are of no texts. one_noise:
    all begin with the same noise. norm: that embeddings of norm 1 were brought to, or None.
    """

    embeds: Tensor
    labels: list[str]
    prompts: list[str]
    text: tuple[list[int], Tensor] | None = None
    one_noise: bool = False
    norm: float | None = None


def plan_pretrained(request: Request, models: Models, config: GenerationConfig, watching: Watching) -> dict[str, Any]:
    """See `plan_request`. Weights are looked for in a folder, and not asked of the hub."""
    parts, texts = _opened(request, models, config, watching)
    if parts.folder.repository is None:
        parts.folder.with_weights()
    rows = len(read_embeddings(request.embedding)) if request.embedding is not None else max(1, len(texts))
    return {"mode": request.mode, "texts": texts, "images": rows * config.num_images, **_facts(parts)}


def make_pretrained(request: Request, models: Models, config: GenerationConfig, watching: Watching) -> Made:
    """See `make_images`."""
    parts, texts = _opened(request, models, config, watching)
    asked = _ASKED[request.mode](request, parts, config, texts)
    how = _how(request, parts, config)
    watching.on_doing(f"loading the decoder {parts.folder.named}")
    if models.offload != "none" and parts.prior is not None:
        parts.prior.to("cpu")  # which has done its part
    decoder = PretrainedDecoder(parts.folder.with_weights(), models.device, _DTYPES[parts.dtype], models.offload)
    watching.on_doing("making pictures")
    images = _drawn(decoder, asked, how, config, watching)
    facts = _facts(parts)
    facts["decoder"] |= {"sha256": parts.folder.digest(), "image_norm": asked.norm}
    if asked.text is None:
        return Made(images, asked.labels, texts, facts)
    of, unit_text = asked.text
    made = Generated(images, asked.embeds, of)
    embeds = encoded_pictures(parts.encoder(), images)
    scores = (embeds * unit_text[of]).sum(dim=1)
    if config.best_of > 1:
        made = replace(made, image_embed=embeds).best(scores, config.num_images)
        assert made.scores is not None
        embeds, scores = made.image_embed, made.scores
    return Made(made.images, [texts[row] for row in made.text], texts, facts, made.text, scores.tolist(), embeds)


def _opened(request: Request, models: Models, config: GenerationConfig, watching: Watching) -> tuple[_Parts, list[str]]:
    """The models and the texts, checked."""
    folder = models.pipeline
    assert folder is not None
    prior = facts = None
    if models.prior is not None:
        facts = read_run_record(models.prior, PRIOR_RUN, "train-prior")
        card = card_of_run(models, facts)
        watching.on_doing(f"loading the prior {models.prior}")
        prior = load_prior(models.prior, models.device).eval()
        width = getattr(prior, "image_embed_dim", card.dim)
        refuse_another_tower(folder.tower, folder.named, width, models.prior, card)

    def encoder() -> Encoder:
        found = encoder_for(models, facts, watching.on_doing)
        refuse_another_tower(folder.tower, folder.named, found.card.dim, found.card.model, found.card)
        return found

    parts = _Parts(folder, models, prior, facts, functools.cache(encoder), watching)
    texts = request.all_texts()
    check_pretrained(request, folder, models, config, texts)
    if request.embedding is not None:
        _raw_rows(parts, request.embedding)
    elif texts and prior is not None and not prior.raw:
        raw_norm(models, folder, facts)
    return parts, texts


def _from_texts(request: Request, parts: _Parts, config: GenerationConfig, texts: list[str]) -> _Asked:
    """One embedding for each picture, by the prior."""
    assert parts.prior is not None
    assert parts.facts is not None
    prior, states = parts.prior, bool(parts.facts.get("recipe", {}).get("text_tokens"))
    text, unit = texts_for_prior(prior, parts.encoder(), texts, states, config.prior_cond_scale, parts.watching)
    times, on_step = config.num_images * config.best_of, parts.watching.on_step
    embeds = drawn_embeds(
        prior,
        text.repeated(times),
        config,
        config.seed or 0,
        normalize=not prior.raw,
        on_rows=None if on_step is None else functools.partial(on_step, PRIOR),
        on_smaller_batch=parts.watching.on_smaller_batch,
    ).float()
    of = [row for row in range(len(texts)) for _ in range(times)]
    said = [texts[row] for row in of]
    norm = None if prior.raw else parts.norm
    return _Asked((norm or 1.0) * embeds.cpu(), said, said, (of, unit), norm=norm)


def _from_rows(request: Request, parts: _Parts, config: GenerationConfig, texts: list[str]) -> _Asked:
    assert request.embedding is not None
    rows, norm = _raw_rows(parts, request.embedding)
    names = [f"{request.embedding}, row {row}" for row in range(len(rows))]
    return replace(_repeated(rows, names, texts, config), norm=norm)


def _from_picture(request: Request, parts: _Parts, config: GenerationConfig, texts: list[str]) -> _Asked:
    """Of a picture's own embedding: pictures that share it, or what fits where it is filled in."""
    path = request.inpaint[0] if request.inpaint is not None else request.from_image
    assert path is not None
    return _repeated(raw_embedding(parts.encoder(), path)[None], [path], texts, config)


def _between(request: Request, parts: _Parts, config: GenerationConfig, texts: list[str]) -> _Asked:
    """Embeddings on the way from one picture's to another's: directions by angle, norms evenly."""
    assert request.interpolate is not None
    one, other = (raw_embedding(parts.encoder(), path)[None] for path in request.interpolate)
    shares = np.linspace(0, 1, config.num_images).tolist()
    units, norms = [it / it.norm() for it in (one, other)], [float(it.norm()) for it in (one, other)]
    rows = [slerp(units[0], units[1], share) * (norms[0] + share * (norms[1] - norms[0])) for share in shares]
    prompts = (texts or [""]) * len(shares)
    return _Asked(torch.cat(rows), [f"{share:.0%}" for share in shares], prompts, one_noise=True)


def _towards_text(request: Request, parts: _Parts, config: GenerationConfig, texts: list[str]) -> _Asked:
    """From a picture's embedding towards the direction from the base text to the text; the norm stays."""
    assert request.text_diff is not None
    raw = raw_embedding(parts.encoder(), request.text_diff)
    text, base = embedded_texts(parts.encoder(), [texts[0], request.base_text], False, parts.watching)[0].text_embed
    shares = diff_shares(config.num_images)
    rows = raw.norm() * text_diff(raw / raw.norm(), text, base, shares)
    return _Asked(rows, [f"{share:.0%}" for share in shares], [""] * len(shares), one_noise=True)


def _filling_in(request: Request, parts: _Parts, config: GenerationConfig, texts: list[str]) -> _Asked:
    way = _from_texts if texts and parts.prior is not None else _from_picture
    return way(request, parts, config, texts)


_ASKED = {
    "text": _from_texts,
    "variations": _from_picture,
    "interpolation": _between,
    "embedding": _from_rows,
    "inpainting": _filling_in,
    "text_diff": _towards_text,
}


def _repeated(rows: Tensor, names: list[str], texts: list[str], config: GenerationConfig) -> _Asked:
    labels = [name for name in names for _ in range(config.num_images)]
    return _Asked(rows.repeat_interleave(config.num_images, dim=0), labels, (texts or [""]) * len(labels))


def _raw_rows(parts: _Parts, path: str) -> tuple[Tensor, float | None]:
    """Raw embeddings of a file, and the norm that rows of norm 1 were brought to, or None."""
    rows = torch.from_numpy(np.asarray(read_embeddings(path), np.float32))
    refuse_another_tower(parts.folder.tower, parts.folder.named, rows.shape[1], path)
    norm = parts.norm if of_unit_norm(rows) else None
    return (norm or 1.0) * rows, norm


def _how(request: Request, parts: _Parts, config: GenerationConfig) -> Drawing:
    size = parts.folder.checked_size(parts.models.image_size)
    guidance = _only(config.cond_scale)
    negative = known = None
    if parts.folder.family is KANDINSKY and guidance > 1:
        negative = embedding_of_nothing(parts.encoder())
    if request.inpaint is not None:
        picture, kept = known_of(*request.inpaint, size)
        known = picture[0], kept[0]
    start = None if request.init_image is None else picture_of(request.init_image, size)
    return Drawing(steps_of(parts.folder, config), guidance, size, negative, known, start, _strength(request, parts))


def _strength(request: Request, parts: _Parts) -> float:
    """As asked, or diffusers' own."""
    return request.strength or parts.folder.family.strength or 1.0


def _only(value: Any) -> Any:
    """Of a value for each stage, the only one's."""
    return value[0] if isinstance(value, tuple) else value


def _drawn(
    decoder: PretrainedDecoder, asked: _Asked, how: Drawing, config: GenerationConfig, watching: Watching
) -> Tensor:
    """A picture's draws depend on the seed and its place alone; where memory runs out, on half as many at once."""
    rows = len(asked.embeds)
    check_finite_rows(asked.embeds, "image embeddings hold", max(1, config.num_images * config.best_of))

    def make(start: int, stop: int) -> Tensor:
        places = [0 if asked.one_noise else place for place in range(start, stop)]
        seeds = [derived_seed(config.seed or 0, "pretrained decoder", place) for place in places]
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]

        def told(steps: int) -> None:
            if watching.on_step is not None:
                watching.on_step(1, start * how.taken + (stop - start) * min(steps, how.taken), rows * how.taken)

        return decoder.draw(asked.embeds[start:stop], generators, how, asked.prompts[start:stop], told)

    images = run_in_chunks(rows, config.max_batch_size, make, watching.on_smaller_batch)
    check_finite_rows(images, "the decoder made", max(1, config.num_images * config.best_of))
    return images


def _facts(parts: _Parts) -> dict[str, Any]:
    folder, models, adapter = parts.folder, parts.models, parts.folder.adapter
    prior = None
    if parts.prior is not None and models.prior is not None:
        prior = {"folder": models.prior, "kind": parts.prior.KIND, "sha256": model_digest(Path(models.prior))}
    return {
        "prior": prior,
        "decoder": {
            "folder": folder.named,
            "family": folder.family.name,
            "image_sizes": [folder.checked_size(models.image_size)],
            "dtype": parts.dtype,
            **({} if models.offload == "none" else {"offload": models.offload}),
            **({} if adapter is None else {"ip_adapter": str(adapter.path), "ip_scale": adapter.scale}),
        },
        "encoder": None if parts.facts is None else parts.facts["encoder"],
        "device": models.device,
    }
