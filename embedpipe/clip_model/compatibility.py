"""Compatibility of two model cards, including cards from version 0.1, which recorded fewer fields."""

from __future__ import annotations

from ..errors import RunMismatch
from . import open_clip_tables
from .encoder_card import BEFORE_ACTIVATION, OPEN_CLIP_RULES, EncoderCard, Likeness, rules_in_words
from .spec import has_quick_gelu


def same_encoder(one: tuple[str, EncoderCard], other: tuple[str, EncoderCard], trust_old_card: bool = False) -> bool:
    """Whether two cards, each with the name of its owner, describe the same encoder.

    If one was written by version 0.1 and every field that it records agrees, the user must confirm: raises RunMismatch
    unless `trust_old_card`. Also raises it if both were and their model names imply different activations.
    """
    likeness = one[1].compare(other[1])
    if likeness is Likeness.SAME:
        _refuse_other_names(one, other)
    if likeness is Likeness.UNRECORDED and not trust_old_card:
        (where, old), (_, new) = (one, other) if one[1].dated else (other, one)
        differs = _activations_that_differ(old, new) + _pictures_that_differ(new)
        raise RunMismatch(
            f"{where}: {BEFORE_ACTIVATION}; all else agrees with the encoder of {new.model} {new.pretrained}".rstrip()
            + differs,
            "Encode it again, or give `trust_old_card=True` to mix them anyway"
            if differs
            else "If it is the same encoder, give `trust_old_card=True`",
        )
    return likeness is not Likeness.OTHER


def _refuse_other_names(one: tuple[str, EncoderCard], other: tuple[str, EncoderCard]) -> None:
    """Raise RunMismatch for two version 0.1 cards whose models were computed with different activations."""
    (where, first), (_, second) = one, other
    then, also = activation_of_version_0_1(first), activation_of_version_0_1(second)
    if first.dated and second.dated and None not in (then, also) and then != also and has_quick_gelu(first.model):
        raise RunMismatch(
            f"{where}: {BEFORE_ACTIVATION}; version 0.1 computed {first.model} with {activation_word(bool(then))}, and "
            f"{second.model} with {activation_word(bool(also))}",
            "Give the model by the name that it was made with, or encode again",
        )


def activation_of_version_0_1(card: EncoderCard) -> bool | None:
    """Whether version 0.1 computed QuickGELU: decided by the model's name for all tags; None for an unknown name."""
    name = open_clip_tables.known_name(card.model)
    return None if name is None else bool(open_clip_tables.model_configs()[name].get("quick_gelu", False))


def computes_quick_gelu(card: EncoderCard) -> bool | None:
    """Whether any tower of a card's model uses QuickGELU; None if not recorded."""
    if card.image_tower is None or card.text_tower is None:
        return None
    return any("quick_gelu" in tower.activation.split("+") for tower in (card.image_tower, card.text_tower))


def _activations_that_differ(old: EncoderCard, new: EncoderCard) -> str:
    then, now = activation_of_version_0_1(old), computes_quick_gelu(new)
    if then is None or now is None or then == now or not has_quick_gelu(old.model):
        return ""
    before, after = activation_word(then), activation_word(now)
    return f", but version 0.1 computed {old.model} with {before}, and that one computes {after}"


def _pictures_that_differ(new: EncoderCard) -> str:
    if new.rules == OPEN_CLIP_RULES:
        return ""
    then, now = rules_in_words(OPEN_CLIP_RULES), rules_in_words(new.rules)
    return f", but version 0.1 decoded images with {then}, and that one with {now}"


def activation_word(quick_gelu: bool) -> str:
    """QuickGELU or GELU."""
    return "QuickGELU" if quick_gelu else "GELU"
