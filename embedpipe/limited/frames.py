"""Frames on a stream socket: eight bytes of length, then as many bytes."""

from __future__ import annotations

import socket
import struct
from typing import BinaryIO

LENGTH = struct.Struct(">Q")


def send(link: socket.socket, payload: bytes) -> None:
    """Send one frame. Raises OSError if the other side is gone."""
    link.sendall(LENGTH.pack(len(payload)))
    link.sendall(payload)


def receive(stream: BinaryIO) -> bytes | None:
    """The next frame; None if the other side is gone."""
    head = stream.read(LENGTH.size)
    if len(head) < LENGTH.size:
        return None
    (size,) = LENGTH.unpack(head)
    payload = stream.read(size)
    return payload if len(payload) == size else None
