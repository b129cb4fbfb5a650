"""Why an image has no pixels."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Undecodable:
    """Why an image could not be decoded; `error_class` is one of `types.REJECT_CLASSES`."""

    error_class: str
    message: str


def of_problem(error_class: str, problem: Exception) -> Undecodable:
    """For whatever a decoder raised."""
    said = " ".join(str(problem).split())
    return Undecodable(error_class, f"{type(problem).__name__}: {said}".rstrip(": ")[:300])
