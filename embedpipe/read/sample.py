"""One sample of its members: the rules for captions, metadata and what is missing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..types import Reject, Sample
from .names import CAPTION, FIRST_READING, IMAGE, METADATA, READING, Name, printable

DEFAULT_CAPTION_KEY = "caption"
MAX_CAPTION_BYTES = 1 << 20
MAX_METADATA_BYTES = 1 << 24
DEFAULT_MAX_SAMPLE_BYTES = 1 << 29  # an uncompressed picture of 100 million pixels with transparency, and more
MAX_NESTING = 64
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
LFS_REMEDY = "Run: git lfs pull, in its repository"
_MOST_SHOWN = 12


@dataclass(frozen=True, slots=True)
class SampleRules:
    """How samples are assembled.

    caption_key: the field of .json (or column of a table) with the caption, whether or not there is a .txt; None: the
    .txt, or else the field `caption`. image_column and key_column: of a table; None stands for `image`, and for `key`
    if there is one, else the row's number. image_member, caption_member: of a tar, see `Naming`. reading: the version
    of these rules; outputs that were begun under the first go on under it. max_sample_bytes: larger images are
    rejected without being read into memory.
    """

    caption_key: str | None = None
    need_image: bool = True
    need_caption: bool = True
    image_column: str | None = None
    key_column: str | None = None
    image_member: str | None = None
    caption_member: str | None = None
    reading: int = READING
    max_sample_bytes: int = DEFAULT_MAX_SAMPLE_BYTES

    def most_bytes(self, kind: str | None) -> int:
        """How large a member of that kind may be."""
        return {CAPTION: MAX_CAPTION_BYTES, METADATA: MAX_METADATA_BYTES}.get(kind or IMAGE, self.max_sample_bytes)

    @property
    def caption_field(self) -> str:
        """The field or column that may hold the caption."""
        return self.caption_key or DEFAULT_CAPTION_KEY

    @property
    def txt_counts(self) -> bool:
        """Whether a .txt is the caption: unless another source is named."""
        return self.caption_key is None or self.reading == FIRST_READING


@dataclass(frozen=True, slots=True)
class Member:
    """One member of a shard.

    data: None if too large or unwanted. problem: why it cannot be read; empty if it can. size: in a tar, in bytes.
    """

    name: Name
    data: bytes | None = None
    problem: str = ""
    size: int = 0


@dataclass(slots=True)
class Draft:
    """The members of one sample by kind. beside: names of others with its key, which belong to no sample."""

    key: str
    index: int
    parts: dict[str, Member] = field(default_factory=dict)
    beside: Sequence[str] = ()
    elsewhere: str = ""


class Rejected(Exception):
    """Ends the making of a sample: the reason why it is a reject."""

    def __init__(self, error_class: str, message: str) -> None:
        self.error_class = error_class
        self.message = message


def is_lfs_pointer(data: bytes) -> bool:
    """Whether these bytes stand for a file of Git LFS that was not downloaded."""
    return data.startswith(_LFS_POINTER)


def make_sample(draft: Draft, rules: SampleRules) -> Sample | Reject:
    """The sample, or a reject with the reason."""
    try:
        metadata = _metadata(draft)
        caption = _caption(draft, metadata, rules) if rules.need_caption else None
        image = _image(draft, rules) if rules.need_image else None
    except Rejected as reason:
        return Reject(draft.key, draft.index, "read", reason.error_class, reason.message)
    return Sample(draft.key, draft.index, image, caption, metadata)


def _contents(member: Member) -> bytes | None:
    if member.problem:
        raise Rejected("file_unreadable", f"{printable(member.name.base)}: {member.problem}")
    if member.data is not None and is_lfs_pointer(member.data):
        name = printable(member.name.base)
        raise Rejected("git_lfs_pointer", f"{name}: a pointer of Git LFS, not the file. {LFS_REMEDY}")
    return member.data


def _metadata(draft: Draft) -> dict[str, Any]:
    member = draft.parts.get(METADATA)
    if member is None:
        return {}
    raw = _contents(member)
    if raw is None:
        raise Rejected("metadata_invalid", f"the .json member is larger than {MAX_METADATA_BYTES} bytes")
    try:
        metadata = json.loads(raw)
    except (ValueError, RecursionError) as problem:
        raise Rejected("metadata_invalid", f"the .json member does not parse: {problem}") from None
    if not isinstance(metadata, dict):
        raise Rejected("metadata_invalid", f"the .json member holds a {type(metadata).__name__}, not an object")
    if _nested_deeper(metadata, raw, MAX_NESTING):
        raise Rejected("metadata_invalid", f"the .json member is nested deeper than {MAX_NESTING}")
    return metadata


def _nested_deeper(value: Any, raw: bytes, limit: int) -> bool:
    """Whether containers are nested deeper than `limit`: JSON that parses may still be too deep to be written."""
    if raw.count(b"{") + raw.count(b"[") <= limit:
        return False
    level = [value]
    for _ in range(limit):
        containers = [x.values() if isinstance(x, dict) else x for x in level if isinstance(x, dict | list)]
        level = [inner for container in containers for inner in container]
    return any(isinstance(x, dict | list) for x in level)


def _caption(draft: Draft, metadata: Mapping[str, Any], rules: SampleRules) -> str:
    member = draft.parts.get(CAPTION)
    if member is not None and rules.txt_counts:
        raw = _contents(member)
        if raw is None:
            raise Rejected("caption_too_large", f"the .txt member is larger than {MAX_CAPTION_BYTES} bytes")
        caption: str | None = decoded_caption(raw).rstrip("\r\n")  # added by editors, not part of the caption
    else:
        caption = first_caption(metadata.get(rules.caption_field))
    if caption is None:
        raise Rejected("caption_missing", _without_caption(draft, metadata, rules))
    if not caption.strip():
        raise Rejected("caption_missing", "the caption is empty")
    return caption


def decoded_caption(raw: bytes) -> str:
    """UTF-8 as text, without a byte order mark."""
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise Rejected("caption_encoding", f"the caption is not UTF-8: {problem.reason} at {problem.start}") from None


def first_caption(value: Any) -> str | None:
    """The caption in a field: its text, or the first that is not blank of a list of texts; None if it is neither."""
    if isinstance(value, list | tuple):
        texts = [text for text in value if isinstance(text, str)]
        return next((text for text in texts if text.strip()), texts[0] if texts else None)
    return value if isinstance(value, str) else None


def _without_caption(draft: Draft, metadata: Mapping[str, Any], rules: SampleRules) -> str:
    if draft.elsewhere:
        return f"no caption; {draft.elsewhere}"
    if METADATA not in draft.parts:
        return "no caption" + f" (no .json with a field {rules.caption_key!r})" * (rules.caption_key is not None)
    return f"no caption: the .json has no text in {rules.caption_field!r}; its fields are {shown(metadata) or 'none'}"


def _image(draft: Draft, rules: SampleRules) -> bytes:
    member = draft.parts.get(IMAGE)
    if member is None:
        raise Rejected("image_missing", _without_image(draft))
    data = _contents(member)
    if data is None:
        raise Rejected("too_many_bytes", f"the image has more than {rules.max_sample_bytes} bytes")
    if not data:
        raise Rejected("image_empty", "the image member holds zero bytes")
    return data


def _without_image(draft: Draft) -> str:
    if draft.elsewhere:
        return f"no image beside the caption; {draft.elsewhere}"
    if draft.beside:
        return f"no image that can be read beside the caption, only {shown(draft.beside)}"
    return "no image beside the caption"


def shown(names: Sequence[str] | Mapping[str, Any]) -> str:
    """The first few names, separated by commas."""
    listed = list(names)
    return ", ".join(listed[:_MOST_SHOWN]) + " …" * (len(listed) > _MOST_SHOWN)
