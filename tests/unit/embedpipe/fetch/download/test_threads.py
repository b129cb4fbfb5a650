"""The threads that ask for urls, with a transport that answers from a script."""

import threading
import time
from collections import Counter

import pytest

from embedpipe.errors import OutOfResources
from embedpipe.fetch.download import threads as loop
from embedpipe.fetch.download.threads import DownloadLoop
from embedpipe.fetch.http.client import Response
from embedpipe.fetch.outcome import Failure


class Scripted:
    """Answers by the url's path: `/ok`, `/fail/CLASS/N` (N times, then ok), `/fault`, `/wait/S/N` (429), `/held`.

    What is held is answered once `go_on` is set; most_held: how many were at once.
    """

    def __init__(self):
        self.go_on = threading.Event()
        self.held = self.most_held = 0
        self.asked = Counter()
        self.done = Counter()
        self.lock = threading.Lock()
        self.released = 0

    def get(self, url, position=None, final=False):
        what, *rest = url.split("/")[3:]
        with self.lock:
            self.asked[url] += 1
            times = self.asked[url]
        if what == "held":
            self._hold()
        if what == "lack" and times <= int(rest[0]):
            raise OutOfResources("this machine has run out of patience", "wait")
        if what == "fault":
            raise RuntimeError("a fault of the program")
        if what == "fail" and times <= int(rest[1]):
            return Response(None, Failure(rest[0], "said the script"))
        if what == "wait" and times <= int(rest[1]):
            return Response(None, Failure("http_429", "HTTP 429"), asked_pause_s=float(rest[0]))
        return Response(url.encode(), None, held=7)

    def _hold(self):
        with self.lock:
            self.held += 1
            self.most_held = max(self.most_held, self.held)
        self.go_on.wait(250)
        with self.lock:
            self.held -= 1

    def settle(self):
        return set()

    def release(self):
        self.released += 1

    def done_with(self, answer):
        self.done[answer.body] += 1


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(loop, "pause_s", lambda attempts, asked_s: asked_s or 0.01)


def run(urls, threads=4, retries=2, per_host=4):
    transport = Scripted()
    answers = dict(DownloadLoop(transport, threads, retries, per_host).answers(urls))
    return transport, answers


def test_every_url_is_answered_once_with_its_number_of_tries(quick):
    urls = [f"http://h{i}/ok/{i}" for i in range(50)]
    urls += ["http://a/fail/timeout/1", "http://a/fail/http_5xx/9", "http://a/fail/http_404/9", "http://a/fail/tls/1"]
    transport, answers = run(urls)
    assert sorted(answers) == list(range(54))
    assert all(answers[i].attempts == 1 and answers[i].body == urls[i].encode() for i in range(50))
    assert [(answers[i].attempts, answers[i].failure and answers[i].failure.error_class) for i in range(50, 54)] == [
        (2, None),
        (3, "http_5xx"),
        (1, "http_404"),
        (1, "tls"),
    ]
    assert transport.done.total() == 54  # each body's leave was given back


def test_no_urls_are_no_work():
    assert run([])[1] == {}


def test_a_slow_host_holds_up_no_thread_that_others_need(quick):
    urls = [f"http://slow/held/{i}" for i in range(6)] + [f"http://fast{i % 5}/ok/{i}" for i in range(100)]
    transport, ended = Scripted(), []
    for position, _ in DownloadLoop(transport, threads=4, retries=0, per_host=2).answers(urls):
        ended.append(position)
        if len(ended) == 100:
            assert min(ended) == 6, "none of the slow host's"
            transport.go_on.set()
    assert sorted(ended) == list(range(106))
    assert transport.most_held == 2


def test_a_pause_that_is_too_long_is_not_begun(quick):
    transport, answers = run(["http://a/wait/3600/1", "http://a/wait/0.2/1"])
    assert answers[0].attempts == 1
    assert answers[0].failure == Failure("http_429", "HTTP 429; asks to come back in 3,600 s, longer than fetch waits")
    assert (answers[1].attempts, answers[1].failure) == (2, None)
    assert transport.asked["http://a/wait/3600/1"] == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_fault_of_the_program_loses_its_url_and_no_other():
    urls = [f"http://h{i}/{'fault' if i % 3 == 0 else 'ok'}/{i}" for i in range(30)]
    _, answers = run(urls, threads=2)
    assert sorted(answers) == [i for i in range(30) if i % 3]


def test_whoever_stops_listening_stops_it():
    transport = Scripted()
    answers = DownloadLoop(transport, 2, 0, 2).answers([f"http://h{i}/ok" for i in range(1_000)])
    next(answers)
    answers.close()
    time.sleep(0.2)
    assert transport.asked.total() < 20


def test_a_lack_of_this_machine_is_no_attempt_and_leaves_fewer_threads(monkeypatch):
    monkeypatch.setattr(loop, "_LACK_PAUSE_S", 0.01)
    urls = [f"http://h{i}/lack/3/{i}" for i in range(20)] + ["http://h/ok"]
    transport, answers = run(urls, threads=8, retries=0)
    assert sorted(answers) == list(range(21))
    assert all(answer.body is not None and answer.attempts == 1 for answer in answers.values())
    assert transport.released == 60


def test_a_lack_that_does_not_end_stops_the_round(monkeypatch):
    monkeypatch.setattr(loop, "_LACK_PAUSE_S", 0.01)
    monkeypatch.setattr(loop, "_PATIENCE_S", 0.1)
    with pytest.raises(OutOfResources, match="patience"):
        run(["http://a/lack/100000", "http://b/lack/100000"])
