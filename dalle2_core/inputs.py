"""What a caller gives a model, brought in order or refused: arrays, dtypes, masks, ranges.

Shapes: b rows, d width of an embedding, l text length, w width of a text token.
"""

from __future__ import annotations

import logging
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import is_fake

from dalle2_core.errors import ConfigError, ShapeError

logger = logging.getLogger(__name__)


def as_tensor(value: Any, name: str, device: torch.device | None = None) -> Tensor:
    """A tensor as it is; a NumPy array as a tensor of its own, on `device` if one is given. Else raises ShapeError."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        value = torch.from_numpy(np.array(value))
    if not isinstance(value, Tensor):
        what = f"a NumPy array of {value.dtype}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"
        raise ShapeError(f"{name} is {what}; give a tensor, or a NumPy array of numbers")
    return value if device is None else value.to(device)


def dtype_of(model: nn.Module) -> torch.dtype:
    """The floating dtype that a model computes in: that of its parameters."""
    tensors = (*model.parameters(), *model.buffers())
    return next((it.dtype for it in tensors if it.is_floating_point()), torch.get_default_dtype())


def checked_embeddings(value: Any, width: int, name: str, like: nn.Module) -> Tensor:
    """[b, width] with b of one or more, in the dtype of `like`. Raises ShapeError, which says what was wanted."""
    rows = as_tensor(value, name)
    if rows.ndim != 2 or rows.shape[1] != width or not len(rows):
        raise ShapeError(
            f"{name} is {tuple(rows.shape)}; this model takes [b, {width}], one row or more. "
            "Is it from the encoder that it was made for?"
        )
    if not rows.is_floating_point():
        raise ShapeError(f"{name} is {rows.dtype}; give floats, L2-normalised")
    return rows.to(dtype_of(like))


def checked_token_states(tokens: Any, mask: Any, rows: int, like: nn.Module) -> tuple[Tensor | None, Tensor | None]:
    """Text tokens [rows, l, w] in the dtype of `like`, and their mask [rows, l] bool; None stays None.

    A mask of integers or floats counts where it is not 0. Raises ShapeError, which says what was wanted.
    """
    if tokens is None:
        if mask is not None:
            raise ShapeError("text_mask is given without text_encodings; give both or neither")
        return None, None
    states = as_tensor(tokens, "text_encodings")
    if states.ndim != 3 or len(states) != rows or not states.is_floating_point():
        raise ShapeError(f"text_encodings are {states.dtype} {tuple(states.shape)}; give floats [{rows}, l, w]")
    return states.to(dtype_of(like)), None if mask is None else checked_mask(mask, states)


def checked_mask(mask: Any, tokens: Tensor) -> Tensor:
    """The mask of `tokens` [b, l, w] as bool [b, l]. Raises ShapeError for any other shape."""
    found = as_tensor(mask, "text_mask")
    if found.shape != tokens.shape[:2]:
        wanted = list(tokens.shape[:2])
        raise ShapeError(f"text_mask is {list(found.shape)}; give {wanted}, one value for each text token")
    return found if found.dtype == torch.bool else found != 0


def mask_of(tokens: Tensor, mask: Any) -> Tensor:
    """The mask of tokens as `checked_mask` has it; without one, tokens that are all zero count as padding."""
    return (tokens != 0).any(dim=-1) if mask is None else checked_mask(mask, tokens)


def finite_where_seen(tensor: Tensor) -> bool:
    """Whether all values are finite. In training on a GPU nobody looks: the host would wait, and the loss tells."""
    if tensor.device.type != "cpu" and torch.is_grad_enabled():
        return True
    return bool(torch.isfinite(tensor).all())


def check_finite_number(value: float, name: str) -> None:
    """Raises ConfigError for NaN, infinity or what is no number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(f"{name} is {value!r}; give a finite number")


class RangeCheck:
    """Warns once if float images leave [0, 1]: they train without an error, and come out wrong.

    Looks at the first `looks` batches alone: on a GPU each look waits for the device.
    """

    def __init__(self, looks: int = 3) -> None:
        self._left = looks

    def see(self, images: Tensor, name: str = "images") -> None:
        """Look at one batch."""
        if self._left <= 0 or not images.is_floating_point() or not images.numel() or is_fake(images):
            return
        self._left -= 1
        low, high = (float(it) for it in torch.aminmax(images.detach()))
        if low < 0.0 or high > 1.0:
            self._left = 0
            logger.warning(
                "%s range from %.4g to %.4g; floats are taken for values in [0, 1], and uint8 for 0 to 255",
                name,
                low,
                high,
            )
