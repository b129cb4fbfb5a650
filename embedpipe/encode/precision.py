"""Compute precision of a model. The stored dtype does not depend on it; the model card records it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import InputError, OptionError, did_you_mean
from ..processor import multiplies_bf16

if TYPE_CHECKING:
    import torch

PRECISIONS = ("auto", "fp32", "bf16", "fp16")


def torch_dtype(precision: str) -> torch.dtype:
    """The dtype of fp32, bf16 or fp16."""
    import torch

    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def refuse_unknown_precision(wanted: str) -> None:
    """Raise OptionError unless `wanted` is one of PRECISIONS."""
    if wanted not in PRECISIONS:
        raise OptionError(f"no precision {wanted!r}", did_you_mean(wanted, PRECISIONS))


def choose_precision(wanted: str, device: str, convolutional: bool) -> str:
    """fp32, bf16 or fp16 for `wanted` (one of PRECISIONS) on `device`.

    auto is bf16 on hardware that supports it: CUDA cards with units for it (others emulate it, slowly), CPUs with
    AVX512-BF16 or AMX (twice as fast there; elsewhere slower than fp32, as are depthwise convolutions in bf16 on any
    CPU). Raises InputError.
    """
    refuse_unknown_precision(wanted)
    if wanted == "fp16" and not device.startswith("cuda"):
        raise InputError("`precision='fp16'` needs a CUDA device", "On the CPU, give bf16, fp32 or auto")
    if wanted != "auto":
        return wanted
    if device.startswith("cuda"):
        import torch

        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if multiplies_bf16() and not convolutional else "fp32"
