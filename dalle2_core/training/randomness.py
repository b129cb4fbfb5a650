"""Random draws as a function of (seed, step): a resumed run draws what the unbroken one would have drawn."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derived_seed(seed: int, step: int, purpose: str) -> int:
    """A seed in [0, 2^63) that depends on all three and on nothing else."""
    digest = hashlib.blake2b(f"{seed}/{step}/{purpose}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def step_generator(seed: int, step: int, device: torch.device) -> torch.Generator:
    """The generator for step `step`'s noise, on `device`."""
    return torch.Generator(device).manual_seed(derived_seed(seed, step, "noise"))


@contextmanager
def seeded_layers(seed: int, step: int, device: torch.device, purpose: str = "layers") -> Iterator[None]:
    """Seed what dropout draws from (torch's global generators) inside, and restore it afterwards."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(derived_seed(seed, step, purpose))
        yield
