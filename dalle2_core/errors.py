"""The errors of `dalle2_core`: one line each, saying what is wrong, where, and what to do.

CoreError
├── ConfigError        a setting that cannot be
├── ShapeError         a tensor of the wrong shape, dtype or range
├── CheckpointError    weights or a checkpoint that cannot be read, written or continued
└── NonFiniteLoss      training met NaN or infinity
"""


class CoreError(Exception):
    """Base of every error a user can meet here."""


class ConfigError(CoreError, ValueError):
    """A setting that cannot be: unknown name, impossible number, two settings that exclude each other."""


class ShapeError(CoreError, ValueError):
    """A tensor of the wrong shape, dtype or range."""


class CheckpointError(CoreError):
    """Weights or a checkpoint that cannot be read, written or continued."""


class NonFiniteLoss(CoreError):
    """The loss or the gradient became NaN or infinite. `step` counts optimizer steps from 1."""

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message)
        self.step = step
