"""`embedpipe train-clip`"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ..options import (
    debug_option,
    device_option,
    dry_run_option,
    json_option,
    picture_options,
    short_settings,
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
@dry_run_option
@json_option
@debug_option
def command(data: str, out: str, **options: Any) -> None:
    """Train a small CLIP on image shards or a folder of images with captions, through open_clip.

    OUT gets a model that open_clip loads as `local-dir:OUT` and `embedpipe encode --model OUT` takes, checkpoints,
    metrics.jsonl, curves.png, and the decoded pictures (cache/, which may be deleted afterwards). The same command
    again resumes, bit for bit on a CPU.

    \b
    embedpipe train-clip shards clip --split-column split
    embedpipe encode shards emb --model clip
    """
    from dalle2_core.presets.clip import clip_preset
    from embedpipe.unclip.train import clip
    from embedpipe.unclip.train.plan import SplitConfig, default_device

    from .. import display
    from ..config import resolve_config
    from ..training_display import print_plan_of, training_view

    recipe = resolve_config(clip_preset(options["preset"]), options["config_file"], short_settings(options))
    job = clip.ClipJob(
        data,
        out,
        recipe,
        SplitConfig(options["split_column"], options["valid_share"]),
        clip.PictureSource(options["caption_key"], options["input_format"], options["max_pixels"]),
    )
    view = training_view("train-clip")
    if options["dry_run"]:
        display.print_json(print_plan_of(clip.plan_clip(job, view), recipe))
        return
    outcome = clip.train_clip(job, options["device"] or default_device(), view)
    if options["as_json"]:
        display.print_json(outcome)
    else:
        _print(outcome, recipe.clip.model["text_cfg"].get("context_length", 77))


def _print(outcome: ClipOutcome, context_length: int) -> None:
    from embedpipe.progress import CutCaptions

    from .. import display

    if outcome.rejects:
        display.print_table(["left out because", "samples"], sorted(outcome.rejects.items(), key=lambda item: -item[1]))
    if outcome.captions_cut:
        click.echo(
            f"warning: {CutCaptions(captions=outcome.captions_cut, tokens=outcome.tokens_cut).said(context_length)}; "
            "see --set clip.model.text_cfg.context_length=77",
            err=True,
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
