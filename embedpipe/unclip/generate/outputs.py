"""Pictures in and out of generation: files become square tensors and masks, tensors files, a grid and a record."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from embedpipe import files
from embedpipe.clip_model.encoder_card import PreprocessSpec
from embedpipe.errors import InputError
from embedpipe.images.decode import decode
from embedpipe.images.sheet import SheetCell, contact_sheet
from embedpipe.images.undecodable import Undecodable

# A pixel of the mask that is this dark, of 255, is black: JPEG and resizing leave no exact zeros.
_BLACK = 16
_MOST_CELLS = 400
_CELL_PX = 160
_NEAREST = Image.Resampling.NEAREST


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
    pixels = (image.detach().float() * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    return _stored(Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels))


def write_pictures(
    out: str, singles: Mapping[str, bytes], cells: Sequence[SheetCell], title: str, columns: int, record: Any
) -> None:
    """Write the grid `out` (.png), single files by name into a folder beside it, and last the record (.json).

    cells: of the grid. record: a dict of plain values. What an earlier record at the same place lists is removed first.
    """
    folder, record_file = out[: -len(".png")], f"{out[: -len('.png')]}.json"
    _remove_earlier(folder, record_file)
    for name, data in singles.items():
        files.write_bytes(files.join(folder, name), data)
    files.write_bytes(out, contact_sheet(cells[:_MOST_CELLS], title, columns, _CELL_PX))
    content = {**record, "grid": out, "folder": folder, "files": list(singles)}
    files.write_bytes(record_file, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


def enlarged(data: bytes) -> bytes:
    """A PNG smaller than a cell of the grid with its pixels repeated until it nearly fills it."""
    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        times = max(1, _CELL_PX // max(image.size))
        return data if times == 1 else _stored(image.resize((image.width * times, image.height * times), _NEAREST))


def _decoded(path: str, size: int) -> tuple[Tensor, tuple[int, int]]:
    """The middle square, and the width and height of the whole."""
    if not files.exists(path):
        raise InputError(f"{path}: no such file", "Check the path")
    spec = PreprocessSpec((size, size), (0.0,) * 3, (1.0,) * 3, "bicubic", "shortest", 0)
    found = decode(files.read_bytes(path), spec)
    if isinstance(found, Undecodable):
        raise InputError(f"{path}: {found.message}", "Give another picture")
    return found.pixels.float() / 255, (found.width, found.height)


def _stored(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def _remove_earlier(folder: str, record_file: str) -> None:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        if files.exists(record_file):
            for name in json.loads(files.read_bytes(record_file))["files"]:
                files.remove(files.join(folder, str(name).rpartition("/")[2]))
