"""open_clip's tables of model configurations and pretrained tags, read without importing torch.

The configurations are JSON files. The table of tags is a Python file of plain assignments mixed with download
functions; only the assignments are executed. If open_clip is already imported, or stores its table in another form, its
own modules are used.
"""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.metadata
import importlib.util
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ModelError

Tables = Mapping[str, Mapping[str, Any]]

_CONFIGS = "open_clip.factory", "_MODEL_CONFIGS"
_TAGS = "open_clip.pretrained", "_PRETRAINED"
_KNOWN_TO_WORK = "3.3.*"

QUICK_GELU_SUFFIX = "-quickgelu"
# Values that open_clip's image transform accepts.
INTERPOLATIONS = ("bicubic", "bilinear", "random")
RESIZE_MODES = ("shortest", "longest", "squash")


def model_configs() -> Tables:
    """Model name → its configuration (embed_dim, vision_cfg, text_cfg …), in open_clip's order."""
    return _asked(*_CONFIGS) if _CONFIGS[0] in sys.modules else _config_files()


def pretrained_tags() -> Tables:
    """Model name → tag → its entry in open_clip (url, hf_hub, mean, std …, and quick_gelu if true)."""
    return _asked(*_TAGS) if _TAGS[0] in sys.modules else _table_of_tags()


def _asked(module: str, table: str) -> Tables:
    """A table from open_clip's own module. Raises ModelError if this open_clip lacks it."""
    try:
        found: Tables = getattr(importlib.import_module(module), table)
    except (ImportError, AttributeError, ValueError) as problem:
        try:
            version = importlib.metadata.version("open_clip_torch")
        except importlib.metadata.PackageNotFoundError:
            version = "(not installed)"
        raise ModelError(
            f"open_clip_torch {version}: its tables of models cannot be read: {problem}",
            f'Install a version that is known to work: pip install "open_clip_torch=={_KNOWN_TO_WORK}"',
        ) from problem
    return found


def known_name(model: str) -> str | None:
    """`model` as spelled in open_clip's tables (`ViT-B/32` is `ViT-B-32` there), None for an unknown name."""
    return next((name for name in (model, model.replace("/", "-")) if name in model_configs()), None)


def tag_of(model: str, tag: str) -> Mapping[str, Any] | None:
    """The table's entry for a tag of a model, in any spelling that open_clip accepts; None for an unknown tag."""
    found: Mapping[str, Any] | None = pretrained_tags().get(model, {}).get(tag.lower().replace("-", "_"))
    return found


def sibling_model(model: str) -> str | None:
    """The same model with the other activation: `ViT-B-32-quickgelu` for `ViT-B-32` and vice versa, if any."""
    other = (
        model.removesuffix(QUICK_GELU_SUFFIX) if model.endswith(QUICK_GELU_SUFFIX) else f"{model}{QUICK_GELU_SUFFIX}"
    )
    return other if other in model_configs() else None


@functools.cache
def _config_files() -> Tables:
    folder = _folder()
    found = {}
    try:
        for path in (folder / "model_configs").glob("*.json") if folder is not None else ():
            content = json.loads(path.read_text(encoding="utf-8"))
            if {"embed_dim", "vision_cfg", "text_cfg"} <= content.keys():
                found[path.stem] = content
    except (OSError, ValueError, AttributeError):  # not a configuration file
        found = {}
    if not found:  # this open_clip stores them elsewhere
        return _asked(*_CONFIGS)
    return dict(sorted(found.items(), key=lambda entry: _natural(entry[0])))


def _natural(name: str) -> list[int | str]:
    """Sort key of open_clip: numbers by their value."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name.lower())]


@functools.cache
def _table_of_tags() -> Tables:
    folder = _folder()
    found = _run_assignments(folder) if folder is not None else None
    return _asked(*_TAGS) if found is None else found


def _folder() -> Path | None:
    """open_clip's folder; None if it is not a plain folder."""
    spec = importlib.util.find_spec("open_clip")
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    return Path(places[0]) if places else None


def _run_assignments(folder: Path) -> Tables | None:
    """`_PRETRAINED` from open_clip's pretrained.py, executed without imports of other packages; None if that fails."""
    values: dict[str, Any] = {"__name__": "open_clip_tables"}
    try:
        for name in ("constants.py", "pretrained.py"):
            tree = ast.parse((folder / name).read_text(encoding="utf-8"))
            tree.body = [node for node in tree.body if _makes_tables(node)]
            exec(compile(tree, str(folder / name), "exec"), values)
    except Exception:  # foreign code, possibly of a version never tested
        return None
    found = values.get("_PRETRAINED")
    return found if isinstance(found, dict) else None


def _makes_tables(node: ast.stmt) -> bool:
    """Whether the tables need a statement: not `try: import safetensors.torch`, `from tqdm import tqdm` …"""
    if isinstance(node, ast.Try):
        return False
    if isinstance(node, ast.ImportFrom):
        return node.level == 0 and node.module in sys.stdlib_module_names
    if isinstance(node, ast.Import):
        return all(alias.name.partition(".")[0] in sys.stdlib_module_names for alias in node.names)
    return True
