"""`embedpipe train-decoder`"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

import embedpipe
from embedpipe.plural import plural

from ..options import (
    CommandWithImages,
    ForStages,
    config_options,
    debug_option,
    device_option,
    images_option,
    json_option,
    old_dry_run_option,
    parallel_option,
    refuse_missing,
    row_options,
    split_options,
    trust_model_option,
    trust_option,
)

if TYPE_CHECKING:
    from embedpipe.unclip.train.decoder_config import DecoderOutcome


@click.command(cls=CommandWithImages)
@click.argument("paths", nargs=-1, required=True, metavar="[DATA] EMB OUT")
@images_option(", as DATA")
@click.option(
    "--preset",
    show_default="quick",
    help="quick (32, 64 px), tiny (the same, slower), tiny-latent (64 px, with --vae), base (64, 256) or paper.",
)
@click.option(
    "--sizes",
    type=ForStages(int, least=1),
    default=(),
    help="Pixels a side of each stage, e.g. 64,256; how many there are.",
)
@click.option("--dims", type=ForStages(int, least=1), default=(), help="Width of each stage's network, or of all.")
@click.option("--timesteps", type=ForStages(int, least=1), default=(), help="Noise levels of each stage, or of all.")
@click.option(
    "--objective",
    "objectives",
    type=ForStages(str),
    default=(),
    help="What each stage's network predicts: v, x0, noise or flow.",
)
@click.option("--text-tokens", is_flag=True, help="Tell the first stage the states of the captions' tokens, too.")
@config_options
@click.option("--stage", "stages", type=click.IntRange(1), multiple=True, help="Train this stage alone. Repeatable.")
@click.option(
    "--vae",
    "vaes",
    multiple=True,
    metavar="FOLDER",
    help="Autoencoder of the first stage (again: of the second …).",
)
@click.option(
    "--cache-latents", is_flag=True, help="With --vae: encode each image once, and keep its latents beside the stage."
)
@trust_option("Allow stages or embeddings that version 0.1 wrote beside newer ones")
@click.option("--steps", type=click.IntRange(1), help="Optimizer steps of each stage.")
@click.option("--batch-size", type=click.IntRange(1), help="Rows of a step, of each stage, over all processes.")
@click.option("--seed", type=click.IntRange(0), help="Of weights, order, noise and dropout, of each stage.")
@click.option("--sample-every", type=click.IntRange(1), help="Steps between sample grids. Default: as it is evaluated.")
@click.option("--log", "loggers", multiple=True, metavar="NAME", help="tensorboard or wandb, besides metrics.jsonl.")
@split_options
@click.option(
    "--features",
    metavar="WHAT",
    help="Score samples by similarity, FID and KID: `encoder` (EMB's own), an encoder's folder, or inception:FILE.",
)
@click.option("--score-rows", type=click.IntRange(2), default=64, show_default=True, help="Held-out rows scored.")
@click.option("--cond-scale", type=float, default=1.0, show_default=True, help="Guidance of samples; 1 is none.")
@click.option(
    "--drop-unjoined", is_flag=True, help="Leave out rows whose image is missing or another, instead of refusing them."
)
@row_options
@click.option("--decode-threads", type=click.IntRange(1), default=4, show_default=True, help="Threads that decode.")
@click.option(
    "--max-pixels", type=click.IntRange(1), default=100_000_000, show_default=True, help="No larger image is decoded."
)
@parallel_option
@device_option(several=True)
@old_dry_run_option
@trust_model_option
@json_option
@debug_option
def command(paths: tuple[str, ...], dry_run: bool, as_json: bool, **options: Any) -> None:
    """Train a decoder (image embedding → image): a cascade of stages, each trained by itself.

    DATA are the image shards that EMB was encoded from; without, they are looked for where they were, or at --images.
    Each image is found by its source shard and key. No CLIP is
    loaded. OUT gets a folder for each stage (weights, checkpoints, metrics.jsonl, curves.png, sample grids), and is a
    decoder once all are there. The same command again resumes, bit for bit on a CPU. torchrun starts it on several
    devices; stages can be trained by several commands at the same time.

    \b
    embedpipe train-decoder shards emb decoder
    embedpipe train-decoder merged decoder --images shards-2023 --images shards-2024
    embedpipe train-decoder shards emb decoder --sizes 64,256 --dims 128,64 --stage 2
    embedpipe train-decoder shards emb decoder --set stages.1.optim.lr=1e-4 --features encoder
    torchrun --nproc-per-node 8 -m embedpipe_cli train-decoder shards emb decoder --preset base
    """
    if not 2 <= len(paths) <= 3:
        raise click.UsageError("Give DATA, EMB and OUT, or EMB and OUT")
    data, emb, out = (None, *paths) if len(paths) == 2 else paths
    refuse_missing(emb)

    from dalle2_core.keywords import refuse_unknown
    from dalle2_core.presets import DECODER_PRESETS
    from embedpipe.folder_kind import require_embeddings, require_pictures

    refuse_unknown(DECODER_PRESETS, options["preset"] or "quick", "decoder preset")
    require_embeddings(emb)
    if data is not None:
        require_pictures(data)

    from .. import display
    from ..training_display import plan_of, training_view

    view = training_view("train-decoder")
    display.note_old_data(emb)
    if dry_run:
        plan = embedpipe.plan_train_decoder(data, emb, out, **options, view=view)
        display.print_json({"train": plan.stages, **plan_of(plan)})
    else:
        display.show(embedpipe.train_decoder(data, emb, out, **options, view=view), as_json, _print)


def _print(outcome: DecoderOutcome) -> None:
    from .. import display

    join = outcome.join
    if outcome.dropped:
        click.echo(f"warning: {outcome.dropped:,} rows that are not finite were left out", err=True)
    left_out = [
        f"{count:,} {what}"
        for count, what in (
            (join.image_missing, "without an image"),
            (join.image_changed, "with another image than was encoded"),
            (join.row_repeated, "with a key that is not theirs alone"),
        )
        if count
    ]
    if left_out:
        click.echo(f"warning: rows left out: {', '.join(left_out)}", err=True)
    click.echo(
        f"{outcome.out}: trained on {plural(outcome.train_rows, 'image')}, {outcome.valid_rows:,} are held out; "
        f"{join.image_unused:,} images have no row"
    )
    names = list(dict.fromkeys(name for stage in outcome.stages for name in stage.metrics))
    rows = [
        (it.stage, it.image_size, it.parameters, it.steps, it.best_step, *(it.metrics.get(name) for name in names))
        for it in outcome.stages
    ]
    display.print_table(["stage", "px", "parameters", "steps", "best step", *names], rows)
    if not outcome.complete:
        click.echo(f"{outcome.out} is no decoder yet: train its other stages, too, with --stage")
