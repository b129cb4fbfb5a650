"""One try at one url, against a server that does everything wrong."""

import email.utils
import errno
import http.client
import queue
import socket
import ssl
import sys
import threading
import time
import urllib.error
from email.message import Message
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[5]))
from embedpipe.errors import OutOfResources
from embedpipe.fetch import outcome
from embedpipe.fetch.http.body import ByteBudget
from embedpipe.fetch.http.client import HttpClient, Limits, asked_pause_s
from embedpipe.fetch.http.connections import Connections
from embedpipe.fetch.http.deadline import Deadline
from embedpipe.fetch.http.resolver import Resolver, system_lookup
from tests import bodies, certificates, web

HERE = ("127.0.0.1",)
PUBLIC = "93.184.215.14"


@pytest.fixture(scope="module")
def authorities(tmp_path_factory):
    return certificates.make(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def site(authorities):
    with web.serving(authorities[0], (200, b"User-agent: embedpipe\nDisallow: /photo/13.jpg\n")) as running:
        yield running


def transport(
    allow=HERE, lookup=system_lookup, timeout_s=20.0, ca_file=None, max_bytes=50_000_000, robots=False, **more
):
    connections = Connections(Resolver(lookup, more.pop("kept_s", 60.0)), allow, ca_file, **more)
    return HttpClient(Limits(timeout_s, 2 * timeout_s, max_bytes), "embedpipe/0 (+test)", connections, robots)


def class_of(answer):
    assert (answer.body is None) == (answer.failure is not None)
    return answer.failure and answer.failure.error_class


@pytest.mark.parametrize(
    ("path", "error_class"),
    [
        ("/photo/1.jpg", None),
        ("/png/1.png", None),
        ("/avif/1.avif", None),
        ("/webp/1.webp", None),
        ("/cmyk/1.jpg", None),
        ("/animated/1.gif", None),
        ("/turned/6/1.jpg", None),
        ("/gzip/1.jpg", None),
        ("/chunked/1.jpg", None),
        ("/typed/1.jpg", None),
        ("/bomb.png", None),  # its pixels are counted later, by whoever decodes
        ("/hops/5/1.jpg", None),
        ("/tag/1.jpg?X-Robots-Tag=otherbot:+noindex", None),
        ("/tag/1.jpg?tdm-reservation=0", None),
        ("/status/404", "http_404"),
        ("/status/410", "http_404"),
        ("/status/403", "http_403"),
        ("/status/401", "http_403"),
        ("/status/418", "http_4xx"),
        ("/status/429", "http_429"),
        ("/status/500", "http_5xx"),
        ("/status/304", "redirect"),
        ("/garbage.jpg", "not_an_image"),
        ("/html.jpg", "not_an_image"),
        ("/svg.svg", "unsupported"),
        ("/zeros.jpg", "not_an_image"),
        ("/empty.jpg", "empty"),
        ("/slow/5.jpg", "timeout"),
        ("/drip/1.jpg", "timeout"),
        ("/dripheader", "timeout"),
        ("/endless.jpg", "timeout"),
        ("/short/1.jpg", "connection"),
        ("/reset", "connection"),
        ("/cut/1.jpg", "connection"),
        ("/unended/1.jpg", "connection"),
        ("/nohttp", "connection"),
        ("/loop", "redirect"),
        ("/hops/6/1.jpg", "redirect"),
        ("/redirect?to=http://169.254.169.254/latest", "refused_address"),
        ("/redirect?to=//localhost/", "refused_address"),
        ("/redirect?to=file:///etc/passwd", "invalid_url"),
        ("/gzipbomb.jpg", "too_large"),
        ("/tag/1.jpg?X-Robots-Tag=noai", "opt_out"),
        ("/tag/1.jpg?X-Robots-Tag=nofollow&X-Robots-Tag=embedpipe:+noindex", "opt_out"),
        ("/tag/1.jpg?tdm-reservation=1", "opt_out"),
    ],
)
def test_every_misbehaviour_has_its_class_and_ends_in_time(site, path, error_class):
    begun = time.monotonic()
    # Those that would take for ever are not waited for long.
    answer = transport(timeout_s=0.5 if error_class == "timeout" else 20.0).get(site.url(path))
    assert class_of(answer) == error_class, answer.failure
    assert time.monotonic() - begun < 60
    assert answer.failure is None or answer.failure.message


def test_bodies_come_whole_and_decoded(site):
    for path in ("/photo/3.jpg", "/gzip/3.jpg", "/chunked/3.jpg", "/kept/3.jpg"):
        answer = transport().get(site.url(path))
        assert (answer.body, answer.content_type) == (bodies.photo(3), "image/jpeg")
    assert transport().get(site.url("/long/3.jpg")).body == bodies.photo(3)[: len(bodies.photo(3)) // 2]
    assert transport().get(site.url("/typed/3.jpg")).content_type == "text/html"


@pytest.mark.parametrize("path", ["/photo/1.jpg", "/chunked/1.jpg", "/gzip/1.jpg"])
def test_the_byte_limit_is_exact(site, path):
    size = len(bodies.photo(1))
    answer = transport(max_bytes=size - 1).get(site.url(path))
    assert class_of(answer) == "too_large"
    assert f"more than {size - 1:,} bytes" in answer.failure.message
    if path != "/gzip/1.jpg":  # a JPEG that is zipped takes a few bytes more on its way
        assert class_of(transport(max_bytes=size).get(site.url(path))) is None


def test_what_is_no_image_is_not_read_to_its_end(site):
    answer = transport(max_bytes=31_000_000).get(site.url("/zeros.jpg"))
    assert "begins with '\\\\x00" in answer.failure.message
    assert "sent as image/jpeg" in answer.failure.message


# --- which address it goes to ---


def dialling_to(site, dialled):
    """Connects to the server, whatever address it is asked for, and notes that."""

    def dial(address, timeout_s):
        dialled.append(address[0])
        return socket.create_connection(("127.0.0.1", site.port), timeout_s)

    return dial


def test_the_connection_goes_to_the_very_address_that_was_checked(site):
    """A name that is public when it is looked at and private a moment later (DNS rebinding)."""
    answers = [[PUBLIC], ["127.0.0.1"], [PUBLIC], ["10.0.0.1"]]
    asked, dialled = [], []

    def lookup(host):
        asked.append(host)
        return answers[len(asked) - 1]

    sender = transport((), lookup, kept_s=0.0, dial=dialling_to(site, dialled))
    assert class_of(sender.get("http://rebind.example/photo/1.jpg")) is None
    assert (len(asked), dialled) == (1, [PUBLIC])
    refused = sender.get("http://rebind.example/photo/1.jpg")
    assert class_of(refused) == "refused_address"
    assert "rebind.example resolves to 127.0.0.1" in refused.failure.message
    # The same between a redirect and its target.
    assert class_of(sender.get("http://rebind.example/redirect?to=/photo/1.jpg")) == "refused_address"
    assert dialled == [PUBLIC, PUBLIC]


def test_of_several_addresses_only_public_ones_are_tried(site):
    found = ["10.0.0.1", "93.184.215.1", "::1", "169.254.169.254", PUBLIC, "fd00::1"]
    dialled = []
    good = dialling_to(site, dialled)

    def dial(address, timeout_s):
        if address[0] == "93.184.215.1":
            dialled.append(address[0])
            raise ConnectionRefusedError(111, "refused")
        return good(address, timeout_s)

    answer = transport((), lambda host: found, dial=dial).get("http://several.example/photo/1.jpg")
    assert (class_of(answer), dialled) == (None, ["93.184.215.1", PUBLIC])


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "fe80::1%eth0"]
)
def test_a_name_with_a_private_address_is_refused(site, address):
    dialled = []
    answer = transport((), lambda host: [address], dial=dialling_to(site, dialled)).get("http://inside.example/a.jpg")
    assert (class_of(answer), dialled) == ("refused_address", [])


def test_an_allowed_host_is_taken_by_name_and_by_port(site):
    url = f"http://inside.example:{site.port}/photo/1.jpg"
    for allowed, error_class in [
        (("inside.example",), None),
        (("INSIDE.example.",), None),
        ((f"inside.example:{site.port}",), None),
        (("inside.example:1",), "refused_address"),
        (("other.example",), "refused_address"),
        (("127.0.0.1",), "refused_address"),  # the address alone makes no name of it good
    ]:
        assert class_of(transport(allowed, lambda host: ["127.0.0.1"]).get(url)) == error_class, allowed


def test_a_resolver_that_hangs_costs_one_wait():
    answer_it = threading.Event()
    hanging = transport(lookup=lambda host: answer_it.wait() and [PUBLIC], timeout_s=0.2)
    answer = hanging.get("http://slow.example/a.jpg")
    assert (class_of(answer), answer.failure.may_pass()) == ("dns", True)
    answer_it.set()


def test_proxies_of_the_environment_are_not_used(site, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert class_of(transport().get(site.url("/photo/1.jpg"))) is None


# --- TLS, and connections used again ---


@pytest.mark.parametrize("certificate", ["expired", "elsewhere", "unknown", "selfsigned"])
def test_bad_certificates_are_refused(site, authorities, certificate):
    answer = transport(ca_file=authorities[1]).get(site.url("/photo/1.jpg", certificate))
    assert (class_of(answer), answer.failure.may_pass()) == ("tls", False)
    assert "certificate verify failed" in answer.failure.message


def test_a_good_certificate_of_an_authority_that_was_named(site, authorities):
    url = site.url("/photo/1.jpg", "good")
    assert class_of(transport(ca_file=authorities[1]).get(url)) is None
    assert class_of(transport().get(url)) == "tls"
    assert class_of(transport().get(url.replace("https", "http"))) == "connection"
    assert class_of(transport().get(site.url("/photo/1.jpg").replace("http", "https"))) == "tls"


@pytest.mark.parametrize("certificate", [None, "good"])
def test_connections_are_used_again(site, authorities, certificate):
    sender = transport(ca_file=authorities[1])
    before = site.connections()
    for i in range(5):
        assert sender.get(site.url(f"/kept/{i}.jpg", certificate), i).body == bodies.photo(i)
    assert sender.settle() == set()
    assert site.connections() - before == 2  # one, and the one that asks for this number


def test_a_kept_connection_that_is_closed_or_talks_out_of_turn_is_not_used_again():
    server = socket.create_server(("127.0.0.1", 0))
    body = bodies.photo(1)
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    said = [answer, answer + b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwrong", answer]
    served = queue.SimpleQueue()

    def serve():
        for text in said:
            connection, _ = server.accept()
            connection.recv(65536)
            connection.sendall(text)
            if text == answer:
                connection.close()
            served.put(text)

    threading.Thread(target=serve, daemon=True).start()
    sender = transport()
    for _ in said:
        assert sender.get(f"http://127.0.0.1:{server.getsockname()[1]}/").body == body
        served.get(timeout=60)  # and closed, where it is
    server.close()


# --- what this machine lacks ---


def unknown(host):
    raise socket.gaierror(socket.EAI_AGAIN, "no name server answered")


@pytest.mark.parametrize("robots", [False, True])
def test_without_a_network_no_url_has_failed(monkeypatch, site, robots):
    monkeypatch.setattr("embedpipe.fetch.http.client.has_network", lambda: False)
    sender = transport(lookup=unknown, robots=robots, kept_s=0.0)
    with pytest.raises(OutOfResources, match=r"this machine has no network: .*no name server answered"):
        sender.get("http://e.org/1.jpg")
    monkeypatch.setattr("embedpipe.fetch.http.client.has_network", lambda: True)
    assert class_of(sender.get("http://e.org/1.jpg")) == "dns"
    monkeypatch.setattr("embedpipe.fetch.http.client.has_network", lambda: False)
    sender = transport(lookup=lambda host: ["127.0.0.1"] if host == "127.0.0.1" else unknown(host))
    assert class_of(sender.get(site.url("/photo/1.jpg"))) is None
    assert class_of(sender.get("http://e.org/1.jpg")) == "dns"  # a machine that serves itself needs no network


@pytest.mark.parametrize("lack", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL])
def test_a_lack_of_this_machine_is_no_failure_of_the_url(lack):
    def dial(address, timeout_s):
        raise OSError(lack, "this machine")

    with pytest.raises(OutOfResources, match="this machine has run out of"):
        transport(lookup=lambda host: [PUBLIC], dial=dial).get("http://e.org/1.jpg")
    if lack == errno.EADDRNOTAVAIL:  # what a machine without IPv6 says of every such address
        sender = transport(lookup=lambda host: ["2606:2800:21f::1"], dial=dial)
        assert class_of(sender.get("http://e.org/1.jpg")) == "connection"


# --- robots.txt ---


def test_robots_txt_is_asked_for_once_and_obeyed_on_redirects_too(site):
    before = site.requests()["/robots.txt"]
    sender = transport(robots=True)
    assert class_of(sender.get(site.url("/photo/12.jpg"))) is None
    for path in ("/photo/13.jpg", "/redirect?to=/photo/13.jpg"):
        answer = sender.get(site.url(path))
        assert (class_of(answer), answer.failure.message) == ("opt_out", "forbidden by robots.txt of 127.0.0.1")
    assert site.requests()["/robots.txt"] - before == 1
    assert class_of(transport().get(site.url("/photo/13.jpg"))) is None


@pytest.mark.parametrize(("status", "error_class"), [(404, None), (403, None), (503, "http_5xx")])
def test_no_robots_txt_allows_and_an_unreachable_one_forbids(status, error_class):
    with web.serving(robots_txt=(status, b"User-agent: *\nDisallow: /")) as other:
        answer = transport(robots=True).get(other.url("/photo/1.jpg"))
    assert class_of(answer) == error_class
    if error_class:
        assert "robots.txt of 127.0.0.1: HTTP 503" in answer.failure.message
        assert not answer.failure.may_pass()


RESERVED = b'[{"location": "/photo/1*.jpg", "tdm-reservation": 1}, {"location": "/photo/12.jpg", "tdm-reservation": 0}]'


def test_tdmrep_is_asked_for_once_and_obeyed():
    with web.serving(tdmrep=(200, RESERVED)) as other:
        sender = transport(robots=True)
        for path, error_class in (("13", "opt_out"), ("12", None), ("2", None), ("14", "opt_out")):
            answer = sender.get(other.url(f"/photo/{path}.jpg"))
            assert class_of(answer) == error_class
        assert "tdmrep.json of 127.0.0.1" in answer.failure.message
        assert other.requests()["/.well-known/tdmrep.json"] == 1
        assert not other.requests()["/photo/13.jpg"]
        assert class_of(transport().get(other.url("/photo/13.jpg"))) is None  # nobody asked for it


@pytest.mark.parametrize(
    ("status", "body", "error_class"),
    [
        (404, RESERVED, None),
        (200, b"<!doctype html>", None),
        (500, RESERVED, "http_5xx"),
        (200, RESERVED * 6_000, None),
    ],
)
def test_no_tdmrep_or_a_malformed_one_allows_and_an_unreachable_one_forbids(status, body, error_class):
    with web.serving(tdmrep=(status, body)) as other:
        answer = transport(robots=True).get(other.url("/photo/13.jpg"))
    assert class_of(answer) == error_class
    if error_class:
        assert "tdmrep.json of 127.0.0.1: HTTP 500" in answer.failure.message
        assert not answer.failure.may_pass()


# --- texts ---


@pytest.mark.parametrize(
    ("text", "least", "most"),
    [
        ("5", 5, 5),
        ("0", 0, 0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0, 0),
    ],
)
def test_retry_after_is_seconds_or_a_date(text, least, most):
    headers = Message()
    headers["Retry-After"] = text
    assert least <= asked_pause_s(headers) <= most


def test_a_retry_after_of_a_date_to_come_is_the_time_until_then():
    headers = Message()
    headers["Retry-After"] = email.utils.formatdate(time.time() + 100, usegmt=True)
    assert 90 <= asked_pause_s(headers) <= 100


@pytest.mark.parametrize("text", ["", "soon", "-1", "1.5", "²"])
def test_a_retry_after_that_says_nothing_is_none(text):
    headers = Message()
    headers["Retry-After"] = text
    assert asked_pause_s(headers) is None
    assert asked_pause_s(Message()) is None


@pytest.mark.parametrize(
    ("problem", "error_class"),
    [
        (TimeoutError("timed out"), "timeout"),
        (urllib.error.URLError(TimeoutError("timed out")), "timeout"),
        (socket.gaierror(-2, "unknown"), "dns"),
        (ConnectionRefusedError(111, "refused"), "connection"),
        (ssl.SSLCertVerificationError("expired"), "tls"),
        (http.client.IncompleteRead(b"half"), "connection"),
        (http.client.BadStatusLine("SSH-2.0"), "connection"),
        (http.client.InvalidURL("port"), "invalid_url"),
        (UnicodeError("label too long"), "invalid_url"),
    ],
)
def test_exceptions_have_their_class(problem, error_class):
    failure = outcome.of_exception(problem)
    assert failure.error_class == error_class
    assert failure.error_class in outcome.ERROR_CLASSES
    assert failure.message


@pytest.mark.parametrize(
    ("status", "error_class", "passing"),
    [
        (400, "http_4xx", False),
        (404, "http_404", False),
        (408, "http_4xx", True),
        (425, "http_4xx", True),
        (429, "http_429", True),
        (500, "http_5xx", True),
        (503, "http_5xx", True),
    ],
)
def test_of_the_4xx_only_those_that_pass_are_tried_again(status, error_class, passing):
    failure = outcome.of_status(status, "")
    assert (failure.error_class, failure.may_pass()) == (error_class, passing)


@pytest.mark.parametrize(
    ("message", "error_class"),
    [
        ("Image decoding error", "decode"),
        ("image too small", "too_small"),
        ("OpenCV(4) /io/x.cpp:79: error: (-215) pixels <= CV_IO_MAX_IMAGE_PIXELS in function 'f'", "too_large"),
        ("OpenCV(4) /io/x.cpp:1: error: (-215) !buf.empty()", "decode"),
    ],
)
def test_resizer_messages_have_their_class_and_no_build_paths(message, error_class):
    failure = outcome.of_resizing(message)
    assert failure.error_class == error_class
    assert "/io/" not in failure.message


def test_large_bodies_share_a_bounded_memory_and_wait_no_longer_than_their_deadline():
    large = ByteBudget(100)
    assert [large.take(60, Deadline(60, 60)), large.take(40, Deadline(60, 60))] == [60, 40]
    with pytest.raises(TimeoutError):
        large.take(1, Deadline(0.2, 0.1))
    large.give_back(60)
    assert large.take(60, Deadline(1, 1)) == 60
    large.give_back(60)
    large.give_back(40)
    assert large.take(1_000, Deadline(1, 1)) == 100  # more than there is takes all there is
