"""Raw embeddings of pictures: an encoder's unit rows times their norms."""

from __future__ import annotations

import torch
from torch import Tensor

from embedpipe import files
from embedpipe.encode import Encoder
from embedpipe.encode.base import Later
from embedpipe.errors import InputError
from embedpipe.images.guarded import guarded_decode
from embedpipe.images.undecodable import Undecodable


def raw_embedding(encoder: Encoder, path: str) -> Tensor:
    """[d] of an image file. Raises InputError if it is missing or cannot be decoded."""
    decoded = guarded_decode(files.read_bytes(path), encoder.card.preprocess, encoder.card.rules)
    if isinstance(decoded, Undecodable):
        raise InputError(f"{path}: {decoded.message}", "Give another picture")
    return _raw(encoder.images(decoded.pixels[None]))[0]


def embedding_of_nothing(encoder: Encoder) -> Tensor:
    """[1, d] of a picture that is zero after normalising, which Kandinsky's guidance leads away from."""
    spec = encoder.card.preprocess
    mean = torch.tensor(spec.mean)[None, :, None, None]
    return _raw(encoder.images((255 * mean).expand(1, 3, *spec.size)))


def _raw(embedded: Later) -> Tensor:
    found = embedded.wait()
    return torch.from_numpy(found.rows * found.norms[:, None]).float()
