"""Keep Arrow from importing pandas, which no command needs: a quarter of a second where it is installed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


class _NoPandas(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname == "pandas":
            raise ModuleNotFoundError("not for Arrow's sake", name=fullname)
        return None


def spare_pandas() -> None:
    """Have Arrow look for pandas now, and find none; it looks once, at its first conversion of values.

    `import pandas` works afterwards, and so does `to_pandas`, which looks again.
    """
    if "pandas" in sys.modules:
        return
    import pyarrow as pa

    without = _NoPandas()
    sys.meta_path.insert(0, without)
    try:
        pa.scalar(0)
    finally:
        sys.meta_path.remove(without)
