"""Urls are read as browsers read them; ada, the parser of Node.js, is the independent answer."""

import ada_url
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from embedpipe.fetch.http.url import InvalidUrl, host_of, normalised


def browsers(text):
    """The answer of ada: the url without its fragment, or None if it is no url of http or https."""
    try:
        url = ada_url.URL(text)
    except ValueError:
        return None
    url.hash = ""
    return url.href.removesuffix("#") if url.protocol in ("http:", "https:") else None


def ours(text):
    try:
        return normalised(text)
    except InvalidUrl:
        return None


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("  http://a.de/lead.png", "http://a.de/lead.png"),
        ("http://a.de/trail.png \n", "http://a.de/trail.png"),
        ("http://a.de/nl\r\n.png\t", "http://a.de/nl.png"),
        ("http://a.de/frag.png#section 1", "http://a.de/frag.png"),
        ("http://a.de/in side.png?q=a b", "http://a.de/in%20side.png?q=a%20b"),
        ("http://a.de/käse 日本.png?q=ü", "http://a.de/k%C3%A4se%20%E6%97%A5%E6%9C%AC.png?q=%C3%BC"),
        ("http://a.de/%20%zz%C3", "http://a.de/%20%zz%C3"),
        ("HTTP://Bücher.DE:80", "http://xn--bcher-kva.de/"),
        ("https://faß.de:443/", "https://xn--fa-hia.de/"),
        ("http://日本語。jp/", "http://xn--wgv71a119e.jp/"),
        ("http://💩.la/", "http://xn--ls8h.la/"),
        ("http:\\\\a.de\\b\\..\\c", "http://a.de/c"),
        ("http:a.de/./b/../c//d/%2e%2E/", "http://a.de/c//"),
        ("http://u:p@a.de:8080/", "http://u:p@a.de:8080/"),
        ("http://0x7f.1/", "http://127.0.0.1/"),
        ("http://[::FFFF:1.2.3.4]:81/", "http://[::ffff:102:304]:81/"),
        ("http://a.de?", "http://a.de/?"),
        ("http://a.de/[x]|'\"^`{}<>", "http://a.de/[x]|'%22%5E%60%7B%7D%3C%3E"),
    ],
)
def test_a_url_becomes_what_a_browser_requests(given, expected):
    assert normalised(given) == expected == browsers(given)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("", "no url"),
        (" \n", "no url"),
        ("a/b.jpg", "no scheme"),
        ("//a.de/b.jpg", "no scheme"),
        ("file:///etc/passwd", "scheme 'file'"),
        ("data:image/png;base64,xx", "scheme 'data'"),
        ("http://", "no host"),
        ("http:///", "no host"),
        ("http://a.de:99999/", "port '99999'"),
        ("http://a.de:x/", "port 'x'"),
        ("http://a b.de/", "not a host name"),
        ("http://[1]/", "not an IPv6 address"),
        ("http://1.2.3.4.5/", "not an IPv4 address"),
        ("http://a.de\0/", "not a host name"),
        ("http://%ff.de/", "not UTF-8"),
    ],
)
def test_what_is_no_url_is_said(given, said):
    with pytest.raises(InvalidUrl, match=said):
        normalised(given)
    assert browsers(given) is None


def test_the_host_of_a_url():
    assert host_of(" http://u:p@Bücher.de:81/x") == "xn--bcher-kva.de"
    assert host_of("http://[::1]:81/") == "::1"
    assert host_of("x") is host_of(None) is None


PIECES = ["http", "https", ":", "/", "//", "\\", "?", "#", "@", "[", "]", "%", "%2e", ".", "..", " ", "\t", "\n", "\0"]
PIECES += [
    "a",
    "b.de",
    "A",
    "ü",
    "ß",
    "。",
    "xn--",
    "xn--bcher-kva",
    "日本",
    "0x7f",
    "127",
    "08",
    ":80",
    ":443",
    ":0081",
]
PIECES += [
    "::1",
    "1.2.3.4",
    "💩",
    "\u200d",
    "\u0301",
    "\xad",
    "א",
    "|",
    "^",
    "'",
    '"',
    "<",
    "{",
    "`",
    "&",
    "=",
    "+",
    "~",
    "\x7f",
]
texts = st.lists(st.sampled_from(PIECES), max_size=8).map("".join)
STARTS = st.sampled_from(["", "http://", "https://", "http://a.de/", "http:", " HTTP:\\"])
anything = st.text(st.characters(exclude_categories=["Cs", "Cn"]), max_size=8)


@settings(max_examples=400)
@given(
    st.sampled_from(["", "http://", "https://", "http://a.de/", "http:", " HTTP:\\"]),
    texts | anything,
    texts | anything,
)
@example("http://", "a.xn--", "")
@example("http://", "\u0301a", "/")
def test_any_text_is_read_as_by_another_parser(start, middle, end):
    text = start + middle + end
    assert ours(text) == browsers(text)


@given(texts)
def test_a_normalised_url_is_its_own(text):
    once = ours("http://" + text)
    assert once is None or (normalised(once) == once and once.isascii())
