"""What the headers of an answer forbid."""

from email.message import Message

import pytest

from embedpipe.fetch.http.optout_headers import forbidden_by


def headers(*pairs):
    message = Message()
    for name, value in pairs:
        message[name] = value
    return message


@pytest.mark.parametrize(
    "value",
    [
        "noai",
        "NoAI",
        "noimageai",
        "noml",
        "noindex",
        "noimageindex",
        "none",
        "nofollow, noai",
        "noai, max-image-preview: none",
        "max-snippet: 5, noai",
        "unavailable_after: 25 Jun 2010 15:00:00 PST, noindex",
        "unavailable_after: Friday, 25-Jun-10 15:00:00 UTC, noindex",
        "embedpipe: noindex",
        "EmbedPipe: nofollow, noai",
        "embedpipe/0.1: noai",
        "*: noai",
        "otherbot: nofollow, embedpipe: noai",
        " noai ",
    ],
)
def test_forbidding(value):
    assert forbidden_by(headers(("x-robots-tag", value))).startswith("X-Robots-Tag: no")


@pytest.mark.parametrize(
    "value",
    [
        "",
        "all",
        "nofollow",
        "index, follow",
        "max-snippet: 5",
        "max-image-preview: none",
        "unavailable_after: 25 Jun 2010 15:00:00 PST",
        "unavailable_after: Friday, 25-Jun-10 15:00:00 UTC",
        "otherbot: noindex, noai",
        "otherbot: unavailable_after: 25 Jun 2010 15:00:00 PST, noindex",
        "Google Bot: noindex",
        "noaiplease",
        ":",
        ",,:,",
    ],
)
def test_not_forbidding(value):
    assert forbidden_by(headers(("X-Robots-Tag", value))) is None


def test_each_header_begins_anew():
    assert (
        forbidden_by(headers(("X-Robots-Tag", "otherbot: noindex"), ("X-Robots-Tag", "noml"))) == "X-Robots-Tag: noml"
    )
    assert forbidden_by(headers(("X-Robots-Tag", "embedpipe: nofollow"), ("X-Robots-Tag", "otherbot: noai"))) is None


def test_text_and_data_mining_reservation():
    assert forbidden_by(headers(("TDM-Reservation", " 1 "))) == "tdm-reservation: 1"
    assert forbidden_by(headers(("tdm-reservation", "0"))) is None
    assert forbidden_by(headers()) is None
