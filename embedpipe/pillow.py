"""Filter Pillow's warnings in embedpipe's own processes; a process that imports the library keeps its filters."""

from __future__ import annotations

import warnings


def ignore_metadata_warnings() -> None:
    """Show none of them from now on: they are about odd metadata, and the pixels are what counts."""
    warnings.filterwarnings("ignore", module=r"PIL\.")
