"""`embedpipe index`"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

import embedpipe
from embedpipe.plural import plural

from ..options import debug_option, executor_options, json_option, old_dry_run_option

if TYPE_CHECKING:
    from embedpipe.index import BuildPlan, IndexCard

_DONE = {"nothing": "up to date, nothing to do", "build": "built", "add": "extended"}
_GROWN = 4  # times the rows that an index was trained on: its lists then fit the data less well


@click.command()
@click.argument("emb")
@click.option(
    "--modality", type=click.Choice(["image", "text"]), default="image", show_default=True, help="Which side."
)
@click.option(
    "--type",
    "kind",
    default="auto",
    show_default=True,
    metavar="TYPE",
    help="auto chooses from rows and memory. flat (exact), hnsw, ivf, ivf-sq8, ivf-pq; or faiss' name of a type, such "
    "as IVF4096,SQ8 or HNSW16.",
)
@click.option(
    "--memory",
    default="4G",
    show_default=True,
    metavar="SIZE",
    help="What building may take, and the index when searched.",
)
@click.option(
    "--recall",
    type=float,
    help="Recall@10 to reach; how hard searches look for it is chosen by measuring. Default: as before, or 0.95.",
)
@click.option("--rebuild", is_flag=True, help="Begin anew, whatever is there.")
@click.option(
    "--workers",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Workers that encode rows into an index with lists (ivf…); flat and hnsw are made by one process.",
)
@executor_options
@old_dry_run_option
@json_option
@debug_option
def command(
    emb: str,
    modality: str,
    kind: str,
    memory: str,
    recall: float | None,
    rebuild: bool,
    workers: int,
    executor: str,
    address: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Build the search index of an embedding data set (faiss), or bring it up to date.

    It is kept in EMB/index. New shards are added without rebuilding. A killed run resumes. The recall that
    it reaches is measured and stored in its card.

    \b
    embedpipe index emb
    embedpipe index emb --memory 16G --recall 0.98
    embedpipe index emb --modality text --type flat
    embedpipe index emb --type ivf --executor ray --address head:6379 --workers 16
    embedpipe index s3://bucket/emb
    """
    from .. import display

    config = embedpipe.IndexConfig(
        modality, kind, memory, recall, rebuild, executor, workers, embedpipe.Cluster(address)
    )
    display.note_old_data(emb)
    plan = embedpipe.plan_index(emb, config)
    if dry_run:
        if as_json:
            display.print_json({"config": config, "plan": plan})
        else:
            _print_plan(emb, config.modality, memory, plan)
        return
    if not as_json and plan.action != "nothing":
        doing = "building one" if plan.action == "build" else "adding to the index"
        click.echo(f"{emb}: {plan.why}; {doing} ({plan.kind.factory})", err=True)
        if not plan.kind.lists and (workers > 1 or executor not in ("auto", "inline")):
            click.echo(f"note: {plan.kind.factory} is held in memory, so this process adds all rows to it", err=True)
    with display.progress("index", "rows") as view:
        card = embedpipe.index(emb, config, view)
    if as_json:
        display.print_json(card)
    else:
        _print_card(emb, card, _DONE[plan.action])
    _warn(emb, card)


def _print_plan(emb: str, modality: str, memory: str, plan: BuildPlan) -> None:
    from .. import display

    added = sum(shard.rows for shard in plan.add)
    rows = [
        ("action", plan.action),
        ("because", plan.why),
        (
            "index",
            f"{plan.kind.factory}, {modality}, {plural(plan.rows, 'row')}, about {plan.index_bytes / 2**20:,.0f} MiB",
        ),
        ("rows to add", f"{added:,} in {plural(len(plan.add), 'shard')}, committed about every {plan.part_rows:,}"),
        ("trained on", f"{plural(plan.kind.training_rows, 'row')}"),
        ("memory, recall", f"{memory}, {plan.recall:g}"),
        ("found rows are compared again", "yes, by their stored embeddings" if plan.kind.candidates else "no"),
    ]
    display.print_table(["", ""], rows, title=emb)


def _print_card(emb: str, card: IndexCard, done: str) -> None:
    found = ", ".join(f"{share:.3f} ({side} rows)" for side, share in card.recall.items())
    how = [f"nprobe {card.nprobe}"] * (card.nprobe is not None) + [f"ef {card.ef_search}"] * (
        card.ef_search is not None
    )
    how += [f"{card.candidates} candidates compared again"] * bool(card.candidates)
    size = f"{plural(card.rows, 'row')} × {card.dim}: {card.kind}, {card.bytes / 2**20:,.1f} MiB"
    click.echo(f"{emb}: {done}: {card.modality} index of {size}")
    click.echo(f"recall@10 {found}, of {card.recall_queries} queries each{': ' * bool(how)}{', '.join(how)}")


def _warn(emb: str, card: IndexCard) -> None:
    short = [f"{share:.3f} with {side} rows" for side, share in card.recall.items() if share < card.recall_target]
    if short:
        click.echo(
            f"warning: recall@10 is {', '.join(short)}, below {card.recall_target:g}. Try --type ivf-sq8, or flat",
            err=True,
        )
    if card.rows >= _GROWN * card.rows_then and "IVF" in card.kind:
        click.echo(
            f"note: trained when there were {plural(card.rows_then, 'row')}, now {card.rows:,}; with `embedpipe index "
            f"{emb} --rebuild` searches are faster",
            err=True,
        )
