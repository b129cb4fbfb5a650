"""Pictures in and out of generation: files become square tensors and masks, tensors files, a grid and a record."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from embedpipe import files
from embedpipe.card import PreprocessSpec
from embedpipe.errors import InputError
from embedpipe.images.decode import Undecodable, decode
from embedpipe.images.sheet import SheetCell, contact_sheet

# A pixel of the mask that is this dark, of 255, is black: JPEG and resizing leave no exact zeros.
_BLACK = 16
_MOST_CELLS = 400
_CELL_PX = (96, 256)


def picture_of(path: str, size: int) -> Tensor:
    """The middle square of a picture file as floats [3, size, size] in [0, 1]. Raises InputError if there is none."""
    return _decoded(path, size)[0]


def known_of(path: str, mask_path: str, size: int) -> tuple[Tensor, Tensor]:
    """A picture [1, 3, size, size] and where it is kept, [1, size, size] bool: where all of the mask is black.

    Raises InputError if one cannot be read, or the mask is of another size than the picture.
    """
    picture, extent = _decoded(path, size)
    mask, mask_extent = _decoded(mask_path, size)
    if extent != mask_extent:
        raise InputError(
            f"{mask_path}: the mask is {mask_extent[0]} × {mask_extent[1]} pixels, {path} {extent[0]} × {extent[1]}",
            "Give a mask of the picture's size, white where it is to be painted anew",
        )
    known = mask.amax(dim=0) * 255 < _BLACK
    if bool(known.all()):
        raise InputError(f"{mask_path}: the mask is black all over", "Make white what is to be painted anew")
    return picture[None], known[None]


def png(image: Tensor) -> bytes:
    """A file of an image [c, h, w] in [0, 1]."""
    stream = io.BytesIO()
    _pillow(image).save(stream, "PNG")
    return stream.getvalue()


def write_pictures(
    out: str, images: Tensor, names: Sequence[str], labels: Sequence[str], title: str, columns: int, record: Any
) -> list[str]:
    """Write the grid `out` (.png), each picture by itself into a folder beside it, and last the record (.json).

    names: of the single files; labels: what stands under each picture of the grid. record: a dict of plain values,
    which gets the names. What an earlier record at the same place lists is removed first. Returns what was written,
    the grid first, the record last.
    """
    folder, record_file = out[: -len(".png")], f"{out[: -len('.png')]}.json"
    _remove_earlier(folder, record_file)
    data = [png(image) for image in images]
    singles = [files.join(folder, name) for name in names]
    for location, content in zip(singles, data, strict=True):
        files.write_bytes(location, content)
    cell_px = min(max(images.shape[-1], _CELL_PX[0]), _CELL_PX[1])
    cells = [
        SheetCell(png(_at_least(image, cell_px)), label)
        for image, label in zip(images[:_MOST_CELLS], labels, strict=False)
    ]
    files.write_bytes(out, contact_sheet(cells, title, columns, cell_px))
    content = {**record, "grid": out, "folder": folder, "files": list(names)}
    files.write_bytes(record_file, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())
    return [out, *singles, record_file]


def _decoded(path: str, size: int) -> tuple[Tensor, tuple[int, int]]:
    """The middle square, and the width and height of the whole."""
    if not files.exists(path):
        raise InputError(f"{path}: no such file", "Check the path")
    spec = PreprocessSpec((size, size), (0.0,) * 3, (1.0,) * 3, "bicubic", "shortest", 0)
    found = decode(files.read_bytes(path), spec)
    if isinstance(found, Undecodable):
        raise InputError(f"{path}: {found.message}", "Give a picture that Pillow can read")
    return found.pixels.float() / 255, (found.width, found.height)


def _pillow(image: Tensor) -> Image.Image:
    pixels = (image.detach().float() * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def _at_least(image: Tensor, size: int) -> Tensor:
    """A picture smaller than a cell, with its pixels repeated until it nearly fills it."""
    times = max(1, size // image.shape[-1])
    return image.repeat_interleave(times, dim=-2).repeat_interleave(times, dim=-1)


def _remove_earlier(folder: str, record_file: str) -> None:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        if files.exists(record_file):
            for name in json.loads(files.read_bytes(record_file))["files"]:
                files.remove(files.join(folder, str(name).rpartition("/")[2]))
