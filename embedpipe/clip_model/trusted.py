"""Whether a model that only data names may be loaded: open_clip's own, or one that this user gave before."""

from __future__ import annotations

from pathlib import Path

from .. import consent
from ..consent import HUB
from ..errors import UntrustedModel
from . import open_clip_tables
from .encoder_card import EncoderCard
from .name import is_there
from .spec import RANDOM


def require_trusted(model: str, pretrained: str, named_by: str) -> None:
    """Raise UntrustedModel unless a model may be loaded although only `named_by`, a data set or run, names it.

    open_clip's names with its tags always may: the library knows what they are. A folder, a checkpoint file or a
    repository of the hub may if this user encoded or trained with it on this machine, or consents. Nothing is opened.
    """
    for thing in _foreign(model, pretrained):
        require_consent(thing, named_by)


def require_consent(model: str, named_by: str) -> None:
    """Raise UntrustedModel unless this user gave `model` (a path or hf-hub:ORG/NAME) before, or consents now."""
    if not consent.consents(model, named_by):
        raise UntrustedModel(
            f"{named_by}: names the model {model}, which was not used on this machine before, so it is not loaded",
            f"If you trust it, say so once with `embedpipe.trust_model({model!r})`, or give yours with `model`",
        )


def trust_card(card: EncoderCard) -> None:
    """Remember that this user gave the model of a card."""
    for thing in _foreign(card.model, card.pretrained):
        consent.trust_model(thing)


def _foreign(model: str, pretrained: str) -> list[str]:
    """What would be opened or asked for besides open_clip's own models; paths that do not exist are left out."""
    if model.startswith(HUB):
        return [model]
    path = model.removeprefix("local-dir:")
    if path != model or is_there(path) or Path(path).is_absolute():
        return [path] if is_there(path) else []
    name = open_clip_tables.known_name(model)
    if name is None or pretrained in ("", RANDOM) or open_clip_tables.tag_of(name, pretrained) is not None:
        return []
    return [pretrained] if is_there(pretrained) else []
