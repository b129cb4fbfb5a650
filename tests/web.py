"""A web server on loopback that misbehaves on demand, in a process of its own.

with web.serving() as site:
    site.url("/photo/17.jpg")          a JPEG that only its number decides, 64 to 320 px
    site.url("/status/404")            any status
    site.url("/slow/5.jpg")            answers after that many seconds
    site.url("/drip/1.jpg")            one byte, then another each second
    site.url("/truncated/1.jpg")       half of a JPEG, with the length of that half
    site.url("/short/1.jpg")           promises the whole length, sends half and closes
    site.url("/garbage.jpg")  /html.jpg  /empty.jpg  /png/1.png  /typed/1.jpg (JPEG that says text/html)
    site.url("/robots/noai/1.jpg")     with X-Robots-Tag: noai
    site.url("/flaky/2/name/1.jpg")    500 twice, then the JPEG, and so on
    site.url("/redirect?to=URL")       302
    site.url("/reset")                 closes the connection without an answer
    site.requests()                    how often each path was asked for
"""

from __future__ import annotations

import contextlib
import io
import json
import multiprocessing
import random
import time
import urllib.parse
import urllib.request
from collections import Counter
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

from PIL import Image, ImageDraw


@cache
def photo(number: int, format: str = "JPEG") -> bytes:
    """A picture with some structure, always the same for the same number."""
    dice = random.Random(number)
    picture = Image.new("RGB", (dice.randint(64, 320), dice.randint(64, 320)), tuple(dice.choices(range(256), k=3)))
    draw = ImageDraw.Draw(picture)
    for _ in range(12):
        x, y, r = dice.randint(0, 320), dice.randint(0, 320), dice.randint(5, 80)
        draw.ellipse((x - r, y - r, x + r, y + r), fill=tuple(dice.choices(range(256), k=3)))
    data = io.BytesIO()
    picture.save(data, format, quality=90)
    return data.getvalue()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    asked: ClassVar[Counter] = Counter()

    def do_GET(self):
        path, _, query = self.path.partition("?")
        head, *rest = path.strip("/").split("/")
        head = head.split(".")[0]
        if head == "requests":
            return self._answer(json.dumps(self.asked).encode(), "application/json")
        self.asked[self.path] += 1
        getattr(self, f"_{head}", self._missing)(rest, query)

    def _answer(self, body, kind="image/jpeg", status=200, length=None, **headers):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.send_header("Connection", "close")
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True

    def _missing(self, rest, query):
        self._answer(b"no such path", "text/plain", 404)

    def _photo(self, rest, query):
        self._answer(photo(_number(rest)))

    def _png(self, rest, query):
        self._answer(photo(_number(rest), "PNG"), "image/png")

    def _typed(self, rest, query):
        self._answer(photo(_number(rest)), "text/html; charset=utf-8")

    def _status(self, rest, query):
        self._answer(b"because", "text/plain", int(rest[0]))

    def _slow(self, rest, query):
        time.sleep(_number(rest))
        self._answer(photo(0))

    def _paced(self, rest, query):
        time.sleep(0.1)
        self._answer(photo(_number(rest)))

    def _drip(self, rest, query):
        body = photo(_number(rest))
        self._answer(b"", length=len(body))
        for i in range(len(body)):
            self.wfile.write(body[i : i + 1])
            self.wfile.flush()
            time.sleep(1)

    def _truncated(self, rest, query):
        body = photo(_number(rest))
        self._answer(body[: len(body) // 2])

    def _short(self, rest, query):
        body = photo(_number(rest))
        self._answer(body[: len(body) // 2], length=len(body))

    def _garbage(self, rest, query):
        self._answer(random.Random(0).randbytes(5000))

    def _html(self, rest, query):
        self._answer(b"<!doctype html><p>Please log in", "image/jpeg")

    def _empty(self, rest, query):
        self._answer(b"")

    def _robots(self, rest, query):
        self._answer(photo(_number(rest)), X_Robots_Tag=rest[0])

    def _flaky(self, rest, query):
        failures = int(rest[0])
        if (self.asked[self.path] - 1) % (failures + 1) < failures:
            self._answer(b"later", "text/plain", 500)
        else:
            self._answer(photo(_number(rest)))

    def _redirect(self, rest, query):
        self._answer(b"", status=302, Location=urllib.parse.parse_qs(query)["to"][0])

    def _reset(self, rest, query):
        self.close_connection = True

    def log_message(self, *_):
        pass


def _number(rest):
    return int(rest[-1].split(".")[0])


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, request, client_address):
        pass  # a client that hangs up is what some tests are about


class Site:
    """A running server."""

    def __init__(self, port):
        self.port = port

    def url(self, path):
        return f"http://127.0.0.1:{self.port}{path}"

    def requests(self):
        with urllib.request.urlopen(self.url("/requests"), timeout=5) as response:
            return Counter(json.load(response))


def _serve(pipe):
    server = _Server(("127.0.0.1", 0), _Handler)
    pipe.send(server.server_address[1])
    server.serve_forever()


@contextlib.contextmanager
def serving():
    """A server in a process of its own, ended with the block."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs,), daemon=True)
    process.start()
    try:
        yield Site(ours.recv())
    finally:
        process.kill()
        process.join()
