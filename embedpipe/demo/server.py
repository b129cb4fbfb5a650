"""A loopback web server for the demo images, so that the demo fetches over HTTP without a network."""

from __future__ import annotations

import contextlib
import mimetypes
import threading
from collections.abc import Iterator
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from embedpipe.errors import InputError

HOST = "127.0.0.1"


class _FileHandler(BaseHTTPRequestHandler):
    """Serves GET and HEAD for the files of one folder, and 404 for anything else; prints nothing."""

    def __init__(self, *args: Any, root: Path, **kwargs: Any) -> None:
        self._root = root
        super().__init__(*args, **kwargs)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def log_message(self, *_: object) -> None:
        """Silent: the terminal is for the demo's own output."""

    def _answer(self, *, with_body: bool) -> None:
        file = self._asked_for()
        if file is None:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        body = file.read_bytes()
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", mimetypes.guess_type(file.name)[0] or "application/octet-stream")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            with contextlib.suppress(ConnectionError):  # the client has disconnected
                self.wfile.write(body)

    def _asked_for(self) -> Path | None:
        """The file that the path names, if it is inside the folder after resolving `..` and links."""
        name = unquote(urlsplit(self.path).path).lstrip("/")
        if "\0" in name:
            return None
        file = (self._root / name).resolve()
        return file if file.is_file() and file.is_relative_to(self._root) else None


@contextlib.contextmanager
def serving(folder: Path, *, port: int = 0) -> Iterator[str]:
    """Serve the files of `folder` on 127.0.0.1 within the block; yields the base url (no trailing slash).

    `port` 0 takes any free one. Raises InputError if the folder does not exist, OSError if the port is taken.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder to serve", "Check the path")
    server = ThreadingHTTPServer((HOST, port), partial(_FileHandler, root=folder.resolve()))
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), name="demo-server", daemon=True)
    thread.start()
    try:
        yield f"http://{HOST}:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
