"""Layouts of .npy files, with or without tables beside them: clip-retrieval's, and two of embedding-reader's.

clip-retrieval (and the LAION releases) number their files, `img_emb/img_emb_0012.npy`, `text_emb/text_emb_0012.npy`,
`metadata/metadata_0012.parquet`: files with the same number belong together. embedding-reader pairs the sorted names of
arrays with the sorted names of tables; so does this module, if their counts are equal.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Sequence

from ... import files
from ...errors import DatasetError
from ..rows import NpyRows
from .base import Foreign, ForeignShard, some, source

_NUMBER = re.compile(r"(\d+)$")
_IMAGE, _TEXT, _TABLE = re.compile(r"ima?ge?s?([^a-z]|$)"), re.compile(r"te?xts?([^a-z]|$)"), re.compile("metadata")
_REMEDY = "Fetch what is missing, or remove what has no partner"


def clip_retrieval(root: str, how: Foreign, names: Sequence[str]) -> list[ForeignShard]:
    """Shards of numbered files: arrays of one or two modalities, and tables."""
    arrays = [name for name in names if name.endswith(".npy")]
    sides = {
        side: _numbered(root, _inside(arrays, folder) if folder else [name for name in arrays if _is(name, pattern)])
        for side, folder, pattern in (("image", how.image, _IMAGE), ("text", how.text, _TEXT))
    }
    tables = _numbered(root, _tables(root, how, names, _TABLE))
    groups = {what: found for what, found in {**sides, "metadata": tables}.items() if found}
    if not groups.keys() - {"metadata"}:
        raise DatasetError(
            f"{root}: no img_emb_N.npy and no text_emb_N.npy in it", "Say which folder holds which side, or the layout"
        )
    every = sorted(set().union(*groups.values()))
    alone = [
        f"{what} has none of number {number} ({_partner(groups, number)} has)"
        for number in every
        for what in groups
        if number not in groups[what]
    ]
    if alone:
        raise DatasetError(f"{root}: files do not pair: {some(alone)}", _REMEDY)
    return [
        ForeignShard(
            name=posixpath.splitext(posixpath.basename(next(iter(groups.values()))[number]))[0],
            sides={side: source(root, found[number], NpyRows) for side, found in sides.items() if found},
            table=files.join(root, tables[number]) if tables else None,
        )
        for number in every
    ]


def _partner(groups: dict[str, dict[int, str]], number: int) -> str:
    return next(found[number] for found in groups.values() if number in found)


def npy(root: str, how: Foreign, names: Sequence[str]) -> list[ForeignShard]:
    """Shards of one array each, sorted by name."""
    side, folder = _one_side(root, how)
    arrays = _inside([name for name in names if name.endswith(".npy")], folder)
    return [ForeignShard(_stem(name), {side or _side(name): source(root, name, NpyRows)}) for name in arrays]


def parquet_npy(root: str, how: Foreign, names: Sequence[str]) -> list[ForeignShard]:
    """Shards of one array and one table each, paired by position in the sorted names."""
    shards, tables = npy(root, how, names), _tables(root, how, names, None)
    if len(shards) != len(tables):
        arrays = [next(iter(shard.sides.values())).path for shard in shards]
        stems = {_stem(name) for name in tables} ^ {_stem(name) for name in arrays}
        alone = sorted(name for name in (*arrays, *tables) if _stem(name) in stems)
        hint = f" (no partner of that name: {some(alone)})" if len(alone) < len(arrays) + len(tables) else ""
        raise DatasetError(f"{root}: {len(arrays)} .npy files, but {len(tables)} .parquet files{hint}", _REMEDY)
    return [
        ForeignShard(shard.name, shard.sides, files.join(root, table))
        for shard, table in zip(shards, tables, strict=True)
    ]


def _one_side(root: str, how: Foreign) -> tuple[str | None, str | None]:
    """(the given modality, or None; its folder, or None for all)."""
    if how.image is not None and how.text is not None:
        raise DatasetError(
            f"{root}: this layout has one side", "Name a folder for image or for text, or clip-retrieval"
        )
    side = "image" if how.image is not None else "text" if how.text is not None else None
    return side, how.image if how.image is not None else how.text


def _tables(root: str, how: Foreign, names: Iterable[str], pattern: re.Pattern[str] | None) -> list[str]:
    """Paths of the tables, absolute if their folder is not below `root`."""
    if how.metadata is not None and not any(name.startswith(f"{how.metadata.rstrip('/')}/") for name in names):
        elsewhere = "://" in how.metadata or how.metadata.startswith("/")
        folder = how.metadata if elsewhere else files.join(root, how.metadata)
        found = [files.join(folder, name) for name in files.walk(folder) if name.endswith(".parquet")]
        if not found:
            raise DatasetError(f"{root}: no .parquet files in the metadata folder {how.metadata}", "Check the path")
        return found
    tables = _inside([name for name in names if name.endswith(".parquet")], how.metadata)
    return [name for name in tables if pattern is None or how.metadata is not None or _is(name, pattern)]


def _inside(names: Iterable[str], folder: str | None) -> list[str]:
    if folder is None or folder.strip("/") in ("", "."):
        return list(names)
    return [name for name in names if name.startswith(f"{folder.strip('/')}/")]


def _is(name: str, pattern: re.Pattern[str]) -> bool:
    """Whether a file, or else its folder, has this name."""
    folder, base = posixpath.split(name)
    return bool(pattern.match(base) or (pattern.search(posixpath.basename(folder)) and not _sided(base)))


def _sided(base: str) -> bool:
    return bool(_IMAGE.match(base) or _TEXT.match(base))


def _side(name: str) -> str:
    return "text" if _is(name, _TEXT) else "image"


def _stem(name: str) -> str:
    return posixpath.splitext(posixpath.basename(name))[0]


def _numbered(root: str, names: Iterable[str]) -> dict[int, str]:
    """Files by the number at the end of their name. Raises DatasetError if two have the same, or one has none."""
    found: dict[int, str] = {}
    for name in names:
        number = _NUMBER.search(_stem(name))
        if number is None:
            raise DatasetError(f"{root}: {name} has no number", "Read it as another layout, such as npy")
        if (other := found.setdefault(int(number[1]), name)) != name:
            raise DatasetError(
                f"{root}: {other} and {name} have the same number", "Open the folders one by one, or name those to read"
            )
    return dict(sorted(found.items()))
