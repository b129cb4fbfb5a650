"""Every executor does each task once, sets aside what cannot be done, and leaves no process behind."""

import multiprocessing
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from importlib.metadata import version
from pathlib import Path

import pytest

from embedpipe.errors import DiskFull, EmbedpipeError, InputError, MissingExtra, OutputBusy, WorkerDied
from embedpipe.execute import (
    EXECUTORS,
    Cluster,
    ResourceRequest,
    Task,
    open_executor,
    open_places,
    ray_cluster,
    resources,
)
from embedpipe.execute.actor import Left, WorkerActor
from embedpipe.execute.messages import Asks, Done, RemoteTraceback
from embedpipe.execute.processes import ProcessExecutor, _PipeDesk
from embedpipe.execute.ray import RayExecutor
from embedpipe.execute.ray_cluster import WorkerResources, joined_cluster
from embedpipe.execute.task_tracker import InFlight, TaskReply, TaskTracker
from embedpipe.lock import Part, claimed, exclusive
from embedpipe.progress import Progress, TaskReport, silent
from tests import raycluster
from tests.works import Ahead, Broken, Doing, Evicted, LeavingSlowly, Together


def tasks(*payloads):
    return [Task(number, f"t{number}", payload) for number, payload in enumerate(payloads)]


def times_begun(folder, number):
    path = Path(folder) / f"task-{number}"
    return len(path.read_text().split()) if path.exists() else 0


# A cluster takes seconds to start: the slow tests have one for all that is asked of every executor.
_KINDS = [
    pytest.param((name, workers), marks=[pytest.mark.slow] * (name == "ray"))
    for name in EXECUTORS
    for workers in (1, 2)
    if (name, workers) != ("ray", 1)  # its actors are the same, and take seconds each
]


@pytest.fixture(params=_KINDS, ids=str)
def executor(request):
    name, workers = request.param
    if name == "ray":
        return RayExecutor(workers, Cluster(request.getfixturevalue("cluster").address))
    return open_executor(name, workers)


@pytest.fixture(scope="module")
def cluster():
    """A Ray cluster of one node that this process has joined."""
    pytest.importorskip("ray")
    with raycluster.start(1, cpus=2) as running, joined_cluster(Cluster(running.address), 1):
        yield running


def test_each_task_is_done_once_and_reports_add_up(executor, tmp_path):
    heard = []
    outcome = executor.run(Doing(str(tmp_path)), tasks(*["fine"] * 5), heard.append)
    assert [times_begun(tmp_path, i) for i in range(5)] == [1] * 5
    report = outcome.report
    assert (report.tasks, report.rows, report.rejected, report.rejects, report.bytes) == (5, 60, 5, {"x": 5}, 15)
    assert report.spent_s == {"m": 2.5}
    assert outcome.failed_tasks == ()
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
    assert [(aside.task.number, aside.reason) for aside in outcome.failed_tasks] == [(1, "t1: gone")]
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
    ((aside),) = outcome.failed_tasks
    assert aside.task.number == 1
    assert "3 workers died on it" in aside.reason
    assert "SIGKILL" in aside.reason
    assert [times_begun(tmp_path, i) for i in range(4)] == [1, 3, 1, 1]


@pytest.mark.parametrize("workers", [1, 2])
def test_what_a_worker_had_in_hand_beside_a_deadly_task_is_done(workers, tmp_path):
    payloads = ["fine", "die", "fine", "fine", "die", "die once", "fine"]
    outcome = ProcessExecutor(workers).run(Ahead(str(tmp_path)), tasks(*payloads), silent)
    assert sorted(aside.task.number for aside in outcome.failed_tasks) == [1, 4]
    assert outcome.report.tasks == 5
    begun = [times_begun(tmp_path, i) for i in (1, 4)]
    assert all(times in (2, 3) for times in begun), "it may have been in hand, not begun, when the one before it died"
    assert multiprocessing.active_children() == []


def test_tasks_taken_ahead_are_each_done_once(executor, tmp_path):
    outcome = executor.run(Ahead(str(tmp_path)), tasks(*["fine"] * 6), silent)
    assert [times_begun(tmp_path, i) for i in range(6)] == [1] * 6
    assert (outcome.report.tasks, outcome.failed_tasks) == (6, ())


def test_tasks_done_together_are_each_done_once(executor, tmp_path):
    heard = []
    payloads = ["slow", "refuse", "fine", "slow", "slow", "fine", "fine"]
    outcome = executor.run(Together(str(tmp_path)), tasks(*payloads), heard.append)
    assert [times_begun(tmp_path, i) for i in range(7)] == [1] * 7
    assert (outcome.report.tasks, [aside.task.number for aside in outcome.failed_tasks]) == (6, [1])
    assert sum(step.rows for step in heard) == outcome.report.rows


class Drawn:
    """Three tasks, made as they are drawn, though up to five were said to come."""

    def __init__(self, folder):
        self.folder = folder

    def __len__(self):
        return 5

    def __iter__(self):
        for number in range(3):
            (self.folder / f"drawn-{number}").write_text(str(len(list(self.folder.glob("task-*")))))
            yield Task(number, str(number), "fine")


def test_tasks_are_drawn_when_they_are_handed_out(executor, tmp_path):
    outcome = executor.run(Doing(str(tmp_path)), Drawn(tmp_path), silent)
    assert outcome.report.tasks == 3
    begun = [int((tmp_path / f"drawn-{number}").read_text()) for number in range(3)]
    assert begun[0] == 0
    assert begun[2] > 0, "not all at the beginning"


def test_one_of_those_done_together_that_fails_ends_the_run(executor, tmp_path):
    with pytest.raises(DiskFull):
        executor.run(Together(str(tmp_path)), tasks("slow", "full", *["slow"] * 20), silent)
    assert multiprocessing.active_children() == []
    time.sleep(0.5)  # what was in hand comes to its end
    assert not (tmp_path / "task-21").exists(), "no more is taken"


def test_a_worker_that_dies_is_replaced_and_its_task_done(tmp_path):
    outcome = ProcessExecutor(1).run(Doing(str(tmp_path)), tasks("die once", "fine"), silent)
    assert (outcome.report.tasks, outcome.failed_tasks) == (2, ())
    assert times_begun(tmp_path, 0) == 2
    assert len(list(tmp_path.glob("worker-0-*"))) == 2


def test_a_task_that_exits_the_process_is_set_aside(tmp_path):
    outcome = ProcessExecutor(1).run(Doing(str(tmp_path)), tasks("exit", "fine"), silent)
    assert outcome.report.tasks == 1
    assert "exit code 5" in outcome.failed_tasks[0].reason


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


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("name", ["inline", "processes"])
def test_a_worker_writes_nothing_into_an_output_that_was_taken_away(name, whole, tmp_path):
    out = tmp_path / "out"
    lock = exclusive(str(out)) if whole else claimed(str(out), Part(1, 2))
    with lock, pytest.raises(OutputBusy, match="was removed during this run"):
        open_executor(name, 1).run(Evicted(str(out)), tasks("fine"), silent)
    assert list(out.rglob("*")) == []


def test_a_worker_killed_from_outside_is_replaced(tmp_path):
    def kill_the_first():
        while not (begun := list(tmp_path.glob("task-0"))) or not begun[0].read_text().strip():
            time.sleep(0.01)
        os.kill(int(begun[0].read_text().split()[0]), signal.SIGKILL)

    thread = threading.Thread(target=kill_the_first)
    thread.start()
    outcome = ProcessExecutor(1).run(Doing(str(tmp_path)), tasks("slow", "fine"), silent)
    thread.join()
    assert (outcome.report.tasks, outcome.failed_tasks) == (2, ())


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
    assert (outcome.report.tasks, outcome.failed_tasks) == (1, ())
    assert capfd.readouterr().err == ""


ORPHANS = """
import sys
from embedpipe.execute import Task
from embedpipe.execute.processes import ProcessExecutor, _PipeDesk
from embedpipe.execute.ray import RayExecutor
from embedpipe.progress import silent
from tests import raycluster
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
    root = str(Path(__file__).parents[4])
    parent = subprocess.Popen([sys.executable, str(script), str(tmp_path)], env={**os.environ, "PYTHONPATH": root})
    while len(list(tmp_path.glob("task-*"))) < 2:
        assert parent.poll() is None
        time.sleep(0.02)
    parent.kill()
    parent.wait()
    workers = [int(path.name.rpartition("-")[2]) for path in tmp_path.glob("worker-*")]
    deadline = time.monotonic() + 600
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


@pytest.mark.slow
def test_ray_sets_a_task_aside_that_kills_three_and_does_the_others(cluster, tmp_path):
    heard = []
    executor = RayExecutor(2, Cluster(cluster.address))
    outcome = executor.run(Ahead(str(tmp_path)), tasks("fine", "die", "fine", "die once", "exit"), heard.append)
    assert sorted(aside.task.number for aside in outcome.failed_tasks) == [1, 4]
    assert all("3 workers died on it" in aside.reason for aside in outcome.failed_tasks)
    assert outcome.report.tasks == 3
    assert [times_begun(tmp_path, i) for i in (1, 3)] == [3, 2]
    assert times_begun(tmp_path, 4) in (2, 3), "it may have been in hand when the one before it died"
    assert sum(step.rows for step in heard) == outcome.report.rows, "what the dead said is taken back"


@pytest.mark.slow
def test_ray_replaces_a_worker_that_falls_silent(cluster, tmp_path):
    def stop_the_first():
        while not (begun := list(tmp_path.glob("task-0"))) or not begun[0].read_text().strip():
            time.sleep(0.05)
        os.kill(int(begun[0].read_text().split()[0]), signal.SIGSTOP)

    thread = threading.Thread(target=stop_the_first)
    thread.start()
    executor = RayExecutor(1, Cluster(cluster.address, silence_s=10))
    outcome = executor.run(Doing(str(tmp_path)), tasks("slow", "fine"), silent)
    thread.join()
    assert (outcome.report.tasks, outcome.failed_tasks) == (2, ())
    assert len(set((tmp_path / "task-0").read_text().split())) == 2


@pytest.mark.slow
def test_ray_says_at_once_when_there_is_no_room(cluster, tmp_path):
    begun = time.monotonic()
    for workers, room, said in (
        (
            3,
            WorkerResources(),
            "no room for 3 workers of 1 CPU each: the cluster's 1 node has 2 CPUs and 0 GPUs together, which",
        ),
        (1, WorkerResources(cpus=4), "no room for 1 worker of 4 CPUs each"),
        (1, WorkerResources(gpus=1), "no room for 1 worker of 1 CPU and 1 GPU each"),
    ):
        with pytest.raises(InputError, match=said):
            RayExecutor(workers, Cluster(cluster.address), room).run(Doing(str(tmp_path)), tasks(*["fine"] * 3), silent)
    assert time.monotonic() - begun < 80, "it did not wait for others to end"


@pytest.mark.slow
def test_what_a_worker_would_see_is_asked_where_it_would_be(cluster):
    executor = RayExecutor(1, Cluster(cluster.address))
    assert executor.call(os.getpid) != os.getpid()
    assert executor.call(os.getcwd) == os.getcwd()
    with pytest.raises(InputError, match="no executor 'nosuch'"):
        executor.call(open_executor, "nosuch", 1)


@pytest.mark.parametrize("name", ["inline", "processes"])
def test_here_calls_are_calls(name):
    assert open_executor(name, 2).call(os.getpid) == os.getpid()


def test_without_ray_it_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra, match=r"the ray executor needs Ray\. pip install .*ray"):
        RayExecutor(1).run(Doing(str(tmp_path)), tasks("fine"), silent)


def test_an_address_is_for_ray():
    with (
        pytest.raises(InputError, match="`address` is for `executor='ray'`, not processes"),
        open_places("processes", ResourceRequest(workers=2), Cluster("head:6379")),
    ):
        pass


@pytest.mark.parametrize(
    ("demand", "there", "devices", "threads"),
    [
        (ResourceRequest(gpus=None), 8, [f"cuda:{i}" for i in range(8)], 1),
        (ResourceRequest(gpus=2), 8, ["cuda:0", "cuda:1"], 4),
        (ResourceRequest(gpus=None, neighbours=4, neighbour=3), 8, ["cuda:6", "cuda:7"], 1),
        (ResourceRequest(gpus=1, neighbours=8, neighbour=5), 8, ["cuda:5"], 1),
        (ResourceRequest(gpus=None, neighbours=8, neighbour=5), 1, ["cuda:0"], 1),
        # More processes than GPUs: none is left on the CPU.
        (ResourceRequest(gpus=None, neighbours=8, neighbour=5), 4, ["cuda:2"], 1),
        # The launcher has given each process GPUs and cores of its own, or has not.
        (ResourceRequest(None, neighbours=4, neighbour=3, shared_gpus=8, shared_cores=32), 2, ["cuda:0", "cuda:1"], 4),
        (ResourceRequest(None, neighbours=4, neighbour=3, shared_gpus=8, shared_cores=8), 8, ["cuda:6", "cuda:7"], 1),
        (ResourceRequest(gpus=None, workers=2), 0, ["cpu", "cpu"], 4),
        (ResourceRequest(gpus=0, workers=2, threads=3), 8, ["cpu", "cpu"], 3),
    ],
)
def test_devices_are_shared_out(demand, there, devices, threads, monkeypatch):
    monkeypatch.setattr(resources, "_gpus_here", lambda: there)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    found = resources.places_here(demand)
    assert (list(found.devices), found.threads) == (devices, threads)


@pytest.mark.parametrize(
    ("demand", "cores", "gib", "devices", "threads"),
    [
        (ResourceRequest(gpus=None), 24, 80, ["cuda:0", "cuda:1", "cuda:0", "cuda:1"], 6),
        (ResourceRequest(gpus=1), 12, 80, ["cuda:0", "cuda:0"], 6),
        (ResourceRequest(gpus=None), 12, 80, ["cuda:0", "cuda:1"], 6),
        (ResourceRequest(gpus=None), 24, 24, ["cuda:0", "cuda:1"], 12),
        (ResourceRequest(gpus=None, workers_per_gpu=3), 12, 24, ["cuda:0", "cuda:1"] * 3, 2),
        (ResourceRequest(gpus=None, workers_per_gpu=1), 24, 80, ["cuda:0", "cuda:1"], 12),
        (ResourceRequest(gpus=0, workers_per_gpu=3), 24, 80, ["cpu"], 24),
        (ResourceRequest(gpus=None, neighbours=4, neighbour=1), 96, 80, ["cuda:0"], 24),
    ],
)
def test_workers_per_gpu_are_as_many_as_it_has_cores_and_memory_for(demand, cores, gib, devices, threads, monkeypatch):
    monkeypatch.setattr(resources, "_gpus_here", lambda: 2)
    monkeypatch.setattr(resources, "_gpu_bytes", lambda _: gib << 30)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    found = resources.places_here(demand)
    assert (list(found.devices), found.threads) == (devices, threads)


@pytest.mark.parametrize("each", [1, 2, 3, 6, 7, 11])
def test_workers_of_a_gpu_fit_on_it_in_a_cluster(each):
    share = resources.Allocation(("cuda:0",) * each, 1, each).gpus_each
    assert share * each <= 1 < share * (each + 1)
    assert ray_cluster._fit({"GPU": 4, "CPU": 64}, WorkerResources(1, share)) == 4 * each
    assert resources.Allocation(("cpu",), 1).gpus_each == 0


@pytest.mark.parametrize(("processes", "gpus"), [(8, 8), (3, 8), (4, 8), (5, 8), (1, 8)])
def test_each_gpu_has_one_process(processes, gpus, monkeypatch):
    monkeypatch.setattr(resources, "_gpus_here", lambda: gpus)
    shares = [
        resources.places_here(ResourceRequest(None, neighbours=processes, neighbour=place)).devices
        for place in range(processes)
    ]
    assert [device for share in shares for device in share] == [f"cuda:{i}" for i in range(gpus)]


def test_more_gpus_than_there_are_for_a_process_are_refused(monkeypatch):
    monkeypatch.setattr(resources, "_gpus_here", lambda: 8)
    with pytest.raises(InputError, match="3 GPUs asked for, 2 found for each of 4 processes"):
        resources.places_here(ResourceRequest(gpus=3, neighbours=4))


def test_a_mailbox_of_another_version_says_so():
    box = WorkerActor(Doing("."), 0, "0.0.0", 60, end=print)
    (failed,) = box.exchange(None)
    assert "but the run was begun by 0.0.0" in str(failed.error)


def test_a_mailbox_is_a_desk(tmp_path):
    ended = []
    box = WorkerActor(Doing(str(tmp_path)), 0, version("embedpipe"), 60, ended.append)
    ledger = TaskTracker(tasks("fine", "refuse", "fine"), silent)
    hands, answer = InFlight(0), None
    for _ in range(100):
        for message in box.exchange(answer):
            if isinstance(message, Left):
                break
            ledger.hear(hands, message)
        else:
            answer = ledger.answer(hands, ())
            continue
        break
    assert (ledger.outcome().report.tasks, len(ledger.outcome().failed_tasks), ledger.left) == (2, 1, 0)
    assert not ended


def test_a_mailbox_that_nobody_asks_gives_up_and_leaves_the_process_to_its_owner(tmp_path):
    ended = queue.Queue()
    WorkerActor(Doing(str(tmp_path)), 0, version("embedpipe"), 0.1, ended.put)
    assert ended.get(timeout=60) == 1


def test_a_work_that_exits_in_a_mailbox_ends_with_its_code(tmp_path):
    ended = queue.Queue()
    box = WorkerActor(Doing(str(tmp_path)), 0, version("embedpipe"), 600, ended.put)
    box.exchange(TaskReply(Task(0, "t0", "exit")))
    assert ended.get(timeout=60) == 5
    assert not any(isinstance(message, Left) for message in box.exchange(None))


def test_a_worker_process_whose_parent_is_gone_ends_at_its_next_step():
    ours, theirs = multiprocessing.Pipe()
    ended = []
    desk = _PipeDesk(theirs, os.getpid(), lambda: ended.append(True))  # its parent is another
    desk.tell(Task(0, "t0", "fine"), Progress(rows=1))
    assert ended
    assert ours.poll()


def test_the_last_tasks_are_kept_for_workers_that_still_load():
    ledger = TaskTracker(tasks("fine", "fine", "fine"), silent)
    quick, loading = InFlight(0), InFlight(1)
    taken = []
    for _ in range(3):  # one in hand, then a second ahead; the third is not for it
        ledger.hear(quick, Asks())
        answer = ledger.answer(quick, [loading])
        taken.append(answer.task.number if answer is not None else None)
    assert taken == [0, 1, None]
    ledger.hear(loading, Asks())
    assert ledger.answer(loading, [quick]).task.number == 2
    ledger.hear(quick, Done(0, TaskReport(tasks=1)))
    assert ledger.answer(quick, [loading]).task is None, "nothing is left: it need not wait to hear it"
