"""What a training reports while it prepares and steps; whoever calls it decides how to show that."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from embedpipe.progress import Listener, silent

if TYPE_CHECKING:
    from dalle2_core.training import StepReport, TrainConfig


@contextlib.contextmanager
def _unseen(what: str) -> Iterator[Listener]:
    yield silent


@contextlib.contextmanager
def _without_steps(what: str, config: TrainConfig) -> Iterator[Callable[[StepReport], None] | None]:
    yield None


@dataclass(frozen=True, slots=True)
class TrainingView:
    """Opens the displays of a training; without arguments it shows nothing.

    preparing: of what comes before the first step, by its name. steps: of the steps of what is trained, by its name.
    """

    preparing: Callable[[str], AbstractContextManager[Listener]] = _unseen
    steps: Callable[[str, TrainConfig], AbstractContextManager[Callable[[StepReport], None] | None]] = _without_steps
