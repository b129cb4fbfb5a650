"""LRU cache of arrays and tables, bounded in bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import TypeVar, cast

import numpy as np
import pyarrow as pa

from ..ragged import RaggedRows

_Kept = TypeVar("_Kept", np.ndarray, RaggedRows, pa.Table)


class ByteLRUCache:
    """Caches results of `make`, evicting the least recently used ones beyond `most_bytes`.

    Memory-mapped arrays count as zero bytes and are never evicted. Thread-safe; concurrent requests for the same key
    may both call `make`. Pickles as an empty cache.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._kept: OrderedDict[Hashable, np.ndarray | RaggedRows | pa.Table] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[ByteLRUCache], tuple[int]]:
        return type(self), (self._most_bytes,)

    def get(self, key: Hashable, make: Callable[[], _Kept]) -> _Kept:
        """The value cached under `key`, made if missing."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return cast("_Kept", self._kept[key])
        made = make()
        with self._lock:
            if key in self._kept:
                return cast("_Kept", self._kept[key])
            self._kept[key] = made
            self._bytes += _bytes(made)
            oldest = [name for name in self._kept if name != key and _bytes(self._kept[name])]
            while self._bytes > self._most_bytes and oldest:
                self._bytes -= _bytes(self._kept.pop(oldest.pop(0)))
        return made


def _bytes(kept: np.ndarray | RaggedRows | pa.Table) -> int:
    if isinstance(kept, RaggedRows):
        return _bytes(kept.values)
    return 0 if isinstance(kept, np.memmap) else int(kept.nbytes)
