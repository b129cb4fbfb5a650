"""`embedpipe train-prior`"""

from __future__ import annotations

from collections.abc import Sequence

import click

from .options import config_options, debug_option, dry_run_option, json_option, split_options


@click.command()
@click.argument("emb")
@click.argument("out")
@click.option("--preset", default="tiny", show_default=True, help="tiny, base, laion-l14 or paper.")
@config_options
@click.option("--steps", type=click.IntRange(1), help="Optimizer steps; short for --set train.steps=N.")
@click.option("--seed", type=click.IntRange(0), help="Short for --set train.seed=N.")
@split_options
@click.option("--device", help="cpu, cuda, cuda:1 … Default: the first GPU, or the CPU.")
@dry_run_option
@json_option
@debug_option
def command(
    emb: str,
    out: str,
    preset: str,
    config_file: str | None,
    settings: Sequence[str],
    steps: int | None,
    seed: int | None,
    split_column: str | None,
    valid_share: float,
    device: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Train a diffusion prior (text embedding → image embedding) from embeddings alone.

    No CLIP is loaded and no image is read. OUT gets the trained prior (config.json, model.safetensors), checkpoints,
    metrics.jsonl and curves.png. The same command again resumes, bit for bit on a CPU.

    \b
    embedpipe train-prior emb prior
    embedpipe train-prior emb prior --preset base --set optim.lr=1e-4 --set train.steps=20000
    """
    from dalle2_core.presets import prior_preset
    from dalle2_core.training import StepReport

    from . import display, wiring
    from .config import resolve

    short = [f"train.{name}={value}" for name, value in (("steps", steps), ("seed", seed)) if value is not None]
    recipe = resolve(prior_preset(preset), config_file, [*settings, *short])
    if dry_run:
        display.print_json(recipe)
        return
    with display.progress("train-prior", "samples", "steps") as view:

        def on_step(report: StepReport) -> None:
            view.at_step(report.step, report.steps, recipe.train.batch_size, report.loss)

        split = wiring.SplitConfig(split_column, valid_share)
        outcome = wiring.train_prior(emb, out, recipe, split, device or wiring.default_device(), on_step)
    if as_json:
        display.print_json(outcome)
        return
    click.echo(
        f"{out}: prior of {outcome.parameters:,} parameters, {outcome.steps:,} steps on {outcome.train_rows:,} rows; "
        f"best on {outcome.valid_rows:,} held-out rows at step {outcome.best_step:,}"
    )
    display.table(["held out", "value"], list(outcome.metrics.items()))
