"""`embedpipe sample-prior`"""

from __future__ import annotations

import click

import embedpipe
from embedpipe.plural import plural

from ..options import (
    debug_option,
    device_option,
    json_option,
    old_dry_run_option,
    precision_option,
    refuse_missing,
    refuse_other_runs,
    trust_option,
)


@click.command()
@click.argument("emb")
@click.argument("out")
@click.option("--prior", "run", required=True, help="A folder written by train-prior.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the samples.")
@click.option("--steps", type=click.IntRange(1), help="Sampling steps. Default: the prior's own.")
@click.option("--candidates", type=click.IntRange(1), help="Drawn for each text; the one nearest to it is kept.")
@click.option("--sampler", help="ddim, ddpm … Default: the prior's own.")
@click.option("--cond-scale", type=float, default=1.0, show_default=True, help="Classifier-free guidance; 1 is none.")
@click.option("--batch-size", type=click.IntRange(1), default=1024, show_default=True, help="Rows sampled at once.")
@click.option("--gpus", type=click.IntRange(0), help="Workers, one on each GPU. Default: all GPUs there are.")
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="CPU workers, where gpus is 0.")
@device_option()
@precision_option("the prior")
@trust_option("Allow a prior and embeddings of which version 0.1 wrote one")
@old_dry_run_option
@json_option
@debug_option
def command(
    emb: str,
    out: str,
    run: str,
    seed: int,
    steps: int | None,
    candidates: int | None,
    sampler: str | None,
    cond_scale: float,
    batch_size: int,
    gpus: int | None,
    workers: int,
    device: str | None,
    precision: str,
    trust_old_card: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Predict an image embedding for every text of a data set, into a data set of the same layout.

    OUT gets the text embeddings and metadata of EMB with predicted image embeddings, one shard for each of EMB. Its
    card says what predicted them, so no command takes them for embeddings of images; index, search and verify work on
    it. The same command again goes on where it stopped.

    \b
    embedpipe sample-prior emb predicted --prior prior
    embedpipe sample-prior emb predicted --prior prior --steps 32 --candidates 4 --gpus 8
    """
    refuse_missing(emb, run)
    refuse_other_runs("prior", "train-prior", run)

    from embedpipe.folder_kind import require_embeddings

    require_embeddings(emb)

    from .. import display

    sampling = embedpipe.SamplingConfig(seed, steps, candidates, sampler, cond_scale, precision)
    display.note_old_data(emb)
    if dry_run:
        display.print_json(embedpipe.plan_sampling(run, emb, out, sampling, gpus, workers, trust_old_card, device))
        return
    with display.progress("sample-prior", "rows") as view:
        report = embedpipe.sample_prior(
            run, emb, out, sampling, batch_size, gpus, workers, view, trust_old_card, device
        )
    if as_json:
        display.print_json(report)
        return
    if report.cut.captions:
        click.echo(f"note: {report.cut.said(report.context_length)} when {emb} was encoded", err=True)
    already = f" ({report.already} were there already)" if report.already else ""
    click.echo(
        f"{out}: {plural(report.rows, 'row')} in {plural(report.shards, 'shard')}{already}, "
        f"{display.seconds(report.seconds)}"
    )
