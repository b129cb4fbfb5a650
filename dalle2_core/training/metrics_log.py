"""Metrics: as JSON lines, one object a line, flushed, and never a step twice after a resume; and to other loggers."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dalle2_core.files import appending, disk_errors, replaced
from dalle2_core.training.config import Run
from dalle2_core.training.loggers import LOGGERS, Logger


class MetricLog:
    """Appends to a JSONL file. Each line holds `kind` ("train", "valid", "online"), `step`, `samples` and numbers."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def cut_after(self, last_steps: Mapping[str, int]) -> None:
        """Drop what comes after each kind's last step, and a line torn by a kill: a resumed run writes it anew."""
        if not self.path.exists():
            return
        with disk_errors(self.path):
            self._cut_after(last_steps)

    def _cut_after(self, last_steps: Mapping[str, int]) -> None:
        kept = [record for record in read_metrics(self.path) if record["step"] <= last_steps.get(record["kind"], 0)]
        with replaced(self.path) as temporary, temporary.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(record) + "\n" for record in kept)

    def write(self, kind: str, step: int, samples: int, numbers: Mapping[str, float]) -> None:
        """Append one line. A number that is not finite is written as null: JSON has no NaN."""
        record: dict[str, Any] = {"kind": kind, "step": step, "samples": samples}
        record |= {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        with disk_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with appending(self.path) as file:
                file.write(json.dumps(record, allow_nan=False) + "\n")

    def close(self) -> None:
        """Nothing is held back."""


class Logs:
    """All that a run logs to; none of them in the processes that write nothing."""

    def __init__(self, loggers: Sequence[MetricLog | Logger]) -> None:
        self._loggers = loggers

    def write(self, kind: str, step: int, samples: int, numbers: Mapping[str, float]) -> None:
        """Hand numbers of one kind on to all."""
        for logger in self._loggers:
            logger.write(kind, step, samples, numbers)

    def close(self) -> None:
        """Wait until all is written."""
        for logger in self._loggers:
            logger.close()


def open_logs(run: Run, names: Sequence[str], logged_steps: Mapping[str, int]) -> Logs:
    """metrics.jsonl, and the loggers of those names.

    logged_steps: the last step of each kind before a resume; what came after it is written anew.
    """
    lines = MetricLog(run.metrics)
    lines.cut_after(logged_steps)
    return Logs([lines, *(LOGGERS[name](run.folder, max(logged_steps.values())) for name in names)])


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a metrics file, in order; a torn last line is left out."""
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            break
        if not isinstance(record, dict) or "step" not in record:
            break
        records.append(record)
    return records
