"""What is in an output: counts, spreads and rejects, for the terminal, for machines, and as a page with pictures."""

from .contents import OutputInfo, Spread, describe, spread, without_norms
from .gallery import Gallery, look_at
from .page import info_page

__all__ = ["Gallery", "OutputInfo", "Spread", "describe", "info_page", "look_at", "spread", "without_norms"]
