"""A picture of a run: one panel for each metric, training and validation together."""

from __future__ import annotations

import math
from pathlib import Path

from dalle2_core.files import disk_errors, replaced
from dalle2_core.training.metrics_log import read_metrics

NOT_CURVES = {"kind", "step", "samples", "seconds"}
COLOURS = {"train": "tab:blue", "valid": "tab:orange", "online": "tab:green"}


def plot_curves(metrics: Path, picture: Path) -> None:
    """Draw the metrics of a JSONL file over the steps, into a PNG that appears whole."""
    # Backends by object, not by pyplot: no global state, no display, safe in a thread.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines: dict[str, dict[str, tuple[list[int], list[float]]]] = {}
    for record in read_metrics(metrics) if metrics.exists() else []:
        for name, value in record.items():
            if name not in NOT_CURVES and value is not None:
                steps, values = lines.setdefault(name, {}).setdefault(record["kind"], ([], []))
                steps.append(record["step"])
                values.append(value)

    columns = min(3, max(1, len(lines)))
    rows = max(1, math.ceil(len(lines) / columns))
    width, height = 4.2 * columns, 3.0 * rows
    figure = Figure(figsize=(width, height))
    # Margins in inches: a layout that measures all texts first takes longer than the drawing.
    figure.subplots_adjust(0.6 / width, 0.5 / height, 1 - 0.15 / width, 1 - 0.35 / height, wspace=0.25, hspace=0.4)
    FigureCanvasAgg(figure)
    for position, (name, kinds) in enumerate(lines.items(), start=1):
        axes = figure.add_subplot(rows, columns, position)
        for kind, (steps, values) in kinds.items():
            marker = "o" if kind != "train" or len(steps) == 1 else None
            axes.plot(steps, values, label=kind, color=COLOURS.get(kind), marker=marker, markersize=3)
        axes.set_title(name)
        axes.set_xlabel("optimizer steps")
        axes.grid(alpha=0.3)
        axes.legend()
    with disk_errors(picture), replaced(picture) as temporary:
        figure.savefig(temporary, dpi=110)
