"""`embedpipe generate`"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

import embedpipe
from embedpipe.plural import plural

from ..options import (
    CommandWithImages,
    ForStages,
    debug_option,
    device_option,
    dry_run_option,
    images_option,
    json_option,
    model_options,
    one_or_each,
    precision_option,
    refuse_missing,
    said_of_model,
    trust_model_option,
    trust_option,
)

if TYPE_CHECKING:
    from embedpipe.unclip.generate.request import Made, Watching

_PICTURE = click.Path(dir_okay=False)


@click.command(cls=CommandWithImages)
@click.argument("texts", nargs=-1, metavar="[TEXT]…")
@click.option(
    "--decoder",
    required=True,
    help="A folder written by train-decoder; or a pretrained decoder of diffusers: diffusers:FOLDER, or "
    "diffusers:ORG/NAME of the hub, which is asked after consent (--trust-model).",
)
@click.option("--prior", help="A folder written by train-prior; needed for texts.")
@click.option("--captions", type=_PICTURE, help="More texts: one per line (.txt) or a column (.csv, .tsv, .parquet).")
@click.option(
    "--caption-col",
    "--caption-column",
    "caption_column",
    help="The column of --captions. Default: query, text or caption.",
)
@click.option("--from-image", type=_PICTURE, help="Pictures that share this one's content and style, not its details.")
@click.option(
    "--inpaint",
    type=_PICTURE,
    nargs=2,
    metavar="IMAGE MASK",
    help="Paint IMAGE anew where MASK, of its size, is white: as TEXT says, or so that it fits.",
)
@click.option(
    "--interpolate", type=_PICTURE, nargs=2, metavar="IMAGE IMAGE", help="Pictures between the first and the second."
)
@click.option("--text-diff", type=_PICTURE, help="Change this picture towards TEXT, step by step.")
@click.option("--base-text", default="", help="With --text-diff: what the picture shows now. Default: the empty text.")
@click.option(
    "--init-image",
    type=_PICTURE,
    help="Of a decoder of diffusers: begin with this picture, noised, instead of noise alone.",
)
@click.option(
    "--strength",
    type=float,
    help="With --init-image: how much it is noised, up to 1. Default: the pipeline's: 0.3, of Stable Diffusion 0.8.",
)
@click.option("--embedding", type=_PICTURE, help="Image embeddings [n, d] of an .npy file; no prior is asked.")
@click.option(
    "--beside", "held_out", help="Make pictures of held-out captions of this data set, and show the true ones."
)
@click.option(
    "--rows", type=click.IntRange(2), default=16, show_default=True, help="With --beside: number of captions."
)
@images_option(", for --beside")
@click.option(
    "-n", "--n", "num_images", type=click.IntRange(1), default=4, show_default=True, help="Pictures for each."
)
@click.option("--steps", type=ForStages(int), help="Sampling steps of the decoder. Default: the stages' own.")
@click.option("--sampler", type=ForStages(str), help="ddim, ddpm or dpm-solver++. Default: the stages' own.")
@click.option(
    "--eta", type=ForStages(float), help="Noise added by ddim: 0 none, 1 as much as ddpm. Default with --from-image: 1."
)
@click.option(
    "--guidance",
    "cond_scale",
    type=ForStages(float),
    help="Guidance of the decoder; 1 is none. Default: 1, or that of a pipeline of diffusers: 4 for Kandinsky, "
    "10 for Stable unCLIP.",
)
@click.option(
    "--text-guidance",
    "text_cond_scale",
    type=ForStages(float),
    help="Guidance by the text alone, for a decoder that reads it.",
)
@click.option(
    "--prior-guidance",
    "prior_cond_scale",
    type=float,
    default=1.0,
    show_default=True,
    help="Guidance of the prior; 1 is none.",
)
@click.option("--prior-steps", type=click.IntRange(1), help="Sampling steps of the prior. Default: its own.")
@click.option("--prior-sampler", help="Sampler of the prior. Default: its own.")
@click.option(
    "--candidates",
    "prior_num_samples",
    type=click.IntRange(1),
    help="Embeddings the prior draws for each picture; one is kept.",
)
@click.option(
    "--best-of",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Make this many times as many pictures, and keep those that the encoder scores nearest to the text.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Random seed.")
@click.option(
    "--batch-size",
    "max_batch_size",
    type=click.IntRange(1),
    default=16,
    show_default=True,
    help="Pictures per batch.",
)
@click.option(
    "--decoder-dtype",
    type=click.Choice(("auto", "float32", "float16", "bfloat16")),
    default="auto",
    show_default=True,
    help="Of a decoder of diffusers; auto is float16 on a GPU and float32 elsewhere.",
)
@click.option(
    "--offload",
    type=click.Choice(("none", "model", "sequential")),
    default="none",
    show_default=True,
    help="Of a decoder of diffusers, to spare a GPU's memory: keep its networks (model) or layers (sequential, slow) "
    "off it but for their turn.",
)
@click.option("--image-size", type=click.IntRange(1), help="Of a decoder of diffusers: pixels. Default: its own.")
@click.option(
    "--image-norm",
    type=float,
    help="Of a decoder of diffusers, for embeddings of norm 1: the mean norm of the encoder's image embeddings. "
    "Default: that of the prior's data set.",
)
@click.option(
    "--ip-adapter",
    type=click.Path(dir_okay=False),
    help="Of a base model (Stable Diffusion 1.5, XL): its IP-Adapter, a safetensors file.",
)
@click.option(
    "--ip-scale", type=float, default=1.0, show_default=True, help="How much the adapter counts beside the text."
)
@click.option("--model", help="Where the encoder is now, if it has moved. Must be the same model.")
@click.option("--pretrained", help="Its pretrained tag or checkpoint, likewise.")
@model_options
@device_option()
@precision_option("prior and decoder")
@trust_option("Allow a prior and a decoder of which version 0.1 wrote one")
@click.option("-o", "--out", default="out.png", show_default=True, help="The grid; OUT/ and OUT.json lie beside it.")
@dry_run_option
@trust_model_option
@json_option
@debug_option
def command(texts: tuple[str, ...], dry_run: bool, as_json: bool, **options: Any) -> None:
    """Make pictures of texts: prior, then decoder. Or vary, fill in or interpolate pictures.

    OUT is a grid of all pictures; beside it lie each by itself (out/000-00.png: the text's number, then the picture's)
    and every setting (out.json). The same command makes the same pictures. Where memory runs out, it goes on with half
    as many at once.

    \b
    embedpipe generate "a pineapple" --prior prior --decoder decoder
    embedpipe generate --captions captions.txt --prior prior --decoder decoder -n 16 --best-of 4 --guidance 2
    embedpipe generate --from-image photo.jpg --decoder decoder -n 8 --precision bfloat16
    embedpipe generate "a red hat" --inpaint photo.jpg mask.png --prior prior --decoder decoder
    embedpipe generate --interpolate one.jpg other.jpg --decoder decoder -n 9
    embedpipe generate "a green hat" --text-diff photo.jpg --base-text "a red hat" --decoder decoder -n 5
    embedpipe generate "a red hat" --init-image photo.jpg --strength 0.5 --prior prior --decoder diffusers:kandinsky
    embedpipe generate --beside emb --prior prior --decoder decoder -n 1
    """
    own = None if options["decoder"].startswith("diffusers:") else options["decoder"]
    refuse_missing(own, options["prior"], options["held_out"])

    from embedpipe.unclip.generate.grid import refuse_other_names

    refuse_other_names(options["out"])

    from .. import display

    for name in ("steps", "sampler", "eta", "cond_scale", "text_cond_scale"):
        options[name] = one_or_each(options[name])
    for name in ("inpaint", "interpolate"):
        options[name] = options[name] or None
    said = said_of_model(options)
    with _watching() as watching:
        if dry_run:
            plan = embedpipe.plan_generation(texts, **options, options=said, watching=watching)
        else:
            made = embedpipe.generate(texts, **options, options=said, watching=watching)
    if dry_run:
        display.print_json(plan)
    elif as_json:
        display.print_json(made.record)
    else:
        _print(made, options["out"])


@contextlib.contextmanager
def _watching() -> Iterator[Watching]:
    """What is being loaded, then a progress bar for each stage, one after the other."""
    from dalle2_core.dalle2 import PRIOR
    from embedpipe.progress import Progress
    from embedpipe.unclip.generate.request import Watching

    from .. import display

    with contextlib.ExitStack() as stack:
        views: dict[int, display.ProgressView] = {}
        loading = stack.enter_context(display.progress("generate", "pictures"))

        def on_doing(what: str) -> None:
            if not views:
                loading(Progress(doing=what))

        def on_step(stage: int, done: int, total: int) -> None:
            if stage not in views:
                stack.close()
                what, unit = ("prior", "embeddings") if stage == PRIOR else (f"decoder stage {stage}", "steps")
                views[stage] = stack.enter_context(display.progress(what, unit))
            views[stage].at_row(done, total)

        def on_smaller_batch(size: int) -> None:
            click.echo(f"out of memory: going on with {size} pictures at once", err=True)

        yield Watching(on_step, on_smaller_batch, on_doing, lambda text: click.echo(f"note: {text}", err=True))


def _print(made: Made, out: str) -> None:
    from .. import display

    if made.record is not None and "beside" in made.record:
        _print_beside(made.record["beside"])
    elif made.text is not None and made.scores is not None:
        rows = []
        for number, text in enumerate(made.texts):
            scores = [score for score, row in zip(made.scores, made.text, strict=True) if row == number]
            rows.append((text, len(scores), sum(scores) / len(scores), max(scores)))
        display.print_table(["text", "pictures", "cosine to it, mean", "best"], rows)
    click.echo(
        f"{out}: {plural(len(made.images), 'picture')}; each in {out[: -len('.png')]}/, all settings in its .json"
    )


def _print_beside(found: dict[str, Any]) -> None:
    from .. import display

    rows = [(side, *(found[side][name] for name in ("own", "others", "nearer"))) for side in ("made", "true")]
    columns = ["pictures", "cosine to their caption", "to the others", "how often nearer to theirs (chance 0.5)"]
    display.print_table(columns, rows, f"{found['captions']} held-out captions, by the encoder")
    click.echo(f"nearest picture in training: cosine {found['nearest_training']:.4f} on average")
