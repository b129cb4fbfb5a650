"""Which url is asked next."""

import itertools
import threading
import time

import pytest

from embedpipe.fetch.download import host_scheduler
from embedpipe.fetch.download.host_scheduler import HostScheduler, Job


def jobs(*hosts):
    return [Job(i, f"http://{host}/{i}") for i, host in enumerate(hosts)]


class Clock(threading.Condition):
    """Time that passes only where somebody waits for it: in the place of a queue's condition, and of its clock."""

    def __init__(self):
        super().__init__()
        self.now = 0.0

    def monotonic(self):
        return self.now

    def wait(self, timeout=None):
        self.now += timeout


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(host_scheduler, "time", clock)
    return clock


def queue_of(clock, *hosts):
    """For one thread: who waits makes the time pass."""
    queue = HostScheduler(jobs(*hosts), per_host=1)
    queue.changed = clock
    return queue


def test_hosts_take_turns_and_keep_to_their_limit():
    queue = HostScheduler(jobs("a", "a", "a", "b", "c"), per_host=2)
    taken = [queue.take() for _ in range(4)]
    assert [job.host for job in taken] == ["a", "b", "c", "a"]  # the third of a has to wait
    later = []
    waiting = threading.Thread(target=lambda: later.append(queue.take()))
    waiting.start()
    waiting.join(0.1)
    assert waiting.is_alive()
    queue.finish(taken[1])  # b's end frees no place of a's
    waiting.join(0.1)
    assert waiting.is_alive()
    queue.finish(taken[0])
    waiting.join(5)
    assert [job.position for job in later] == [2]


def test_the_end_is_told_to_everyone_who_waits():
    queue = HostScheduler(jobs("a"), per_host=1)
    job = queue.take()
    ends = []
    threads = [threading.Thread(target=lambda: ends.append(queue.take())) for _ in range(5)]
    for thread in threads:
        thread.start()
    queue.finish(job)
    for thread in threads:
        thread.join(5)
    assert ends == [None] * 5
    assert queue.take() is None


def test_a_url_that_waits_for_its_next_try_holds_up_nobody(clock):
    queue = queue_of(clock, "a", "a")
    first = queue.take()
    queue.again(first, 0.3, whole_host=False)
    second = queue.take()
    assert (second.position, clock.now) == (1, 0)
    queue.finish(second)
    assert queue.take() is first
    assert clock.now == 0.3


def test_a_host_that_asks_for_quiet_gets_it_and_others_go_on(clock):
    queue = queue_of(clock, "a", "a", "b")
    queue.again(queue.take(), 0.4, whole_host=True)
    other = queue.take()
    assert (other.host, clock.now) == ("b", 0)
    queue.finish(other)
    assert queue.take().host == "a"
    assert clock.now == 0.4


def test_a_host_is_not_waited_for_without_end(monkeypatch, clock):
    monkeypatch.setattr(host_scheduler, "HOST_PAUSES_S", 0.3)
    queue = queue_of(clock, *"aaaaaaaaaa")
    for _ in range(10):
        queue.again(queue.take(), 0.2, whole_host=True)
    assert clock.now == 0.2  # one pause of all, the others of each url alone


def test_closing_ends_it_with_work_left():
    queue = HostScheduler(jobs("a", "b"), per_host=1)
    queue.close()
    assert queue.take() is None


@pytest.mark.parametrize(("attempts", "least", "most"), [(1, 0.5, 1), (2, 1, 2), (3, 2, 4), (20, 15, 30)])
def test_pauses_grow_with_jitter_and_are_bounded(attempts, least, most):
    pauses = [host_scheduler.pause_s(attempts, None) for _ in range(200)]
    assert least <= min(pauses) <= max(pauses) <= most
    assert max(pauses) > min(pauses)
    assert host_scheduler.pause_s(attempts, 29.5) >= 29.5


def test_a_host_whose_silence_ends_while_it_is_looked_at_does_not_go_round_for_ever(monkeypatch):
    ticks = itertools.count()
    monkeypatch.setattr(host_scheduler.time, "monotonic", lambda: float(next(ticks)))
    queue = HostScheduler(jobs("a"), per_host=1)
    queue.hosts["a"].silent_until = next(ticks) + 1.5  # to come at the first look at the clock, over at the second
    taken = []
    thread = threading.Thread(target=lambda: taken.append(queue.take()), daemon=True)
    thread.start()
    thread.join(10)
    assert [job.position for job in taken] == [0]


def test_many_threads_finish_many_jobs_of_few_hosts():
    """Each is handed out as often as it asked to be, and no host is ever asked for more than its limit."""
    work = jobs(*(f"h{i % 3}" for i in range(600)))
    queue = HostScheduler(work, per_host=2)
    lock, running, worst, handed = threading.Lock(), {}, [0], []

    def serve():
        while (job := queue.take()) is not None:
            with lock:
                running[job.host] = running.get(job.host, 0) + 1
                worst[0] = max(worst[0], running[job.host])
                handed.append(job.position)
            time.sleep(0.0005)
            with lock:
                running[job.host] -= 1
            job.attempts += 1
            if job.attempts <= job.position % 3:
                queue.again(job, 0.01, whole_host=job.position % 2 == 0)
            else:
                queue.finish(job)

    threads = [threading.Thread(target=serve, daemon=True) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)
    assert sorted(handed) == sorted(i for i in range(600) for _ in range(i % 3 + 1))
    assert worst[0] <= 2
