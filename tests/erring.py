"""A keep-alive server that errs at random in the order of its answers; every picture says which url it belongs to.

with erring.serving(erring.ERRORS) as site:
    site.url(17)        `picture(17)`, if the answer is read as it was meant
    site.errors         how often it erred in which way

20 ms pass between a request and its answer, so that what is late comes after the next request was sent.
"""

import contextlib
import io
import random
import socket
import threading
import time
from collections import Counter

import numpy as np
from PIL import Image

ERRORS = (
    "surplus",  # the answer twice in one go
    "late",  # a second time, 15 ms later
    "split",  # in pieces, which is no error
    "swapped",  # a second time late, and then the next two answers in each other's place
    "omitted",  # a second time late, and then the next answer not at all
    "trailing",  # a line end behind it
    "early_hints",  # 1xx before it, which is no error
    "hung_up",  # closed instead of an answer
    "closes",  # closed behind the answer, unasked
    "no_content",  # 204 with a body, then the answer
    "short_length",  # the length of half
    "late_chunk",  # chunked, and a chunk behind the last one
)
WRONG_BY_ITSELF = ("no_content", "short_length")  # whatever its order; made only once per url
LATENCY_S = 0.02
_LATER_S = 0.015
_BLOCKS = 4


def picture(number):
    """A PNG of 64 × 64 px, of 16 black or white squares: `number` in binary."""
    bits = np.array([number >> bit & 1 for bit in range(_BLOCKS**2)], np.uint8).reshape(_BLOCKS, _BLOCKS)
    file = io.BytesIO()
    Image.fromarray(np.kron(bits * 255, np.ones((16, 16), np.uint8))).save(file, "PNG")
    return file.getvalue()


def number_of(stored):
    """The number that a picture says, whatever it was stored as."""
    pixels = np.asarray(Image.open(io.BytesIO(stored)).convert("L"))
    squares = pixels.reshape(_BLOCKS, 16, _BLOCKS, 16).mean((1, 3)) > 127
    return sum(1 << bit for bit, is_white in enumerate(squares.ravel()) if is_white)


class Site:
    """The server. rate: the share of answers with an error."""

    def __init__(self, errors, rate, seed):
        self.errors = Counter()
        self.kinds = errors
        self.rate = rate
        self.dice = random.Random(seed)
        self.lock = threading.Lock()
        self.times = Counter()
        self.socket = socket.create_server(("127.0.0.1", 0), backlog=512)
        threading.Thread(target=self._accept, daemon=True).start()

    def url(self, number):
        return f"http://127.0.0.1:{self.socket.getsockname()[1]}/{number}.png"

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.socket.accept()
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _kind(self, number):
        """The error to make, if any; none in the third answer for a url, or nobody could ever have it."""
        with self.lock:
            self.times[number] += 1
            if self.times[number] > 2 or self.dice.random() >= self.rate:
                return "none"
            kind = self.dice.choice(self.kinds)
            if kind in WRONG_BY_ITSELF and self.times[number] > 1:
                return "none"
            self.errors[kind] += 1
            return kind

    def _serve(self, connection):
        with connection, contextlib.suppress(OSError):
            stream = connection.makefile("rb")
            while (asked := _next(stream)) is not None:
                number, alone = asked
                time.sleep(LATENCY_S)
                kind = self._kind(number)
                if kind == "hung_up":
                    return
                connection.sendall(_begun(kind, number))
                if kind == "split":
                    time.sleep(0.005)
                    connection.sendall(_answer(number)[40:])
                if kind in ("late", "swapped", "omitted", "late_chunk"):
                    time.sleep(_LATER_S)
                    connection.sendall(b"3\r\nxyz\r\n0\r\n\r\n" if kind == "late_chunk" else _answer(number))
                if kind == "swapped":
                    pair = [_next(stream), _next(stream)]
                    connection.sendall(b"".join(_answer(one[0]) for one in reversed(pair) if one is not None))
                elif kind == "omitted":
                    _next(stream)
                if alone or kind == "closes":
                    return


def _next(stream):
    """(number, whether it is the last request) of the next request; None at the end."""
    line = stream.readline()
    if not line:
        return None
    alone = False
    while (header := stream.readline()) not in (b"\r\n", b""):
        alone |= header.lower().startswith(b"connection: close")
    return int(line.split()[1][1:-4]), alone


def _answer(number, length=None):
    body = picture(number)
    head = f"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nContent-Length: {length or len(body)}\r\n\r\n"
    return head.encode() + body


def _begun(kind, number):
    whole = _answer(number)
    body = picture(number)
    return {
        "surplus": whole * 2,
        "split": whole[:40],
        "trailing": whole + b"\r\n",
        "early_hints": b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n" + whole,
        "no_content": b"HTTP/1.1 204 No Content\r\n\r\n" + whole,
        "short_length": _answer(number, len(body) // 2),
        "late_chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body),
    }.get(kind, whole)


@contextlib.contextmanager
def serving(errors, rate=0.05, seed=0):
    """The `Site`, on loopback."""
    site = Site(errors, rate, seed)
    try:
        yield site
    finally:
        site.socket.close()
