"""The source images of a data set's rows, while the image shards still exist."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ...errors import InputError
from ...manifest import MergedPart
from ...read import Reader, SampleRules, open_reader
from ...read.find_images import find_images
from ...types import SourceShard
from ..dataset import EmbeddingDataset
from .guarded_source import given_source, guarded_source


def open_source(dataset: EmbeddingDataset, data: str | None = None, captions: bool = False) -> Reader | None:
    """A reader for the input of `dataset`, at `data` or its recorded location; None if it no longer exists.

    captions: read them with the recorded options; else they are left out. Raises InputError if `data` is given but
    missing.
    """
    run = dataset.run
    if data is not None:
        place = given_source(data, run.source, run.plan)
    else:
        place = guarded_source(dataset.path, run.source, run.plan)
    return _open(place, run.options, data is not None, captions)


def _open(place: str, made: Mapping[str, Any], asked_for: bool, captions: bool = False) -> Reader | None:
    if not place:
        return None  # other tools do not record the location of their images
    rules = SampleRules(
        caption_key=str(made.get("caption_key", "caption")),
        need_caption=captions and bool(made.get("texts", True)),
        image_column=made.get("image_column"),
        key_column=made.get("key_column"),
    )
    try:
        reader = open_reader(place, rules, str(made.get("input", "auto")))
        reader.shards(())
    except InputError:
        if asked_for:
            raise
        return None
    return reader


def source_images(
    dataset: EmbeddingDataset, wanted: Sequence[tuple[str, str]], data: str | None = None
) -> dict[tuple[str, str], bytes]:
    """Encoded image bytes by (source shard, key), from `data` or the recorded location; missing ones are left out.

    Raises InputError if `data` is given but has none.
    """
    if data is None and dataset.run.merged:
        return dict(_of_parts(dataset.path, dataset.run.merged, "", dataset.run.plan, wanted))
    reader = open_source(dataset, data)
    return find_images(reader, dataset.run.plan, wanted) if reader is not None else {}


def _of_parts(
    path: str, parts: Sequence[MergedPart], prefix: str, plan: Sequence[SourceShard], wanted: Sequence[tuple[str, str]]
) -> Iterator[tuple[tuple[str, str], bytes]]:
    """The images of a merged data set, from the recorded location of each of its inputs."""
    for part in parts:
        before = prefix + part.prefix
        if part.merged:
            yield from _of_parts(path, part.merged, before, plan, wanted)
            continue
        mine = [replace(shard, name=shard.name[len(before) :]) for shard in plan if shard.name.startswith(before)]
        reader = _open(guarded_source(path, part.source, mine), part.options, asked_for=False)
        if reader is not None:
            asked = [(name[len(before) :], key) for name, key in wanted if name.startswith(before)]
            found = find_images(reader, mine, asked)
            yield from (((before + name, key), data) for (name, key), data in found.items())
