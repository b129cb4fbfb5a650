"""Summaries of an output: counts, distributions and rejects, as text, JSON, or an HTML page with images."""

from .contents import OutputInfo, Spread, describe, spread, without_norms
from .gallery import Gallery, look_at
from .page import info_page

__all__ = ["Gallery", "OutputInfo", "Spread", "describe", "info_page", "look_at", "spread", "without_norms"]
