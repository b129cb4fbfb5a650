"""Hidden characters are written out: all of Unicode's, and only those."""

import sys
import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from embedpipe.visible import visible

HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
EVERY = [chr(code) for code in range(sys.maxunicode + 1)]


def test_every_control_and_format_character_is_written_out():
    assert [hex(ord(it)) for it in EVERY if unicodedata.category(it) in HIDDEN and visible(it) == it] == []


def test_what_can_be_seen_stays():
    seen = [it for it in EVERY if unicodedata.category(it)[0] in "LNPS" and visible(it) != it]
    blank = {"\u115f", "\u1160", "\u2800", "\u3164", "\uffa0"}
    assert set(seen) == blank, "they are drawn as nothing"
    text = "Žluťoučký kůň 猫 🐈 naïve é ёж हिन्दी"
    assert visible(text) == text


@given(st.text())
def test_what_was_there_can_be_told(text):
    assert all(unicodedata.category(it) not in HIDDEN for it in visible(text))
    kept = visible(text, one_line=False)
    assert kept.count("\n") == text.count("\n")
    assert visible(visible(text)) == visible(text)


def test_how_they_are_written():
    assert visible("\x1b]52;c;x\x07\x9b2J\u202e\u200b\u2028\U000e0041\n\r\t\ud800") == (
        "\\x1b]52;c;x\\x07\\x9b2J\\u202e\\u200b\\u2028\\U000e0041\\n\\r\\t\\ud800"
    )
    assert visible("a\nb\tc\r", one_line=False) == "a\nb\tc\\r"
