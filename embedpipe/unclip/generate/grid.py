"""The grid of all pictures: its name, which is looked at before any model is."""

from __future__ import annotations

from embedpipe.errors import OptionError


def refuse_other_names(out: str) -> None:
    """Raise OptionError unless `out` is the name of a .png file."""
    if not out.lower().endswith(".png"):
        raise OptionError(f"{out}: the grid is a .png file")
