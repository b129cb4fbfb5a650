"""Calls in child processes: what they return, what ends them, and that nothing outlives the caller."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from embedpipe.errors import WorkerDied
from embedpipe.limited import CallFault, CallLimits, LimitedCalls, Stopped
from embedpipe.limited import calls as calls_module
from tests import crashes

LIMITS = CallLimits(memory=1 << 28, seconds=20.0)


@pytest.fixture(scope="module")
def calls():
    made = LimitedCalls(crashes.prepare)
    yield made
    made.close()


def test_a_call_returns_what_the_function_does_and_a_child_is_used_again(calls):
    data = os.urandom(3_000_000)
    pids = set()
    for arguments in ((), (1, "two", None)):
        *answer, pid = calls.call(crashes.echo, data, arguments, LIMITS)
        assert answer == [data, arguments]
        pids.add(pid)
    assert len(pids) == 1
    assert os.getpid() not in pids


@pytest.mark.parametrize(
    ("function", "error_class", "said"),
    [
        (crashes.segfault, "decoder_died", "SIGSEGV"),
        (crashes.abort, "decoder_died", "SIGABRT"),
        (crashes.leave, "decoder_died", "exit code 0"),
        (crashes.raise_exit, "decoder_died", "exit code"),
        (crashes.kill, "decoder_died", "SIGKILL (out of memory?)"),
        (crashes.hoard, "too_costly_memory", "more than 256 MiB"),
        (crashes.hoard_natively, "too_costly_memory", "more than 256 MiB"),
    ],
)
def test_whatever_ends_a_call_is_told_and_the_next_is_well(calls, function, error_class, said):
    found = calls.call(function, b"x", (), LIMITS)
    assert isinstance(found, CallFault)
    assert found.error_class == error_class
    assert said in found.message
    assert calls.call(crashes.echo, b"x", (), LIMITS)[0] == b"x"


def test_a_call_that_computes_too_long_is_ended(calls):
    found = calls.call(crashes.spin, b"", (), CallLimits(1 << 28, 0.2))
    assert found == CallFault("too_costly_time", "more than 0.2 s of processor time")


def test_a_call_that_hangs_is_ended(calls):
    found = calls.call(crashes.sleep, b"", (), CallLimits(1 << 28, 0.05))
    assert found == CallFault("too_costly_time", "no answer for 0.5 s")


def test_a_call_of_a_job_that_is_suspended_goes_on_with_it():
    script = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[4])!r})
from embedpipe.limited import CallLimits, LimitedCalls
from tests import crashes
calls = LimitedCalls(crashes.prepare)
limits = CallLimits(1 << 28, 0.1)
calls.call(crashes.echo, b"", (), limits)
print("begun", flush=True)
print(calls.call(crashes.nap, b"", (0.6,), limits), flush=True)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout.readline() == "begun\n"
    time.sleep(0.2)
    os.killpg(process.pid, signal.SIGSTOP)
    time.sleep(2)  # longer than the call may take
    os.killpg(process.pid, signal.SIGCONT)
    assert process.communicate(timeout=60)[0].startswith("(")


def test_the_limit_of_memory_is_that_of_each_call(calls):
    for _ in range(3):
        assert calls.call(crashes.hoard, b"", (1 << 26,), LIMITS) == 1 << 26
        assert isinstance(calls.call(crashes.hoard, b"", (1 << 26,), CallLimits(1 << 24, 20.0)), CallFault)


def test_the_input_does_not_count_as_memory_of_the_call(calls):
    assert len(calls.call(crashes.echo, bytes(1 << 26), (), CallLimits(1 << 24, 20.0))[0]) == 1 << 26


def test_a_mistake_of_the_program_is_no_fault_of_the_sample(calls):
    with pytest.raises(WorkerDied, match="mistake failed: ZeroDivisionError"):
        calls.call(crashes.mistake, b"", (), LIMITS)


def test_an_innocent_call_in_a_child_damaged_by_an_earlier_one_is_repeated(calls):
    assert calls.call(crashes.poison, b"", (), LIMITS) is None
    assert calls.call(crashes.suffer, b"fine", (), LIMITS) == b"fine"


def test_calls_of_several_threads_run_at_the_same_time(calls):
    barrier_s = 0.3
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: calls.call(crashes.nap, b"", (barrier_s,), LIMITS), range(4)))
    begun, ended = max(found)[0], min(end for _, end in found)
    assert begun < ended, "no moment at which all four ran"


def test_a_call_is_given_up_when_the_caller_stops(calls):
    stop = threading.Event()
    threading.Timer(0.2, stop.set).start()
    with pytest.raises(Stopped):
        calls.call(crashes.sleep, b"", (), LIMITS, stop.is_set)
    assert calls.call(crashes.echo, b"x", (), LIMITS)[0] == b"x"


def test_it_goes_on_when_its_server_is_killed(calls):
    *_, child = calls.call(crashes.echo, b"", (), LIMITS)
    os.kill(parent_of(child), signal.SIGKILL)
    assert calls.call(crashes.echo, b"x", (), LIMITS)[0] == b"x"
    wait_until_gone([child])


def test_an_interrupted_request_does_not_shift_the_answers_to_the_next_ones():
    made = LimitedCalls(crashes.prepare)
    *_, child = made.call(crashes.echo, b"", (), LIMITS)
    server = parent_of(child)
    made.call(crashes.spin, b"", (), CallLimits(1 << 28, 0.05))  # so that the next call needs a new child
    os.kill(server, signal.SIGSTOP)
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        made.call(crashes.echo, b"", (), LIMITS)
    os.kill(server, signal.SIGCONT)
    assert made.call(crashes.echo, b"x", (), LIMITS)[0] == b"x"
    assert "SIGSEGV" in made.call(crashes.segfault, b"", (), LIMITS).message
    made.close()


def test_what_cannot_start_says_why():
    with pytest.raises(WorkerDied, match="no process could be started to decode images in: RuntimeError: not here"):
        LimitedCalls(crashes.unprepared).call(crashes.echo, b"", (), LIMITS)


def test_a_passing_lack_of_files_is_waited_for(monkeypatch):
    real, lacking = calls_module.socket.socketpair, [1, 1, 1]

    def socketpair():
        if lacking:
            lacking.pop()
            raise OSError(errno.EMFILE, "Too many open files")
        return real()

    monkeypatch.setattr(calls_module.socket, "socketpair", socketpair)
    made = LimitedCalls(crashes.prepare)
    assert made.call(crashes.echo, b"x", (), LIMITS)[0] == b"x"
    made.close()
    assert lacking == []
    monkeypatch.setattr(calls_module, "_SCARCITY_MAY_LAST_S", 0.0)
    lacking += [1] * 9
    with pytest.raises(WorkerDied, match="to decode images in: Too many open files"):
        made.call(crashes.echo, b"x", (), LIMITS)


def test_closing_ends_all_processes():
    made = LimitedCalls(crashes.prepare)
    *_, child = made.call(crashes.echo, b"", (), LIMITS)
    server = parent_of(child)
    made.close()
    wait_until_gone([server, child])
    assert made.call(crashes.echo, b"x", (), LIMITS)[0] == b"x"
    made.close()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_has_children_of_its_own(calls):
    *_, ours = calls.call(crashes.echo, b"", (), LIMITS)
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            *_, theirs = calls.call(crashes.echo, b"", (), LIMITS)
            os.write(writing, str(theirs).encode())
            calls.close()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    theirs = int(os.read(reading, 100))
    assert theirs != ours
    assert calls.call(crashes.echo, b"", (), LIMITS)[2] == ours


@pytest.mark.parametrize("busy", ["echo", "spin", "sleep"])
def test_nothing_outlives_a_caller_that_is_killed(busy, tmp_path):
    script = f"""
import sys, threading
sys.path.insert(0, {str(Path(__file__).parents[4])!r})
from embedpipe.limited import CallLimits, LimitedCalls
from tests import crashes
calls = LimitedCalls(crashes.prepare)
limits = CallLimits(1 << 28, 300.0)
print(calls.call(crashes.echo, b"", (), limits)[2], flush=True)
calls.call(crashes.{busy}, b"", (), limits)
threading.Event().wait()
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    child = int(process.stdout.readline())
    server = parent_of(child)
    time.sleep(0.2)
    process.kill()
    process.wait()
    process.stdout.close()
    wait_until_gone([child, server])


def parent_of(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def wait_until_gone(pids, seconds=60):
    until = time.monotonic() + seconds
    while left := [pid for pid in pids if is_running(pid)]:
        assert time.monotonic() < until, f"still running: {left}"
        time.sleep(0.02)


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
