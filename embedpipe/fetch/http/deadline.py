"""Time limits of one url: a total, and one for each wait."""

from __future__ import annotations

import time


class Deadline:
    """`total_s` seconds from now, no single wait of which is longer than `step_s`."""

    def __init__(self, total_s: float, step_s: float) -> None:
        self.total_s = total_s
        self.step_s = step_s
        self.until = time.monotonic() + total_s

    def wait_s(self) -> float:
        """Seconds that the next wait may take. Raises TimeoutError when none are left."""
        left_s = self.until - time.monotonic()
        if left_s <= 0:
            raise TimeoutError(f"not whole after {self.total_s:g} s")
        return min(left_s, self.step_s)

    def shorter(self, total_s: float) -> Deadline:
        """One of at most `total_s` that does not end after this one. Raises TimeoutError when nothing is left."""
        self.wait_s()
        return Deadline(min(total_s, self.until - time.monotonic()), self.step_s)
