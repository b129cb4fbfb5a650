"""Take the name of a member apart: which sample it belongs to, and what it is of that sample.

`cats/01.jpg`, `cats/01.txt` and `cats/01.json` belong to the key `cats/01`. In a tar a key ends at the first dot of the
file name, as in webdataset; names of loose files may contain dots (`Dr. No.jpg`), so their keys end at the last one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..images.formats import IMAGE_EXTENSIONS, REFUSED_EXTENSIONS, format_of, why_not_read

IMAGE, CAPTION, METADATA = "image", "caption", "metadata"
# What versions before the rules of `READING` took for an image, and takes precedence among several images of a sample.
CLASSIC_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
FIRST_READING, READING = 1, 2

_OTHERS = {"txt": CAPTION, "json": METADATA}
_KINDS = {
    FIRST_READING: {**dict.fromkeys(CLASSIC_EXTENSIONS, IMAGE), **_OTHERS},
    READING: {**dict.fromkeys((*IMAGE_EXTENSIONS, *REFUSED_EXTENSIONS), IMAGE), **_OTHERS},
}
# Not opened to see what they are: no images, or (raw photographs) TIFFs that show a thumbnail to whoever decodes them.
_DATA = """
npy npz pt pth ckpt safetensors onnx pkl pyd cls cbor msgpack h5 db sqlite csv tsv jsonl parquet arrow md rst html htm
xml yaml yml toml ini cfg log py sh ipynb zip gz tgz tar bz2 xz zst 7z rar pdf ps eps doc docx mp4 mkv webm mov avi mp3
wav flac ogg m4a ttf otf woff lock cr2 cr3 nef arw dng orf rw2 pef sr2 raf
"""
_NO_IMAGES = frozenset(_DATA.split())
# Too short or too common a beginning to tell an image without a name for it.
_NEED_A_NAME = ("PPM", "ICO")
_CLASSIC, _OTHER, _PART_OF_NAME, _REFUSED = range(4)
_EXTENSION = re.compile(r"[a-z][a-z0-9]{0,7}")
# What bytes that are not UTF-8 are spelled like, and what spells a backslash that would read like one of them.
_LIKE_A_BYTE = re.compile(r"\\(?=x(?:5c|[89a-f][0-9a-f]))")
_PART = re.compile(r"[A-Za-z_][\w-]*(?:\.[A-Za-z_][\w-]*)*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Name:
    """One member's name, taken apart.

    key: up to the first dot (in a folder: as stem). part: `seg` of `000.seg.png`, else empty. stem: up to the last dot.
    kind: IMAGE, CAPTION or METADATA; None if its content decides. passed: why it belongs to no sample. rank: of several
    images of one sample, the lowest is taken.
    """

    path: str
    key: str
    part: str
    stem: str
    kind: str | None
    passed: str | None = None
    rank: int = _OTHER

    @property
    def named_part(self) -> bool:
        """Whether the part is a name (`seg`), as in webdataset, and not a piece of a file name (`0` of `IMG_1.0`)."""
        return bool(_PART.fullmatch(self.part))

    @property
    def base(self) -> str:
        """The file name, without folders."""
        return self.path.rpartition("/")[2]

    def kind_by(self, start: bytes) -> str | None:
        """The kind of a member whose content decides, by its first bytes; None if it belongs to no sample."""
        return IMAGE if _is_image(start) else None

    def unknown(self) -> str:
        """The reason to pass it over if its content is no image."""
        extension = self.base.rpartition(".")[2].lower() if "." in self.base.rstrip(".") else ""
        return f"unknown_type .{printable(extension)[:16]}" if extension else "no_extension"


@dataclass(frozen=True, slots=True)
class Naming:
    """The rule for the names of one kind of input.

    first_dot: keys end at the first dot (tars). reading: the version of the rules. image_member, caption_member: what
    follows the first dot of the image's and of the caption's name; None for any.
    """

    first_dot: bool
    reading: int = READING
    image_member: str | None = None
    caption_member: str | None = None

    def __call__(self, path: str) -> Name:
        """`path`, taken apart."""
        folder, slash, base = path.rpartition("/")
        stem, _, ending = base.rpartition(".") if "." in base else (base, "", "")
        first, _, rest = base.partition(".") if self.first_dot else (stem, "", ending)
        extension, lead = ending.lower(), f"{folder}{slash}"
        part = "" if rest == ending else rest[: len(rest) - len(ending) - 1] or "."
        rank = _CLASSIC if extension in CLASSIC_EXTENSIONS else _REFUSED if extension in REFUSED_EXTENSIONS else _OTHER
        kind = _KINDS[self.reading].get(extension)
        name = Name(path, lead + first, part, lead + stem, kind, rank=_PART_OF_NAME if part else rank)
        if base.startswith(".") or not base:
            return _passed(name, "hidden")
        if self.reading == FIRST_READING:
            return name if kind and not part else _passed(name, name.unknown())
        if "__MACOSX" in folder.split("/"):
            return _passed(name, "macosx")
        if self.image_member or self.caption_member:
            name = self._asked_for(name, rest.lower())
        if name.kind is None and name.passed is None:
            if extension in _NO_IMAGES:
                return _passed(name, name.unknown())
            if not _EXTENSION.fullmatch(extension):  # `photo.1`: no extension at all
                return Name(path, path.rstrip("."), "", path.rstrip("."), None)
        return name

    def _asked_for(self, name: Name, rest: str) -> Name:
        for kind, member in ((IMAGE, self.image_member), (CAPTION, self.caption_member)):
            if member is None:
                continue
            if rest == member.lower().lstrip("."):
                return Name(name.path, name.key, "", name.key, kind, rank=_CLASSIC)
            if name.kind == kind or (kind == IMAGE and name.kind is None):
                return _passed(name, "not_named")
        return name


def _passed(name: Name, reason: str) -> Name:
    return Name(name.path, name.key, name.part, name.stem, None, reason)


def _is_image(start: bytes) -> bool:
    found = format_of(start)
    if found is not None:
        return found not in _NEED_A_NAME
    return (why_not_read(start) or "").startswith(("SVG", "JPEG XL", "Photoshop"))


def printable(path: str) -> str:
    """`path` with bytes that are not UTF-8 spelled out (`\\xff`), to be stored; no two paths become equal."""
    if "\\x" in path:
        path = _LIKE_A_BYTE.sub(r"\\x5c", path)
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
