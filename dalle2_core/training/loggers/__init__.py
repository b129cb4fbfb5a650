"""Where metrics go besides metrics.jsonl. LOGGERS maps a name to its logger; each owns its heavy import."""

from __future__ import annotations

from dalle2_core.training.loggers.base import Logger
from dalle2_core.training.loggers.tensorboard import TensorBoardLogger
from dalle2_core.training.loggers.wandb import WandbLogger

LOGGERS: dict[str, type[Logger]] = {"tensorboard": TensorBoardLogger, "wandb": WandbLogger}

__all__ = ["LOGGERS", "Logger"]
