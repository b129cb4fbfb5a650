"""Answers belong to their urls, whatever a server says out of order."""

import socket
import threading
import time

import pytest

from embedpipe.fetch.download.threads import DownloadLoop
from embedpipe.fetch.http.client import HttpClient, Limits
from embedpipe.fetch.http.connections import Connections
from embedpipe.fetch.http.resolver import Resolver
from tests import erring


def client(timeout_s=5.0):
    return HttpClient(Limits(timeout_s, 2 * timeout_s), "embedpipe/0", Connections(Resolver(), ("127.0.0.1",)))


def answers_of(site, urls, threads=16, retries=5, timeout_s=5.0):
    loop = DownloadLoop(client(timeout_s), threads, retries, threads)
    found = {}
    for position, answer in loop.answers([site.url(number) for number in range(urls)]):
        found[position] = answer
    return found


@pytest.mark.parametrize("kind", erring.ERRORS)
def test_no_answer_is_shifted_to_another_url(kind):
    with erring.serving((kind,), rate=0.1) as site:
        found = answers_of(site, 150, timeout_s=0.5 if kind == "omitted" else 5.0)
        assert site.errors[kind] > 2
    wrong = [number for number in range(150) if found[number].body != erring.picture(number)]
    assert not wrong, [found[number].failure for number in wrong]


def test_none_is_shifted_or_lost_by_a_server_that_errs_in_all_ways_at_once():
    with erring.serving(erring.ERRORS, rate=0.1) as site:
        found = answers_of(site, 600, threads=32, timeout_s=0.5)
        assert set(site.errors) == set(erring.ERRORS)
    wrong = [number for number in range(600) if found[number].body != erring.picture(number)]
    assert not wrong, [found[number].failure for number in wrong]


def test_who_answers_in_order_is_asked_once_on_few_connections():
    with erring.serving(("split", "early_hints"), rate=0.2) as site:
        found = answers_of(site, 100, threads=4)
        assert set(site.times.values()) == {1}
    assert all(found[n].body == erring.picture(n) for n in range(100))


def scripted(script):
    """A server with one connection after the other: `script(connection number, request number)` is what it sends."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve(connection, number):
        with connection:
            for request in range(1_000):
                if not connection.recv(65536):
                    return
                connection.sendall(script(number, request))

    def accept():
        for number in range(1_000):
            try:
                connection, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection, number), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return server


def told(number):
    body = erring.picture(number)
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


def test_what_was_answered_before_a_surplus_is_void_on_every_connection_of_that_host_but_not_the_first_answers():
    extra = threading.Event()
    server = scripted(lambda number, request: told(40 * number + request) * (2 if extra.is_set() else 1))
    sender, url = client(), f"http://127.0.0.1:{server.getsockname()[1]}/"
    for position in range(4):
        sender.get(url, position)  # all on the first connection
    assert sender.settle() == set()  # which ended in order
    for position in range(4):
        sender.get(url, position)
    extra.set()
    assert sender.get(url, 4).body is not None
    assert sender.settle() == {1, 2, 3, 4}
    extra.clear()
    for position in range(5, 8):
        sender.get(url, position)
    assert sender.settle() == set()  # each had a connection of its own
    extra.set()
    sender.get(url, 8)
    assert sender.get(url).body is not None
    assert sender.settle() == {8}  # whose length may have been wrong; without a position the answer is final
    server.close()


def test_an_answer_that_is_sent_twice_where_another_is_omitted_is_found_by_its_body():
    def script(number, request):
        return told(max(0, request - 1) if 3 <= request < 6 and not number else request)  # one behind, 3 to 5

    server = scripted(script)
    sender, url = client(), f"http://127.0.0.1:{server.getsockname()[1]}/"
    bodies = [sender.get(url, position).body for position in range(8)]
    assert bodies[3] == bodies[2]
    assert sender.settle() == {3}
    assert sender.get(url, 3, final=True).body != bodies[3]  # a connection of its own: its first answer
    assert sender.settle() == {1, 2, 4, 5, 6, 7}
    for position in (1, 2, 4, 5, 6, 7):
        sender.get(url, position, final=True)
    assert sender.settle() == set()
    server.close()


def test_who_has_one_image_for_everything_is_asked_again_for_a_few_only():
    server = scripted(lambda number, request: told(1))
    sender, url = client(), f"http://127.0.0.1:{server.getsockname()[1]}/"
    for position in range(200):
        sender.get(url, position)
    again = sender.settle()
    assert len(again) == 64
    for position in again:
        sender.get(url, position, final=True)
    assert sender.settle() == set()  # they were what they are
    server.close()


def test_a_server_that_will_not_end_a_connection_has_proved_nothing(monkeypatch):
    monkeypatch.setattr("embedpipe.fetch.http.connections._END_S", 0.2)
    stuck = threading.Event()
    server = socket.create_server(("127.0.0.1", 0))

    def serve():
        connection, _ = server.accept()
        for _ in range(3):
            connection.recv(65536)
            connection.sendall(told(1))
        stuck.wait(60)

    threading.Thread(target=serve, daemon=True).start()
    sender, url = client(), f"http://127.0.0.1:{server.getsockname()[1]}/"
    for position in range(3):
        sender.get(url, position)
    assert sender.settle() == {1, 2}
    stuck.set()
    server.close()


def test_a_server_that_speaks_before_it_is_asked_is_not_believed():
    server = socket.create_server(("127.0.0.1", 0))

    def dial(address, timeout_s):
        connected = socket.create_connection(address, timeout_s)
        server.accept()[0].sendall(told(1))
        time.sleep(0.05)
        return connected

    sender = HttpClient(Limits(5, 10), "embedpipe/0", Connections(Resolver(), ("127.0.0.1",), dial=dial))
    failure = sender.get(f"http://127.0.0.1:{server.getsockname()[1]}/").failure
    assert (failure.error_class, failure.message) == ("connection", "the server spoke before it was asked")
    server.close()
