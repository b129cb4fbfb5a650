"""A web server on loopback that misbehaves on demand, in a process of its own.

with web.serving() as site:
    site.url("/photo/17.jpg")          a JPEG that only its number decides, 64 to 320 px
    site.requests()                    how often each path was asked for
    site.connections()                 how many connections there were

Images: /photo/N.jpg  /kept/N.jpg (the connection stays open)  /large/N.jpg (with 40 MB behind it)
    /png/N.png  /avif/N.avif  /webp/N.webp  /cmyk/N.jpg
    /stated/DMI-PROHIBITED/N.jpg (PLUS data mining in its XMP)
    /turned/6/N.jpg (EXIF orientation)  /animated/N.gif  /gzip/N.jpg  /chunked/N.jpg  /typed/N.jpg (says text/html)
None: /garbage.jpg  /html.jpg  /svg.svg  /empty.jpg  /zeros.jpg (30 MB)  /bomb.png (20,000 × 20,000 px)
    /gzipbomb.jpg  /truncated/N.jpg (half, with the length of that half)
Statuses: /status/404  /flaky/2/name/N.jpg (500 twice, then the JPEG)
    /later/429/2/1/name/N.jpg (429 with Retry-After: 2 once, then the JPEG; `date` for 2: a date a second ahead)
Slow: /slow/5.jpg (answers after that many seconds)  /paced/N.jpg (after 0.1)
    /drip/N.jpg  /dripheader (a byte a second)
Broken: /short/N.jpg (promises all, sends half)  /long/N.jpg (promises half, sends all)  /reset (no answer)
    /cut/N.jpg (reset after half)  /unended/N.jpg (chunked, closed without the last chunk)
    /endless.jpg (chunked, for ever)  /nohttp
Redirects: /redirect?to=URL  /loop  /hops/3/N.jpg (that many, then the JPEG)
Headers: /tag/N.jpg?X-Robots-Tag=noai&…  /robots/noai/N.jpg
    /robots.txt  /.well-known/tdmrep.json (what `serving` was told, else 404)
"""

from __future__ import annotations

import contextlib
import email.utils
import gzip
import json
import multiprocessing
import random
import socket
import ssl
import struct
import threading
import time
import urllib.parse
import urllib.request
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

from tests import bodies
from tests.bodies import photo

__all__ = ["Site", "photo", "serving"]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    asked: ClassVar[Counter] = Counter()
    connected: ClassVar[Counter] = Counter()
    robots_txt: ClassVar[tuple] = (404, b"")
    tdmrep: ClassVar[tuple] = (404, b"")

    def setup(self):
        super().setup()
        self.connected[self.server.server_address[1]] += 1

    def do_GET(self):
        path, _, query = self.path.partition("?")
        head, *rest = path.strip("/").split("/")
        if path == "/robots.txt":
            head = "robots_txt"
        if path == "/.well-known/tdmrep.json":
            head = "tdmrep"
        head = head.split(".")[0]
        if head == "requests":
            return self._answer(json.dumps(self.asked).encode(), "application/json")
        if head == "connections":
            return self._answer(json.dumps(self.connected.total()).encode(), "application/json")
        if head == "prepare":
            return self._answer(json.dumps([len(photo(i)) for i in range(int(rest[0]))]).encode(), "application/json")
        self.asked[self.path] += 1
        getattr(self, f"_{head}", self._missing)(rest, query)

    def _begin(self, status=200, kind="image/jpeg", close=True, headers=()):
        self.send_response(status)
        if kind:
            self.send_header("Content-Type", kind)
        if close:
            self.send_header("Connection", "close")
            self.close_connection = True
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()

    def _answer(self, body, kind="image/jpeg", status=200, length=None, headers=(), close=True):
        length = len(body) if length is None else length
        self._begin(status, kind, close, [("Content-Length", str(length)), *headers])
        self.wfile.write(body)

    def _missing(self, rest, query):
        self._answer(b"no such path", "text/plain", 404)

    def _robots_txt(self, rest, query):
        status, body = self.robots_txt
        self._answer(body, "text/plain", status)

    def _tdmrep(self, rest, query):
        status, body = self.tdmrep
        self._answer(body, "application/json", status)

    # --- images ---

    def _photo(self, rest, query):
        self._answer(photo(_number(rest)))

    def _kept(self, rest, query):
        self._answer(photo(_number(rest)), close=False)

    def _png(self, rest, query):
        self._answer(photo(_number(rest), "PNG"), "image/png")

    def _avif(self, rest, query):
        self._answer(photo(_number(rest), "AVIF"), "image/avif")

    def _webp(self, rest, query):
        self._answer(photo(_number(rest), "WEBP"), "image/webp")

    def _cmyk(self, rest, query):
        self._answer(bodies.cmyk(_number(rest)))

    def _turned(self, rest, query):
        self._answer(bodies.turned(_number(rest), int(rest[0])))

    def _animated(self, rest, query):
        self._answer(bodies.animated(_number(rest)), "image/gif")

    def _gzip(self, rest, query):
        self._answer(gzip.compress(photo(_number(rest))), headers=[("Content-Encoding", "gzip")])

    def _chunked(self, rest, query):
        self._begin(headers=[("Transfer-Encoding", "chunked")])
        body = photo(_number(rest))
        for i in range(0, len(body), 1000):
            self._chunk(body[i : i + 1000])
        self._chunk(b"")

    def _chunk(self, data):
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def _typed(self, rest, query):
        self._answer(photo(_number(rest)), "text/html; charset=utf-8")

    # --- what is no image ---

    def _stated(self, rest, query):
        self._answer(bodies.stated(_number(rest), rest[0]))

    def _garbage(self, rest, query):
        self._answer(random.Random(0).randbytes(5000))

    def _html(self, rest, query):
        self._answer(bodies.HTML)

    def _svg(self, rest, query):
        self._answer(bodies.SVG, "image/svg+xml")

    def _empty(self, rest, query):
        self._answer(b"")

    def _zeros(self, rest, query):
        self._answer(bytes(30_000_000))

    def _bomb(self, rest, query):
        self._answer(bodies.bomb(), "image/png")

    def _large(self, rest, query):
        self._answer(photo(_number(rest)) + bytes(40_000_000))

    def _gzipbomb(self, rest, query):
        self._answer(bodies.gzip_bomb(), headers=[("Content-Encoding", "gzip")])

    def _truncated(self, rest, query):
        body = photo(_number(rest))
        self._answer(body[: len(body) // 2])

    # --- statuses ---

    def _status(self, rest, query):
        self._answer(b"because", "text/plain", int(rest[0]))

    def _flaky(self, rest, query):
        failures = int(rest[0])
        if (self.asked[self.path] - 1) % (failures + 1) < failures:
            self._answer(b"later", "text/plain", 500)
        else:
            self._answer(photo(_number(rest)))

    def _later(self, rest, query):
        status, wait, failures, *_ = rest
        if self.asked[self.path] <= int(failures):
            wait = email.utils.formatdate(time.time() + 1.9, usegmt=True) if wait == "date" else wait
            self._answer(b"later", "text/plain", int(status), headers=[("Retry-After", wait)])
        else:
            self._answer(photo(_number(rest)))

    # --- slow ---

    def _slow(self, rest, query):
        time.sleep(_number(rest))
        self._answer(photo(0))

    def _paced(self, rest, query):
        time.sleep(0.1)
        self._answer(photo(_number(rest)))

    def _drip(self, rest, query):
        body = photo(_number(rest))
        self._answer(b"", length=len(body))
        self._by_bytes(body)

    def _dripheader(self, rest, query):
        self.close_connection = True
        self._by_bytes(b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\n\r\n")

    def _by_bytes(self, data):
        for i in range(len(data)):
            self.wfile.write(data[i : i + 1])
            self.wfile.flush()
            time.sleep(1)

    # --- broken ---

    def _short(self, rest, query):
        body = photo(_number(rest))
        self._answer(body[: len(body) // 2], length=len(body))

    def _long(self, rest, query):
        body = photo(_number(rest))
        self._answer(body, length=len(body) // 2)

    def _reset(self, rest, query):
        self.close_connection = True

    def _cut(self, rest, query):
        body = photo(_number(rest))
        self._answer(body[: len(body) // 2], length=len(body))
        self.wfile.flush()
        time.sleep(0.05)
        # With nothing to linger for, the kernel sends RST where it would have sent FIN.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def _unended(self, rest, query):
        self._begin(headers=[("Transfer-Encoding", "chunked")])
        self._chunk(photo(_number(rest)))

    def _endless(self, rest, query):
        self._begin(headers=[("Transfer-Encoding", "chunked")])
        self._chunk(photo(1))
        while True:
            self._chunk(bytes(1000))
            time.sleep(0.05)

    def _nohttp(self, rest, query):
        self.close_connection = True
        self.wfile.write(b"SSH-2.0-OpenSSH_9.2p1\r\n")

    # --- redirects and headers ---

    def _redirect(self, rest, query):
        self._answer(b"", status=302, headers=[("Location", urllib.parse.parse_qs(query)["to"][0])])

    def _loop(self, rest, query):
        self._answer(b"", status=301, headers=[("Location", "/loop")])

    def _hops(self, rest, query):
        left = int(rest[0])
        to = f"/hops/{left - 1}/{rest[1]}" if left > 1 else f"/photo/{rest[1]}"
        self._answer(b"", status=307, headers=[("Location", to)])

    def _tag(self, rest, query):
        self._answer(photo(_number(rest)), headers=urllib.parse.parse_qsl(query))

    def _robots(self, rest, query):
        self._answer(photo(_number(rest)), headers=[("X-Robots-Tag", rest[0])])

    def log_message(self, *_):
        pass


def _number(rest):
    return int(rest[-1].split(".")[0])


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 512

    def __init__(self, certificate=None):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.tls = None
        if certificate is not None:
            self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self.tls.load_cert_chain(certificate)

    def get_request(self):
        connection, address = super().get_request()
        if self.tls is not None:  # the handshake is left to the connection's own thread
            connection = self.tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        return connection, address

    def handle_error(self, request, client_address):
        pass  # a client that hangs up is what some tests are about


class Site:
    """A running server. `ports` by what they speak: "http", and the names of the certificates given."""

    def __init__(self, ports):
        self.ports = ports
        self.port = ports["http"]

    def url(self, path, certificate=None, host="127.0.0.1"):
        scheme = "http" if certificate is None else "https"
        return f"{scheme}://{host}:{self.ports[certificate or 'http']}{path}"

    def prepare(self, photos):
        """Have that many photos made, so that no answer is late for being the first."""
        self._told(f"/prepare/{photos}", timeout_s=600)

    def requests(self):
        return Counter(self._told("/requests"))

    def connections(self):
        return self._told("/connections") - 1

    def _told(self, path, timeout_s=60):
        with urllib.request.urlopen(self.url(path), timeout=timeout_s) as response:
            return json.load(response)


def _serve(pipe, certificates, robots_txt, tdmrep):
    _Handler.robots_txt, _Handler.tdmrep = robots_txt, tdmrep
    servers = {"http": _Server()} | {name: _Server(path) for name, path in certificates.items()}
    pipe.send({name: server.server_address[1] for name, server in servers.items()})
    for server in servers.values():
        threading.Thread(target=server.serve_forever, daemon=True).start()
    with contextlib.suppress(EOFError):
        pipe.recv()  # until whoever started us is gone


@contextlib.contextmanager
def serving(certificates=None, robots_txt=(404, b""), tdmrep=(404, b"")):
    """A server in a process of its own, ended with the block. `certificates`: PEM files (key and chain) by name."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, certificates or {}, robots_txt, tdmrep), daemon=True)
    process.start()
    theirs.close()
    try:
        yield Site(ours.recv())
    finally:
        process.kill()
        process.join()
