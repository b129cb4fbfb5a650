"""Colours of any kind → sRGB, by the embedded ICC profile; one that is broken or for other channels is ignored."""

from __future__ import annotations

import functools
import io

import numpy as np
from PIL import Image, ImageCms

_SIDE = 17
_STEPS = np.linspace(0, 255, _SIDE).round().astype(np.uint8)
_CMYK, _RGB, _GREY, _LAB = "CMYK", "RGB", "GRAY", "Lab"


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """An image of mode L, RGB, CMYK, LAB or YCbCr as sRGB, of mode L or RGB.

    Greys take a profile of greys or of RGB (they are then its neutral colours), as in browsers.
    """
    if image.mode == "LAB":
        return _applied(image, _from_lab())
    if image.mode not in ("L", "RGB", "CMYK"):
        image = image.convert("RGB")
    space = _space(profile) if profile else ""
    if image.mode == "L" and space == _RGB and not is_srgb(profile):
        image = image.convert("RGB")
    transform = _transform(profile, image.mode) if profile and space == _space_of(image.mode) else None
    if transform is not None:
        return _applied(image, transform)
    return image if image.mode == "L" else image.convert("RGB")


@functools.lru_cache(maxsize=64)
def is_srgb(profile: bytes | None) -> bool:
    """Whether converting RGB and greys from `profile` changes no colour by more than 1 of 255: there is nothing to do.

    True for a profile that is broken or for other channels.
    """
    if not profile:
        return True
    space = _space(profile)
    if space not in (_RGB, _GREY):
        return True
    grid = np.stack(np.meshgrid(_STEPS, _STEPS, _STEPS, indexing="ij"), -1).reshape(-1, _SIDE, 3)
    if space == _GREY:
        grid = np.broadcast_to(np.arange(256, dtype=np.uint8)[None, :, None], (1, 256, 3))
    shown = Image.fromarray(np.ascontiguousarray(grid if space == _RGB else grid[..., 0]))
    transform = _transform(profile, shown.mode)
    if transform is None:
        return True
    return int(np.abs(np.asarray(_applied(shown, transform)).astype(np.int16) - grid).max()) <= 1


def _applied(image: Image.Image, transform: ImageCms.ImageCmsTransform) -> Image.Image:
    made = Image.new(transform.output_mode, image.size)
    transform.apply(image, made)
    return made


def _space_of(mode: str) -> str:
    return {"L": _GREY, "CMYK": _CMYK}.get(mode, _RGB)


@functools.lru_cache(maxsize=64)
def _space(profile: bytes) -> str:
    """The colour space of a profile's device side; empty if it is broken."""
    try:
        return str(ImageCms.ImageCmsProfile(io.BytesIO(profile)).profile.xcolor_space).strip()
    except Exception:  # little CMS and Pillow raise what they like for broken data
        return ""


@functools.lru_cache(maxsize=32)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    try:
        return ImageCms.ImageCmsTransform(
            ImageCms.ImageCmsProfile(io.BytesIO(profile)), _srgb(), mode, "RGB", ImageCms.Intent.PERCEPTUAL
        )
    except Exception:  # as above
        return None


@functools.cache
def _from_lab() -> ImageCms.ImageCmsTransform:
    return ImageCms.ImageCmsTransform(ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")), _srgb(), "LAB", "RGB")


@functools.cache
def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
