"""Outcomes of downloading one url: a fixed list of classes, each with its meaning."""

from __future__ import annotations

import http.client
import socket
import ssl
import urllib.error
from dataclasses import dataclass

from ..images.formats import SNIFF_BYTES, why_not_read
from ..images.undecodable import Undecodable

ERROR_CLASSES = {
    "invalid_url": "null, empty, malformed, or neither http nor https; of local paths: null, empty, or a url",
    "refused_address": "the host is a private, loopback or link-local address and not named by `allow_hosts`",
    "opt_out": "this use is forbidden: by a header, by the image's metadata, or (with `robots`) by a file of the host",
    "http_403": "401 or 403: the server wants a login or does not want us",
    "http_404": "404 or 410: nothing there (any more)",
    "http_429": "429: too many requests, still so after the retries",
    "http_4xx": "another 4xx answer",
    "http_5xx": "a 5xx answer, still so after the retries",
    "redirect": "too many redirects, or one that leads nowhere",
    "timeout": "no answer, or not all of it, in the time given",
    "dns": "the host name does not resolve, or the resolver does not answer",
    "connection": "refused, reset, or closed before the whole answer had come",
    "tls": "the certificate or the TLS handshake is bad",
    "too_large": "more bytes or more pixels than fetch takes in",
    "empty": "an answer without a body",
    "not_an_image": "the body does not begin like an image: a web page, anything else",
    "unsupported": "of a format that is not read: SVG, JPEG XL, PostScript; HEIC without the extra heif",
    "damaged": "begins like an image, and is truncated or damaged: it does not decode, or libjpeg warns",
    "decode": "the body does not unpack (gzip), or the image cannot be resized or stored",
    "too_costly_memory": "decoding takes more memory than one image may: 1.5 GB, and three times its own bytes",
    "too_costly_time": "decoding takes longer than `max_sample_seconds` of processor time, or hangs",
    "decoder_died": "the decoder crashed on the image, in two processes one after the other",
    "too_small": "the shorter side is under `min_image_size`",
    "aspect_ratio": "the longer side is more than `max_aspect_ratio` times the shorter one",
    "no_image": "of a folder: a caption or fields without an image",
    "sidecar": "of a folder: the .txt or .json beside the image cannot be read",
    "unreadable": "of a folder or a local path: the image file cannot be read",
    "outside_root": "of local paths: it leads out of `local_root`",
    "duplicate": "the same bytes are stored already, and `drop_duplicates` is given",
    "taken_down": "it was taken out of the output by `takedown`",
    "lost": "the downloader dropped the row without saying why",
}

# Failures that another run cannot change: nothing was requested, or there is nothing to request.
FINAL = frozenset({"invalid_url", "duplicate", "no_image", "sidecar", "taken_down"})

# Worth a retry: the same request may well succeed a moment later.
TRANSIENT = frozenset({"timeout", "connection", "http_429", "http_5xx"})
# Worth another run, hours or days later.
MAY_PASS = TRANSIENT | {"dns", "lost"}
# What the same url may succeed with: a field of `FetchConfig`.
LIFTED_BY = {"refused_address": "allow_hosts", "tls": "ca_file", "too_large": "max_bytes"}
_TRANSIENT_STATUSES = frozenset({408, 425})  # the server's own timeout, and "too early"


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a row has no image: a name from `ERROR_CLASSES`, and a message.

    `passing`: whether a retry may succeed, if the class does not tell.
    """

    error_class: str
    message: str
    passing: bool | None = None

    def may_pass(self) -> bool:
        """Whether the same request may well succeed a moment later."""
        return self.error_class in TRANSIENT if self.passing is None else self.passing


TAKEN_DOWN = Failure("taken_down", "taken down")


@dataclass(frozen=True, slots=True)
class HostFailures:
    """One host, and the number of its failed urls by error class."""

    host: str
    failed: int
    classes: dict[str, int]


class NotFetched(Exception):
    """Raised within a request by embedpipe's own checks; carries the failure."""

    def __init__(self, failure: Failure) -> None:
        self.failure = failure
        super().__init__(failure.message)


def of_status(code: int, reason: str) -> Failure:
    """The failure for an HTTP status of 300 or more."""
    named = {401: "http_403", 403: "http_403", 404: "http_404", 410: "http_404", 429: "http_429"}
    by_hundred = {3: "redirect", 4: "http_4xx", 5: "http_5xx"}
    error_class = named.get(code) or by_hundred.get(code // 100, "connection")
    return Failure(error_class, f"HTTP {code} {reason}".strip(), True if code in _TRANSIENT_STATUSES else None)


def of_exception(problem: BaseException) -> Failure:
    """The failure for an exception of urllib, http.client, ssl or socket."""
    if isinstance(problem, NotFetched):
        return problem.failure
    if isinstance(problem, urllib.error.HTTPError):
        return of_status(problem.code, str(problem.reason))
    if isinstance(problem, urllib.error.URLError) and isinstance(problem.reason, BaseException):
        return of_exception(problem.reason)
    return Failure(_class_of(problem), f"{type(problem).__name__}: {problem}"[:300])


def _class_of(problem: BaseException) -> str:
    if isinstance(problem, TimeoutError):
        return "timeout"
    if isinstance(problem, ssl.SSLError):
        return "tls"
    if isinstance(problem, socket.gaierror):
        return "dns"
    if isinstance(problem, http.client.InvalidURL | ValueError):  # includes UnicodeError: a host that IDNA refuses
        return "invalid_url"
    return "connection"  # OSError, HTTPException: refused, reset, short, or no HTTP at all


def of_start(start: bytes, content_type: str | None) -> Failure:
    """The failure for a body that does not begin like an image that fetch takes."""
    refused = why_not_read(start[:SNIFF_BYTES])
    if refused is not None:
        return Failure("unsupported", refused)
    return Failure("not_an_image", f"begins with {str(start[:32])[2:-1]!r}, sent as {content_type or 'no type'}")


_OF_UNDECODABLE = {
    "image_too_large": "too_large",
    "image_undecodable": "not_an_image",
    "image_unsupported": "unsupported",
}


def of_undecodable(found: Undecodable) -> Failure:
    """The failure for an image that was not decoded."""
    return Failure(_OF_UNDECODABLE.get(found.error_class, "damaged"), found.message)


def of_resizing(message: str) -> Failure:
    """The failure for a resizer's message."""
    if message == "image too small":
        return Failure("too_small", message)
    if "CV_IO_MAX_IMAGE" in message or message == "image area too large":
        return Failure("too_large", "more pixels than fetch decodes")
    if "Insufficient memory" in message:
        return Failure("too_costly_memory", "out of memory")
    # OpenCV's own assertions name source files of its build, which do not help users.
    return Failure("decode", "not decodable as an image" if "OpenCV" in message else message)
