"""What the executors share: a task whose worker died is handed out again, marked."""

from embedpipe.execute import Task
from embedpipe.execute.messages import Asks
from embedpipe.execute.task_tracker import InFlight, TaskTracker
from embedpipe.progress import silent


def test_a_task_whose_worker_died_is_marked_for_the_next_one():
    tracker = TaskTracker([Task(0, "a", None), Task(1, "b", None)], silent)
    first, second = InFlight(0), InFlight(1)
    for hands in (first, second):
        tracker.hear(hands, Asks())
    assert tracker.answer(first, [second]).task == Task(0, "a", None)
    assert tracker.gone(first, "by SIGSEGV", [second])
    assert tracker.answer(second, []).task == Task(0, "a", None, careful=True)
    tracker.gone(second, "by SIGSEGV", [])
    third = InFlight(2)
    tracker.hear(third, Asks())
    assert tracker.answer(third, []).task.careful
