"""Group the members of a shard into samples: consecutive files with the same key (webdataset's rule).

`cats/01.jpg`, `cats/01.txt` and `cats/01.json` are one sample with the key `cats/01`. In a tar a key ends at the first
dot of the file name, as in webdataset; names of loose files may contain dots (`Dr. No.jpg`), so their keys end at the
last one. Files whose name starts with a dot are ignored.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..images.formats import IMAGE_EXTENSIONS as IMAGE_EXTENSIONS
from ..types import Reject, Sample

MAX_CAPTION_BYTES = 1 << 20
MAX_NESTING = 64

_KINDS = {**dict.fromkeys(IMAGE_EXTENSIONS, "image"), "txt": "caption", "json": "metadata"}


# A member's path → its key and lower-case extension, or None if it belongs to no sample.
Split = Callable[[str], tuple[str, str] | None]


class Members(Protocol):
    """The files of a shard, in order, as (path, bytes); None instead of bytes that are too large or unwanted.

    After iteration `torn` describes damage of the shard, or is None. `split` extracts the key from a path.
    """

    torn: str | None
    split: Split

    def __iter__(self) -> Iterator[tuple[str, bytes | None]]: ...


@dataclass(frozen=True, slots=True)
class SampleRules:
    """How samples are assembled.

    caption_key: the .json field with the caption if there is no .txt, or the column of a table. image_column and
    key_column: of a table; None stands for `image`, and for `key` if there is one, else the row's number.
    """

    caption_key: str = "caption"
    need_image: bool = True
    need_caption: bool = True
    image_column: str | None = None
    key_column: str | None = None


def split_at_first_dot(path: str) -> tuple[str, str] | None:
    """A `Split` for members of tars."""
    folder, slash, name = path.rpartition("/")
    stem, _, extension = name.partition(".")
    return (f"{folder}{slash}{stem}", extension.lower()) if stem and extension else None


def split_at_last_dot(path: str) -> tuple[str, str] | None:
    """A `Split` for loose files."""
    folder, slash, name = path.rpartition("/")
    stem, _, extension = name.rpartition(".")
    if not stem or not extension or name.startswith("."):
        return None
    return f"{folder}{slash}{stem}", extension.lower()


def printable(path: str) -> str:
    """`path` with bytes that are not UTF-8 spelled out (`\\xff`), so that it can be stored and stays distinct."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def wanted(path: str, split: Split) -> bool:
    """Whether a member belongs to a sample: readers need not read others."""
    place = split(path)
    return place is not None and place[1] in _KINDS


def readable(path: str, size: int) -> bool:
    """Whether a wanted member is small enough to be read (images are bounded by their pixels, later)."""
    return size <= MAX_CAPTION_BYTES or not path.lower().endswith(".txt")


@dataclass(slots=True)
class _Draft:
    """The members of one key, collected until the next key starts."""

    key: str
    index: int
    parts: dict[str, bytes | None] = field(default_factory=dict)


def samples(members: Members, rules: SampleRules) -> Iterator[Sample | Reject]:
    """Group members into samples, in order, each a Sample or a Reject with its reason.

    In a torn shard the sample at the tear is only kept if it has every kind of member of the previous one: half a
    sample could pass for a complete one. The tear itself is the last reject.
    """
    seen: set[str] = set()
    before: _Draft | None = None
    at_tear: _Draft | None = None
    for draft, last in _with_last(_drafts(members)):
        if last and members.torn and (before is None or before.parts.keys() - draft.parts.keys()):
            at_tear = draft
            break
        if draft.key in seen:
            yield Reject(draft.key, draft.index, "read", "duplicate_key", "a sample with this key came earlier")
        else:
            seen.add(draft.key)
            yield _finish(draft, rules)
        before = draft
    if members.torn:
        key, index = (at_tear.key, at_tear.index) if at_tear else ("", before.index + 1 if before else 0)
        yield Reject(key, index, "read", "shard_truncated", members.torn)


def _with_last(drafts: Iterator[_Draft]) -> Iterator[tuple[_Draft, bool]]:
    """Each draft and whether it is the last one."""
    held = next(drafts, None)
    while held is not None:
        following = next(drafts, None)
        yield held, following is None
        held = following


def _drafts(members: Members) -> Iterator[_Draft]:
    draft: _Draft | None = None
    for path, data in members:
        place = members.split(path)
        if place is None or place[1] not in _KINDS:
            continue
        key, kind = printable(place[0]), _KINDS[place[1]]
        # A second file of the same kind under one key starts another sample, which is then a duplicate; of several
        # images under one key the first counts.
        if draft is None or key != draft.key or (kind in draft.parts and kind != "image"):
            if draft is not None:
                yield draft
            draft = _Draft(key, draft.index + 1 if draft is not None else 0)
        draft.parts.setdefault(kind, data)
    if draft is not None:
        yield draft


def _nested_deeper(value: Any, raw: bytes, limit: int) -> bool:
    """Whether containers are nested deeper than `limit`: JSON that parses may still be too deep to be written."""
    if raw.count(b"{") + raw.count(b"[") <= limit:
        return False
    level = [value]
    for _ in range(limit):
        containers = [x.values() if isinstance(x, dict) else x for x in level if isinstance(x, dict | list)]
        level = [inner for container in containers for inner in container]
    return any(isinstance(x, dict | list) for x in level)


def _finish(draft: _Draft, rules: SampleRules) -> Sample | Reject:
    def reject(error_class: str, message: str) -> Reject:
        return Reject(draft.key, draft.index, "read", error_class, message)

    metadata: dict[str, Any] = {}
    if (raw_metadata := draft.parts.get("metadata")) is not None:
        try:
            metadata = json.loads(raw_metadata)
        except (ValueError, RecursionError) as problem:
            return reject("metadata_invalid", f"the .json member does not parse: {problem}")
        if not isinstance(metadata, dict):
            return reject("metadata_invalid", f"the .json member holds a {type(metadata).__name__}, not an object")
        if _nested_deeper(metadata, raw_metadata, MAX_NESTING):
            return reject("metadata_invalid", f"the .json member is nested deeper than {MAX_NESTING}")

    caption: str | None = None
    if rules.need_caption:
        if "caption" in draft.parts:
            raw_caption = draft.parts["caption"]
            if raw_caption is None:
                return reject("caption_too_large", f"the .txt member is larger than {MAX_CAPTION_BYTES} bytes")
            try:
                caption = raw_caption.decode("utf-8-sig").rstrip("\r\n")  # added by editors, not part of the caption
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
