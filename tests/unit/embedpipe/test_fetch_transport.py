"""What goes over the wire, and how what comes back is classed."""

import http.client
import socket
import ssl
import urllib.error

import pytest

from embedpipe.fetch import outcome
from embedpipe.fetch.transport import in_ascii


@pytest.mark.parametrize(
    ("url", "wire"),
    [
        ("http://e.org/a,b.jpg?x=%20&y=1#z", "http://e.org/a,b.jpg?x=%20&y=1#z"),
        ("http://e.org/ä%20b.jpg?q=ü&r=1", "http://e.org/%C3%A4%20b.jpg?q=%C3%BC&r=1"),
        ("https://bücher.example:8443/a", "https://xn--bcher-kva.example:8443/a"),
    ],
)
def test_letters_beyond_ascii_are_encoded_and_nothing_twice(url, wire):
    assert in_ascii(url) == wire


@pytest.mark.parametrize(
    ("problem", "error_class"),
    [
        (TimeoutError("timed out"), "timeout"),
        (urllib.error.URLError(TimeoutError("timed out")), "timeout"),
        (urllib.error.URLError(socket.gaierror(-2, "unknown")), "dns"),
        (urllib.error.URLError(ConnectionRefusedError(111, "refused")), "connection"),
        (urllib.error.URLError(ssl.SSLCertVerificationError("expired")), "tls"),
        (urllib.error.HTTPError("u", 410, "Gone", http.client.HTTPMessage(), None), "http_404"),
        (urllib.error.HTTPError("u", 503, "Later", http.client.HTTPMessage(), None), "http_5xx"),
        (urllib.error.HTTPError("u", 302, "loop", http.client.HTTPMessage(), None), "redirect"),
        (http.client.IncompleteRead(b"half"), "connection"),
        (http.client.BadStatusLine("SSH-2.0"), "connection"),
        (http.client.InvalidURL("port"), "invalid_url"),
        (UnicodeError("label too long"), "invalid_url"),
    ],
)
def test_exceptions_have_their_class(problem, error_class):
    failure = outcome.of_exception(problem)
    assert failure.error_class == error_class
    assert failure.error_class in outcome.ERROR_CLASSES
    assert failure.message


@pytest.mark.parametrize(
    ("message", "error_class"),
    [
        ("Image decoding error", "decode"),
        ("image too small", "too_small"),
        ("OpenCV(4) /io/x.cpp:79: error: (-215) pixels <= CV_IO_MAX_IMAGE_PIXELS in function 'f'", "too_large"),
        ("OpenCV(4) /io/x.cpp:1: error: (-215) !buf.empty()", "decode"),
    ],
)
def test_resizer_messages_have_their_class_and_no_build_paths(message, error_class):
    failure = outcome.of_resizing(message)
    assert failure.error_class == error_class
    assert "/io/" not in failure.message
