import itertools

import pytest

from embedpipe.demo.concepts import STYLES, UNSEEN_CONCEPTS, emoji_drawings, list_concepts, split_of


@pytest.fixture(scope="module")
def concepts():
    return list_concepts()


def test_no_emoji_is_lost_to_spelling_of_code_points(concepts):
    # Emoji newer than the packages are few; a tenth would be missing if U+FE0F told two names apart.
    assert len(concepts) > 1890
    codes = {concept.code for concept in concepts}
    assert {"2764", "30-20e3", "1f1ef-1f1f5", "a9", "1f3f3-200d-1f308"} <= codes


def test_each_concept_is_there_once_without_skin_tones(concepts):
    codes = [concept.code for concept in concepts]
    assert len(set(codes)) == len(codes)
    assert not [code for code in codes if "fe0f" in code or "1f3fb" in code.split("-")]


def test_drawings_are_matched_exactly():
    # A look-up that falls back to the nearest name gives a family a single person's picture.
    family = "1f468-200d-1f469-200d-1f467-200d-1f466"
    assert emoji_drawings("flat")[family].name == f"{family}.svg"
    assert emoji_drawings("outlined")[family].name == f"{family.upper()}.svg"


def test_only_countries_are_called_flags(concepts):
    phrases = {concept.code: concept.phrase for concept in concepts}
    assert phrases["1f1ef-1f1f5"] == "the flag of Japan"
    scotland = "1f3f4-e0067-e0062-e0073-e0063-e0074-e007f"
    assert phrases[scotland] == "the flag of Scotland"
    assert phrases["1f3f4-200d-2620"] == "a pirate flag"


def test_held_out_concepts_are_seen_in_the_other_style(concepts):
    pairs = {concept.code: {split_of(concept.code, style) for style in STYLES} for concept in concepts}
    kinds = [frozenset(splits) for splits in pairs.values()]
    assert set(kinds) == {frozenset({"train"}), frozenset({"train", "valid"}), frozenset({"unseen"})}
    unseen = kinds.count(frozenset({"unseen"})) / len(kinds)
    assert unseen == pytest.approx(UNSEEN_CONCEPTS, abs=0.02)


def test_both_styles_are_held_out_about_equally_often(concepts):
    held_out = [
        style for concept, style in itertools.product(concepts, STYLES) if split_of(concept.code, style) == "valid"
    ]
    assert 250 < len(held_out) < 450
    assert 0.4 < held_out.count("flat") / len(held_out) < 0.6


def test_splits_and_order_do_not_drift():
    assert [split_of(code, "flat") for code in ("1f4c5", "1f34d", "1f600")] == ["train", "unseen", "train"]
    assert [concept.code for concept in list_concepts()[:3]] == ["1f4c5", "1f3cb-200d-2642", "1f9c7"]
