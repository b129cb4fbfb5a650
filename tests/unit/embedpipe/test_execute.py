"""Every executor does each task once, sets aside what cannot be done, and leaves no process behind."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from embedpipe.errors import DiskFull, EmbedpipeError, InputError, WorkerDied
from embedpipe.execute import EXECUTORS, Task, open_executor
from embedpipe.execute.processes import ProcessExecutor, RemoteTraceback
from embedpipe.progress import Progress, TaskReport, silent
from tests.works import Ahead, Broken, Doing, LeavingSlowly


def tasks(*payloads):
    return [Task(number, f"t{number}", payload) for number, payload in enumerate(payloads)]


def times_begun(folder, number):
    path = Path(folder) / f"task-{number}"
    return len(path.read_text().split()) if path.exists() else 0


@pytest.fixture(params=[(name, workers) for name in EXECUTORS for workers in (1, 2)], ids=str)
def executor(request):
    name, workers = request.param
    return open_executor(name, workers)


def test_each_task_is_done_once_and_reports_add_up(executor, tmp_path):
    heard = []
    outcome = executor.run(Doing(str(tmp_path)), tasks(*["fine"] * 5), heard.append)
    assert [times_begun(tmp_path, i) for i in range(5)] == [1] * 5
    report = outcome.report
    assert (report.tasks, report.rows, report.rejected, report.rejects, report.bytes) == (5, 60, 5, {"x": 5}, 15)
    assert report.spent_s == {"m": 2.5}
    assert outcome.set_aside == ()
    assert sum(step.tasks for step in heard) == 5
    assert sum(step.rows for step in heard) == 60
    assert sum(step.rejected for step in heard) == 5
    assert sum(step.spent_s.get("m", 0) for step in heard) == 2.5
    finished = [step.finished for step in heard if step.finished]
    assert sorted(done.task for done in finished) == [f"t{i}" for i in range(5)]
    assert sum((done.report for done in finished), TaskReport()) == report
    assert {done.worker for done in finished} <= {0, 1}
    assert all(done.seconds > 0 for done in finished)
    assert multiprocessing.active_children() == []


def test_no_tasks_need_no_worker(executor):
    assert executor.run(Broken("raise"), [], silent).report.tasks == 0


def test_input_that_cannot_be_read_is_set_aside_and_the_rest_goes_on(executor, tmp_path):
    heard = []
    outcome = executor.run(Doing(str(tmp_path)), tasks("fine", "refuse", "fine"), heard.append)
    assert outcome.report.tasks == 2
    assert [(aside.task.number, aside.reason) for aside in outcome.set_aside] == [(1, "t1: gone")]
    assert sum(step.tasks for step in heard) == 3
    assert sum(step.rows for step in heard) == 10 + 12, "what was said of the second is taken back"


@pytest.mark.parametrize(("payload", "kind"), [("full", DiskFull), ("bug", Exception)])
def test_other_errors_end_the_run(executor, payload, kind, tmp_path):
    with pytest.raises(kind) as caught:
        executor.run(Doing(str(tmp_path)), tasks("fine", payload, "fine", "fine", "fine"), silent)
    if payload == "full":
        assert (caught.value.what, caught.value.remedy) == ("no space", "Free some")
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize(("how", "kind"), [("raise", DiskFull), ("input", InputError)])
def test_a_worker_that_cannot_start_ends_the_run(executor, how, kind):
    with pytest.raises(kind):
        executor.run(Broken(how), tasks("fine", "fine"), silent)
    assert multiprocessing.active_children() == []


def test_an_unknown_executor_is_named():
    with pytest.raises(InputError, match="no executor 'procesess'.*processes"):
        open_executor("procesess", 2)
    assert type(open_executor("auto", 1)) is EXECUTORS["inline"]
    assert type(open_executor("auto", 2)) is EXECUTORS["processes"]


def test_a_bug_in_a_worker_shows_its_traceback(tmp_path):
    with pytest.raises(WorkerDied, match="ZeroDivisionError: a bug") as caught:
        ProcessExecutor(1).run(Doing(str(tmp_path)), tasks("bug"), silent)
    assert isinstance(caught.value.__cause__, RemoteTraceback)
    assert "works.py" in str(caught.value.__cause__)


def test_a_bug_that_looks_like_a_closed_pipe_is_still_a_bug(tmp_path):
    with pytest.raises(WorkerDied, match="EOFError: a bug of another kind"):
        ProcessExecutor(1).run(Doing(str(tmp_path)), tasks("end of file", "fine"), silent)
    assert times_begun(tmp_path, 0) == 1


def test_a_task_that_kills_three_workers_is_set_aside_and_the_others_are_done(tmp_path):
    heard = []
    outcome = ProcessExecutor(2).run(Doing(str(tmp_path)), tasks("fine", "die", "fine", "slow"), heard.append)
    assert sum(step.rows for step in heard) == outcome.report.rows, "what the dead said is taken back"
    assert sum(step.tasks for step in heard) == 4
    assert outcome.report.tasks == 3
    ((aside),) = outcome.set_aside
    assert aside.task.number == 1
    assert "3 workers died on it" in aside.reason
    assert "SIGKILL" in aside.reason
    assert [times_begun(tmp_path, i) for i in range(4)] == [1, 3, 1, 1]


@pytest.mark.parametrize("workers", [1, 2])
def test_what_a_worker_had_in_hand_beside_a_deadly_task_is_done(workers, tmp_path):
    payloads = ["fine", "die", "fine", "fine", "die", "die once", "fine"]
    outcome = ProcessExecutor(workers).run(Ahead(str(tmp_path)), tasks(*payloads), silent)
    assert sorted(aside.task.number for aside in outcome.set_aside) == [1, 4]
    assert outcome.report.tasks == 5
    begun = [times_begun(tmp_path, i) for i in (1, 4)]
    assert all(times in (2, 3) for times in begun), "it may have been in hand, not begun, when the one before it died"
    assert multiprocessing.active_children() == []


def test_tasks_taken_ahead_are_each_done_once(executor, tmp_path):
    outcome = executor.run(Ahead(str(tmp_path)), tasks(*["fine"] * 6), silent)
    assert [times_begun(tmp_path, i) for i in range(6)] == [1] * 6
    assert (outcome.report.tasks, outcome.set_aside) == (6, ())


def test_a_worker_that_dies_is_replaced_and_its_task_done(tmp_path):
    outcome = ProcessExecutor(1).run(Doing(str(tmp_path)), tasks("die once", "fine"), silent)
    assert (outcome.report.tasks, outcome.set_aside) == (2, ())
    assert times_begun(tmp_path, 0) == 2
    assert len(list(tmp_path.glob("worker-0-*"))) == 2


def test_a_task_that_exits_the_process_is_set_aside(tmp_path):
    outcome = ProcessExecutor(1).run(Doing(str(tmp_path)), tasks("exit", "fine"), silent)
    assert outcome.report.tasks == 1
    assert "exit code 5" in outcome.set_aside[0].reason


def test_workers_that_die_before_they_start_end_the_run():
    with pytest.raises(WorkerDied, match="die before they can start.*exit code 7"):
        ProcessExecutor(2).run(Broken("die"), tasks("fine", "fine"), silent)


def test_there_are_no_more_workers_than_tasks(tmp_path):
    ProcessExecutor(4).run(Doing(str(tmp_path)), tasks("slow", "slow"), silent)
    assert len(list(tmp_path.glob("worker-*"))) == 2


def test_a_listener_that_raises_ends_the_run_and_the_workers(tmp_path):
    def stop(step):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ProcessExecutor(2).run(Doing(str(tmp_path)), tasks("for ever", "for ever"), stop)
    assert multiprocessing.active_children() == []


def test_a_worker_killed_from_outside_is_replaced(tmp_path):
    def kill_the_first():
        while not (begun := list(tmp_path.glob("task-0"))) or not begun[0].read_text().strip():
            time.sleep(0.01)
        os.kill(int(begun[0].read_text().split()[0]), signal.SIGKILL)

    thread = threading.Thread(target=kill_the_first)
    thread.start()
    outcome = ProcessExecutor(1).run(Doing(str(tmp_path)), tasks("slow", "fine"), silent)
    thread.join()
    assert (outcome.report.tasks, outcome.set_aside) == (2, ())


def test_a_worker_that_is_ended_while_it_leaves_says_nothing(tmp_path, capfd):
    leaving = tmp_path / "leaving"

    def end_it():
        while not leaving.exists() or not leaving.read_text().endswith("\n"):
            time.sleep(0.01)
        os.kill(int(leaving.read_text()), signal.SIGTERM)

    thread = threading.Thread(target=end_it)
    thread.start()
    outcome = ProcessExecutor(1).run(LeavingSlowly(str(tmp_path)), tasks("fine"), silent)
    thread.join()
    assert (outcome.report.tasks, outcome.set_aside) == (1, ())
    assert capfd.readouterr().err == ""


ORPHANS = """
import sys
from embedpipe.execute import Task
from embedpipe.execute.processes import ProcessExecutor
from embedpipe.progress import silent
from tests.works import Doing
if __name__ == "__main__":
    ProcessExecutor(2).run(Doing(sys.argv[1]), [Task(i, str(i), "slow") for i in range(500)], silent)
"""


def _alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at /proc")
def test_workers_end_when_their_parent_is_killed(tmp_path):
    script = tmp_path / "orphans.py"
    script.write_text(ORPHANS)
    root = str(Path(__file__).parents[3])
    parent = subprocess.Popen([sys.executable, str(script), str(tmp_path)], env={**os.environ, "PYTHONPATH": root})
    while len(list(tmp_path.glob("task-*"))) < 2:
        assert parent.poll() is None
        time.sleep(0.02)
    parent.kill()
    parent.wait()
    workers = [int(path.name.rpartition("-")[2]) for path in tmp_path.glob("worker-*")]
    deadline = time.monotonic() + 20
    while any(map(_alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(_alive, workers))


def test_our_errors_survive_the_way_between_processes():
    import pickle

    for error in (DiskFull("a  b\nc", "Do this"), InputError("x")):
        copy = pickle.loads(pickle.dumps(error))
        assert (type(copy), copy.what, copy.remedy, str(copy)) == (type(error), error.what, error.remedy, str(error))
    assert isinstance(DiskFull("x"), EmbedpipeError)
    assert Progress().tasks == 0
