"""Model name checks that do not import torch: does the name, or the model folder, exist?"""

from __future__ import annotations

import difflib
from pathlib import Path

from ..errors import ModelError, did_you_mean
from . import open_clip_tables
from .foreign_config import CONFIG_FILE


def model_folder(model: str) -> Path | None:
    """The folder of a model given as a path or as `local-dir:PATH`; None for a name.

    Raises ModelError for a folder that does not exist or contains no model.
    """
    folder = Path(model.removeprefix("local-dir:"))
    if model.startswith("hf-hub:"):
        return None
    if model.startswith("local-dir:") or (is_there(str(folder)) and folder.is_dir()):
        if not (folder / CONFIG_FILE).is_file():
            raise ModelError(f"{folder}: no {CONFIG_FILE} in it", "Give a folder written by `embedpipe train-clip`")
        return folder
    if folder.is_absolute():
        raise ModelError(f"{model}: no such folder", "If the model has moved, give its new folder with `model`")
    return None


def is_there(path: str) -> bool:
    """Whether a file or folder exists; a name that can be none, such as one too long, does not."""
    try:
        return Path(path).exists()
    except OSError:
        return False


def unknown_model(model: str) -> ModelError:
    """A name that is none of open_clip's: names the near ones, folders of models beside it first."""
    given = Path(model)
    try:
        beside = {str(given.parent / it.name) for it in given.parent.iterdir() if (it / CONFIG_FILE).is_file()}
    except OSError:
        beside = set()
    near = difflib.get_close_matches(model, beside, n=1)
    if near:
        return ModelError(f"no model {model!r}", f"Did you mean the folder {near[0]}?")
    return ModelError(f"no model {model!r}", did_you_mean(model, open_clip_tables.model_configs()))


def refuse_unknown_model(model: str) -> None:
    """Raise ModelError for a folder without a model, or a name without an open_clip configuration file."""
    if model_folder(model) is not None or model.startswith("hf-hub:"):
        return
    if open_clip_tables.known_name(model) is None:
        raise unknown_model(model)
