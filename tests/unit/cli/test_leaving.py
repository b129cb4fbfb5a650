"""How a command's process ends: its exit code and its output arrive, whatever libraries do on their way out."""

import subprocess
import sys

import pytest


def leave(code, before="", **options):
    script = f"import sys, atexit\nfrom embedpipe_cli.main import _leave\n{before}\n_leave({code})"
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=600, **options)


@pytest.mark.parametrize("code", [0, 1, 3, 130])
def test_the_exit_code_arrives(code):
    assert leave(code).returncode == code


def test_what_was_written_arrives_and_exit_functions_run():
    ended = leave(0, "sys.stdout.write('out'); sys.stderr.write('err'); atexit.register(lambda: print(' at exit'))")
    assert (ended.stdout, ended.stderr) == ("out at exit\n", "err")


def test_a_thread_left_behind_does_not_hold_it_up():
    ended = leave(0, "import threading, time; threading.Thread(target=time.sleep, args=(50,), daemon=True).start()")
    assert ended.returncode == 0


def test_a_library_that_aborts_at_the_end_does_not_spoil_a_good_run():
    # What Arrow's threads do now and then: abort while the interpreter is taken apart.
    abort = "import os\nclass Last:\n    def __del__(self): os.abort()\nsys.modules['last'] = Last()"
    assert leave(0, abort).returncode == 0
