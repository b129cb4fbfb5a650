"""Reading a pickled checkpoint of unknown origin without running anything that it says.

torch's restricted unpickler builds tensors and plain containers. What DALLE2-pytorch's trainer stores besides is named
here; everything else is refused.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from dalle2_core.errors import CheckpointError


class Inert:
    """Stands for an object whose class is never loaded; keeps what it was made from."""

    made_from: tuple[Any, ...]
    state: Any

    def __new__(cls, *args: Any, **keywords: Any) -> Inert:
        """Takes anything. The unpickler does not call __init__."""
        self = super().__new__(cls)
        self.made_from = args
        self.state = None
        return self

    def __init__(self, *args: Any, **keywords: Any) -> None: ...

    def __setstate__(self, state: Any) -> None:
        self.state = state


# Written by the trainers: the version, the warm-up and, inside of it, the optimizer. None of them is needed as such.
_INERT = (
    "packaging.version.Version",
    "packaging.version._Version",
    "packaging._structures.InfinityType",
    "packaging._structures.NegativeInfinityType",
    "pytorch_warmup.base.LinearWarmup",
    "torch.optim.adam.Adam",
    "torch.optim.adamw.AdamW",
    "accelerate.optimizer.AcceleratedOptimizer",
    "accelerate.scheduler.AcceleratedScheduler",
)


def _plain_dict(*factory: Any) -> dict[Any, Any]:
    """In place of `defaultdict`, which torch's unpickler does not fill."""
    return {}


_PLAIN = ((dict, "builtins.dict"), (_plain_dict, "collections.defaultdict"))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The mapping in a file of `torch.save`, its tensors on the CPU.

    Raises CheckpointError if there is no such file, it is no mapping, or it asks for anything that is not on the list.
    """
    allowed: list[Any] = [*_PLAIN, *((Inert, name) for name in _INERT)]
    try:
        with torch.serialization.safe_globals(allowed):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except pickle.UnpicklingError as problem:
        raise CheckpointError(f"{path}: {_asked_for(path, problem)}") from problem
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError) as problem:
        raise CheckpointError(
            f"{path}: not a whole file of torch.save ({' '.join(str(problem).split())[:200]})"
        ) from problem
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}; a checkpoint is a dict of names and tensors")
    return content


def _asked_for(path: Path, problem: Exception) -> str:
    try:
        unknown = sorted(set(torch.serialization.get_unsafe_globals_in_checkpoint(str(path))) - _known())
    except Exception:  # an older format, or a file made to confuse: torch's own words must do
        unknown = []
    if unknown:
        return (
            f"would load {', '.join(unknown)}, which is on no list of what a checkpoint needs, so nothing was loaded. "
            "If you trust the file, save only its weights again: torch.save(model.state_dict(), …)"
        )
    why = str(problem).rpartition("WeightsUnpickler error:")[2]  # without torch's advice to run what the file says
    return f"is not loaded, because it is no plain checkpoint ({' '.join(why.split('weights_only')[0].split())[:200]})"


def _known() -> set[str]:
    return {*_INERT, *(name for _, name in _PLAIN)}


def pickled_release(value: Any) -> tuple[int, ...] | None:
    """The numbers of a version such as (1, 1, 0): from a string, or a `packaging` version of any age; else None."""
    if isinstance(value, str):
        numbers = value.split("+")[0].split(".")
        return tuple(int(it) for it in numbers) if all(it.isdigit() for it in numbers) else None
    if isinstance(value, Inert):
        for part in (value.state, *value.made_from):
            found = _release_in(part)
            if found is not None:
                return found
    return None


def _release_in(value: Any) -> tuple[int, ...] | None:
    """A tuple of two to four whole numbers inside: `pickled_release` in every layout that packaging has had."""
    if isinstance(value, Inert):
        return pickled_release(value)
    if isinstance(value, dict):
        inner: tuple[Any, ...] = tuple(value.values())
    elif isinstance(value, (tuple, list)):
        if 2 <= len(value) <= 4 and all(type(it) is int for it in value):
            return tuple(value)
        inner = tuple(value)
    else:
        return None
    return next((found for found in map(_release_in, inner) if found is not None), None)
