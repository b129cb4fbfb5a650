"""`doctor` says what is not installed, and what brings it."""

import importlib.util
import json
import tomllib
from pathlib import Path

import pytest
from embedpipe_cli.commands import doctor

from tests.commands import result_of, run

PROJECT = Path(__file__).resolve().parents[4] / "pyproject.toml"


def test_it_says_what_the_machine_has():
    told = result_of("doctor")
    assert set(told["missing"]) <= set(doctor._OPTIONAL)
    assert not {"cv2", "img2dataset", "imghdr"} & set(told["missing"])
    assert set(told) == {"versions", "cores", "gpus", "free_disk_gb", "missing"}


@pytest.mark.parametrize("module", list(doctor._OPTIONAL))
def test_what_is_missing_is_told_with_what_it_is_for_and_how_to_get_it(module, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == module else object())
    need, remedy = doctor._OPTIONAL[module]
    assert run("doctor").stdout.rstrip().endswith(f"missing: {module} (needed for {need}): {remedy}")
    assert json.loads(run("doctor", "--json").stdout)["missing"] == {module: {"needed_for": need, "remedy": remedy}}


def test_every_extra_of_users_is_asked_for():
    extras = set(tomllib.loads(PROJECT.read_text())["project"]["optional-dependencies"]) - {"dev"}
    told = {remedy.partition("[")[2].partition("]")[0] for _, remedy in doctor._OPTIONAL.values()} - {""}
    assert told == extras
