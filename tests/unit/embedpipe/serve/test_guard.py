"""serve: what others may not do: other hosts and origins, no token, paths that lead out, bodies without end."""

import json
import socket
import time

import numpy as np
import pytest

from embedpipe.serve import guard, server
from tests.embeddings import write_dataset
from tests.served import serving

TOKEN = "a-secret-of-some-length"
ORIGIN = "http://gpu7:8000"
ROWS = "/api/datasets/emb/rows"


@pytest.fixture(scope="module")
def emb(tmp_path_factory):
    image, text = np.random.default_rng(0).normal(size=(2, 12, 8))
    return write_dataset(tmp_path_factory.mktemp("served") / "emb", image, text)


@pytest.fixture(scope="module")
def client(emb, tmp_path_factory):
    with serving(emb, no_model=True, selections=str(tmp_path_factory.mktemp("selections"))) as found:
        yield found


@pytest.fixture(scope="module")
def shut(emb, tmp_path_factory):
    """A server with a token, and an origin besides loopback."""
    folder = str(tmp_path_factory.mktemp("selections"))
    with serving(emb, no_model=True, token=TOKEN, allow_origin=(ORIGIN,), selections=folder) as found:
        yield found


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.", "127.0.0.1@evil.example", "[::2]:80",
     "2130706433", "", "127.0.0.1:80:80", "localhost:8000x"],
)  # fmt: skip
def test_another_host_is_refused(client, host):
    for path in ("/", "/api/datasets", "/indices-list", "/page/main.js"):
        assert client.get(path, host=host).status == 403


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:9000", "127.0.0.1:1", "[::1]:8000"])
def test_loopback_is_answered_under_any_port_as_through_a_tunnel(client, host):
    assert client.get("/api/datasets", host=host).status == 200


def test_two_hosts_or_none_are_refused(client):
    with client.raw(b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\nConnection: close\r\n\r\n") as two:
        assert b" 40" in two.recv(200)
    with client.raw(b"GET / HTTP/1.0\r\nConnection: close\r\n\r\n") as none:
        assert b" 403 " in none.recv(200)


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "null",
        "http://localhost:1",
        "http://127.0.0.1",
        "http://127.0.0.1.evil.example",
        "file://",
    ],
)
def test_pages_of_other_origins_may_neither_read_nor_write(client, origin):
    for reply in (
        client.get("/api/datasets", origin=origin),
        client.post(ROWS, {}, origin=origin),
        client.post("/knn-service", b'{"embedding_input": [1]}', origin=origin),
        client.ask("OPTIONS", ROWS, origin=origin, access_control_request_method="POST"),
    ):
        assert "access-control-allow-origin" not in reply.headers
        assert reply.status == 403
    assert client.get("/api/datasets", **{"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}).status == 403


def test_the_own_page_may(client):
    own = f"http://127.0.0.1:{client.port}"
    reply = client.post(ROWS, {}, host=f"127.0.0.1:{client.port}", origin=own, **{"sec-fetch-site": "same-origin"})
    assert reply.status == 200
    assert client.get("/", **{"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}).status == 200


def test_every_answer_says_what_a_browser_may_do_with_it(client, shut):
    for reply in (
        client.get("/"),
        client.get("/api/datasets"),
        client.get("/nothing"),
        client.get("/", host="evil.example"),
        client.post(ROWS, b"{", content_type="application/json"),
        shut.get("/"),
    ):
        policy = dict(part.strip().split(" ", 1) for part in reply.headers["content-security-policy"].split(";"))
        assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["cross-origin-resource-policy"] == "same-origin"
        assert reply.headers["referrer-policy"] == "no-referrer"
        assert "server" not in reply.headers


def test_without_the_token_nothing_is_said(shut):
    for path in ("/", "/api/datasets", "/openapi.json", "/metrics", "/page/main.js", "/nothing", f"/?token={TOKEN}x"):
        reply = shut.get(path)
        assert reply.status == 401
        assert b"emb" not in reply.body
    for sent in (
        {"authorization": "Bearer x"},
        {"authorization": TOKEN},
        {"cookie": f"{'x' * 5000}"},
        {"cookie": 'a="b'},
    ):
        assert shut.get("/api/datasets", **sent).status == 401
    assert shut.post("/knn-service", b"{}").status == 401


def test_the_token_opens_by_header_by_address_and_by_the_cookie_that_this_sets(shut):
    assert shut.get("/api/datasets", authorization=f"Bearer {TOKEN}").status == 200
    assert shut.get(f"/indices-list?token={TOKEN}").json() == ["emb"]
    login = shut.get(f"/?token={TOKEN}")
    assert (login.status, login.headers["location"]) == (303, "/")
    cookie = login.headers["set-cookie"]
    assert "httponly" in cookie.lower()
    assert "samesite=lax" in cookie.lower()
    assert shut.get("/", cookie=cookie.partition(";")[0]).status == 200


def test_an_allowed_origin_may_ask_and_is_a_host(shut):
    before = shut.ask("OPTIONS", ROWS, origin=ORIGIN, access_control_request_method="POST")
    assert before.status == 204
    assert "content-type" in before.headers["access-control-allow-headers"]
    reply = shut.post(ROWS, {}, origin=ORIGIN, authorization=f"Bearer {TOKEN}")
    assert (reply.status, reply.headers["access-control-allow-origin"]) == (200, ORIGIN)
    assert shut.get("/api/datasets", host="gpu7:8000", authorization=f"Bearer {TOKEN}").status == 200
    assert shut.get("/api/datasets", host="gpu8:8000", authorization=f"Bearer {TOKEN}").status == 403


@pytest.mark.parametrize(
    "path",
    [
        "/page/../config.py",
        "/page/%2e%2e/config.py",
        "/page/..%2f..%2fconfig.py",
        "/page//etc/passwd",
        "/page/main.js%00.html",
        "/../../etc/passwd",
        "//etc/passwd",
        "/api/datasets/..%2f..%2fetc/rows/0",
        "/api/datasets/../rows/0",
        "/api/datasets/emb/rows/-1",
        "/api/datasets/emb/rows/12",
        "/api/datasets/emb/rows/0.5",
        "/api/datasets/emb/rows/99999999999999999999999999999",
        "/api/datasets/emb/rows/" + "9" * 5000,
        "/api/datasets/emb/rows/99999999/picture",
        "/api/datasets/emb/selections/..%2f..%2f..%2fetc",
        "/api/datasets/emb/selections/..",
        "/api/datasets/emb/rows/0/picture?side=9999999999999",
        "/api/datasets/emb/rows/0/neighbours?limit=-1",
        "/api/datasets/emb/rows/0/neighbours?modality=sound",
        "/api/datasets/\ud83d".encode("utf-8", "surrogatepass").decode("latin-1").replace("\x8d", "%8d"),
    ],
)
def test_nothing_is_read_outside(client, path):
    with client.raw(
        b"GET " + path.encode("latin-1") + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    ) as it:
        said = b"".join(iter(lambda: it.recv(65536), b""))
    assert said.split(b" ")[1] in (b"400", b"404")
    assert b"root:" not in said
    assert b"ServeConfig" not in said


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "TRACE", "CONNECT", "BREW"])
def test_other_methods_are_refused(client, method):
    assert client.ask(method, "/api/datasets").status in (400, 405)


def test_a_body_of_too_many_bytes_is_refused_unread(client):
    reply = client.ask("POST", ROWS, None, content_type="application/json", content_length=str(1 << 40))
    assert reply.status == 413


def test_a_body_that_only_grows_is_cut_off(client, monkeypatch):
    monkeypatch.setattr(guard, "MAX_BODY_BYTES", 100_000)
    head = b"POST " + ROWS.encode() + b" HTTP/1.1\r\nHost: localhost\r\ncontent-type: application/json\r\n"
    with client.raw(head + b"transfer-encoding: chunked\r\n\r\n") as growing:
        said = b""
        for _ in range(1000):
            try:
                growing.sendall(b"2710\r\n" + b" " * 10_000 + b"\r\n")
            except OSError:
                break
        try:
            said = growing.recv(1000)
        except ConnectionError:
            return
    assert b" 413 " in said


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[" * 100_000, b"null", b"\xff\xfe", b'{"limit": 1e999}', b'{"limit": NaN}', b'{"a": ' * 5000, b'"x"'],
)
def test_a_body_that_is_no_request_is_said_to_be_none(client, body):
    assert client.post(ROWS, body, content_type="application/json").status == 400


def test_the_api_takes_json_only_as_such(client):
    assert client.post(ROWS, b"{}", content_type="text/plain").status == 415


def test_a_connection_that_says_nothing_is_closed_and_one_that_stalls(client, monkeypatch):
    monkeypatch.setattr(server, "HEAD_SECONDS", 0.2)
    monkeypatch.setattr(guard, "BODY_SECONDS", 0.2)
    stalled = b"POST " + ROWS.encode() + b" HTTP/1.1\r\nHost: localhost\r\ncontent-type: application/json\r\n"
    with (
        client.raw(b"") as silent,
        client.raw(b"GET / HTTP/1.1\r\nHost: loc") as slow,
        client.raw(stalled + b"content-length: 10\r\n\r\n{") as half,
    ):
        for connection in (silent, slow):
            assert _read(connection) == b""
        assert b" 408 " in _read(half)
    assert client.get("/api/datasets").status == 200


def _read(connection):
    try:
        return connection.recv(1000)
    except ConnectionError:
        return b""


def test_many_connections_leave_room_for_the_next(client, monkeypatch):
    monkeypatch.setattr(server, "MOST_CONNECTIONS", 20)
    idle = [client.raw(b"") for _ in range(60)]
    try:
        for connection in idle[:15]:
            connection.close()
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                if client.get("/api/datasets").status == 200:
                    return
            except (ConnectionError, OSError):
                time.sleep(0.05)
        pytest.fail("no answer any more")
    finally:
        for connection in idle:
            connection.close()


def test_an_upgrade_is_no_way_in(client):
    reply = client.get("/api/datasets", connection="Upgrade", upgrade="websocket", sec_websocket_version="13",
                       sec_websocket_key="dGhlIHNhbXBsZSBub25jZQ==", host="evil.example")  # fmt: skip
    assert reply.status == 403


def test_what_fails_inside_is_not_told(client, monkeypatch, caplog):
    def broken(*given):
        raise RuntimeError("a secret of the machine")

    monkeypatch.setattr(client.service, "rows", broken)
    reply = client.post(ROWS, {})
    assert reply.status == 500
    assert "content-security-policy" in reply.headers
    assert "secret" not in json.dumps(reply.json())
    assert "secret" in caplog.text


def test_a_port_in_use_is_said(emb):
    from embedpipe import ServeConfig, serve
    from embedpipe.errors import InputError

    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(InputError, match="port"):
        serve(emb, ServeConfig(port=taken.getsockname()[1], no_model=True))
