"""What needs no model is answered without one: nothing heavy is imported for errors, plans and finished outputs."""

import json
import os
import subprocess
import sys

import pytest

from tests import finished

HEAVY = ("torch", "faiss", "open_clip", "img2dataset", "pandas", "transformers")
# (command, situation) → what it may import: none of it is an error, or says that there is nothing to do.
MAY = {
    ("search", "key"): {"faiss"},  # which searches
    ("index", "plan"): {"faiss"},  # which says whether it can build such an index
    ("doctor", "plain"): {"torch"},  # which says what GPUs there are
}
# What builds a model, or reads the settings of one, before it can answer.
LOAD = {
    "train-clip": {"setting", "plan", "finished"},
    "train-prior": {"setting", "plan", "finished"},
    "train-vae": {"setting", "plan", "finished"},
    "train-decoder": {"setting", "plan", "finished"},
    "evaluate": {"value"},
    "sample-prior": {"value", "plan", "finished"},
    "generate": {"kind", "plan"},
    "convert": {"kind"},
}
LINES = {it: line for it, line in finished.lines().items() if it[1] not in LOAD.get(it[0], ())}

# All lines in one process, where what a line must not import is not to be had.
_PROGRAM = """
import contextlib, importlib.machinery, io, json, sys
from embedpipe_cli import main

class Without:  # one may look whether it is there
    def find_spec(self, name, path=None, target=None):
        if name in forbidden and (spec := importlib.machinery.PathFinder.find_spec(name, path)) is not None:
            spec.loader = self
            return spec

    def create_module(self, spec):
        asked.append(spec.name)
        raise ImportError(spec.name)

    def exec_module(self, module):
        raise AssertionError

sys.meta_path.insert(0, Without())
found = []
for line, forbidden in json.load(sys.stdin):
    asked, said = [], io.StringIO()
    sys.argv = ["embedpipe", *line.split()]
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = main._run()
    found.append((code, asked, said.getvalue()))
json.dump(found, sys.stdout)
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """(command, situation) → exit code, the heavy modules that were asked for, and what was printed."""
    root = finished.make(tmp_path_factory.mktemp("finished"), without=("train-vae", "train-clip", "sample-prior"))
    typed = sorted(LINES, key=lambda it: len(MAY.get(it, ())))  # those that may import something come last
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM],
        input=json.dumps([(LINES[it][0], [name for name in HEAVY if name not in MAY.get(it, ())]) for it in typed]),
        stdout=subprocess.PIPE,
        cwd=root,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
        text=True,
        check=True,
    )
    return dict(zip(typed, json.loads(done.stdout), strict=True))


@pytest.mark.parametrize("it", LINES, ids=" ".join)
def test_it_is_answered_without_heavy_imports(it, answers):
    code, asked, said = answers[it]
    assert asked == []
    assert code == LINES[it][1], said
