"""One writer per output, whatever happened to the one before."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedpipe import manifest
from embedpipe.errors import InputError, OutputBusy, OutputUnwritable
from embedpipe.lock import Part, claimed, exclusive, planning, require_held

HOLDER = """
import sys, time
from embedpipe.lock import exclusive
with exclusive(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path / "out")], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_process_is_refused_and_told_who_holds_the_output(tmp_path, holder):
    with (
        pytest.raises(OutputBusy, match=rf"in use by process {holder.pid} on .* for \d+ s"),
        exclusive(str(tmp_path / "out")),
    ):
        pass


def test_the_lock_ends_with_an_owner_that_was_killed(tmp_path, holder):
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with exclusive(str(tmp_path / "out")):
        pass


def test_an_unreadable_owner_is_still_an_owner(tmp_path, holder):
    (tmp_path / "out" / ".lock").write_bytes(b"\xff{")
    with pytest.raises(OutputBusy, match="another process"), exclusive(str(tmp_path / "out")):
        pass


def test_the_lock_is_free_after_an_exception(tmp_path):
    with pytest.raises(ZeroDivisionError), exclusive(str(tmp_path)):
        raise ZeroDivisionError
    with exclusive(str(tmp_path)):
        pass


def test_the_same_process_cannot_hold_it_twice(tmp_path):
    with exclusive(str(tmp_path)), pytest.raises(OutputBusy), exclusive(str(tmp_path)):
        pass


def test_an_output_that_is_a_file_is_unwritable(tmp_path):
    (tmp_path / "out").write_bytes(b"")
    with pytest.raises(OutputUnwritable), exclusive(str(tmp_path / "out")):
        pass


def test_object_stores_need_no_lock():
    with exclusive("memory://locked"), exclusive("memory://locked"):
        pass


def test_different_parts_may_be_held_at_once_and_the_same_may_not(tmp_path):
    root = str(tmp_path)
    said = rf"part 1/2 is in use by process {os.getpid()} .*, as part 1/2"
    with claimed(root, Part(0, 2)), claimed(root, Part(1, 2)), pytest.raises(OutputBusy, match=said):
        claimed(root, Part(1, 2)).__enter__()
    with claimed(root, Part(1, 2)):
        pass
    assert not list(tmp_path.glob(".lock-*-of-*"))


@pytest.mark.parametrize(
    ("one", "other"), [(Part(1, 2), Part(3, 4)), (Part(0, 3), Part(0, 2)), (Part(0, 1), Part(4, 5))]
)
def test_parts_with_shards_in_common_exclude_each_other(one, other, tmp_path):
    with claimed(str(tmp_path), one), pytest.raises(OutputBusy, match=f"part {other} is in use by .*, as part {one}"):
        claimed(str(tmp_path), other).__enter__()


def test_parts_without_shards_in_common_do_not_though_they_are_cut_otherwise(tmp_path):
    with claimed(str(tmp_path), Part(1, 2)), claimed(str(tmp_path), Part(2, 4)), claimed(str(tmp_path), Part(0, 4)):
        pass


@given(st.integers(1, 12), st.integers(1, 12), st.data())
def test_overlap_is_having_a_number_in_common(n, m, data):
    one = Part(data.draw(st.integers(0, n - 1)), n)
    other = Part(data.draw(st.integers(0, m - 1)), m)
    assert one.overlaps(other) == any(one.holds(i) and other.holds(i) for i in range(n * m))


def test_a_part_and_the_whole_exclude_each_other(tmp_path):
    root = str(tmp_path)
    said = rf"in use by process {os.getpid()} on .* for \d+ s, which does part 2/3 of it"
    with claimed(root, Part(2, 3)), pytest.raises(OutputBusy, match=said):
        exclusive(root).__enter__()
    with exclusive(root), pytest.raises(OutputBusy, match=rf"in use by process {os.getpid()}"):
        claimed(root, Part(2, 3)).__enter__()


def test_what_a_killed_part_left_is_no_lock(tmp_path):
    (tmp_path / ".lock-0-of-2").write_text("{}")
    (tmp_path / ".lock-7-of-2").write_text("no part at all")
    with claimed(str(tmp_path), Part(0, 2)):
        pass
    (tmp_path / ".lock-1-of-2").write_text("{}")
    with exclusive(str(tmp_path)):
        assert not (tmp_path / ".lock-1-of-2").exists()


def test_parts_plan_one_after_the_other(tmp_path):
    order = []

    def plan(name):
        with planning(str(tmp_path)):
            order.append(name)
            time.sleep(0.05)
            order.append(name)

    threads = [threading.Thread(target=plan, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert order[::2] == order[1::2]


def test_no_part_lies_outside():
    with pytest.raises(InputError, match="no part 3 of 3. Parts are 0 to 2"):
        Part(3, 3)


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with pytest.raises(OutputUnwritable, match="its file system has no locks .*-o flock"):
        exclusive(str(tmp_path)).__enter__()


def write_and_fail(folder):
    (folder / "shard").write_text("kept")
    folder.mkdir()


def test_a_run_that_is_refused_takes_back_the_folders_it_made(tmp_path):
    root = tmp_path / "new" / "out"
    with pytest.raises(ZeroDivisionError), exclusive(str(root)):
        raise ZeroDivisionError
    assert not (tmp_path / "new").exists()
    root.mkdir(parents=True)
    with pytest.raises(ZeroDivisionError), exclusive(str(root)):
        raise ZeroDivisionError
    assert root.is_dir(), "it was there before"
    with pytest.raises(FileExistsError), exclusive(str(tmp_path / "other")):
        write_and_fail(tmp_path / "other")
    assert (tmp_path / "other" / "shard").exists()


def test_who_waits_at_the_door_of_a_refused_run_does_not_hold_a_lock_that_is_gone(tmp_path, monkeypatch):
    """It has the file open when the refused run removes it, and locks what no third run would see."""
    from embedpipe import lock

    root, take = tmp_path / "out", lock._take
    refused = exclusive(str(root))
    refused.__enter__()

    def slow_take(*arguments):
        monkeypatch.setattr(lock, "_take", take)
        refused.__exit__(ZeroDivisionError, ZeroDivisionError(), None)
        assert not root.exists()
        return take(*arguments)

    monkeypatch.setattr(lock, "_take", slow_take)
    with exclusive(str(root)):
        assert (root / ".lock").exists()
        with pytest.raises(OutputBusy), exclusive(str(root)):
            pass


def test_a_lock_file_that_is_removed_during_a_run_lets_nobody_else_in(tmp_path, holder):
    (tmp_path / "out" / ".lock").unlink()
    with pytest.raises(OutputBusy, match="in use by another process, whose lock file has been removed"):
        exclusive(str(tmp_path / "out")).__enter__()
    with pytest.raises(OutputBusy, match="removed"), claimed(str(tmp_path / "out"), Part(0, 2)):
        pass


@pytest.fixture
def nfs(monkeypatch):
    """A file system that cannot lock folders."""
    real = fcntl.flock

    def flock(descriptor, how):
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EBADF, "as NFS does")
        real(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", flock)


def commit(out):
    manifest.write_run(str(out), manifest.RunCard("embedpipe-images", {}, ()))


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("taken", ["removed", "replaced", "moved"])
def test_the_holder_notices_that_its_lock_was_taken_away_and_commits_nothing_more(tmp_path, nfs, whole, taken):
    out, name = tmp_path / "out", ".lock" if whole else ".lock-1-of-2"
    with exclusive(str(out)) if whole else claimed(str(out), Part(1, 2)):
        commit(out)
        if taken == "moved":
            out.rename(tmp_path / "elsewhere")
        else:
            (out / name).unlink()
        if taken == "replaced":
            (out / name).write_bytes(b"")
        with pytest.raises(OutputBusy, match=rf"{name}: was removed during this run"):
            manifest.settle(str(out))
        with pytest.raises(OutputBusy):
            commit(out)
    require_held(str(out))  # nobody works on it any more


def test_parts_of_one_process_miss_no_lock_of_one_that_has_ended(tmp_path):
    out, parts = tmp_path / "out", [claimed(str(tmp_path / "out"), Part(i, 3)) for i in range(3)]
    parts[0].__enter__()
    parts[1].__enter__()
    parts[0].__exit__(None, None, None)
    commit(out)
    parts[2].__enter__()
    parts[1].__exit__(None, None, None)
    commit(out)
    (out / ".lock-2-of-3").unlink()
    with pytest.raises(OutputBusy, match="lock-2-of-3: was removed"):
        commit(out)
    parts[2].__exit__(None, None, None)
    commit(out)


def test_a_part_that_ends_while_another_one_looks_is_not_missed(tmp_path):
    out = str(tmp_path / "out")
    with claimed(out, Part(0, 2)):
        ended = threading.Event()

        def others():
            while not ended.is_set():
                with claimed(out, Part(1, 2)):
                    pass

        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(others)
            for _ in range(3000):
                require_held(out)
            ended.set()
            running.result()


def test_a_run_whose_folder_is_locked_goes_on_without_its_lock_file_and_not_without_the_folder(tmp_path):
    out = tmp_path / "out"
    with exclusive(str(out)):
        (out / ".lock").unlink()
        commit(out)
        out.rename(tmp_path / "elsewhere")
        with pytest.raises(OutputBusy, match="out: was removed during this run"):
            commit(out)
        out.mkdir()
        with pytest.raises(OutputBusy, match="out: was removed during this run"):
            commit(out)


def test_where_folders_cannot_be_locked_the_file_does(tmp_path, nfs):
    with exclusive(str(tmp_path)), pytest.raises(OutputBusy):
        exclusive(str(tmp_path)).__enter__()
