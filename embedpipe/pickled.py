"""Pickled weights that torch refuses: what to say instead of its advice, which is to run whatever the file says."""

from __future__ import annotations

import pickle
import re

REMEDY = (
    "If you trust the file, save its weights alone where they were made: torch.save(model.state_dict(), …), or as "
    ".safetensors"
)
_GLOBAL = re.compile(r"(?:GLOBAL|Unsupported class|attempted to call function|instantiate) `?([\w.]+)")


def pickle_refusal(problem: BaseException) -> str | None:
    """What a file of weights holds besides weights, if that is why it was not loaded; None for another problem."""
    text = str(problem)
    if "weights_only" not in text and not isinstance(problem, pickle.UnpicklingError):
        return None
    if "TorchScript" in text:
        return "is a TorchScript program, which is code; nothing of it was loaded"
    found = sorted(set(_GLOBAL.findall(text)))
    if not found:
        return "is damaged, or a pickle of something else than weights; nothing of it was loaded"
    return f"is a pickle that holds more than weights ({', '.join(found)}) and could run code; nothing of it was loaded"
