"""float16 → float32 and a finiteness check, several times faster than numpy: by torch, or by integer arithmetic."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

_VALUES_AT_ONCE = 1 << 18  # stays in the processor's cache
_SERIAL_VALUES = 1 << 15  # up to here torch starts no threads, which under other load wait for each other
# A float16 shifted left by 13 bits is a float32 whose exponent is too small by 127 − 15.
_SHIFT = 13
_SIGN_AND_NUMBER = np.int32(0x0FFFE000 - (1 << 31))
_EXPONENT = np.float32(2.0**112)

# An exponent of all ones, per sign: infinity, with NaN above it. Floats sort like their bits.
_LIMITS = {
    2: (np.int16, np.uint16, 0x7C00, 0xFC00),
    4: (np.int32, np.uint32, 0x7F800000, 0xFF800000),
}


def all_finite(rows: np.ndarray) -> bool:
    """Whether all numbers of a float16 or float32 array in C order are finite."""
    signed, unsigned, positive, negative = _LIMITS[rows.dtype.itemsize]
    if not rows.size:
        return True
    return bool(rows.view(signed).max() < positive and rows.view(unsigned).max() < negative)


def float16_to_float32(rows: np.ndarray, out: np.ndarray) -> None:
    """Copy finite float16 rows in C order into float32 `out` of the same shape, exactly.

    Where torch is loaded, as in any training, it converts: more than twice as fast, by the processor's instruction.
    """
    source, target = rows.reshape(-1), out.reshape(-1)
    if source.flags.writeable and (torch := _torch_if_loaded()) is not None:
        for first in range(0, source.size, _SERIAL_VALUES):
            piece = slice(first, first + _SERIAL_VALUES)
            torch.from_numpy(target[piece]).copy_(torch.from_numpy(source[piece]))
        return
    bits = np.empty(min(_VALUES_AT_ONCE, source.size), np.int32)
    for first in range(0, source.size, _VALUES_AT_ONCE):
        some = source[first : first + _VALUES_AT_ONCE]
        room = bits[: some.size]
        np.copyto(room, some.view(np.int16))
        np.left_shift(room, _SHIFT, out=room)
        np.bitwise_and(room, _SIGN_AND_NUMBER, out=room)
        np.multiply(room.view(np.float32), _EXPONENT, out=target[first : first + _VALUES_AT_ONCE])


def _torch_if_loaded() -> Any:
    """torch, once some other code has imported all of it; else None."""
    torch = sys.modules.get("torch")
    return None if torch is None or getattr(torch.__spec__, "_initializing", False) else torch


def convert_into(rows: np.ndarray, out: np.ndarray) -> None:
    """Copy finite rows into `out`, both in C order, whatever the two dtypes are."""
    if rows.dtype == np.float16 and out.dtype == np.float32:
        float16_to_float32(rows, out)
    else:
        np.copyto(out, rows, casting="same_kind")
