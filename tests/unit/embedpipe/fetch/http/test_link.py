"""How a TLS connection ends: what is heard after we closed our side, however soon the server closed its own."""

import socket
import ssl
import threading

import pytest

from embedpipe.fetch.http.link import Heard, Link
from tests import certificates


class Whenever:
    """A deadline that never comes."""

    def wait_s(self):
        return 10.0


@pytest.fixture(scope="module")
def authorities(tmp_path_factory):
    return certificates.make(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def linked(authorities):
    """Makes a link to a server that says `last` after the handshake, and ends without a farewell."""
    made = []

    def make(last):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(authorities[0]["good"])
        ours, theirs = socket.socketpair()
        ended = threading.Event()

        def serve():
            with context.wrap_socket(theirs, server_side=True) as server:
                server.recv(1)
                server.sendall(b"x" + last)
                server.recv(1)  # our farewell; it has no answer
            ended.set()

        threading.Thread(target=serve, daemon=True).start()
        trusting = ssl.create_default_context(cafile=authorities[1])
        link = Link(trusting.wrap_socket(ours, server_hostname="127.0.0.1"), Whenever())
        made.append(link.socket)
        link.sendall(b"?")
        assert link.socket.recv(1) == b"x"
        return link, ended

    yield make
    for connected in made:
        connected.close()


@pytest.mark.parametrize(("last", "heard"), [(b"", Heard.END), (b"more", Heard.BYTES)])
def test_a_server_that_ends_while_we_say_farewell_has_ended_in_order(linked, monkeypatch, last, heard):
    link, ended = linked(last)
    unwrap = link.socket.unwrap

    def preempted():
        with pytest.raises(ssl.SSLWantReadError):
            unwrap()  # said
        ended.wait(10)  # and heard by the server before we look for its answer
        return unwrap()

    if not last:
        monkeypatch.setattr(link.socket, "unwrap", preempted)
    link.socket.settimeout(0)
    link.end_sending()
    ended.wait(10)
    assert link.hears() is heard
