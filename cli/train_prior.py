"""`embedpipe train-prior`"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import click

from .options import config_options, debug_option, dry_run_option, json_option, parallel_option, split_options

if TYPE_CHECKING:
    from dalle2_core.presets import PriorRecipe
    from dalle2_core.training import Processes, StepReport

    from .wiring import PriorOutcome

ALL = "all"


@click.command()
@click.argument("emb")
@click.argument("out")
@click.option(
    "--prior",
    help="diffusion (the default), autoregressive, contrastive, ridge or mean; `all` trains each into OUT/NAME and "
    "compares them.",
)
@click.option("--preset", default="tiny", show_default=True, help="tiny, base, laion-l14 or paper.")
@config_options
@click.option("--steps", type=click.IntRange(1), help="Optimizer steps; short for --set train.steps=N.")
@click.option("--seed", type=click.IntRange(0), help="Short for --set train.seed=N.")
@click.option("--log", "loggers", multiple=True, metavar="NAME", help="tensorboard or wandb, besides metrics.jsonl.")
@split_options
@click.option("--normalise", is_flag=True, help="Bring rows that are not of norm 1 to it, instead of refusing them.")
@click.option("--drop-nonfinite", is_flag=True, help="Leave out rows with NaN or infinity, instead of refusing them.")
@parallel_option
@click.option("--device", help="cpu, cuda, cuda:1 … Default: the first GPU, or the CPU; under torchrun, one each.")
@dry_run_option
@json_option
@debug_option
def command(
    emb: str,
    out: str,
    prior: str | None,
    preset: str,
    config_file: str | None,
    settings: Sequence[str],
    steps: int | None,
    seed: int | None,
    loggers: Sequence[str],
    split_column: str | None,
    valid_share: float,
    normalise: bool,
    drop_nonfinite: bool,
    parallel: str | None,
    device: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Train a prior (text embedding → image embedding) from embeddings alone.

    No CLIP is loaded and no image is read. OUT gets the trained prior (config.json, model.safetensors), checkpoints,
    metrics.jsonl and curves.png. The same command again resumes, bit for bit on a CPU. torchrun starts it on several
    devices. `--prior all` trains every kind of prior and compares them.

    \b
    embedpipe train-prior emb prior
    embedpipe train-prior emb prior --preset base --set optim.lr=1e-4 --set train.steps=20000
    embedpipe train-prior emb priors --prior all
    torchrun --nproc-per-node 8 -m embedpipe_cli train-prior emb prior --preset laion-l14
    """
    from dalle2_core.presets import prior_preset
    from dalle2_core.priors import PRIORS
    from dalle2_core.training import join_processes

    from . import display, wiring
    from .config import resolve
    from .evaluate import show
    from .prior_scores import evaluate_priors
    from .row_policy import RowPolicy

    trained = {"steps": steps, "seed": seed, "parallel": parallel}
    short = [f"train.{name}={value}" for name, value in trained.items() if value is not None]
    short += [f"train.loggers={json.dumps(loggers)}"] if loggers else []
    short += [f"prior={prior}"] if prior not in (None, ALL) else []
    recipe = resolve(prior_preset(preset), config_file, [*settings, *short])
    recipes = {name: dataclasses.replace(recipe, prior=name) for name in PRIORS if prior == ALL} or {"": recipe}
    if dry_run:
        display.print_json(recipes if prior == ALL else recipe)
        return
    together = join_processes(device or wiring.default_device())
    outcomes = []
    for name, each in recipes.items():
        with _progress(name, each, together) as on_step:
            outcome = wiring.train_prior(
                emb,
                f"{out}/{name}" if prior == ALL else out,
                each,
                wiring.SplitConfig(split_column, valid_share),
                device or wiring.default_device(),
                on_step,
                RowPolicy(normalise, drop_nonfinite),
                together,
            )
        if outcome is not None:
            outcomes.append(outcome)
    if not together.is_first:
        return
    if prior == ALL:
        folders = [outcome.out for outcome in outcomes]
        show(evaluate_priors(folders, emb, "valid", device or wiring.default_device()), "valid", as_json)
    elif as_json:
        display.print_json(outcomes[0])
    else:
        _print(outcomes[0])


@contextlib.contextmanager
def _progress(name: str, recipe: PriorRecipe, together: Processes) -> Iterator[Callable[[StepReport], None] | None]:
    from . import display

    if not together.is_first:
        yield None
        return
    with display.progress(f"train-prior {name}".rstrip(), "samples", "steps") as view:
        yield lambda report: view.at_step(report.step, report.steps, recipe.train.batch_size, report.loss)


def _print(outcome: PriorOutcome) -> None:
    from . import display

    if outcome.dropped:
        click.echo(f"warning: {outcome.dropped:,} rows that are not finite were left out", err=True)
    what = f"{outcome.out}: {outcome.prior} prior of {outcome.parameters:,} parameters"
    if outcome.steps:
        click.echo(
            f"{what}, {outcome.steps:,} steps on {outcome.train_rows:,} rows; "
            f"best on {outcome.valid_rows:,} held-out rows at step {outcome.best_step:,}"
        )
    else:
        click.echo(f"{what}, fitted to {outcome.train_rows:,} rows; {outcome.valid_rows:,} are held out")
    display.table(["held out", "value"], list(outcome.metrics.items()))
