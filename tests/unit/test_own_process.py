"""What ends or moves a process is said only where that process begins, or of a child that the same file started.

Whoever imports the library has a process of their own: no object of it may end that, or change what all of it shares.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# (file, function): what it may call, and why it is not somebody else's process.
ALLOWED = {
    ("cli/main.py", "main"): {"signal.signal"},  # the console script
    ("cli/main.py", "_leave"): {"signal.signal", "os._exit"},  # its end
    ("cli/main.py", "_answer"): {"os.dup2"},  # where its reader has gone
    ("embedpipe/execute/processes.py", "_serve"): {"signal.signal", "os._exit"},  # a worker process begins
    ("embedpipe/execute/ray.py", "hire"): {"os._exit"},  # handed to an actor, which has a process to itself
    ("embedpipe/execute/ray.py", "_in_folder"): {"os.chdir"},  # a process of Ray begins
    ("embedpipe/execute/ray_cluster.py", "_our_own_signals"): {"signal.signal"},  # puts back what Ray has changed
    ("embedpipe/pillow.py", "ignore_metadata_warnings"): {"warnings.filterwarnings"},  # see BEGINNINGS
    ("embedpipe/encode/loading.py", "_without_known_noise"): {"warnings.filterwarnings"},  # puts back what was there
    ("embedpipe/execute/threads.py", "torch_threads"): {"torch.set_num_threads"},  # puts back what was there
    ("embedpipe/fetch/download/worker.py", "main"): {"os._exit", "os.dup2"},  # the download process begins
    ("embedpipe/fetch/download/guarded.py", "hide_unneeded_modules"): {"sys.modules"},  # there, and in its children
    ("embedpipe/fetch/download/pool.py", "kill"): {
        "os.killpg"
    },  # the group of a child, which leads it and is not reaped
    ("embedpipe/limited/server.py", "main"): {"signal.signal"},  # the server begins
    ("embedpipe/limited/server.py", "_become_child"): {"os._exit", "resource.setrlimit"},  # its children begin
    ("embedpipe/limited/server.py", "_serve"): {"resource.setrlimit"},  # in a child
    ("embedpipe/limited/server.py", "_answer"): {"signal.setitimer"},  # in a child
    ("embedpipe/limited/server.py", "_end"): {"os.kill"},  # a child that is not reaped
    ("embedpipe/scarcity.py", "raise_file_limit"): {"resource.setrlimit"},  # called where the download process begins
    ("embedpipe/imports.py", "uncollected"): {"gc.disable", "gc.enable"},  # puts back what was there
    ("dalle2_core/training/loop.py", "_interrupt_deferred"): {"signal.signal"},  # puts back what was there
}
OF_ONE_PROCESS = {
    "os": {"_exit", "abort", "kill", "killpg", "chdir", "fchdir", "umask", "dup2", "setpgid", "setsid", "nice"},
    "signal": {"signal", "alarm", "setitimer", "pthread_kill", "set_wakeup_fd"},
    "sys": {"exit"},
    "resource": {"setrlimit"},
    "warnings": {"filterwarnings", "simplefilter", "resetwarnings"},
    "gc": {"disable", "enable", "freeze", "set_threshold", "set_debug"},
    "faulthandler": {"enable", "register", "dump_traceback_later"},
    "multiprocessing": {"set_start_method"},
    "_thread": {"interrupt_main"},
    "torch": {"set_num_threads", "set_num_interop_threads", "set_default_dtype", "set_default_device", "seed"},
}


class Finder(ast.NodeVisitor):
    """Notes (function, name) of each use of a name in OF_ONE_PROCESS, and of each entry put into sys.modules."""

    def __init__(self):
        self.found = set()
        self._functions = []

    def visit_FunctionDef(self, node):
        self._functions.append(node.name)
        self.generic_visit(node)
        self._functions.pop()

    visit_AsyncFunctionDef = visit_FunctionDef

    def _note(self, name):
        # A function within a function is the outer one's: that is where it is called from.
        self.found.add((self._functions[0] if self._functions else "", name))

    def visit_Attribute(self, node):
        if isinstance(node.value, ast.Name) and node.attr in OF_ONE_PROCESS.get(node.value.id, ()):
            self._note(f"{node.value.id}.{node.attr}")
        self.generic_visit(node)

    def visit_ImportFrom(self, node):
        for alias in node.names:
            if alias.name in OF_ONE_PROCESS.get(node.module or "", ()):
                self._note(f"{node.module}.{alias.name}")

    def visit_Subscript(self, node):
        if isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "sys.modules":
            self._note("sys.modules")
        self.generic_visit(node)


# Where a process begins that is embedpipe's own.
BEGINNINGS = {
    ("cli/main.py", "main"),
    ("embedpipe/execute/processes.py", "_serve"),
    ("embedpipe/execute/ray.py", "start"),
    ("embedpipe/limited/server.py", "main"),
}
IMPORTED = """
import warnings
import open_clip, torchvision.transforms
from PIL import Image
before = list(warnings.filters)
import embedpipe.curate.image_shards, embedpipe.encode.job, embedpipe.fetch.download.image, embedpipe.images.sheet
import embedpipe.load.images.decoded_cache, dalle2_core.dalle2
assert warnings.filters == before
"""


def uses(source):
    finder = Finder()
    finder.visit(ast.parse(source))
    return finder.found


def test_the_library_ends_and_moves_no_process_that_is_not_its_own():
    found = {}
    for room in ("embedpipe", "dalle2_core", "cli"):
        for path in sorted((ROOT / room).rglob("*.py")):
            for function, name in uses(path.read_text()):
                found.setdefault((str(path.relative_to(ROOT)), function), set()).add(name)
    assert found == ALLOWED


def test_warnings_of_pillow_are_silenced_only_where_a_process_begins():
    found = set()
    for path in (path for room in ("embedpipe", "dalle2_core", "cli") for path in (ROOT / room).rglob("*.py")):
        for function in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)):
            if any(ast.unparse(node) == "ignore_metadata_warnings()" for node in ast.walk(function)):
                found.add((str(path.relative_to(ROOT)), function.name))
    assert found == BEGINNINGS


def test_an_import_leaves_the_filters_of_warnings_as_they_were():
    subprocess.run([sys.executable, "-c", IMPORTED], check=True)


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import os\nclass A:\n  def f(self):\n    os._exit(1)", {("f", "os._exit")}),
        ("def f():\n  def g():\n    os.kill(1, 9)\n  return g", {("f", "os.kill")}),
        ("os.chdir('x')", {("", "os.chdir")}),
        ("from os import _exit as leave", {("", "os._exit")}),
        ("def f():\n  sys.modules['torch'] = None", {("f", "sys.modules")}),
        ("def f():\n  return sys.modules['torch'], os.getpid()", set()),
    ],
)
def test_it_would_be_seen(source, found):
    assert uses(source) == found
