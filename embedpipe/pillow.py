"""Filter Pillow's warnings in embedpipe's own processes; a process that imports the library keeps its filters."""

from __future__ import annotations

import warnings


def ignore_metadata_warnings() -> None:
    """Suppress Pillow's warnings from now on: they are about odd metadata, and only the pixels matter."""
    warnings.filterwarnings("ignore", module=r"PIL\.")
