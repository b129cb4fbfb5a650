"""How the commands that train show what they do."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import click

from embedpipe.unclip.train.view import TrainingView

from . import display

if TYPE_CHECKING:
    from dalle2_core.training import Comparison, StepReport, TrainConfig
    from embedpipe.unclip.train.plan import TrainingPlan


def training_view(command: str) -> TrainingView:
    """The displays of a command on stderr."""

    @contextlib.contextmanager
    def steps(what: str, config: TrainConfig) -> Iterator[Callable[[StepReport], None] | None]:
        title = f"{command} {what}".rstrip()
        begun: int | None = None
        with display.progress(title, "samples", "steps") as view:

            def on_step(report: StepReport) -> None:
                nonlocal begun
                if begun is None:
                    begun = report.step - 1
                    if begun:
                        view.line(f"{title}: goes on from step {begun:,} of {report.steps:,}")
                view.at_step(report.step, report.steps, config.batch_size, report.loss)

            yield on_step
            if begun is None:
                view.line(f"{title}: all {config.steps:,} steps were done before; nothing is left to train")

    return TrainingView(display.progress, steps)


def plan_of(plan: TrainingPlan) -> dict[str, Any]:
    """What `--dry-run` prints: the plan, and the resolved recipe as it is."""
    shown = display.plain(plan)
    del shown["stages"]
    return {"plan": shown, **shown.pop("recipe")}


def show_comparison(found: Comparison, split_name: str, as_json: bool) -> None:
    """Print a comparison as a table and a sentence, or as JSON."""
    if as_json:
        told = {"rows": found.table(), "winners": dict(found.winners), "sentence": found.sentence()}
        display.print_json({**told, "notes": found.notes})
        return
    for note in found.notes:
        click.echo(note)
    count = next(iter(found.scores.values())).n
    deciding = list(next(iter(found.errors.values())))
    rows = [(name, *(_with_error(found, name, metric) for metric in deciding)) for name in found.scores]
    display.print_table(["", *deciding], rows, title=f"{count} held-out rows ({split_name}), ± standard error")
    others = ("cosine_text", "cosine_unrelated", "norm", "spread")
    display.print_table(
        ["", *others], [(name, *(getattr(score, it) for it in others)) for name, score in found.scores.items()]
    )
    click.echo(found.sentence())
    click.echo("a tie: their rows differ by less than 1.96 standard errors of the mean difference")
    images = next(iter(found.scores.values()))
    click.echo(f"spread: mean cosine between predictions for different rows; true images: {images.spread_images:.4f}")


def _with_error(found: Comparison, name: str, metric: str) -> str:
    """A metric and its standard error."""
    return f"{getattr(found.scores[name], metric):.3f} ± {found.errors[name][metric]:.3f}"
