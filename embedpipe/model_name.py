"""What can be said of a model by its name alone, without loading torch: whether its folder, or its name, is there."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from .errors import ModelError, did_you_mean

_CONFIG_FILE = "open_clip_config.json"


def model_folder(model: str) -> Path | None:
    """The folder that a model is, as a path or as `local-dir:PATH`; None for a name.

    Raises ModelError for a folder that is not there, or holds no model.
    """
    folder = Path(model.removeprefix("local-dir:"))
    if model.startswith("local-dir:") or (folder.is_dir() and not model.startswith("hf-hub:")):
        if not (folder / _CONFIG_FILE).is_file():
            raise ModelError(f"{folder}: no {_CONFIG_FILE} in it", "Give a folder written by `embedpipe train-clip`")
        return folder
    if folder.is_absolute():
        raise ModelError(f"{model}: no such folder", "If the model has moved, say where it is now with --model")
    return None


def refuse_unknown(model: str) -> None:
    """Raise ModelError for a folder that is no model, or a name of none of open_clip's configuration files."""
    if model_folder(model) is not None or model.startswith("hf-hub:"):
        return
    names = _configured()
    if names and not {model, model.replace("/", "-")} & names:
        raise ModelError(f"no model {model!r}", did_you_mean(model, names))


def _configured() -> set[str]:
    """The names of open_clip's configuration files, found without importing it; none where it keeps them elsewhere."""
    found = importlib.util.find_spec("open_clip")
    places = found.submodule_search_locations if found is not None else None
    return {path.stem for place in places or () for path in Path(place, "model_configs").glob("*.json")}
