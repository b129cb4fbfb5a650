"""Where models run when nothing says where."""

from __future__ import annotations

import torch


def default_device() -> str:
    """The first CUDA device, or the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"
