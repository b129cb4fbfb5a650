"""`embedpipe train-vae`"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import click

from .options import config_options, debug_option, dry_run_option, json_option, split_options

if TYPE_CHECKING:
    from dalle2_core.training import StepReport
    from embedpipe.progress import Listener

    from .vae_wiring import VaeOutcome


@click.command()
@click.argument("data")
@click.argument("out")
@click.option(
    "--preset", default="tiny", show_default=True, help="tiny (64 px, for a CPU) or base (256 px, with discriminator)."
)
@config_options
@click.option("--steps", type=click.IntRange(1), help="Optimizer steps; short for --set train.steps=N.")
@click.option("--seed", type=click.IntRange(0), help="Short for --set train.seed=N.")
@click.option("--log", "loggers", multiple=True, metavar="NAME", help="tensorboard or wandb, besides metrics.jsonl.")
@split_options
@click.option(
    "--vgg",
    metavar="FILE",
    help="torchvision's weights of vgg16 (.pth, .safetensors), for a perceptual loss. Default: none; never downloaded.",
)
@click.option(
    "--input", "input_format", default="auto", show_default=True, help="webdataset, folder, or auto to find out."
)
@click.option(
    "--max-pixels",
    type=click.IntRange(1),
    default=100_000_000,
    show_default=True,
    help="Images with more are left out, before decoding.",
)
@click.option("--device", help="cpu, cuda, cuda:1 … Default: the first GPU, or the CPU; under torchrun, one each.")
@dry_run_option
@json_option
@debug_option
def command(
    data: str,
    out: str,
    preset: str,
    config_file: str | None,
    settings: Sequence[str],
    steps: int | None,
    seed: int | None,
    loggers: Sequence[str],
    split_column: str | None,
    valid_share: float,
    vgg: str | None,
    input_format: str,
    max_pixels: int,
    device: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Train an autoencoder with a codebook (VQGAN) on image shards or a folder of images, for decoders in its latents.

    OUT gets the autoencoder (config.json, model.safetensors) with its latents' statistics, checkpoints, metrics.jsonl,
    curves.png, reconstructions/ and the decoded pictures (cache/, which may be deleted afterwards). Captions are not
    needed. The same command again resumes, bit for bit on a CPU. torchrun starts it on several devices.

    \b
    embedpipe train-vae shards vae
    embedpipe train-vae shards vae --preset base --vgg vgg16.pth --set train.batch_size=32
    torchrun --nproc-per-node 8 -m embedpipe_cli train-vae shards vae --preset base
    """
    from dalle2_core.training import join_processes
    from dalle2_core.vae_presets import vae_preset

    from . import display, vae_wiring, wiring
    from .config import resolve

    short = [f"train.{name}={value}" for name, value in (("steps", steps), ("seed", seed)) if value is not None]
    short += [f"train.loggers={json.dumps(loggers)}"] if loggers else []
    recipe = resolve(vae_preset(preset), config_file, [*settings, *short])
    if dry_run:
        display.print_json(recipe)
        return
    together = join_processes(device or wiring.default_device())

    @contextlib.contextmanager
    def preparing(what: str) -> Iterator[Listener]:
        with display.progress(what) as view:
            yield view

    @contextlib.contextmanager
    def training() -> Iterator[Callable[[StepReport], None] | None]:
        if not together.is_first:
            yield None
            return
        with display.progress("train-vae", "samples", "steps") as view:
            yield lambda report: view.at_step(report.step, report.steps, recipe.train.batch_size, report.loss)

    outcome = vae_wiring.train_vae_on(
        data,
        out,
        recipe,
        wiring.SplitConfig(split_column, valid_share),
        vae_wiring.VaeSource(input_format, max_pixels, vgg),
        device or wiring.default_device(),
        preparing,
        training,
        together,
    )
    if outcome is None:
        return
    if as_json:
        display.print_json(outcome)
    else:
        _print(outcome)


def _print(outcome: VaeOutcome) -> None:
    from . import display

    if outcome.rejects:
        display.table(["left out because", "samples"], sorted(outcome.rejects.items(), key=lambda item: -item[1]))
    click.echo(
        f"{outcome.out}: an autoencoder of {outcome.parameters:,} parameters, latents of {outcome.latent_channels} "
        f"channels and sides {outcome.downsampling} times smaller; {outcome.steps:,} steps on "
        f"{outcome.train_rows:,} pictures, best on {outcome.valid_rows:,} held-out ones at step {outcome.best_step:,}"
    )
    display.table(["held out", "value"], list(outcome.metrics.items()))
