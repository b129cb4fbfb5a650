"""Which urls are not asked for."""

import pytest

from embedpipe.fetch.guard import refusal


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
