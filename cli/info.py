"""`embedpipe info`"""

from __future__ import annotations

import click

from .options import debug_option, json_option


@click.command()
@click.argument("path")
@click.option(
    "--hosts", type=click.IntRange(0), default=10, show_default=True, help="Of image shards: worst hosts to name."
)
@json_option
@debug_option
def command(path: str, hosts: int, as_json: bool) -> None:
    """Say what is in an output: counts, rejects by reason, the encoder, similarities.

    PATH is a folder written by `fetch` or `encode`, finished or still growing.

    \b
    embedpipe info emb
    """
    from embedpipe.fetch import ERROR_CLASSES
    from embedpipe.info import describe
    from embedpipe.types import REJECT_CLASSES
    from embedpipe.verify import KINDS

    from . import display

    found = describe(path, hosts)
    if as_json:
        display.print_json(found)
        return
    rows: list[tuple[str, str]] = [
        ("what", KINDS.get(found.format, found.format)),
        ("shards", f"{found.shards:,} of {found.planned:,}" + ", unfinished" * (found.shards < found.planned)),
        ("rows", f"{found.rows:,}"),
        ("rejected", f"{found.rejected:,}" + f", after {found.retried:,} were retried" * bool(found.retried)),
        ("size", f"{found.bytes / 1e6:,.1f} MB"),
    ]
    if found.encoder is not None:
        encoder = found.encoder
        rows += [
            ("model", f"{encoder['model']} {encoder['pretrained']}".strip()),
            ("embeddings", f"{encoder['dim']} × {encoder['dtype']}, normalised, {encoder['precision']}"),
            ("fingerprint", found.fingerprint[:16]),
        ]
        if predicted := encoder.get("predicted_by"):
            rows.append(("image embeddings", f"predicted by a {predicted['kind']} {predicted['sha256'][:16]}"))
    if found.tokens is not None:
        each = found.tokens / max(1, found.rows)
        rows.append(("text tokens", f"{found.tokens:,} × {found.token_width}, {each:.1f} for each row"))
    if found.similarity is not None:
        spread = found.similarity
        rows.append(
            ("similarity", f"mean {spread.mean:.3f}, 5% {spread.p05:.3f}, 50% {spread.p50:.3f}, 95% {spread.p95:.3f}")
        )
    if found.columns:
        rows.append(("columns", ", ".join(found.columns)))
    display.table([path, ""], rows)
    if found.similarity is not None:
        spread = found.similarity
        click.echo("similarity of image and text, and how many rows have it:")
        for line in display.histogram(spread.least, spread.most, spread.bins):
            click.echo(line)
        click.echo()
    if found.rejects:
        meanings = {**ERROR_CLASSES, **REJECT_CLASSES}
        counts = sorted(found.rejects.items(), key=lambda item: -item[1])
        display.table(["rejected because", "samples", "which means"], [(n, c, meanings.get(n, "")) for n, c in counts])
    display.worst_hosts(found.hosts)
