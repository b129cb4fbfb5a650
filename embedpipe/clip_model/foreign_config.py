"""The configuration of a model folder or repository is data: what would run its code, or open other things, is refused.

open_clip passes parts of `open_clip_config.json` on to transformers, timm and the hub. A tokenizer's options are those
listed here, whatever the library would take besides: `trust_remote_code` runs Python of the folder, `cache_dir` writes
elsewhere, `vocab_file` reads elsewhere, `proxies` asks somebody else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..consent import HUB
from ..errors import ModelError

CONFIG_FILE = "open_clip_config.json"
_LARGEST = 4 << 20  # bytes; a vocabulary may be larger, and holds no options

# Options with which transformers or diffusers run code of a repository, or hand the user's credentials over.
_RUNS_CODE = {
    "trust_remote_code",
    "code_revision",
    "custom_pipeline",
    "custom_pipelines",
    "custom_generate",
    "use_kernels",
    "kernel_config",
    "allow_all_kernels",
    "use_auth_token",
}
# These name a class in the repository's own Python. Files of transformers have them, and nothing loads them.
_NAMES_CODE = {"auto_map"}
# Names a kernel, compiled code of the hub, if it has the form of a repository.
_KERNEL = re.compile(r"_?(attn|experts)_implementation(_internal)?")
# What open_clip's tokenizers take, and of transformers' what changes tokens alone.
_TOKENIZER_OPTIONS = {
    "add_bos_token",
    "add_eos_token",
    "add_prefix_space",
    "additional_special_tokens",
    "bos_token",
    "clean",
    "clean_up_tokenization_spaces",
    "cls_token",
    "context_length",
    "do_lower_case",
    "eos_token",
    "language",
    "legacy",
    "mask_token",
    "model_max_length",
    "pad_token",
    "padding_side",
    "reduction_mask",
    "sep_token",
    "split_special_tokens",
    "strip_sep_token",
    "truncation_side",
    "unk_token",
    "use_fast",
}


def check_folder(folder: Path) -> list[str]:
    """What a model folder would ask a hub for, as hf-hub:NAME. Raises ModelError for what is refused, with its key.

    All JSON files directly in it are read, those of transformers among them.
    """
    wanted = check_config(_read(folder / CONFIG_FILE), folder / CONFIG_FILE, folder)
    for path in sorted(folder.glob("*.json")):
        if path.name != CONFIG_FILE and path.is_file() and path.stat().st_size <= _LARGEST:
            _refuse_code(_read(path, strict=False), path, _RUNS_CODE)
    return wanted


def check_config(config: Any, file: Path | str, home: Path | str) -> list[str]:
    """What an open_clip configuration would ask a hub for, as hf-hub:NAME. Raises ModelError for what is refused.

    home: its model, a folder or hf-hub:NAME.
    """
    _refuse_code(config, file, _RUNS_CODE | _NAMES_CODE)
    model = config.get("model_cfg") if isinstance(config, Mapping) else None
    text, vision = (_part(model, name, file) for name in ("text_cfg", "vision_cfg"))
    options = _part(text, "tokenizer_kwargs", file)
    for name, value in options.items():
        if name not in _TOKENIZER_OPTIONS or isinstance(value, Mapping):
            raise _refusal(
                file, f"text_cfg.tokenizer_kwargs.{name}", "is no option of a tokenizer that a model may set"
            )
    wanted = [_text_model(text.get("hf_model_name"), file, home), _image_model(vision.get("timm_model_name"), file)]
    if str(home).startswith(HUB) and text.get("hf_tokenizer_name"):  # a folder's tokenizer is in the folder
        wanted.append(HUB + str(text["hf_tokenizer_name"]))
    return [name for name in dict.fromkeys(wanted) if name is not None and name != str(home)]


def _part(config: Any, name: str, file: Path | str) -> Mapping[str, Any]:
    found = config.get(name) if isinstance(config, Mapping) else None
    if found is not None and not isinstance(found, Mapping):
        raise ModelError(f"{file}: {name} is no object", "Give a folder written by `embedpipe train-clip`")
    return found or {}


def _text_model(name: Any, file: Path | str, home: Path | str) -> str | None:
    if not name:
        return None
    if Path(str(name)).is_absolute() or str(name).startswith((".", "~")):  # relative to the working folder
        inside = str(name).startswith("/") and Path(str(name)).resolve().is_relative_to(Path(home).resolve())
        if str(home).startswith(HUB) or not inside:
            raise _refusal(file, "text_cfg.hf_model_name", f"leads outside of the model: {name}")
        return None
    return HUB + str(name)


def _image_model(name: Any, file: Path | str) -> str | None:
    scheme, colon, rest = str(name or "").partition(":")
    if not colon:
        return None
    if scheme.replace("_", "-") + ":" != HUB:
        raise _refusal(file, "vision_cfg.timm_model_name", f"leads outside of the model: {name}")
    return HUB + rest.removeprefix("//")


def _refuse_code(config: Any, file: Path | str, keys: set[str]) -> None:
    for path, name, value in _entries(config):
        kernel = _KERNEL.fullmatch(name) is not None and isinstance(value, str) and "/" in value
        if kernel or (name in keys and value not in (None, False, "", [], {})):
            raise _refusal(file, path, "would have code run that comes with a model")


def _entries(value: Any, path: str = "") -> Iterator[tuple[str, str, Any]]:
    """(dotted path, key, value) of every entry at any depth."""
    todo = [(path, value)]
    while todo:
        above, inner = todo.pop()
        pairs: list[tuple[str, Any]] = []
        if isinstance(inner, Mapping):
            pairs = [(str(name), it) for name, it in inner.items()]
            yield from ((f"{above}{name}", name, it) for name, it in pairs)
        elif isinstance(inner, list):
            pairs = [(str(i), it) for i, it in enumerate(inner)]
        todo += [(f"{above}{name}.", it) for name, it in pairs]


def _refusal(file: Path | str, key: str, why: str) -> ModelError:
    return ModelError(
        f"{file}: {key} {why}; a model is data here, and nothing of it was loaded",
        "Remove that key if the model works without it, or take another model",
    )


def _read(path: Path, strict: bool = True) -> Any:
    """A JSON file's content; None for another library's file that is none."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as problem:
        if not strict:
            return None
        raise ModelError(
            f"{path}: cannot be read: {problem}", "Give a folder written by `embedpipe train-clip`"
        ) from problem
