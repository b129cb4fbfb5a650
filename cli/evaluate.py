"""`embedpipe evaluate`"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from .options import debug_option, device_option, json_option, refuse_missing, run_folders, trust_option

if TYPE_CHECKING:
    from dalle2_core.training import Comparison


@click.command()
@click.argument("runs", nargs=-1, callback=run_folders)
@click.argument("emb")
@click.option("--split", "split_name", default="valid", show_default=True, help="The held-out rows to compare on.")
@click.option("--cond-scale", type=float, default=1.0, show_default=True, help="Classifier-free guidance; 1 is none.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the prior's samples.")
@device_option()
@trust_option("Allow a run and embeddings of which version 0.1 wrote one")
@json_option
@debug_option
def command(
    runs: tuple[str, ...],
    emb: str,
    split_name: str,
    cond_scale: float,
    seed: int,
    device: str | None,
    trust_old_card: bool,
    as_json: bool,
) -> None:
    """Compare priors with each other and with what needs no training, on held-out rows, and say which wins.

    RUNS are folders written by train-prior, none or any number; EMB is the data set. The baselines: the text embedding
    itself, the mean image embedding, and ridge regression, fitted on the training rows of EMB.

    \b
    embedpipe evaluate prior emb
    embedpipe evaluate small large ridge emb
    """
    refuse_missing(*runs, emb)

    from . import display, prior_scores
    from .training_job import default_device

    display.note_old_data(emb)
    found = prior_scores.evaluate_priors(
        runs, emb, split_name, device or default_device(), seed, cond_scale, trust_old_card
    )
    show(found, split_name, as_json)


def show(found: Comparison, split_name: str, as_json: bool) -> None:
    """Print a comparison as a table and a sentence, or as JSON."""
    from . import display

    if as_json:
        display.print_json({"rows": found.table(), "winners": dict(found.winners), "sentence": found.sentence()})
        return
    rows = [
        (
            name,
            score.cosine_image,
            score.cosine_text,
            score.cosine_unrelated,
            score.recall_at_1,
            score.recall_at_5,
            score.recall_at_10,
            score.norm,
            score.spread,
        )
        for name, score in found.scores.items()
    ]
    images = next(iter(found.scores.values()))
    columns = ["", "cos image", "cos text", "cos unrelated", "recall@1", "recall@5", "recall@10", "norm", "spread"]
    display.table(columns, rows, title=f"{images.n} held-out rows ({split_name})")
    click.echo(found.sentence())
    click.echo(f"spread: mean cosine between predictions for different rows; true images: {images.spread_images:.4f}")
