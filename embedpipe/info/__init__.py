"""Summaries of an output: counts, distributions and rejects, as text, JSON, or an HTML page with images.

The room itself is callable: `embedpipe.info(path)` is `embedpipe.info.page.info`.
"""

from ..callable_package import callable_as
from .contents import OutputInfo, Spread, describe, spread, without_norms
from .gallery import Gallery, look_at
from .page import info, info_page

__all__ = ["Gallery", "OutputInfo", "Spread", "describe", "info", "info_page", "look_at", "spread", "without_norms"]

callable_as(__name__, ".page:info")
