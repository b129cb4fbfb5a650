"""Models are loaded as data: no code of a folder or repository runs, and no hub is asked unless the user said so."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import socket
import sys
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from open_clip.pretrained import download_pretrained_from_hf

from ..clip_model.foreign_config import CONFIG_FILE, check_config, check_folder
from ..clip_model.trusted import require_consent
from ..consent import HUB
from ..errors import ModelError

_HUB_ANSWERS_S = 5


def require_data_only(name: str) -> bool:
    """Check a model with its own configuration, before anything of it is loaded; whether it needs a hub.

    name: `hf-hub:ORG/NAME` or `local-dir:FOLDER`, as open_clip takes it. Raises ModelError for a configuration that
    would run code, UntrustedModel if it names another repository of the hub, which the user has not consented to.
    """
    if name.startswith(HUB):
        file = download_pretrained_from_hf(name.removeprefix(HUB), filename=CONFIG_FILE)
        wanted = check_config(json.loads(Path(file).read_bytes()), f"{name}/{CONFIG_FILE}", name)
    else:
        folder = Path(name.removeprefix("local-dir:"))
        wanted = check_folder(folder)
    for other in wanted:
        require_consent(other, name.removeprefix("local-dir:"))
    return name.startswith(HUB) or bool(wanted)


def unreachable_hub() -> str | None:
    """Why the hub cannot be reached, as far as a connection tells; None if it can, or if a proxy stands between."""
    if any(name.lower() in ("http_proxy", "https_proxy", "all_proxy") and value for name, value in os.environ.items()):
        return None
    hub = importlib.import_module("huggingface_hub.constants")
    address = urllib.parse.urlsplit(hub.ENDPOINT)
    port = address.port or {"http": 80}.get(address.scheme, 443)
    try:
        socket.create_connection((address.hostname or "", port), _HUB_ANSWERS_S).close()
    except OSError as problem:
        return f"{address.hostname} cannot be reached ({problem.strerror or problem})"
    return None


@contextlib.contextmanager
def asking_no_hub(offline: bool = True) -> Iterator[None]:
    """Within the block, what a hub holds comes from the cache or fails at once, without retries; only if `offline`."""
    hub = importlib.import_module("huggingface_hub.constants")
    with _replaced(hub, "HF_HUB_OFFLINE", offline or hub.HF_HUB_OFFLINE):
        yield


@contextlib.contextmanager
def as_data(transformers: bool, offline: bool) -> Iterator[None]:
    """Within the block, transformers neither runs code of a model nor asks on the terminal whether to.

    transformers: whether that package is used. offline: ask a hub for nothing.
    """
    os.environ.setdefault("USE_HUB_KERNELS", "0")  # compiled code of the hub
    with contextlib.ExitStack() as undone:
        undone.enter_context(asking_no_hub(offline))
        if transformers or "transformers" in sys.modules:
            code = importlib.import_module("transformers.dynamic_module_utils")
            undone.enter_context(_replaced(code, "TIME_OUT_REMOTE_CODE", 0))
            undone.enter_context(_replaced(code, "get_class_in_module", _refuse))
        yield


def _refuse(*args: Any, **keywords: Any) -> None:
    raise ModelError(
        f"{args[1] if len(args) > 1 else 'a model'}: would have code run that comes with a model; it was not run",
        "Take a model that transformers knows by itself",
    )


@contextlib.contextmanager
def _replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)
