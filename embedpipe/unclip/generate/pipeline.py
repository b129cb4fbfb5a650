"""From texts, pictures and embeddings to pictures: trained runs (`dalle2_core`) and the encoder (`embedpipe`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dalle2_core import Decoder, interpolations, text_diff_images, variations
from dalle2_core.chunking import is_out_of_memory
from dalle2_core.dalle2 import DALLE2
from dalle2_core.generation import GenerationConfig
from dalle2_core.precision import computing
from dalle2_core.priors.base import Prior
from dalle2_core.rng import derived_seed
from dalle2_core.types import EmbeddedText
from embedpipe.encode import Encoder
from embedpipe.errors import ModelError
from embedpipe.images.sheet import SheetCell
from embedpipe.index import embed_image, read_embeddings
from embedpipe.load.images.source import Images

from ..runs.record import versions
from .embedded import diff_shares, embedded_texts, of_norm_one, texts_for_prior
from .held_out import HeldOut, cells_of, compare_held_out
from .models import Models, OpenedModels, encoded_pictures, open_models, text_is_read
from .outputs import enlarged, known_of, picture_of, png, write_pictures
from .pretrained.pictures import make_pretrained, plan_pretrained
from .request import Made, Request, Watching, check_request


def plan_request(request: Request, models: Models, config: GenerationConfig, watching: Watching) -> dict[str, Any]:
    """What `make_images` would do: everything is read and checked, but no encoder is loaded and nothing is made."""
    if models.pipeline is not None:
        return plan_pretrained(request, models, config, watching)
    parts = open_models(models, watching.on_doing)
    texts = request.all_texts()
    check_request(request, parts, config, texts)
    return {"mode": request.mode, "texts": texts, "images": _count(request, config, texts), **parts.facts}


def make_images(request: Request, models: Models, config: GenerationConfig, watching: Watching) -> Made:
    """Make images. Raises as `generate` does."""
    try:
        if models.pipeline is not None:
            return make_pretrained(request, models, config, watching)
        return _make_own(request, models, config, watching)
    except (RuntimeError, MemoryError) as problem:
        if not is_out_of_memory(problem):
            raise
        raise ModelError(
            f"{models.device}: no memory for a single image", "Free some, or give `device='cpu'` or a smaller decoder"
        ) from problem


def _make_own(request: Request, models: Models, config: GenerationConfig, watching: Watching) -> Made:
    parts = open_models(models, watching.on_doing)
    texts = request.all_texts()
    check_request(request, parts, config, texts)
    watching.on_doing("making pictures")
    return _MODES[request.mode](request, parts, config, texts, watching)


def _from_texts(
    request: Request, parts: OpenedModels, config: GenerationConfig, texts: list[str], watching: Watching
) -> Made:
    encoder = parts.encoder()
    dalle2 = _both(parts)
    text, unit = texts_for_prior(dalle2.prior, encoder, texts, text_is_read(parts), config.prior_cond_scale, watching)
    known: tuple[Tensor | None, Tensor | None] = (None, None)
    if request.inpaint is not None:
        known = known_of(*request.inpaint, _size(parts.decoder))
    made = dalle2.generate(text, config, known, score=_score_by(encoder), **watching.keywords())
    labels = [texts[row] for row in made.text]
    embeds = encoded_pictures(encoder, made.images)
    scores = (embeds * unit[made.text]).sum(dim=1).tolist()
    return Made(made.images, labels, texts, parts.facts, made.text, scores, embeds)


def _from_embeddings(
    request: Request, parts: OpenedModels, config: GenerationConfig, texts: list[str], watching: Watching
) -> Made:
    """Of stored image embeddings, or of the embedding of the picture that is filled in."""
    known: tuple[Tensor | None, Tensor | None] = (None, None)
    if request.inpaint is not None:
        rows = embed_image(parts.encoder(), request.inpaint[0])[None]
        names = [request.inpaint[0]]
        known = known_of(*request.inpaint, _size(parts.decoder))
    else:
        assert request.embedding is not None
        rows = read_embeddings(request.embedding)
        names = [f"{request.embedding}, row {row}" for row in range(len(rows))]
    embeds = of_norm_one(rows).repeat_interleave(config.num_images, dim=0)
    shown = [None if it is None else it.expand(len(embeds), *it.shape[1:]) for it in known]
    images = parts.decoder.sample(
        image_embed=embeds,
        inpaint_image=shown[0],
        inpaint_mask=shown[1],
        **_told(parts, texts, len(embeds), watching),
        **config.of_decoder(),
        **_sampling(config, watching),
    )
    return Made(images, [name for name in names for _ in range(config.num_images)], texts, parts.facts)


def _variations(
    request: Request, parts: OpenedModels, config: GenerationConfig, texts: list[str], watching: Watching
) -> Made:
    assert request.from_image is not None
    picture = picture_of(request.from_image, _size(parts.decoder))
    images = computing(parts.precision, parts.device)(variations)(
        parts.decoder,
        picture,
        of_norm_one(embed_image(parts.encoder(), request.from_image)),
        config.num_images,
        eta=1.0 if config.eta is None else _one(config.eta),
        steps=_one(config.steps),
        **_told(parts, texts, 1, watching),
        cond_scale=config.cond_scale,
        **_sampling(config, watching),
    )
    return Made(images, [request.from_image] * len(images), texts, parts.facts)


def _interpolation(
    request: Request, parts: OpenedModels, config: GenerationConfig, texts: list[str], watching: Watching
) -> Made:
    assert request.interpolate is not None
    one, other = request.interpolate
    encoder, size = parts.encoder(), _size(parts.decoder)
    shares = np.linspace(0, 1, config.num_images).tolist()
    images = computing(parts.precision, parts.device)(interpolations)(
        parts.decoder,
        (picture_of(one, size), picture_of(other, size)),
        (of_norm_one(embed_image(encoder, one)), of_norm_one(embed_image(encoder, other))),
        shares,
        steps=_one(config.steps),
        **_told(parts, texts, 1, watching),
        cond_scale=config.cond_scale,
        **_sampling(config, watching),
    )
    return Made(images, [f"{share:.0%}" for share in shares], texts, parts.facts)


def _text_diff(
    request: Request, parts: OpenedModels, config: GenerationConfig, texts: list[str], watching: Watching
) -> Made:
    assert request.text_diff is not None
    encoder = parts.encoder()
    text, base = embedded_texts(encoder, [texts[0], request.base_text], False, watching)[0].text_embed
    shares = diff_shares(config.num_images)
    images = computing(parts.precision, parts.device)(text_diff_images)(
        parts.decoder,
        picture_of(request.text_diff, _size(parts.decoder)),
        of_norm_one(embed_image(encoder, request.text_diff)),
        text,
        base,
        shares,
        steps=_one(config.steps),
        **_told(parts, [], 1, watching),
        cond_scale=config.cond_scale,
        **_sampling(config, watching),
    )
    return Made(images, [f"{share:.0%}" for share in shares], texts, parts.facts)


def _inpainting(
    request: Request, parts: OpenedModels, config: GenerationConfig, texts: list[str], watching: Watching
) -> Made:
    """What a text says, or, without one, something that fits the picture."""
    way = _from_texts if texts and parts.prior is not None else _from_embeddings
    return way(request, parts, config, texts, watching)


_MODES = {
    "text": _from_texts,
    "variations": _variations,
    "interpolation": _interpolation,
    "embedding": _from_embeddings,
    "inpainting": _inpainting,
    "text_diff": _text_diff,
}


def _count(request: Request, config: GenerationConfig, texts: Sequence[str]) -> int:
    if request.embedding is not None:
        return len(read_embeddings(request.embedding)) * config.num_images
    return max(1, len(texts)) * config.num_images


def _both(parts: OpenedModels) -> DALLE2:
    assert isinstance(parts.prior, Prior)
    return DALLE2(parts.prior, parts.decoder, prior_reads_tokens=parts.prior_reads_text)


def _embedded(encoder: Encoder, texts: Sequence[str], parts: OpenedModels, watching: Watching) -> EmbeddedText:
    """What the encoder makes of texts; with states of tokens where prior or decoder read them."""
    return embedded_texts(encoder, texts, text_is_read(parts), watching)[0]


def _told(parts: OpenedModels, texts: Sequence[str], rows: int, watching: Watching) -> dict[str, Any]:
    """The text for a decoder that reads one besides the embedding, or the empty one: the same for all rows."""
    if not parts.reads_text:
        return {}
    assert len(texts) < 2
    text = _embedded(parts.encoder(), texts or [""], parts, watching).repeated(rows)
    return {"text_encodings": text.text_encodings, "text_mask": text.text_mask}


def _score_by(encoder: Encoder) -> Any:
    def score(images: Tensor, text_embed: Tensor, text: Sequence[int]) -> Tensor:
        found = encoded_pictures(encoder, images)
        return (found * F.normalize(text_embed.float().cpu(), dim=-1)[list(text)]).sum(dim=1)

    return score


def _sampling(config: GenerationConfig, watching: Watching) -> dict[str, Any]:
    """What `Decoder.sample` takes besides the settings of its stages; the draws are those of `DALLE2`."""
    seed = derived_seed(config.seed or 0, "decoder")
    return {
        "generator": torch.Generator().manual_seed(seed),
        "max_batch_size": config.max_batch_size,
        **watching.keywords(),
    }


def _size(decoder: Decoder) -> int:
    """Of the pictures that come out, pixels."""
    return decoder.cascade[-1].config.image_size


def _one(value: Any) -> Any:
    """Of a value for each stage, the first stage's."""
    return value[0] if isinstance(value, tuple) else value


def write_images(
    made: Made,
    out: str,
    request: Request,
    config: GenerationConfig,
    held: HeldOut | None = None,
    images: Images = None,
) -> dict[str, Any]:
    """Write the grid `out`, the single pictures and the record beside it; the record. See `write_pictures`.

    held: the rows whose captions were the texts; the grid then shows their true pictures, too, from the image shards at
    `images` or where they were, and the record says how they compare.
    """
    of_text = made.text or [row // config.num_images for row in range(len(made.images))]
    names = [f"{number:03d}-{row % config.num_images:02d}.png" for row, number in enumerate(of_text)]
    scores: Sequence[float | None] = made.scores or [None] * len(names)
    record = {
        "mode": request.mode,
        "request": asdict(request),
        "settings": asdict(config),
        **made.facts,
        "versions": versions(),
        "images": [
            {"file": name, "of": label, "score": score}
            for name, label, score in zip(names, made.labels, scores, strict=True)
        ],
    }
    singles = dict(zip(names, map(png, made.images), strict=True))
    shown = [enlarged(data) for data in singles.values()]
    one = len(set(made.labels)) == 1
    if held is None or made.text is None or made.embeds is None:
        columns = min(config.num_images, 16)
        cells = [
            SheetCell(data, " ".join(filter(None, ("" if score is None else f"{score:.3f}", "" if one else label))))
            for data, label, score in zip(shown, made.labels, scores, strict=True)
        ]
    else:
        found, nearest = compare_held_out(held, made.embeds, made.text)
        record["beside"] = asdict(found)
        cells, columns = cells_of(held, shown, made.text, nearest, images)
    write_pictures(out, singles, cells, made.labels[0] if one else "", columns, record)
    return record
