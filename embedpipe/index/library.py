"""faiss, imported when it is first used: what only looks at cards and arguments does without."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import faiss
else:

    class _OnFirstUse:
        def __getattr__(self, name: str) -> Any:
            return getattr(importlib.import_module("faiss"), name)

    faiss = _OnFirstUse()

__all__ = ["faiss"]
