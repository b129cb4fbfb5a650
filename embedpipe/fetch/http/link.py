"""A connected socket with a deadline, in the role that http.client gives to a socket, and what can be heard on it."""

from __future__ import annotations

import enum
import http.client
import io
import socket
import ssl
from typing import Any

from .deadline import Deadline

_BUFFER = 1 << 16
_MOST_INTERIM = 16  # responses of 1xx before the one that counts


class Heard(enum.Enum):
    """What a connection says when nothing is expected of it."""

    NOTHING = "nothing"
    BYTES = "bytes that belong to no request"
    END = "the end of the stream"
    BROKEN = "an error"


class _Reader(io.RawIOBase):
    """The receiving side of a link. No read waits beyond the deadline."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self.ended:
            return 0
        self.link.socket.settimeout(self.link.deadline.wait_s())
        return self.link.socket.recv_into(buffer)


class _Buffer(io.BufferedReader):
    """The receiving side as http.client reads it: one per response."""

    def __init__(self, reader: _Reader) -> None:
        super().__init__(reader, _BUFFER)
        self.reader = reader

    def close(self) -> None:
        """Close it, and note whether there were bytes beyond the response."""
        if not self.closed:
            self.reader.ended = True  # so that peek returns buffered bytes without waiting
            self.reader.link.has_leftovers = bool(self.peek())
        super().close()


class Link:
    """A connected socket with a deadline, with the interface that http.client needs."""

    def __init__(self, connected: socket.socket, deadline: Deadline) -> None:
        self.socket = connected
        self.deadline = deadline
        self.has_leftovers = False

    def makefile(self, *_: Any) -> io.BufferedReader:
        """The receiving side."""
        return _Buffer(_Reader(self))

    def sendall(self, data: bytes) -> None:
        """Send all of `data`."""
        self.socket.settimeout(self.deadline.wait_s())
        self.socket.sendall(data)

    def close(self) -> None:
        """No-op: http.client calls this before the body is read. `Connection.close` closes the socket."""

    def hears(self) -> Heard:
        """What arrived since the last response was read, without waiting. Bytes that are there are lost."""
        if self.has_leftovers:
            return Heard.BYTES
        try:
            self.socket.settimeout(0)
            data = self.socket.recv(1)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return Heard.NOTHING
        except OSError:
            return Heard.BROKEN
        return Heard.BYTES if data else Heard.END

    def end_sending(self) -> None:
        """Close the sending side: the server says what it still has to say and closes its own. Raises OSError."""
        self.socket.settimeout(0)
        if isinstance(self.socket, ssl.SSLSocket):
            self._say_farewell(self.socket)
        # Not SSLSocket's, which would leave the receiving side encrypted.
        socket.socket.shutdown(self.socket, socket.SHUT_WR)

    def _say_farewell(self, tls: ssl.SSLSocket) -> None:
        """Send close_notify. The server's own may be yet to come, or it has ended at once without one."""
        try:
            tls.unwrap()
        except (ssl.SSLWantReadError, ssl.SSLEOFError):
            pass
        except ssl.SSLError as problem:
            if problem.reason == "APPLICATION_DATA_AFTER_CLOSE_NOTIFY":
                self.has_leftovers = True
            elif problem.reason != "UNEXPECTED_EOF_WHILE_READING":
                raise


class Answer(http.client.HTTPResponse):
    """A response; interim ones (1xx: early hints, processing) are passed over.

    earlier: hashes of the bodies that came before on the same connection.
    """

    earlier: set[int]

    def _read_status(self) -> tuple[str, int, str]:
        for _ in range(_MOST_INTERIM):
            found: tuple[str, int, str] = super()._read_status()  # type: ignore[misc]
            if found[1] == http.client.SWITCHING_PROTOCOLS or not 100 <= found[1] < 200:
                return found
            http.client.parse_headers(self.fp)
        raise http.client.HTTPException(f"more than {_MOST_INTERIM} interim responses")
