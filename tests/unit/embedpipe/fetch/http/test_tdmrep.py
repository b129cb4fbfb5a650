"""Reservations of text and data mining in /.well-known/tdmrep.json."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedpipe.fetch.http.tdmrep import NONE, parse_tdmrep


def reserved(entries, path):
    return parse_tdmrep(json.dumps(entries).encode()).of(path) is not None


@pytest.mark.parametrize(
    ("location", "path", "matches"),
    [
        ("/", "/a.jpg", True),
        ("*", "/a.jpg", True),
        ("/images/", "/images/a.jpg", True),
        ("/images", "/imagesque/a.jpg", True),
        ("/images/", "/other/images/a.jpg", False),
        ("images/", "/images/a.jpg", True),
        ("/*/images/", "/other/images/a.jpg", True),
        ("/*.jpg", "/x/a.jpg?size=1", True),
        ("/*.jpg$", "/x/a.jpg?size=1", False),
        ("/*.jpg$", "/x/a.jpg.jpg", True),
        ("/a$", "/a", True),
        ("/a$", "/ab", False),
        ("/a*b*c", "/a-b-b-c-d", True),
        ("/a*b*c", "/a-c-b", False),
        ("/%C3%BC", "/ü", True),
        ("/ü", "/%c3%bc.jpg", True),
        ("/~joe", "/%7Ejoe/", True),
        ("/A", "/a", False),
    ],
)
def test_locations(location, path, matches):
    assert reserved([{"location": location, "tdm-reservation": 1}], path) is matches


def test_the_most_specific_location_counts_whatever_its_place():
    entries = [
        {"location": "/", "tdm-reservation": 1},
        {"location": "/free/", "tdm-reservation": 0},
        {"location": "/free/not/", "tdm-reservation": "1"},
    ]
    for order in (entries, entries[::-1]):
        assert [reserved(order, path) for path in ("/x", "/free/x", "/free/not/x")] == [True, False, True]
    draw = [{"location": "/a", "tdm-reservation": 1}, {"location": "/a", "tdm-reservation": 0}]
    assert reserved(draw, "/a")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<!doctype html>",
        b"{",
        b"null",
        b"[1, [], null]",
        b'[{"location": 3, "tdm-reservation": 1}]',
        b'[{"location": "/"}]',
        b'[{"location": "/", "tdm-reservation": true}]',
        b'[{"location": "/", "tdm-reservation": 2}]',
        b"\xff\xfe",
        b"[" * 100_000,
        json.dumps([{"location": "/" + "*a" * 100, "tdm-reservation": 1}]).encode(),
    ],
)
def test_what_is_malformed_says_nothing(data):
    assert parse_tdmrep(data).rules == NONE.rules


def test_entries_beside_a_malformed_one_count():
    assert reserved([None, {"location": "/", "tdm-reservation": 1}], "/a")
    assert reserved({"location": "/", "tdm-reservation": 1}, "/a")  # a single one without its brackets


def test_many_stars_take_no_time():
    rules = parse_tdmrep(json.dumps([{"location": "/" + "*a" * 19 + "$", "tdm-reservation": 1}] * 20).encode())
    begun = time.monotonic()
    assert rules.of("/" + "a" * 5_000 + "b") is None
    assert time.monotonic() - begun < 30  # trying every way to share out the letters would take for ever


@given(st.binary(max_size=200), st.text(max_size=30))
def test_nothing_raises(data, path):
    parse_tdmrep(data).of(path)
