"""`embedpipe info`"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

import embedpipe
from embedpipe.plural import plural

from ..fields import with_options
from ..options import CommandWithImages, debug_option, images_option, json_option

if TYPE_CHECKING:
    from embedpipe.info import OutputInfo
    from embedpipe.info.folders import FolderInfo, RunInfo, SelectionInfo
    from embedpipe.load.images.source import Images


@click.command(cls=CommandWithImages)
@click.argument("path")
@click.option(
    "--hosts", type=click.IntRange(0), default=10, show_default=True, help="Of image shards: worst hosts to name."
)
@click.option(
    "--html",
    type=click.Path(dir_okay=False),
    help="Write a page with pictures, for a browser, to this file.",
)
@click.option(
    "--examples",
    "--samples",
    "samples",
    type=click.IntRange(0),
    default=12,
    show_default=True,
    help="Images of each kind on the page.",
)
@images_option(", for the pictures on the page")
@json_option
@debug_option
def command(path: str, hosts: int, html: str | None, samples: int, images: Images, as_json: bool) -> None:
    """Say what is in an output: counts, rejects by reason, the encoder, similarities and norms.

    PATH is a folder written by `fetch`, `encode`, `merge` or `sample-prior`, finished or still growing, or embeddings
    of clip-retrieval, embedding-reader or DataComp. For a training run: what was trained on what, how far, with which
    losses and checkpoints; for an output of `dedup` or `filter`: which rows of which data set were kept.

    \b
    embedpipe info emb
    embedpipe info emb --html emb.html
    embedpipe info prior
    """
    from .. import display
    from ..arrow import spare_pandas

    spare_pandas()

    with display.progress("info", "rows") as view:
        found = embedpipe.info(path, hosts, html, samples, images, view)

    # Not needed to say that there is nothing.
    from embedpipe.clip_model.encoder_card import BEFORE_ACTIVATION, card_from, in_words
    from embedpipe.fetch import ERROR_CLASSES
    from embedpipe.info import OutputInfo
    from embedpipe.manifest import IMAGE_SHARDS
    from embedpipe.types import REJECT_CLASSES
    from embedpipe.verify import KINDS

    if not isinstance(found, OutputInfo):
        if as_json:
            display.print_json(found)
        else:
            _print_folder(found)
        return
    if html is not None:
        click.echo(f"written to {html}", err=True)
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
        norms = "normalised" if encoder["normalised"] else "norms as they were written"
        rows += [
            ("model", f"{encoder['model']} {encoder['pretrained']}".strip()),
            ("embeddings", f"{encoder['dim']} × {encoder['dtype']}, {norms}, {encoder['precision']} precision"),
            ("fingerprint", found.fingerprint[:16]),
        ]
        rows += in_words(card_from(encoder))
        if found.dated:
            rows.append(("note", BEFORE_ACTIVATION))
        if predicted := encoder.get("predicted_by"):
            rows.append(("image embeddings", f"predicted by a {predicted['kind']} {predicted['sha256'][:16]}"))
    if found.tokens is not None:
        each = found.tokens / max(1, found.rows)
        rows.append(("text tokens", f"{found.tokens:,} × {found.token_width}, {each:.1f} for each row"))
    spreads = [("similarity", found.similarity, 3), ("caption length", found.captions, 0)]
    for name, spread, digits in spreads:
        if spread is not None:
            marks = {"mean": spread.mean, "5%": spread.p05, "50%": spread.p50, "95%": spread.p95}
            rows.append((name, ", ".join(f"{mark} {value:.{digits}f}" for mark, value in marks.items())))
    rows += _norms(found)
    if found.cut is not None:
        rows.append(("captions cut", found.cut.shares()))
    rows += _accounts(found)
    if selection := found.options.get("selection"):
        rows.append(("selected by", f"{selection['made_by']}: {selection['rows']:,} rows"))
    if found.merged:
        rows.append(("merged of", ", ".join(found.merged)))
    if found.columns:
        rows.append(("columns", ", ".join(found.columns)))
    display.print_table([path, ""], rows)
    if (alike := found.similarity) is not None:
        click.echo("similarity of image and text, and how many rows have it:")
        for line in display.text_histogram(alike.least, alike.most, alike.bins, digits=3):
            click.echo(line)
        click.echo()
    if found.rejects:
        meanings = {**ERROR_CLASSES, **REJECT_CLASSES}
        counts = sorted(found.rejects.items(), key=lambda item: -item[1])
        made_by = "fetch" if found.format == IMAGE_SHARDS else "encode"
        rejects = [(name, count, with_options(meanings.get(name, ""), made_by)) for name, count in counts]
        display.print_table(["rejected because", "samples", "which means"], rejects)
    display.print_worst_hosts(found.hosts)


def _accounts(found: OutputInfo) -> list[tuple[str, str]]:
    """What became of everything in the input."""
    rows = []
    if found.accounts is not None:
        of = f", in {found.shards - found.unaccounted:,} of {found.shards:,} shards" if found.unaccounted else ""
        rows.append((f"{found.accounts.unit}s of the input", f"{found.accounts.in_full()}{of}"))
    elif found.shards:
        rows.append(("members of the input", "not recorded"))
    if found.listing is not None:
        rows.append(("files of the input's folder", found.listing.in_full()))
    return rows


def _norms(found: OutputInfo) -> list[tuple[str, str]]:
    """What is known of norms: of the projections, and of what is stored."""
    from embedpipe.info import without_norms

    rows = []
    for side, norm in found.norms.items():
        of = "" if norm.n == found.rows else f", of {norm.n:,} of {plural(found.rows, 'row')}"
        rows.append((f"{side}_norm", f"{norm.least:.4g} to {norm.most:.4g}, median {norm.p50:.4g}{of}"))
    if (ruled_out := without_norms(found)) is not None:
        rows.append(("norms", ruled_out))
    if found.stored_norms:
        stored = (f"{side} {norm.least:.5f} to {norm.most:.5f}" for side, norm in found.stored_norms.items())
        rows.append(("stored norms", ", ".join(stored)))
    return rows


def _print_folder(found: FolderInfo) -> None:
    """A table of what is known, for each stage of a decoder."""
    from embedpipe.info.folders import DecoderInfo, RunInfo

    if isinstance(found, DecoderInfo):
        for stage in found.stages:
            _print_run(stage)
    elif isinstance(found, RunInfo):
        _print_run(found)
    else:
        _print_selection(found)


def _print_run(found: RunInfo) -> None:
    from .. import display

    rows = [("what", found.said), ("trained on", found.data or "not recorded yet")]
    if found.train_rows is not None:
        rows.append(("rows", f"{found.train_rows:,} to train, {found.valid_rows or 0:,} held out"))
    if isinstance(start := found.record.get("start"), dict):
        rows.append(("began with", str(start.get("place"))))
        if (rank := _rank(found.record)) and not found.record.get("merged"):
            rows.append(("adapters", f"of rank {rank}, read together with what it began with"))
    best = f", best at {found.best_step:,}" if found.best_step else ""
    rows.append(("steps", f"{found.steps:,}{best}"))
    rows.append(("checkpoints", ", ".join(f"{step:,}" for step in found.checkpoints) or "none"))
    for kind, numbers in found.losses.items():
        told = ", ".join(f"{name} {value:.4g}" for name, value in numbers.items() if name not in ("step", "samples"))
        rows.append((f"{kind} at step {numbers.get('step', 0):,.0f}", told))
    for change in found.record.get("history", ()):
        rows.append((f"from step {change['step']:,}", "; ".join(change["changes"])))
    display.print_table([found.path, ""], rows)


def _rank(record: dict[str, Any]) -> int:
    """Of a run's adapters; 0 without."""
    recipe = record.get("recipe")
    lora = recipe.get("lora") if isinstance(recipe, dict) else None
    return int(lora.get("rank") or 0) if isinstance(lora, dict) else 0


def _print_selection(found: SelectionInfo) -> None:
    from .. import display

    rows = [("what", found.said), ("of", found.data or "a data set that report.json does not name")]
    if found.rows is not None and found.kept is not None:
        rows.append(("kept", f"{found.kept:,} of {plural(found.rows, 'row')}: kept.parquet"))
    if found.dropped is not None:
        where = ": dropped.parquet" if found.made_by == "dedup" else ""
        rows.append(("dropped", f"{plural(found.dropped, 'row')}{where}"))
    if found.rows is None:
        rows.append(("note", "report.json is missing: the run that wrote it did not end"))
    display.print_table([found.path, ""], rows)
