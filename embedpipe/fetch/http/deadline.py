"""Time limits of one url: a total, and one for each wait."""

from __future__ import annotations

import time


class Deadline:
    """A deadline `total_s` seconds from now, with single waits of at most `step_s`."""

    def __init__(self, total_s: float, step_s: float) -> None:
        self.total_s = total_s
        self.step_s = step_s
        self.until = time.monotonic() + total_s

    def wait_s(self) -> float:
        """The maximum duration of the next wait, in seconds. Raises TimeoutError once the deadline has passed."""
        left_s = self.until - time.monotonic()
        if left_s <= 0:
            raise TimeoutError(f"not whole after {self.total_s:g} s")
        return min(left_s, self.step_s)

    def shorter(self, total_s: float) -> Deadline:
        """A deadline of at most `total_s` that ends no later than this one. Raises TimeoutError once that is over."""
        self.wait_s()
        return Deadline(min(total_s, self.until - time.monotonic()), self.step_s)
