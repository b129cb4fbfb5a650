"""Choose whether images are compared, and which image shards to read."""

from __future__ import annotations

from dataclasses import dataclass

from ... import files
from ...errors import InputError, OptionError
from ...load import EmbeddingDataset
from ...load.images.source import open_source
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


def choose_image_source(dataset: EmbeddingDataset, confirm: str, modality: str, images: str | None) -> Choice:
    """Resolve `confirm` (a name in CONFIRM). images: the current location of the image shards, None: the recorded one.

    auto reads image shards on this machine, or those at `images`: remote ones may be expensive. Raises InputError if
    there is nothing at `images`, or if image comparison is requested without image shards.
    """
    place = images or dataset.run.source
    if confirm == "none":
        return Choice(None, "`confirm='none'`")
    if modality == "text":
        if confirm == "pictures":
            raise OptionError("`confirm='pictures'`: texts are compared", "Drop `modality='text'`")
        return Choice(None, "texts are compared")
    if confirm == "auto" and images is None and not files.is_local(place):
        return Choice(None, f"{place} is not on this machine; `confirm='pictures'` reads it all the same")
    reader = open_source(dataset, images) if place else None
    if reader is not None:
        return Choice(reader, f"image shards of {place}")
    missing = f"no image shards at {place}" if place else "no image shards are known"
    if confirm == "pictures":
        raise InputError(f"`confirm='pictures'`: {missing}", "Give their folder with `images`")
    return Choice(None, f"{missing}; give their folder with `images`")
