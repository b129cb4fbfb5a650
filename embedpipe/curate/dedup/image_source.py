"""Choose whether images are compared, and which image shards to read."""

from __future__ import annotations

from dataclasses import dataclass

from ... import files
from ...errors import InputError, OptionError
from ...load import EmbeddingDataset
from ...load.images.parts import PartsReader
from ...load.images.source import Images, open_source, places_of, sources_of
from ...plural import plural
from ...read import Reader

CONFIRM = ("auto", "none", "pictures")


@dataclass(frozen=True, slots=True)
class Choice:
    """reader: of the image shards; None if images are not compared. why: a reason to display."""

    reader: Reader | None
    why: str

    @property
    def by(self) -> str:
        """The choice as one word: pictures or none."""
        return "none" if self.reader is None else "pictures"


def choose_image_source(dataset: EmbeddingDataset, confirm: str, modality: str, images: Images) -> Choice:
    """Resolve `confirm` (a name in CONFIRM). images: where the image shards are now, None: where they were.

    auto reads image shards on this machine, or those at `images`: remote ones may be expensive. Raises InputError if
    there is nothing at `images`, or if image comparison is requested without image shards.
    """
    given, recorded = places_of(images), sources_of(dataset)
    place = ", ".join(given or recorded)
    if confirm == "none":
        return Choice(None, "`confirm='none'`")
    if modality == "text":
        if confirm == "pictures":
            raise OptionError("`confirm='pictures'`: texts are compared", "Drop `modality='text'`")
        return Choice(None, "texts are compared")
    remote = [source for source in recorded if not files.is_local(source)]
    if confirm == "auto" and not given and remote:
        return Choice(None, f"{', '.join(remote)} is not on this machine; `confirm='pictures'` reads it all the same")
    reader = open_source(dataset, images) if place else None
    if reader is not None:
        return Choice(reader, _said(dataset, reader, place))
    missing = f"no image shards at {place}" if place else "no image shards are known"
    if confirm == "pictures":
        raise InputError(f"`confirm='pictures'`: {missing}", "Give their folder with `images`")
    return Choice(None, f"{missing}; give their folder with `images`")


def _said(dataset: EmbeddingDataset, reader: Reader, place: str) -> str:
    """Which image shards are read, and how many are missing."""
    if not isinstance(reader, PartsReader):
        return f"image shards of {place}"
    missing = len(dataset.run.plan) - len(reader.held)
    lost = f"; {missing} of {plural(len(dataset.run.plan), 'shard')} not found: cosines decide there" if missing else ""
    return f"image shards of {', '.join(reader.locations())}{lost}"
