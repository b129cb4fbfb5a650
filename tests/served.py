"""A real server of data sets on loopback, in a thread of the test's process, and plain HTTP to it."""

import asyncio
import contextlib
import http.client
import json
import socket
import threading
from dataclasses import dataclass, field

from embedpipe.serve.app import application
from embedpipe.serve.config import ServeConfig
from embedpipe.serve.job import open_service
from embedpipe.serve.server import make_server


@dataclass
class Reply:
    """status, headers (names in lower case) and body."""

    status: int
    headers: dict
    body: bytes

    def json(self):
        return json.loads(self.body)


@dataclass
class Client:
    """Asks one server. headers: sent with each request."""

    port: int
    service: object = None
    headers: dict = field(default_factory=dict)

    def ask(self, method, path, body=None, **headers):
        """headers: with _ for -; None takes one out that http.client would send."""
        sent = {**self.headers, **{name.replace("_", "-"): value for name, value in headers.items()}}
        if isinstance(body, dict):
            sent, body = {"content-type": "application/json", **sent}, json.dumps(body).encode()
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)) as connection:
            connection.putrequest(method, path, skip_host="host" in sent, skip_accept_encoding=True)
            if body is not None and "content-length" not in sent:
                sent["content-length"] = str(len(body))
            for name, value in sent.items():
                connection.putheader(name, value)
            connection.endheaders(body)
            reply = connection.getresponse()
            return Reply(reply.status, {name.lower(): value for name, value in reply.getheaders()}, reply.read())

    def get(self, path, **headers):
        return self.ask("GET", path, **headers)

    def post(self, path, body, **headers):
        return self.ask("POST", path, body, **headers)

    def found(self, path, body=None):
        """The JSON of an answer that must be good."""
        reply = self.get(path) if body is None else self.post(path, body)
        assert reply.status == 200, reply.body
        return reply.json()

    def raw(self, data):
        """A socket with `data` sent."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        connection.sendall(data)
        return connection


@contextlib.contextmanager
def serving(*paths, **config):
    """A client of a server of these data sets, with the keywords of ServeConfig."""
    config = ServeConfig(port=0, **config)
    service = open_service([str(path) for path in paths], config)
    listener = socket.create_server(("127.0.0.1", 0))
    ready = threading.Event()
    server = make_server(application(service, config), ready.set)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
    thread.start()
    try:
        assert ready.wait(60)
        yield Client(listener.getsockname()[1], service)
    finally:
        server.should_exit = True
        thread.join(60)
        listener.close()
        assert not thread.is_alive()
