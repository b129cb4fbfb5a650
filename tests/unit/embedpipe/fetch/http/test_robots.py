"""robots.txt as RFC 9309 has it."""

import time

import pytest

from embedpipe.fetch.http.robots import parse_robots


@pytest.mark.parametrize(
    ("text", "path", "allowed"),
    [
        ("", "/a", True),
        ("User-agent: *\nDisallow: /", "/a", False),
        ("User-agent: *\nDisallow:", "/a", True),
        ("user-agent: *\ndisallow: /private/", "/private/a.jpg", False),
        ("User-agent: *\nDisallow: /private/", "/public/private/", True),
        ("User-agent: otherbot\nDisallow: /", "/a", True),
        ("User-agent: EmbedPipe\nDisallow: /", "/a", False),
        ("User-agent: embedpipe/1.0\nDisallow: /", "/a", False),
        # Our own group alone counts once there is one.
        ("User-agent: *\nDisallow: /\n\nUser-agent: embedpipe\nDisallow: /x", "/a", True),
        ("User-agent: embedpipe\nDisallow: /x\nUser-agent: *\nDisallow: /", "/x", False),
        # Several agents share a group; groups of one agent are one.
        ("User-agent: a\nUser-agent: embedpipe\nDisallow: /x", "/x", False),
        ("User-agent: embedpipe\nDisallow: /x\n\nUser-agent: embedpipe\nDisallow: /y", "/y", False),
        # The longest rule wins, and allowing wins a draw.
        ("User-agent: *\nDisallow: /a\nAllow: /a/b", "/a/b/c", True),
        ("User-agent: *\nAllow: /a\nDisallow: /a/b", "/a/b/c", False),
        ("User-agent: *\nDisallow: /a\nAllow: /a", "/a", True),
        # Stars, ends, escapes, comments, other lines.
        ("User-agent: *\nDisallow: /*.gif$", "/x/y.gif", False),
        ("User-agent: *\nDisallow: /*.gif$", "/x/y.gif?z", True),
        ("User-agent: *\nDisallow: /a*b*c", "/a-b-b-c-d", False),
        ("User-agent: *\nDisallow: /a*b*c", "/a-c-b", True),
        ("User-agent: *\nDisallow: /a*a$", "/a", True),
        ("User-agent: *\nDisallow: /exact$", "/exact", False),
        ("User-agent: *\nDisallow: /exact$", "/exactly", True),
        ("User-agent: *\nDisallow: *", "/a", False),
        ("User-agent: *\nDisallow: /%7ejoe", "/~joe", False),
        ("User-agent: *\nDisallow: /~joe", "/%7Ejoe/", False),
        ("User-agent: *\nDisallow: /ü", "/%c3%bc", False),
        ("User-agent: * # everyone\nCrawl-delay: 5\nDisallow: /a # not this", "/a", False),
        ("Sitemap: https://e.org/s.xml\nnonsense\nUser-agent: *\n\nDisallow: /a", "/a", False),
        ("Disallow: /a\nUser-agent: *\n", "/a", True),
    ],
)
def test_rules(text, path, allowed):
    assert parse_robots(text, "embedpipe").allow(path) is allowed


def test_many_stars_take_no_time():
    rules = parse_robots("User-agent: *\nDisallow: /" + "*a" * 2_000 + "$", "embedpipe")
    begun = time.monotonic()
    assert rules.allow("/" + "a" * 1_999)
    assert not rules.allow("/" + "a" * 2_000)
    assert time.monotonic() - begun < 30  # trying every way to share out the letters would take for ever
