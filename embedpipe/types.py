"""The dataclasses that pass between jobs. All are frozen; an absent value is `None`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .limited import FAULTS
from .ragged import RaggedRows

# Scalar types of metadata columns after reading.
Scalar = bool | int | float | str | None


@dataclass(frozen=True, slots=True)
class Sample:
    """One image and/or its caption as read, not decoded.

    `key` is unique in its shard; `index` is its position there (0-based, including rejects).
    """

    key: str
    index: int
    image: bytes | None
    caption: str | None
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reject:
    """One rejected sample, stored as a row with its reason.

    `stage` is read, decode or encode; `error_class` comes from `REJECT_CLASSES`.
    """

    key: str
    index: int
    stage: str
    error_class: str
    message: str


REJECT_CLASSES = {
    "caption_missing": "no caption beside the image, or an empty one",
    "caption_encoding": "the caption is not UTF-8",
    "caption_too_large": "the caption (.txt, or a table's) is larger than 1 MiB",
    "caption_too_long": "more tokens than the model's context holds (with `reject_cut_captions`)",
    "image_missing": "no image beside the caption, or a row that names none",
    "image_empty": "the image member holds zero bytes",
    "image_undecodable": "the bytes do not begin like an image that embedpipe reads",
    "image_unsupported": "of a format that is not read: SVG, JPEG XL, PostScript; HEIC without the extra heif",
    "image_damaged": "begins like an image, and is truncated or damaged: it does not decode, or libjpeg warns",
    "too_many_bytes": "the image file has more bytes than `max_sample_bytes`",
    "image_too_large": "more pixels than `max_pixels`, by the header",
    **FAULTS,
    "metadata_invalid": "the .json member is not a JSON object",
    "file_unreadable": "a file cannot be opened: gone, a link to nowhere, without permission, outside `local_root`",
    "git_lfs_pointer": "a pointer of Git LFS in the place of the file: run git lfs pull",
    "members_apart": "the rest of the sample came earlier in the tar, not next to it: sort the tar by name",
    "duplicate_key": "a sample with this key came earlier in the shard",
    "embedding_nonfinite": "the model gave a NaN or infinite value",
    "shard_truncated": "the tar ends early or is damaged; samples before that point were kept",
}


@dataclass(frozen=True, slots=True)
class SourceShard:
    """One input shard: the unit of work, of commit and of resume.

    `name` identifies it within its data set and never changes; `bytes` and `modified` (the file system's change mark:
    mtime in ns, an etag) allow a cheap check; contents are hashed while they are read. `members` lists the files of a
    shard cut from a folder; a tar has none.
    """

    name: str
    bytes: int
    modified: str
    members: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class EmbeddingBatch:
    """Embeddings of some samples. Row i of every field is the same sample.

    image, text: float32 [b, d], L2-normalised, or None if that modality was not requested. text_tokens: float32 [b,
    longest, w] states of the captions' tokens, and text_mask: bool [b, longest], True at real ones; None likewise.
    rows: int64 [b], their row numbers in the data set they were loaded from; None if they come from an encoder.
    """

    image: np.ndarray | None
    text: np.ndarray | None
    text_tokens: np.ndarray | None = None
    text_mask: np.ndarray | None = None
    rows: np.ndarray | None = None


@dataclass(frozen=True, slots=True)
class EmbeddingShard:
    """All rows of one shard, ready to be written. Row i of every field is the same sample.

    image, text: float16 or float32 [n, d], or None. `metadata` maps column name to a list of n values. text_tokens:
    last hidden states of each caption's real tokens, or None if not requested. tokens_cut: int32 [n], tokens of each
    caption that the model did not read, None if unknown.
    """

    number: int
    image: np.ndarray | None
    text: np.ndarray | None
    metadata: dict[str, list[Any]]
    rejects: tuple[Reject, ...]
    text_tokens: RaggedRows | None = None
    tokens_cut: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.metadata["key"])
