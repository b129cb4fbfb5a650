"""What one call may cost, and what is said of a call that ended without an answer."""

from __future__ import annotations

from dataclasses import dataclass

MEMORY, TIME, DIED = "too_costly_memory", "too_costly_time", "decoder_died"

FAULTS = {
    MEMORY: "decoding takes more memory than a sample may: 256 MiB, and 12 bytes for each of `max_pixels`",
    TIME: "decoding takes longer than `max_sample_seconds` of processor time, or hangs",
    DIED: "the decoder crashed on the image, in two processes one after the other",
}

# A hang that uses no processor time is ended after this many times the limit; a loaded machine must not reach it.
_WALL_PER_CPU = 10


@dataclass(frozen=True, slots=True)
class CallLimits:
    """memory: bytes that a call may allocate besides its input. seconds: of processor time."""

    memory: int
    seconds: float

    @property
    def wall_s(self) -> float:
        """Seconds until a call is given up for hanging."""
        return _WALL_PER_CPU * self.seconds


@dataclass(frozen=True, slots=True)
class CallFault:
    """A call that ended without an answer. error_class: a name in `FAULTS`."""

    error_class: str
    message: str
