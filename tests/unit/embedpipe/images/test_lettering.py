"""Text on pictures: every script that the fonts have, no box, nothing wider than its place."""

import subprocess

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from embedpipe.images import lettering
from embedpipe.images.lettering import Lettering, file_of
from embedpipe.images.sheet import SheetCell, contact_sheet

CAPTIONS = {
    "japanese": "赤いりんごが木のテーブルの上にあります",
    "chinese": "一只红色的苹果放在木桌上",
    "korean": "빨간 사과가 나무 탁자 위에 있다",
    "emoji": "red apple 🍎 and 🐶 👍",
    "latin": "a café — “naïve” • 5 € × 3 ß",
    "arabic": "تفاحة حمراء على طاولة",
    "hebrew": "תפוח אדום על שולחן",
    "cyrillic": "Красное яблоко на столе",
    "hindi": "सेब मेज पर है",
}
SMALL = Lettering(12)


def drawn(text, width=400):
    picture = Image.new("RGB", (width, 24), "white")
    SMALL.draw(picture, (0, 0), text, (0, 0, 0))
    return np.asarray(picture.convert("L"))


@pytest.mark.parametrize("caption", CAPTIONS.values(), ids=list(CAPTIONS))
def test_every_letter_of_the_world_is_drawn_as_itself(caption):
    fonts = {letter: file_of(letter) for letter in caption}
    assert None not in fonts.values()
    boxes = {file: lettering._box(file) for file in fonts.values()}
    for letter, file in fonts.items():
        assert letter == " " or bytes(lettering._font(file, lettering._MEASURED_PX).getmask(letter)) != boxes[file]
    assert (drawn(caption) < 128).sum() > 5 * len(caption)


def test_a_letter_that_no_font_has_is_written_out_with_a_note_and_asks_the_system_first(monkeypatch, caplog):
    asked = []
    monkeypatch.setattr(lettering, "_packaged", lambda face: (lettering._OWN,))
    monkeypatch.setattr(lettering, "_ELSEWHERE", ())
    monkeypatch.setattr(lettering.shutil, "which", lambda name: name)
    monkeypatch.setattr(
        subprocess, "run", lambda words, **_: asked.append(words) or subprocess.CompletedProcess(words, 0, "", "")
    )
    lettering.file_of.cache_clear()
    lettering._say_missing.cache_clear()
    try:
        assert np.array_equal(drawn("a日b"), drawn("a\\u65e5b"))
        assert ":charset=65e5:color=false" in asked[0]
        assert "pip install 'embedpipe[cjk]'" in caplog.text
    finally:
        lettering.file_of.cache_clear()


def test_what_runs_leftwards_stands_to_the_right_of_what_comes_after_it():
    apple, big = "תפוח", "big"
    together = [run.text for run in lettering._in_order(lettering._runs(f"{apple} {big}", 12))]
    assert together == [big, " ", apple]
    together = [run.text for run in lettering._in_order(lettering._runs(f"{big} {apple} {big}", 12))]
    assert together == [f"{big} ", apple, f" {big}"]


def test_words_stay_whole_and_what_goes_on_ends_with_an_ellipsis():
    assert SMALL.wrapped("one two three", 1000, 3) == ["one two three"]
    lines = SMALL.wrapped("many words in a row " * 20, 160, 3)
    assert (len(lines), lines[-1][-1]) == (3, "…")
    assert {word for line in lines[:2] for word in line.split()} <= {"many", "words", "in", "a", "row"}


@settings(max_examples=60, deadline=None)
@given(st.text(st.sampled_from("ab .日本어é🍎אبह\U00013000\u0301\ufe0f"), max_size=80), st.integers(1, 3))
def test_nothing_is_wider_than_its_place_nor_lost_unsaid(text, most):
    lines = SMALL.wrapped(text, 160, most)
    assert len(lines) <= most
    assert all(SMALL.width(line) <= 160 for line in lines)
    kept = "".join("".join(lines).split())
    assert kept == "".join(text.split()) or (kept.endswith("…") and "".join(text.split()).startswith(kept[:-1]))


def test_a_sheet_of_captions_that_are_endless_is_one_of_captions_that_are_long():
    begun = "x y " * 1000
    assert contact_sheet([SheetCell(None, begun * 1000)], begun * 1000) == contact_sheet(
        [SheetCell(None, begun)], begun
    )
