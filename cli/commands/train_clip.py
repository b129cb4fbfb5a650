"""`embedpipe train-clip`"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

import embedpipe

from ..options import (
    debug_option,
    device_option,
    json_option,
    old_dry_run_option,
    picture_options,
    refuse_missing,
    split_options,
    training_options,
)

if TYPE_CHECKING:
    from embedpipe.unclip.train.clip import ClipOutcome


@click.command()
@click.argument("data")
@click.argument("out")
@click.option(
    "--preset",
    default="lite0",
    show_default=True,
    help="lite0: a text tower on a locked, pretrained image trunk; vit-tiny: both towers from nothing.",
)
@training_options
@split_options
@click.option(
    "--caption-key", default="caption", show_default=True, help="The .json field with the caption if no .txt is there."
)
@picture_options
@device_option()
@old_dry_run_option
@json_option
@debug_option
def command(data: str, out: str, dry_run: bool, as_json: bool, **options: Any) -> None:
    """Train a small CLIP on image shards or a folder of images with captions, through open_clip.

    OUT gets a model that open_clip loads as `local-dir:OUT` and `embedpipe encode --model OUT` takes, checkpoints,
    metrics.jsonl, curves.png, and the decoded pictures (cache/, which may be deleted afterwards). The same command
    again resumes, bit for bit on a CPU.

    \b
    embedpipe train-clip shards clip --split-column split
    embedpipe encode shards emb --model clip
    """
    refuse_missing(data)

    from dalle2_core.keywords import refuse_unknown
    from dalle2_core.presets import CLIP_PRESETS
    from embedpipe.folder_kind import require_pictures

    refuse_unknown(CLIP_PRESETS, options["preset"], "clip preset")
    require_pictures(data)

    from .. import display
    from ..training_display import plan_of, training_view

    view = training_view("train-clip")
    if dry_run:
        display.print_json(plan_of(embedpipe.plan_train_clip(data, out, **options, view=view)))
    else:
        display.show(embedpipe.train_clip(data, out, **options, view=view), as_json, _print)


def _print(outcome: ClipOutcome) -> None:
    from embedpipe.progress import CutCaptions

    from .. import display

    if outcome.rejects:
        display.print_table(["left out because", "samples"], sorted(outcome.rejects.items(), key=lambda item: -item[1]))
    if outcome.captions_cut:
        cut = CutCaptions(captions=outcome.captions_cut, tokens=outcome.tokens_cut)
        click.echo(
            f"warning: {cut.said(outcome.context_length)}; see --set clip.model.text_cfg.context_length=77", err=True
        )
    click.echo(
        f"{outcome.out}: {outcome.trained_parameters:,} of {outcome.parameters:,} parameters trained, "
        f"{outcome.steps:,} steps on {outcome.train_rows:,} pairs; the weights of step {outcome.best_step:,} are kept"
    )
    columns = ["held out", "pairs", "query", "recall@1", "recall@5", "recall@10", "chance@10"]
    rows = [
        (name, scores.n, side, *recalls.values(), scores.chance(10))
        for name, scores in outcome.scores.items()
        for side, recalls in (("text → image", scores.text_to_image), ("image → text", scores.image_to_text))
    ]
    display.print_table(columns, rows)
