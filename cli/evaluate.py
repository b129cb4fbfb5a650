"""`embedpipe evaluate`"""

from __future__ import annotations

import click

from .options import debug_option, json_option


@click.command()
@click.argument("run")
@click.argument("emb")
@click.option("--split", "split_name", default="valid", show_default=True, help="The held-out rows to compare on.")
@click.option("--cond-scale", type=float, default=1.0, show_default=True, help="Classifier-free guidance; 1 is none.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the prior's samples.")
@click.option("--device", help="cpu, cuda, cuda:1 … Default: the first GPU, or the CPU.")
@json_option
@debug_option
def command(
    run: str, emb: str, split_name: str, cond_scale: float, seed: int, device: str | None, as_json: bool
) -> None:
    """Compare a trained prior with what needs no training, on held-out rows, and say which wins.

    RUN is a folder written by train-prior, EMB the data set. The baselines: the text embedding itself, the mean image
    embedding, and ridge regression (closed form).

    \b
    embedpipe evaluate prior emb
    """
    from . import display, wiring

    found = wiring.evaluate_priors(run, emb, split_name, device or wiring.default_device(), seed, cond_scale)
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
