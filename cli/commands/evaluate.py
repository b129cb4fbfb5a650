"""`embedpipe evaluate`"""

from __future__ import annotations

import click

import embedpipe

from ..options import (
    debug_option,
    device_option,
    json_option,
    precision_option,
    refuse_missing,
    refuse_other_runs,
    trust_model_option,
    trust_option,
)


@click.command()
@click.argument("runs", nargs=-1)
@click.argument("emb")
@click.option("--split", "split_name", default="valid", show_default=True, help="The held-out rows to compare on.")
@click.option("--split-column", help="Column that says `train` or `valid`, for EMB without the column of the runs.")
@click.option(
    "--valid-share",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Hold out this share of EMB by a hash instead, for EMB without the column of the runs.",
)
@click.option("--common", is_flag=True, help="Compare on the rows that all runs held out, where they held out others.")
@click.option("--cond-scale", type=float, default=1.0, show_default=True, help="Classifier-free guidance; 1 is none.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the prior's samples.")
@device_option()
@precision_option("the priors")
@trust_option("Allow a run and embeddings of which version 0.1 wrote one")
@trust_model_option
@json_option
@debug_option
def command(
    runs: tuple[str, ...],
    emb: str,
    split_name: str,
    cond_scale: float,
    seed: int,
    split_column: str | None,
    valid_share: float | None,
    common: bool,
    device: str | None,
    precision: str,
    trust_old_card: bool,
    as_json: bool,
) -> None:
    """Compare priors with each other and with what needs no training, on held-out rows, and say which wins.

    RUNS are folders written by train-prior, none or any number; EMB is the data set. The baselines: the text embedding
    itself, the mean image embedding, and ridge regression, fitted on the training rows of EMB. Runs that
    were trained on some of the rows to compare on are refused.

    \b
    embedpipe evaluate prior emb
    embedpipe evaluate small large ridge emb
    """
    refuse_missing(*runs, emb)
    refuse_other_runs("prior", "train-prior", *runs)

    from embedpipe.folder_kind import require_embeddings

    require_embeddings(emb)

    from .. import display
    from ..training_display import show_comparison

    display.note_old_data(emb)
    found = embedpipe.evaluate(
        runs, emb, split_name, device, seed, cond_scale, trust_old_card, split_column, valid_share, common, precision
    )
    show_comparison(found, split_name, as_json)
