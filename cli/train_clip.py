"""`embedpipe train-clip`"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import click

from .options import config_options, debug_option, dry_run_option, json_option, split_options


@click.command()
@click.argument("data")
@click.argument("out")
@click.option(
    "--preset",
    default="lite0",
    show_default=True,
    help="lite0: a text tower on a locked, pretrained image trunk; vit-tiny: both towers from nothing.",
)
@config_options
@click.option("--steps", type=click.IntRange(1), help="Optimizer steps; short for --set train.steps=N.")
@click.option("--seed", type=click.IntRange(0), help="Short for --set train.seed=N.")
@split_options
@click.option(
    "--caption-key", default="caption", show_default=True, help="The .json field with the caption if no .txt is there."
)
@click.option(
    "--input", "input_format", default="auto", show_default=True, help="webdataset, folder, or auto to find out."
)
@click.option(
    "--max-pixels",
    type=click.IntRange(1),
    default=100_000_000,
    show_default=True,
    help="Images with more are left out, before decoding.",
)
@click.option("--device", help="cpu, cuda, cuda:1 … Default: the first GPU, or the CPU.")
@dry_run_option
@json_option
@debug_option
def command(
    data: str,
    out: str,
    preset: str,
    config_file: str | None,
    settings: Sequence[str],
    steps: int | None,
    seed: int | None,
    split_column: str | None,
    valid_share: float,
    caption_key: str,
    input_format: str,
    max_pixels: int,
    device: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Train a small CLIP on image shards or a folder of images with captions, through open_clip.

    OUT gets a model that open_clip loads as `local-dir:OUT` and `embedpipe encode --model OUT` takes, checkpoints,
    metrics.jsonl, curves.png, and the decoded pictures (cache/, which may be deleted afterwards). The same command
    again resumes, bit for bit on a CPU.

    \b
    embedpipe train-clip shards clip --split-column split
    embedpipe encode shards emb --model clip
    """
    from dalle2_core.clip_presets import clip_preset
    from dalle2_core.training import StepReport

    from . import clip_wiring, display, wiring
    from .config import resolve

    short = [f"train.{name}={value}" for name, value in (("steps", steps), ("seed", seed)) if value is not None]
    recipe = resolve(clip_preset(preset), config_file, [*settings, *short])
    if dry_run:
        display.print_json(recipe)
        return

    @contextlib.contextmanager
    def training() -> Iterator[Callable[[StepReport], None]]:
        with display.progress("train-clip", "samples", "steps") as view:
            yield lambda report: view.at_step(report.step, report.steps, recipe.train.batch_size, report.loss)

    outcome = clip_wiring.train_clip(
        data,
        out,
        recipe,
        wiring.SplitConfig(split_column, valid_share),
        clip_wiring.PictureSource(caption_key, input_format, max_pixels),
        device or wiring.default_device(),
        display.progress,
        training,
    )
    if as_json:
        display.print_json(outcome)
    else:
        _print(outcome, recipe.clip.model["text_cfg"].get("context_length", 77))


def _print(outcome: Any, context_length: int) -> None:
    from . import display

    if outcome.rejects:
        display.table(["left out because", "samples"], sorted(outcome.rejects.items(), key=lambda item: -item[1]))
    if outcome.captions_cut:
        click.echo(
            f"warning: {outcome.captions_cut:,} captions fill all {context_length} tokens and may have been cut; "
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
    display.table(columns, rows)
