"""An S3 server of its own process on loopback (moto), and a proxy before it that can be told to fail.

with objectstore.serve() as store:
    store.url("emb")                     # s3://bucket/emb
    store.fail(Fault("img_emb_00001", "cut", after=1))
    store.fail(Fault("", "any", share=0.05))
    store.heal()
"""

import contextlib
import http.client
import http.server
import os
import random
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path

import fsspec

from embedpipe import filesystem

BUCKET = "bucket"
# On a port that the system chooses, said once it is listened on; until whoever started it is gone.
_SERVER = """
import logging, sys, threading
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server
logging.getLogger("werkzeug").setLevel(logging.ERROR)
app = DomainDispatcherApplication(create_backend_app)
server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=MotoRequestHandler)
print(server.server_port, flush=True)
threading.Thread(target=server.serve_forever, daemon=True).start()
sys.stdin.read()
"""


@dataclass
class Fault:
    """What goes wrong with requests whose path holds `where`, after so many of them went well.

    how: `503` (the answer of a store that is too busy), `cut` (half of the body, then the connection is closed),
    `refuse` (no answer at all), `lose` (the request is done, and its answer lost), or `any`: one of these at random.
    share: how many of the requests it strikes.
    """

    where: str
    how: str
    after: int = 0
    share: float = 1.0
    seen: int = 0
    struck: int = 0
    chance: random.Random = field(default_factory=lambda: random.Random(0))

    def strikes(self, path):
        """How this request fails; None: it does not."""
        if self.where not in path:
            return None
        self.seen += 1
        if self.seen <= self.after or self.chance.random() >= self.share:
            return None
        self.struck += 1
        return self.chance.choice(("503", "cut", "refuse", "lose")) if self.how == "any" else self.how


class _Proxy(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, behind):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.behind = behind
        self.faults = []
        self.requests = []


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def _pass_on(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.requests.append((self.command, self.path, self.headers.get("Range")))
        fault = next((how for f in self.server.faults if (how := f.strikes(self.path))), None)
        if fault == "refuse":
            self.close_connection = True
            return
        if fault == "503":
            self._answer(503, [("Content-Type", "application/xml")], b"<Error><Code>SlowDown</Code></Error>")
            return
        connection = http.client.HTTPConnection("127.0.0.1", self.server.behind, timeout=30)
        connection.request(self.command, self.path, body, dict(self.headers))
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        if fault == "lose":
            self.close_connection = True
            return
        self._answer(answer.status, answer.getheaders(), body, cut=fault == "cut" and self.command == "GET")

    def _answer(self, status, headers, body, cut=False):
        self.send_response_only(status)
        length = next((value for name, value in headers if name.lower() == "content-length"), str(len(body)))
        for name, value in headers:
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        self.send_header("Content-Length", length if self.command == "HEAD" else str(len(body)))
        self.end_headers()
        if cut:
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
        elif self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _pass_on


class ObjectStore:
    """One server; `options` are what fsspec needs to reach it."""

    def __init__(self, proxy):
        self._proxy = proxy
        self.endpoint = f"http://127.0.0.1:{proxy.server_address[1]}"

    def url(self, path=""):
        return f"s3://{BUCKET}/{path}".rstrip("/")

    def fail(self, fault):
        self._proxy.faults.append(fault)

    def heal(self):
        self._proxy.faults.clear()

    @property
    def requests(self):
        """(method, path, range) of every request so far."""
        return self._proxy.requests

    def upload(self, folder, path):
        """Copy a local folder; returns its url."""
        store = fsspec.filesystem("s3")
        for file in sorted(Path(folder).rglob("*")):
            if file.is_file():
                store.pipe_file(f"{BUCKET}/{path}/{file.relative_to(folder)}", file.read_bytes())
        return self.url(path)


@contextlib.contextmanager
def serve():
    """A running server, reached by every `s3://` of this process as long as the block lasts."""
    environment = {**os.environ, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([sys.executable, "-c", _SERVER], env=environment, **pipes)
    proxy = None
    try:
        proxy = _Proxy(int(process.stdout.readline()))
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        store = ObjectStore(proxy)
        with _settings(store.endpoint):
            fsspec.filesystem("s3").mkdir(BUCKET)
            yield store
    finally:
        if proxy is not None:
            proxy.shutdown()
            proxy.server_close()
        process.kill()
        process.communicate()


@contextlib.contextmanager
def _settings(endpoint):
    """What a user would put into fsspec's configuration file; retries do not wait long."""
    before = fsspec.config.conf.get("s3")
    quick = {"retries": {"max_attempts": 1}, "connect_timeout": 2, "read_timeout": 5}
    fsspec.config.conf["s3"] = {
        "endpoint_url": endpoint,
        "key": "key",
        "secret": "secret",
        "config_kwargs": quick,
        "use_listings_cache": False,
    }
    import s3fs

    retries, s3fs.S3FileSystem.retries = s3fs.S3FileSystem.retries, 2
    before_us = filesystem._TRIES, filesystem._PAUSE_S
    filesystem._TRIES, filesystem._PAUSE_S = 2, 0.01
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        yield
    finally:
        s3fs.S3FileSystem.retries = retries
        filesystem._TRIES, filesystem._PAUSE_S = before_us
        s3fs.S3FileSystem.clear_instance_cache()
        if before is None:
            del fsspec.config.conf["s3"]
        else:
            fsspec.config.conf["s3"] = before
