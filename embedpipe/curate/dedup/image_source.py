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
    """reader: of the image shards; None where pictures are not compared. why: for people."""

    reader: Reader | None
    why: str

    @property
    def by(self) -> str:
        """A word for it: pictures or none."""
        return "none" if self.reader is None else "pictures"


def choose_image_source(dataset: EmbeddingDataset, confirm: str, modality: str, images: str | None) -> Choice:
    """What `confirm` (a name in CONFIRM) comes to. images: where the image shards are now, None: where they were.

    auto reads image shards on this machine, or those that `images` names: others may be dear to read. Raises
    InputError when there is nothing at `images`, and when pictures are asked for and not to be had.
    """
    place = images or dataset.run.source
    if confirm == "none":
        return Choice(None, "as asked for")
    if modality == "text":
        if confirm == "pictures":
            raise OptionError("--confirm pictures: texts are compared", "Leave out --modality text")
        return Choice(None, "texts are compared")
    if confirm == "auto" and images is None and not files.is_local(place):
        return Choice(None, f"{place} is not on this machine; --confirm pictures reads it")
    reader = open_source(dataset, images) if place else None
    if reader is not None:
        return Choice(reader, f"image shards of {place}")
    missing = f"there are no image shards at {place or 'a place that is known'}"
    if confirm == "pictures":
        raise InputError(f"--confirm pictures: {missing}", "Say where they are now with --images")
    return Choice(None, f"{missing}; --images says where they are now")
