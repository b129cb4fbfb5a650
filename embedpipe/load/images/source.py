"""The source images of a data set's rows, while the image shards still exist."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ...consent import gave_source
from ...errors import EmptyInput, InputError
from ...read import LocalPaths, Reader, SampleRules, open_reader
from ...read.delimited import DialectOptions
from ...read.find_images import find_images
from ...read.names import FIRST_READING
from ...renamed import renamed_keyword
from ..dataset import EmbeddingDataset
from .guarded_source import given_source, guarded_source
from .parts import PartPlace, PartsReader, SourcePart, locate_shards, parts_of

Images = str | Sequence[str] | None
"""Where image shards are now: a place or several; None for where they were."""


def places_of(images: Images) -> tuple[str, ...]:
    """The given places; none for where they were."""
    return (images,) if isinstance(images, str) else tuple(images or ())


def sources_of(dataset: EmbeddingDataset) -> tuple[str, ...]:
    """The recorded locations of the image shards, one for each data set that was merged; without unknown ones."""
    return tuple(dict.fromkeys(part.source for part in parts_of(dataset.run) if part.source))


@renamed_keyword(data="images")
def open_source(dataset: EmbeddingDataset, images: Images = None, captions: bool = False) -> Reader | None:
    """A reader for the input of `dataset`, at `images` or its recorded location; None if it no longer exists.

    images: a place, or several: those of merged data sets in any order, or the parts of a divided folder; what is in
    none of them is looked for where it was. captions: read them with the recorded options; else they are left out.
    Raises InputError if a given place is missing, or has no shard of the data set although there are several.
    """
    parts, given = parts_of(dataset.run), places_of(images)
    for location in given:
        for part in parts:
            given_source(location, part.source, part.own_names(dataset.run.plan))
    if len(parts) == 1 and len(given) <= 1:
        place = given[0] if given else _guarded(dataset, parts[0])
        return open_recorded(place, _options_of(dataset, parts[0]), bool(given), captions)
    places = tuple(_given_places(dataset, parts, given, captions))
    recorded = (
        PartPlace(part, reader, part.source)
        for part in parts
        if (reader := open_recorded(_guarded(dataset, part), _options_of(dataset, part), False, captions)) is not None
    )
    held = locate_shards(dataset.run.plan, places, recorded)
    used = {found.place.location for found in held.values()}
    for location in given:
        if location not in used:
            raise InputError(f"{location}: has no input shard of {dataset.path}", "Give the folders that were encoded")
    return PartsReader(held) if held else None


def _guarded(dataset: EmbeddingDataset, part: SourcePart) -> str:
    return guarded_source(dataset.path, part.source, part.own_names(dataset.run.plan))


def _options_of(dataset: EmbeddingDataset, part: SourcePart) -> Mapping[str, Any]:
    """The options of a part. Local paths of a table that this user did not encode lead no further than its folder."""
    if "local_root" not in part.options or gave_source(part.source, part.own_names(dataset.run.plan)):
        return part.options
    return {**part.options, "within_table": True}


def _given_places(
    dataset: EmbeddingDataset, parts: Sequence[SourcePart], given: Sequence[str], captions: bool
) -> Iterator[PartPlace]:
    """Each given place, read as each part was; not where it holds nothing that can be read so."""
    for turn, part in enumerate(parts):
        for number, location in enumerate(given):
            with contextlib.suppress(EmptyInput):
                reader = open_recorded(location, _options_of(dataset, part), True, captions)
                if reader is not None:
                    yield PartPlace(part, reader, location, number, turn)


def open_recorded(place: str, made: Mapping[str, Any], asked_for: bool, captions: bool = False) -> Reader | None:
    """A reader for `place` with the options `made` of a data set; None if it no longer exists, but see `asked_for`.

    Raises InputError if it is missing although it was `asked_for`.
    """
    if not place:
        return None  # other tools do not record the location of their images
    rules = SampleRules(
        caption_key=made.get("caption_key"),
        need_caption=captions and bool(made.get("texts", True)),
        image_column=made.get("image_column"),
        key_column=made.get("key_column"),
        image_member=made.get("image_member"),
        caption_member=made.get("caption_member"),
        reading=made.get("reading", FIRST_READING),
    )
    dialect = DialectOptions(made.get("quoting", "auto"), made.get("delimiter"), made.get("encoding"))
    root = made.get("local_root")
    paths = None if root is None else LocalPaths(str(root), made.get("file_column"), dialect, "within_table" in made)
    try:
        reader = open_reader(place, rules, str(made.get("input", "auto")), paths=paths)
        reader.shards(())
    except InputError:
        if asked_for:
            raise
        return None
    return reader


@renamed_keyword(data="images")
def source_images(
    dataset: EmbeddingDataset, wanted: Sequence[tuple[str, str]], images: Images = None
) -> dict[tuple[str, str], bytes]:
    """Encoded image bytes by (source shard, key), from `images` or the recorded location; missing ones are left out.

    Raises InputError if `images` is given but has none.
    """
    reader = open_source(dataset, images)
    return find_images(reader, dataset.run.plan, wanted) if reader is not None else {}
