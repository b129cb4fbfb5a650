"""`embedpipe train-prior`"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import click

from dalle2_core.priors import PRIORS

from ..options import (
    debug_option,
    device_option,
    dry_run_option,
    json_option,
    parallel_option,
    refuse_missing,
    row_options,
    short_settings,
    split_options,
    training_options,
)

if TYPE_CHECKING:
    from embedpipe.unclip.train.prior import PriorJob, PriorOutcome

ALL = "all"


@click.command()
@click.argument("emb")
@click.argument("out")
@click.option(
    "--prior",
    help=f"{', '.join(PRIORS)} (default: diffusion). `all` trains each into OUT/NAME and compares them.",
)
@click.option("--preset", default="tiny", show_default=True, help="tiny, base, laion-l14 or paper.")
@training_options
@split_options
@row_options
@parallel_option
@device_option(several=True)
@dry_run_option
@json_option
@debug_option
def command(emb: str, out: str, **options: Any) -> None:
    """Train a prior (text embedding → image embedding) from embeddings alone.

    No CLIP is loaded and no image is read. OUT gets the trained prior (config.json, model.safetensors), checkpoints,
    metrics.jsonl and curves.png. The same command again resumes, bit for bit on a CPU. torchrun starts it on several
    devices. `--prior all` trains every kind of prior and compares them.

    \b
    embedpipe train-prior emb prior
    embedpipe train-prior emb prior --preset base --set optim.lr=1e-4 --set train.steps=20000
    embedpipe train-prior emb priors --prior all
    embedpipe train-prior s3://bucket/emb s3://bucket/prior
    torchrun --nproc-per-node 8 -m embedpipe_cli train-prior emb prior --preset laion-l14
    """
    refuse_missing(emb)

    from dalle2_core.training import join_processes
    from embedpipe.mirror import local_copy
    from embedpipe.unclip.evaluate.priors import evaluate_priors
    from embedpipe.unclip.train import prior as wiring
    from embedpipe.unclip.train.plan import default_device

    from .. import display
    from ..training_display import print_plan_of, show_comparison, training_view

    jobs = _jobs(emb, out, options)
    compares = options["prior"] == ALL
    if options["dry_run"]:
        display.note_old_data(emb)
        plans = {job.recipe.prior: print_plan_of(wiring.plan_prior(job), job.recipe) for job in jobs}
        display.print_json(plans if compares else plans[jobs[0].recipe.prior])
        return
    device = options["device"] or default_device()
    together = join_processes(device)
    if together.is_first:
        display.note_old_data(emb)
    view = training_view("train-prior", together)
    outcomes = [wiring.train_prior(job, device, view, together) for job in jobs]
    if not together.is_first:
        return
    if compares:
        folders = [local_copy(job.out) for job in jobs]
        show_comparison(evaluate_priors(folders, emb, "valid", device), "valid", options["as_json"])
    elif options["as_json"]:
        display.print_json(outcomes[0])
    else:
        assert outcomes[0] is not None
        _print(outcomes[0])


def _jobs(emb: str, out: str, options: dict[str, Any]) -> list[PriorJob]:
    """The prior that is asked for, or one of each kind."""
    from dalle2_core.presets.prior import prior_preset
    from embedpipe.unclip.data.row_policy import RowPolicy
    from embedpipe.unclip.train.plan import SplitConfig
    from embedpipe.unclip.train.prior import PriorJob

    from ..config import resolve_config

    prior = options["prior"]
    named = [f"prior={prior}"] if prior not in (None, ALL) else []
    recipe = resolve_config(prior_preset(options["preset"]), options["config_file"], [*short_settings(options), *named])
    job = PriorJob(
        emb,
        out,
        recipe,
        SplitConfig(options["split_column"], options["valid_share"]),
        RowPolicy(options["normalise"], options["drop_nonfinite"]),
    )
    if prior != ALL:
        return [job]
    return [
        dataclasses.replace(job, out=f"{out}/{name}", recipe=dataclasses.replace(recipe, prior=name)) for name in PRIORS
    ]


def _print(outcome: PriorOutcome) -> None:
    from .. import display

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
    display.print_table(["held out", "value"], list(outcome.metrics.items()))
