"""`embedpipe train-prior`"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

import embedpipe
from dalle2_core.priors import PRIORS
from embedpipe.errors import OptionError, did_you_mean
from embedpipe.plural import plural

from ..options import (
    debug_option,
    device_option,
    json_option,
    old_dry_run_option,
    parallel_option,
    refuse_missing,
    row_options,
    split_options,
    training_options,
    trust_model_option,
)

if TYPE_CHECKING:
    from embedpipe.unclip.train.prior import PriorOutcome

ALL = "all"


@click.command()
@click.argument("emb")
@click.argument("out")
@click.option(
    "--prior",
    help=f"{', '.join(PRIORS)} (default: diffusion). `all` trains each into OUT/NAME and compares them.",
)
@click.option(
    "--preset", default="tiny", show_default=True, help="tiny, base, laion-l14, paper, kandinsky-2-2 or karlo."
)
@click.option(
    "--from",
    "start",
    metavar="PRIOR",
    help="Begin with the weights of a trained prior: a run's folder, or diffusers:FOLDER (Karlo, Kandinsky 2).",
)
@click.option(
    "--lora",
    metavar="RANK",
    type=click.IntRange(1),
    help="With --from: train low-rank adapters of that rank in place of the weights. `convert` merges them.",
)
@training_options
@split_options
@row_options
@parallel_option
@device_option(several=True)
@old_dry_run_option
@trust_model_option
@json_option
@debug_option
def command(emb: str, out: str, dry_run: bool, as_json: bool, **options: Any) -> None:
    """Train a prior (text embedding → image embedding) from embeddings alone.

    No CLIP is loaded and no image is read. OUT gets the trained prior (config.json, model.safetensors), checkpoints,
    metrics.jsonl and curves.png. The same command again resumes, bit for bit on a CPU. torchrun starts it on several
    devices. `--prior all` trains every kind of prior and compares them.

    \b
    embedpipe train-prior emb prior
    embedpipe train-prior emb prior --preset base --set optim.lr=1e-4 --set train.steps=20000
    embedpipe train-prior emb priors --prior all
    embedpipe train-prior emb prior --from diffusers:kandinsky-2-2-prior --set optim.lr=1e-5
    embedpipe train-prior emb prior --from kandinsky-prior --lora 8 --set optim.lr=1e-4
    embedpipe train-prior s3://bucket/emb s3://bucket/prior
    torchrun --nproc-per-node 8 -m embedpipe_cli train-prior emb prior --preset laion-l14
    """
    refuse_missing(emb)

    from dalle2_core.keywords import refuse_unknown
    from dalle2_core.presets import PRIOR_PRESETS
    from embedpipe.folder_kind import require_embeddings

    refuse_unknown(PRIOR_PRESETS, options["preset"], "prior preset")
    if options["prior"] not in (None, ALL, *PRIORS):
        raise OptionError(f"no prior {options['prior']!r}", did_you_mean(options["prior"], [*PRIORS, ALL]))
    require_embeddings(emb)

    from .. import display
    from ..training_display import plan_of, show_comparison, training_view

    compares = options["prior"] == ALL
    if compares:
        if options.pop("start") is not None:
            raise click.UsageError("--from is for one prior, and `--prior all` trains each kind anew")
        del options["prior"]
    display.note_old_data(emb)
    if dry_run and compares:
        plans = embedpipe.plan_train_all_priors(emb, out, **options)
        display.print_json({name: plan_of(plan) for name, plan in plans.items()})
    elif dry_run:
        display.print_json(plan_of(embedpipe.plan_train_prior(emb, out, **options)))
    elif compares:
        found = embedpipe.train_all_priors(emb, out, **options, view=training_view("train-prior"))
        if found is not None:
            show_comparison(found, "valid", as_json)
    else:
        outcome = embedpipe.train_prior(emb, out, **options, view=training_view("train-prior"))
        display.show(outcome, as_json, _print)


def _print(outcome: PriorOutcome) -> None:
    from .. import display

    if outcome.dropped:
        click.echo(f"warning: {outcome.dropped:,} rows that are not finite were left out", err=True)
    of = f"{outcome.prior} prior of {outcome.parameters:,}"
    what = f"{outcome.out}: {of} parameters"
    if outcome.adapters:
        what = f"{outcome.out}: adapters of {outcome.adapters:,} parameters for an {of}"
    if outcome.steps:
        click.echo(
            f"{what}, {plural(outcome.steps, 'step')} on {plural(outcome.train_rows, 'row')}; "
            f"best on {outcome.valid_rows:,} held-out rows at step {outcome.best_step:,}"
        )
    else:
        click.echo(f"{what}, fitted to {plural(outcome.train_rows, 'row')}; {outcome.valid_rows:,} are held out")
    display.print_table(["held out", "value"], list(outcome.metrics.items()))
