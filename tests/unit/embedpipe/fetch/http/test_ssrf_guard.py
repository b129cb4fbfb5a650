"""Which urls are not asked for."""

import pytest

from embedpipe.errors import OptionError
from embedpipe.fetch.config import FetchConfig
from embedpipe.fetch.http.ssrf_guard import host_and_port, refusal, usable
from embedpipe.fetch.outcome import Failure, NotFetched


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org/a.jpg",
        "https://example.org:8443/a.jpg?x=1,2",
        "http://8.8.8.8/a.jpg",
        "http://[2606:4700:4700::1111]/",
        "http://1.2.3.4.example.org/",
        "http://localhost.example.org/",
        "http://bücher.example/ä.jpg",
    ],
)
def test_public_urls_pass(url):
    assert refusal(url) is None


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST.",
        "a.localhost",
        "127.0.0.1",
        "127.1",
        "2130706433",
        "0x7f.1",
        "0177.0.0.1",
        "0.0.0.0",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.0.1",
        "169.254.169.254",
        "100.64.0.1",
        "[::1]",
        "[fe80::1%25eth0]",
        "[fd00::1]",
        "[::ffff:10.0.0.1]",
    ],
)
def test_internal_hosts_are_refused_in_every_spelling(host):
    failure = refusal(f"http://{host}/a.jpg")
    assert failure is not None
    assert failure.error_class == "refused_address"


@pytest.mark.parametrize(
    "url",
    [
        None,
        "",
        "  ",
        "file:///etc/passwd",
        "ftp://example.org/a.jpg",
        "data:image/png;base64,AAAA",
        "example.org/a.jpg",
        "http://",
        "http:///a.jpg",
        "http://[::1",
        "http://example.org:port/",
        "http://example.org/a b.jpg",
        "http://example.org/\r\nX: y",
    ],
)
def test_what_is_no_http_url_is_invalid(url):
    failure = refusal(url)
    assert failure is not None
    assert failure.error_class == "invalid_url"


def test_an_allowed_host_passes_and_only_that_one():
    assert refusal("http://127.0.0.1:8000/a.jpg", ("127.0.0.1",)) is None
    assert refusal("http://127.0.0.2/a.jpg", ("127.0.0.1",)) is not None


def test_an_allowed_host_may_be_of_one_port():
    assert refusal("http://localhost:8000/a.jpg", ("localhost:8000",)) is None
    assert refusal("http://localhost:8001/a.jpg", ("localhost:8000",)) is not None
    for scheme, port in (("http", 80), ("https", 443)):
        assert refusal(f"{scheme}://localhost/a.jpg", (f"localhost:{port}",)) is None
        assert refusal(f"{scheme}://localhost/a.jpg", (f"localhost:{port + 1}",)) is not None


def test_of_the_addresses_of_a_name_the_public_ones_are_used():
    assert usable("images.example", 80, ["10.0.0.1", "8.8.8.8", "127.0.0.1"]) == ["8.8.8.8"]
    found = ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"]
    with pytest.raises(NotFetched) as refused:
        usable("images.example", 80, found)
    assert refused.value.failure == Failure(
        "refused_address",
        "images.example resolves to 10.0.0.1, 10.0.0.2, 10.0.0.3: not a public address (see `allow_hosts`)",
    )
    assert usable("images.example", 80, found, ("images.example:80",)) == found
    with pytest.raises(NotFetched):
        usable("images.example", 81, found, ("images.example:80",))


@pytest.mark.parametrize(
    ("entry", "host", "port"),
    [
        ("Images.Example.", "images.example", None),
        ("images.example:8000", "images.example", 8000),
        ("10.0.0.1", "10.0.0.1", None),
        ("10.0.0.1:80", "10.0.0.1", 80),
        ("::1", "::1", None),
        ("0:0:0:0:0:0:0:1", "::1", None),
        ("[::1]", "::1", None),
        ("[::1]:8000", "::1", 8000),
    ],
)
def test_a_host_may_come_with_a_port(entry, host, port):
    assert host_and_port(entry) == (host, port)


@pytest.mark.parametrize(
    "entry",
    [
        "",
        ":80",
        "http://internal/",
        "https://internal",
        "internal/",
        "internal/images",
        "internal?a=1",
        "internal#a",
        "user@internal",
        "@internal",
        "user:password@internal:80",
        "internal:port",
        "internal:65536",
        "[::1",
    ],
)
def test_what_is_no_host_is_not_allowed_as_one(entry):
    with pytest.raises(ValueError, match=r"is no host|Port|IPv6"):
        host_and_port(entry)
    with pytest.raises(OptionError) as refused:
        FetchConfig(allow_hosts=("example.org", entry))
    assert str(refused.value).startswith(f"`allow_hosts={entry}`: ")
    assert refused.value.remedy == "Give HOST or HOST:PORT, without http://"
