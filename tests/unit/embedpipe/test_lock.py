"""One writer per output, whatever happened to the one before."""

import os
import signal
import subprocess
import sys

import pytest

from embedpipe.errors import OutputBusy, OutputUnwritable
from embedpipe.lock import exclusive

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
