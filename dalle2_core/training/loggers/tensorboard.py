"""TensorBoard event files, in the run's folder `tensorboard/`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from dalle2_core.training.loggers.base import Logger, required


class TensorBoardLogger(Logger):
    """A scalar for each number: loss/train, loss/valid, … over optimizer steps."""

    def __init__(self, folder: Path, last_step: int) -> None:
        required("tensorboard", "tensorboard", "tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        # purge_step: TensorBoard hides what an earlier sitting wrote at and after that step.
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=last_step + 1)  # type: ignore[no-untyped-call]

    def write(self, kind: str, step: int, samples: int, numbers: Mapping[str, float]) -> None:
        """See `Logger`."""
        for name, value in numbers.items():
            if math.isfinite(value):
                self._writer.add_scalar(f"{name}/{kind}", value, step)  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """See `Logger`."""
        self._writer.close()  # type: ignore[no-untyped-call]
