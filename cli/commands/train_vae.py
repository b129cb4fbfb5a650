"""`embedpipe train-vae`"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

import embedpipe

from ..options import (
    debug_option,
    device_option,
    json_option,
    old_dry_run_option,
    picture_options,
    refuse_missing,
    split_options,
    training_options,
)

if TYPE_CHECKING:
    from embedpipe.unclip.train.autoencoder import VaeOutcome


@click.command()
@click.argument("data")
@click.argument("out")
@click.option(
    "--preset", default="tiny", show_default=True, help="tiny (64 px, for a CPU) or base (256 px, with discriminator)."
)
@training_options
@split_options
@click.option(
    "--vgg",
    metavar="FILE",
    help="torchvision's weights of vgg16 (.pth, .safetensors), for a perceptual loss. Default: none; never downloaded.",
)
@picture_options
@device_option(several=True)
@old_dry_run_option
@json_option
@debug_option
def command(data: str, out: str, dry_run: bool, as_json: bool, **options: Any) -> None:
    """Train an autoencoder with a codebook (VQGAN) on image shards or a folder of images, for decoders in its latents.

    OUT gets the autoencoder (config.json, model.safetensors) with its latents' statistics, checkpoints, metrics.jsonl,
    curves.png, reconstructions/ and the decoded pictures (cache/, which may be deleted afterwards). Captions are not
    needed. The same command again resumes, bit for bit on a CPU. torchrun starts it on several devices.

    \b
    embedpipe train-vae shards vae
    embedpipe train-vae shards vae --preset base --vgg vgg16.pth --set train.batch_size=32
    torchrun --nproc-per-node 8 -m embedpipe_cli train-vae shards vae --preset base
    """
    refuse_missing(data)

    from dalle2_core.keywords import refuse_unknown
    from dalle2_core.presets import VAE_PRESETS
    from embedpipe.folder_kind import require_pictures

    refuse_unknown(VAE_PRESETS, options["preset"], "preset of an autoencoder")
    require_pictures(data)

    from .. import display
    from ..training_display import plan_of, training_view

    view = training_view("train-vae")
    if dry_run:
        display.print_json(plan_of(embedpipe.plan_train_vae(data, out, **options, view=view)))
    else:
        display.show(embedpipe.train_vae(data, out, **options, view=view), as_json, _print)


def _print(outcome: VaeOutcome) -> None:
    from .. import display

    if outcome.rejects:
        display.print_table(["left out because", "samples"], sorted(outcome.rejects.items(), key=lambda item: -item[1]))
    click.echo(
        f"{outcome.out}: an autoencoder of {outcome.parameters:,} parameters, latents of {outcome.latent_channels} "
        f"channels and sides {outcome.downsampling} times smaller; {outcome.steps:,} steps on "
        f"{outcome.train_rows:,} pictures, best on {outcome.valid_rows:,} held-out ones at step {outcome.best_step:,}"
    )
    display.print_table(["held out", "value"], list(outcome.metrics.items()))
