"""Difference between two images, tolerant of re-encoding, resizing and slight cropping.

Both images are reduced to thumbnails. One is registered to the other with the method of Lucas and Kanade (An iterative
image registration technique, IJCAI 1981): the shift and stretch along each axis that minimise the squared residual. The
worst spot of the residual counts, because look-alikes often differ in one spot only. Differences at edges, where blur
and compression artefacts of a copy show, weigh less.

The constants were measured on half of the demo's emoji and on photo-like images, see docs/decisions/0015-confirm.md.
"""

from __future__ import annotations

import numpy as np

from ...clip_model.encoder_card import PreprocessSpec
from ...images.guarded import guarded_decode
from ...images.undecodable import Undecodable

SIDE = 48
_SPEC = PreprocessSpec((SIDE, SIDE), (0.0,) * 3, (1.0,) * 3, "bilinear", "squash", 0)
# A copy cropped by 2% of width and height is shifted and stretched by 0.02, in units of half the side.
_MOST_MOVED = 0.06
_STEPS = 4
_MARGIN = 2  # regions beyond the other image's edge are not compared
_SPOT = 6
_EDGE = 66.0
# Images whose 8 × 8 means differ by this anywhere are not aligned. A copy's means hardly change.
_HOPELESS = 0.25
_COARSE = 8

_AT = ((2 * np.arange(SIDE) + 1) / SIDE - 1).astype(np.float32)  # pixel centres, from -1 to 1
_INSIDE = np.zeros((SIDE, SIDE), np.float32)
_INSIDE[_MARGIN:-_MARGIN, _MARGIN:-_MARGIN] = 1


def grey_thumbnail(data: bytes) -> np.ndarray | None:
    """uint8 [3, SIDE, SIDE] of an encoded image of any shape; None if it cannot be decoded."""
    decoded = guarded_decode(data, _SPEC, how="fast")
    return None if isinstance(decoded, Undecodable) else decoded.pixels.numpy()


def image_differences(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """float32 [n], from 0 for equal images to about 1, for pairs of thumbnails, uint8 [n, 3, SIDE, SIDE].

    1 if the two are too different for alignment.
    """
    found = np.ones(len(first), np.float32)
    one, other = (_smooth(pictures.astype(np.float32) / 255) for pictures in (first, second))
    near = np.flatnonzero(np.abs(_coarse(one) - _coarse(other)).max(axis=(1, 2, 3)) <= _HOPELESS)
    if len(near):
        one, other = one[near], other[near]
        found[near] = _worst_spot(one, _aligned(one, other))
    return found


def _coarse(pictures: np.ndarray) -> np.ndarray:
    block = SIDE // _COARSE
    means: np.ndarray = pictures.reshape(-1, 3, _COARSE, block, _COARSE, block).mean(axis=(3, 5))
    return means


def _smooth(pictures: np.ndarray) -> np.ndarray:
    """Weights 1, 2, 1 along each axis: a crop changes the finest detail of a thumbnail."""
    along = np.pad(pictures, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
    along = (along[..., :-2, :] + 2 * along[..., 1:-1, :] + along[..., 2:, :]) / 4
    smooth: np.ndarray = (along[..., :-2] + 2 * along[..., 1:-1] + along[..., 2:]) / 4
    return smooth


def _aligned(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """`other` registered to `one`: Gauss-Newton steps on the brightness, for a shift and a stretch along each axis."""
    target, grey = one.mean(axis=1), other.mean(axis=1)
    moved = np.zeros((len(one), 4), np.float32)
    for _ in range(_STEPS):
        laid = _rows(moved) @ grey @ _columns(moved)
        down, across = (gradient * (SIDE / 2) * _INSIDE for gradient in _gradients(laid))
        slopes = np.stack([down, down * _AT[:, None], across, across * _AT], axis=1).reshape(len(one), 4, -1)
        left = ((target - laid) * _INSIDE).reshape(len(one), -1, 1)
        square = slopes @ slopes.transpose(0, 2, 1)
        # Damped: uniform regions yield no motion.
        damping = 1e-2 + 1e-3 * np.trace(square, axis1=1, axis2=2) / 4
        step = np.linalg.solve(square + damping[:, None, None] * np.eye(4, dtype=np.float32), slopes @ left)
        moved = np.clip(moved + step[..., 0], -_MOST_MOVED, _MOST_MOVED).astype(np.float32)
    laid_on: np.ndarray = _rows(moved)[:, None] @ other @ _columns(moved)[:, None]
    return laid_on


def _rows(moved: np.ndarray) -> np.ndarray:
    return _resampling(moved[:, 0], moved[:, 1])


def _columns(moved: np.ndarray) -> np.ndarray:
    return np.swapaxes(_resampling(moved[:, 2], moved[:, 3]), 1, 2)


def _resampling(shift: np.ndarray, stretch: np.ndarray) -> np.ndarray:
    """float32 [n, SIDE, SIDE]: cubic interpolation (Keys, 1981) along one axis, with edge padding."""
    place = _AT * (1 + stretch[:, None]) + shift[:, None]
    place = np.clip(((place + 1) * SIDE - 1) / 2, 0, SIDE - 1)
    away = np.abs(place[:, :, None] - np.arange(SIDE, dtype=np.float32))
    weights = np.where(
        away < 1,
        (1.5 * away - 2.5) * away**2 + 1,
        np.where(away < 2, ((-0.5 * away + 2.5) * away - 4) * away + 2, 0),
    )
    scaled: np.ndarray = weights / weights.sum(axis=2, keepdims=True)
    return scaled


def _gradients(pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    down, across = np.zeros_like(pictures), np.zeros_like(pictures)
    down[..., 1:-1, :] = (pictures[..., 2:, :] - pictures[..., :-2, :]) / 2
    across[..., 1:-1] = (pictures[..., 2:] - pictures[..., :-2]) / 2
    return down, across


def _steepness(pictures: np.ndarray) -> np.ndarray:
    down, across = _gradients(pictures)
    steep: np.ndarray = np.square(down) + np.square(across)
    return steep


def _worst_spot(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The largest root mean square over all spots of _SPOT × _SPOT pixels."""
    edge = 1 + _EDGE * np.maximum(_steepness(one), _steepness(other)).sum(axis=1)
    squares = np.square(one - other).mean(axis=1) * _INSIDE / edge
    spots = np.lib.stride_tricks.sliding_window_view(squares, (_SPOT, _SPOT), axis=(1, 2)).mean(axis=(3, 4))
    worst: np.ndarray = np.sqrt(spots.max(axis=(1, 2)))
    return worst
