"""How the attempt to get one url ended: a fixed list of classes, each with its meaning."""

from __future__ import annotations

import http.client
import socket
import ssl
import urllib.error
from dataclasses import dataclass

ERROR_CLASSES = {
    "invalid_url": "the url is null, empty, malformed, or neither http nor https",
    "refused_address": "the host is a private, loopback or link-local address and not named by --allow-host",
    "opt_out": "the answer's X-Robots-Tag header forbids this use",
    "http_403": "401 or 403: the server wants a login or does not want us",
    "http_404": "404 or 410: nothing there (any more)",
    "http_429": "429: too many requests, still so after the retries",
    "http_4xx": "another 4xx answer",
    "http_5xx": "a 5xx answer, still so after the retries",
    "redirect": "too many redirects, or one that leads nowhere",
    "timeout": "no answer, or not all of it, in the time given",
    "dns": "the host name does not resolve",
    "connection": "refused, reset, or closed before the whole answer had come",
    "tls": "the certificate or the TLS handshake is bad",
    "too_large": "more bytes or more pixels than fetch takes in",
    "empty": "an answer without a body",
    "decode": "the body is no image that OpenCV can read, or it is truncated",
    "too_small": "the shorter side is under --min-image-size",
    "lost": "the downloader dropped the row without saying why",
}

# Worth another try: the same request may well be answered a moment later.
TRANSIENT = frozenset({"timeout", "connection", "http_429", "http_5xx"})


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a row has no image: a name from `ERROR_CLASSES`, and the message of whoever noticed."""

    error_class: str
    message: str


class NotFetched(Exception):
    """Raised inside one request by our own checks; carries the failure."""

    def __init__(self, failure: Failure) -> None:
        self.failure = failure
        super().__init__(failure.message)


def of_status(code: int, reason: str) -> Failure:
    """The failure that an HTTP status of 300 or more stands for."""
    named = {401: "http_403", 403: "http_403", 404: "http_404", 410: "http_404", 429: "http_429"}
    by_hundred = {3: "redirect", 4: "http_4xx", 5: "http_5xx"}
    error_class = named.get(code) or by_hundred.get(code // 100, "connection")
    return Failure(error_class, f"HTTP {code} {reason}".strip())


def of_exception(problem: BaseException) -> Failure:
    """The failure that an exception of urllib, http.client, ssl or socket stands for."""
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
    if isinstance(problem, http.client.InvalidURL | ValueError):  # UnicodeError is one: a host that IDNA refuses
        return "invalid_url"
    return "connection"  # OSError, HTTPException: refused, reset, short, or no HTTP at all


def of_resizing(message: str) -> Failure:
    """The failure that a message of img2dataset's resizer stands for."""
    if message == "image too small":
        return Failure("too_small", message)
    if "CV_IO_MAX_IMAGE" in message or message == "image area too large":
        return Failure("too_large", "more pixels than fetch decodes")
    # OpenCV's own assertions name source files of its build; nobody is helped by those.
    return Failure("decode", "not decodable as an image" if "OpenCV" in message else message)
