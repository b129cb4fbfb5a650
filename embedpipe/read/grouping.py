"""Members of a shard → samples: consecutive files with one key belong together (webdataset's rule).

A key is the path up to the first dot of its last part: `cats/01.jpg`, `cats/01.txt` and `cats/01.json` are one sample
with the key `cats/01`. Files whose last part starts with a dot belong to none.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ..types import Reject, Sample

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
MAX_CAPTION_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Member:
    """One file of a shard: `size` in bytes; `read` gives the bytes, and only until the next member is asked for."""

    path: str
    size: int
    read: Callable[[], bytes]


@dataclass(frozen=True, slots=True)
class SampleRules:
    """What makes a sample. caption_key: the .json field that holds the caption where there is no .txt."""

    caption_key: str = "caption"
    need_image: bool = True
    need_caption: bool = True


def split_path(path: str) -> tuple[str, str] | None:
    """(key, lower-case extension) of a member's path, or None when it belongs to no sample."""
    folder, slash, name = path.rpartition("/")
    stem, dot, extension = name.partition(".")
    if not stem or not dot or not extension:
        return None
    return f"{folder}{slash}{stem}", extension.lower()


def printable(path: str) -> str:
    """`path` with bytes that are not UTF-8 replaced, so that it can be stored as a string."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


@dataclass(slots=True)
class _Draft:
    """The members of one key, gathered until the next key begins."""

    key: str
    index: int
    parts: dict[str, bytes] = field(default_factory=dict)
    too_large: bool = False


def samples(members: Iterable[Member], rules: SampleRules) -> Iterator[Sample | Reject]:
    """Group members into samples, in order, each a Sample or a Reject with its reason."""
    seen: set[str] = set()
    for draft in _drafts(members):
        if draft.key in seen:
            yield Reject(draft.key, draft.index, "read", "duplicate_key", "a sample with this key came earlier")
            continue
        seen.add(draft.key)
        yield _finish(draft, rules)


def _drafts(members: Iterable[Member]) -> Iterator[_Draft]:
    draft: _Draft | None = None
    index = 0
    for member in members:
        place = split_path(printable(member.path))
        if place is None:
            continue
        key, extension = place
        kind = _kind(extension)
        if kind is None:
            continue
        # The same kind of file twice under one key begins another sample, which is then a duplicate.
        if draft is None or key != draft.key or (kind in draft.parts and kind != "image"):
            if draft is not None:
                yield draft
                index += 1
            draft = _Draft(key, index)
        if kind == "caption" and member.size > MAX_CAPTION_BYTES:
            draft.too_large = True
        elif kind not in draft.parts:  # of several images under one key the first counts
            draft.parts[kind] = member.read()
    if draft is not None:
        yield draft


def _kind(extension: str) -> str | None:
    if extension in IMAGE_EXTENSIONS:
        return "image"
    return {"txt": "caption", "json": "metadata"}.get(extension)


def _finish(draft: _Draft, rules: SampleRules) -> Sample | Reject:
    def reject(error_class: str, message: str) -> Reject:
        return Reject(draft.key, draft.index, "read", error_class, message)

    metadata: dict[str, Any] = {}
    if "metadata" in draft.parts:
        try:
            metadata = json.loads(draft.parts["metadata"])
        except (ValueError, RecursionError) as problem:
            return reject("metadata_invalid", f"the .json member does not parse: {problem}")
        if not isinstance(metadata, dict):
            return reject("metadata_invalid", f"the .json member holds a {type(metadata).__name__}, not an object")

    caption: str | None = None
    if rules.need_caption:
        if draft.too_large:
            return reject("caption_too_large", f"the .txt member is larger than {MAX_CAPTION_BYTES} bytes")
        if "caption" in draft.parts:
            try:
                caption = draft.parts["caption"].decode("utf-8-sig")
            except UnicodeDecodeError as problem:
                return reject("caption_encoding", f"the caption is not UTF-8: {problem.reason} at {problem.start}")
        else:
            value = metadata.get(rules.caption_key)
            caption = value if isinstance(value, str) else None
        if caption is None or not caption.strip():
            return reject("caption_missing", "no caption" if caption is None else "the caption is empty")

    image: bytes | None = None
    if rules.need_image:
        image = draft.parts.get("image")
        if image is None:
            return reject("image_missing", "no image beside the caption")
        if not image:
            return reject("image_empty", "the image member holds zero bytes")
    return Sample(draft.key, draft.index, image, caption, metadata)
