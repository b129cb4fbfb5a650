"""Random draws as a function of (seed, step, row): a resumed run draws what the unbroken one would have drawn."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from dalle2_core.rng import PerSampleRNG, derived_seed


def step_draws(seed: int, step: int, start: int, rows: int, device: torch.device) -> PerSampleRNG:
    """What rows `start` to `start + rows` of step `step`'s batch draw, on `device`."""
    return PerSampleRNG(derived_seed(seed, step, "noise"), start, rows, device)


@contextmanager
def seeded_layers(seed: int, step: int, device: torch.device, purpose: str = "layers") -> Iterator[None]:
    """Seed what dropout draws from (torch's global generators) inside, and restore it afterwards."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(derived_seed(seed, step, purpose))
        yield
