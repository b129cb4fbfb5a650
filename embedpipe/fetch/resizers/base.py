"""The resizer interface."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ..download.image import PictureRules, Resizer


@dataclass(frozen=True, slots=True)
class Kind:
    """needs: required modules → the package that provides each. make: rules and quality → a resizer."""

    needs: Mapping[str, str]
    make: Callable[[PictureRules, int], Resizer]
