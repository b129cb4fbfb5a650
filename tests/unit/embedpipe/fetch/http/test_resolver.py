"""Names to addresses, whatever the resolver does. The lookup is ours, so no network is asked."""

import socket
import threading

import pytest

from embedpipe.fetch.http.resolver import Resolver
from embedpipe.fetch.outcome import NotFetched


def failure_of(resolver, host, wait_s=1.0):
    with pytest.raises(NotFetched) as caught:
        resolver.addresses(host, wait_s)
    return caught.value.failure


def test_a_name_is_looked_up_once_in_a_minute_however_it_ended():
    asked = []

    def lookup(host):
        asked.append(host)
        if host == "gone.example":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return ["192.0.2.1", "192.0.2.2"]

    resolver = Resolver(lookup)
    for _ in range(3):
        assert resolver.addresses("here.example", 1.0) == ("192.0.2.1", "192.0.2.2")
        failure = failure_of(resolver, "gone.example")
        assert (failure.error_class, failure.may_pass()) == ("dns", False)
        assert "not known" in failure.message
    assert asked == ["here.example", "gone.example"]


def test_a_name_server_that_did_not_answer_is_asked_again():
    answers = iter([socket.gaierror(socket.EAI_AGAIN, "Temporary failure"), ["192.0.2.1"]])

    def lookup(host):
        answer = next(answers)
        if isinstance(answer, OSError):
            raise answer
        return answer

    resolver = Resolver(lookup)
    failure = failure_of(resolver, "a.example")
    assert (failure.error_class, failure.may_pass()) == ("dns", True)
    assert resolver.addresses("a.example", 1.0) == ("192.0.2.1",)


def test_a_resolver_that_hangs_holds_nobody_and_is_asked_once():
    asked, answer = [], threading.Event()

    def lookup(host):
        asked.append(host)
        answer.wait()
        return ["192.0.2.1"]

    resolver = Resolver(lookup)
    for _ in range(3):
        failure = failure_of(resolver, "slow.example", 0.1)
        assert (failure.error_class, failure.may_pass()) == ("dns", True)
        assert "no answer from the resolver" in failure.message
    answer.set()
    assert resolver.addresses("slow.example", 60.0) == ("192.0.2.1",)
    assert asked == ["slow.example"]


def test_lookups_that_never_end_do_not_pile_up_without_limit():
    answer = threading.Event()
    resolver = Resolver(lambda host: answer.wait(20) and ["192.0.2.1"])
    messages = [failure_of(resolver, f"{i}.example", 0.001).message for i in range(260)]
    assert [i for i, message in enumerate(messages) if "256 lookups unanswered" in message] == list(range(256, 260))
    answer.set()


@pytest.mark.parametrize(("host", "error_class"), [("a" * 64 + ".example", "invalid_url"), ("none.example", "dns")])
def test_no_name_and_no_addresses_are_told(host, error_class):
    def lookup(name):
        name.encode("idna")
        return []

    assert failure_of(Resolver(lookup), host).error_class == error_class
