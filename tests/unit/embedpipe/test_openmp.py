"""Threads of OpenMP spin briefly in every process of ours, unless somebody has decided otherwise."""

import os
import subprocess
import sys

import pytest

from embedpipe.execute import Cluster, Task
from embedpipe.execute.processes import ProcessExecutor
from embedpipe.execute.ray import RayExecutor
from embedpipe.openmp import SPIN_COUNT, bound_spinning
from embedpipe.progress import silent
from tests import raycluster
from tests.works import NotingSpinning, WritingItsEnvironment

CHOICES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


@pytest.fixture
def unset(monkeypatch):
    for name in CHOICES:
        monkeypatch.delenv(name, raising=False)


def test_an_environment_without_a_choice_gets_ours():
    environment = {"PATH": "/bin"}
    bound_spinning(environment)
    assert environment["GOMP_SPINCOUNT"] == SPIN_COUNT
    assert "OMP_WAIT_POLICY" not in environment, "it would take precedence in other libraries"


@pytest.mark.parametrize("name", CHOICES)
def test_a_choice_of_the_user_stands(name):
    environment = {name: "ACTIVE" if name == "OMP_WAIT_POLICY" else "7"}
    before = dict(environment)
    bound_spinning(environment)
    assert environment == before


def openmp_says(*arguments):
    """What libgomp itself shows of its settings, when a command has loaded torch."""
    shown = subprocess.run(
        [sys.executable, "-m", "embedpipe_cli", *arguments],
        env={**os.environ, "OMP_DISPLAY_ENV": "verbose"},
        capture_output=True,
        text=True,
    )
    assert shown.returncode == 0, shown.stderr
    found = [line for line in shown.stderr.splitlines() if "GOMP_SPINCOUNT" in line]
    if not found:
        pytest.skip("torch's OpenMP here is not GNU's")
    return found


def test_the_command_line_sets_it_before_openmp_is_loaded(unset):
    assert all(f"'{SPIN_COUNT}'" in line for line in openmp_says("doctor"))


def test_the_command_line_leaves_the_users_choice_alone(unset, monkeypatch):
    monkeypatch.setenv("GOMP_SPINCOUNT", "77")
    assert all("'77'" in line for line in openmp_says("doctor"))


def test_workers_have_it_whoever_starts_them(unset, tmp_path):
    """From Python nobody has set anything, and torch may be loaded already: the workers' OpenMP is new."""
    ProcessExecutor(1).run(WritingItsEnvironment(str(tmp_path)), [Task(0, "t0", "fine")], silent)
    started_with = (tmp_path / "environment").read_bytes().decode().split("\0")
    assert f"GOMP_SPINCOUNT={SPIN_COUNT}" in started_with
    assert not any(name in os.environ for name in CHOICES), "the caller's own environment was changed"


def test_what_a_ray_worker_loads_before_its_work_is_not_torch():
    """The work sets the variables when it is begun, see `_InFolder`."""
    code = "import embedpipe.execute.ray, sys; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


@pytest.mark.slow
def test_ray_workers_have_it(unset, tmp_path):
    ray = pytest.importorskip("ray")
    with raycluster.start(1, cpus=1) as running:
        RayExecutor(1, Cluster(running.address)).run(NotingSpinning(str(tmp_path)), [Task(0, "t0", "fine")], silent)
    assert not ray.is_initialized()
    assert (tmp_path / "spinning").read_text() == SPIN_COUNT
