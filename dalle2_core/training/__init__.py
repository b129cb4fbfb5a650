"""Training: one loop for every model of this package, exact to resume.

`train(model, stream, run, config, optim)` is the door; `load_trained` reads a run's best weights back.
"""

from dalle2_core.training.checkpoint import load_trained
from dalle2_core.training.distributed import Processes, join_processes
from dalle2_core.training.loop import Run, StepReport, TrainConfig, train
from dalle2_core.training.optim import OptimConfig
from dalle2_core.training.prior_metrics import Comparison, PriorScores, compare_priors, evaluate_prior, validation_loss
from dalle2_core.training.state import TrainState

__all__ = [
    "Comparison",
    "OptimConfig",
    "PriorScores",
    "Processes",
    "Run",
    "StepReport",
    "TrainConfig",
    "TrainState",
    "compare_priors",
    "evaluate_prior",
    "join_processes",
    "load_trained",
    "train",
    "validation_loss",
]
