"""A worker process that has a GPU sees no other."""

from __future__ import annotations

import os

_VISIBLE = "CUDA_VISIBLE_DEVICES"


def see_only(device: str) -> str:
    """Make `device` the only GPU that this process sees; returns its name from then on, `cuda:0`.

    What libraries open on "the first GPU" then takes memory where this worker computes, and none of another's GPU. For
    a process of its own that has not used CUDA yet; otherwise, and on a CPU, nothing changes.
    """
    kind, _, number = device.partition(":")
    if kind != "cuda":
        return device
    import torch  # not needed by workers on a CPU

    visible = [name.strip() for name in os.environ.get(_VISIBLE, "").split(",") if name.strip()]
    place = int(number or 0)
    in_use = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    if in_use or (visible and place >= len(visible)):
        return device
    os.environ[_VISIBLE] = visible[place] if visible else str(place)
    return "cuda:0"
