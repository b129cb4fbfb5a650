"""`generate`: the request, the models and the settings of one generation, and where its images go."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from dalle2_core.generation import GenerationConfig
from embedpipe.clip_model.spec import ModelOptions
from embedpipe.errors import OptionError
from embedpipe.load.images.source import Images
from embedpipe.mirror import local_copy
from embedpipe.renamed import renamed_keyword

from ..calls import call_of
from ..device import default_device
from .grid import refuse_other_names
from .held_out import HeldOut, open_held_out
from .models import Models
from .pipeline import make_images, plan_request, write_images
from .pretrained.adapter import open_adapter
from .pretrained.folder import is_pretrained, open_pipeline
from .request import Made, Request, Watching


@dataclass(frozen=True, slots=True)
class GenerationJob:
    """What to make, with what and how. out: the grid, None to write nothing. held: rows whose captions are the texts.

    images: where the image shards of `held` are now.
    """

    request: Request
    models: Models
    config: GenerationConfig
    out: str | None
    held: HeldOut | None
    images: Images
    watching: Watching


@renamed_keyword(data="images")
def generation_job(
    texts: str | Sequence[str] = (),
    *,
    decoder: str,
    prior: str | None = None,
    captions: str | None = None,
    caption_column: str | None = None,
    from_image: str | None = None,
    inpaint: tuple[str, str] | None = None,
    interpolate: tuple[str, str] | None = None,
    embedding: str | None = None,
    text_diff: str | None = None,
    base_text: str = "",
    init_image: str | None = None,
    strength: float | None = None,
    held_out: str | None = None,
    rows: int = 16,
    images: Images = None,
    num_images: int = 4,
    best_of: int = 1,
    seed: int = 0,
    steps: int | tuple[int, ...] | None = None,
    sampler: str | tuple[str, ...] | None = None,
    eta: float | tuple[float, ...] | None = None,
    cond_scale: float | tuple[float, ...] | None = None,
    text_cond_scale: float | tuple[float, ...] | None = None,
    prior_steps: int | None = None,
    prior_sampler: str | None = None,
    prior_cond_scale: float = 1.0,
    prior_num_samples: int | None = None,
    max_batch_size: int = 16,
    model: str | None = None,
    pretrained: str | None = None,
    options: ModelOptions | None = None,
    trust_old_card: bool = False,
    decoder_dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto",
    image_size: int | None = None,
    image_norm: float | None = None,
    ip_adapter: str | None = None,
    ip_scale: float = 1.0,
    offload: Literal["none", "model", "sequential"] = "none",
    device: str | None = None,
    precision: Literal["float32", "tf32", "bfloat16"] = "float32",
    out: str | None = None,
    watching: Watching | None = None,
) -> GenerationJob:
    """texts: one, or several. decoder, prior: folders of `train_decoder` and `train_prior`.

    decoder: or a decoder of diffusers: diffusers:FOLDER, or diffusers:ORG/NAME of the hub, after consent.

    captions, caption_column, from_image, inpaint, interpolate, embedding, text_diff, base_text, init_image, strength:
    other things to make images of, or to begin with, see `Request`. held_out: a data set, of whose held-out captions
    `rows` are the texts; the true images, from the image shards at `images` or where they were, are shown beside those
    made. num_images, best_of, seed and what follows to max_batch_size: see `GenerationConfig`. cond_scale: None is 1,
    and of a decoder of diffusers its pipeline's own. model, pretrained, options, trust_old_card, decoder_dtype,
    image_size, image_norm, offload, precision: see `Models`. ip_adapter, ip_scale: of a base model of diffusers, the
    file of its IP-Adapter, and how much that counts beside the text. device: None for the first GPU, or the CPU. out:
    the grid's file, .png; beside it come the single images (OUT/) and all settings (OUT.json). watching: hears of the
    progress.
    """
    if out is not None:
        refuse_other_names(out)
    adapter = None if ip_adapter is None else open_adapter(ip_adapter, ip_scale)
    if adapter is not None and not is_pretrained(decoder):
        raise OptionError("`ip_adapter` is for a base model of diffusers", "Leave it out")
    pipeline = open_pipeline(decoder, adapter) if is_pretrained(decoder) else None
    if cond_scale is None:
        cond_scale = 1.0 if pipeline is None else pipeline.family.guidance
    of = Models(
        local_copy(decoder) if pipeline is None else decoder,
        None if prior is None else local_copy(prior),
        model,
        pretrained,
        device or default_device(),
        options or ModelOptions(),
        trust_old_card,
        decoder_dtype,
        image_size,
        image_norm,
        pipeline,
        offload,
        precision,
    )
    texts = (texts,) if isinstance(texts, str) else tuple(texts)
    sources = (captions, from_image, inpaint, interpolate, embedding, text_diff)
    if held_out is not None and (texts or any(sources)):
        raise OptionError("held-out captions are the texts", "Leave other texts and images out")
    held = None if held_out is None else open_held_out(of, held_out, rows)
    request = Request(
        texts if held is None else tuple(held.captions),
        captions,
        caption_column,
        from_image,
        inpaint,
        interpolate,
        embedding,
        text_diff,
        base_text,
        init_image,
        strength,
    )
    config = GenerationConfig(
        cond_scale=cond_scale,
        text_cond_scale=text_cond_scale,
        prior_cond_scale=prior_cond_scale,
        prior_num_samples=prior_num_samples,
        num_images=num_images,
        best_of=best_of,
        seed=seed,
        steps=steps,
        sampler=sampler,
        eta=eta,
        prior_steps=prior_steps,
        prior_sampler=prior_sampler,
        max_batch_size=max_batch_size,
    )
    return GenerationJob(request, of, config, out, held, images, watching or Watching())


def run_generation(job: GenerationJob) -> Made:
    """Make images of texts: prior, then decoder. Or vary, fill in or interpolate images. The same call makes the same.

    Raises InputError for what cannot be read or is asked of the wrong models, RunMismatch where prior, decoder and
    encoder do not belong together, ConfigError or ShapeError where a setting does not fit, ModelError where there is
    no memory for a single image.
    """
    made = make_images(job.request, job.models, job.config, job.watching)
    if job.out is None:
        return made
    record = write_images(made, job.out, job.request, job.config, job.held, job.images)
    return dataclasses.replace(made, record=record)


def plan_generation_of(job: GenerationJob) -> dict[str, Any]:
    """What `generate` would do: everything is read and checked, but no encoder is loaded and nothing is made."""
    plan = plan_request(job.request, job.models, job.config, job.watching)
    return plan | {"settings": dataclasses.asdict(job.config), "out": job.out}


generate = call_of("generate", generation_job, run_generation)
plan_generation = call_of("plan_generation", generation_job, plan_generation_of)
