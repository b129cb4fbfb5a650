"""What a wheel would hold is what the tree holds: setuptools' own answer against the folders."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {"embedpipe": "embedpipe", "dalle2_core": "dalle2_core", "cli": "embedpipe_cli"}
_ASK = """
import json
import sys
import setuptools
import distutils.core

distribution = distutils.core.run_setup("setup.py", stop_after="commandline")
build = distribution.get_command_obj("build_py")
build.ensure_finalized()
prefix = build.build_lib.rstrip("/") + "/"
files = sorted({name.removeprefix(prefix) for name in build.get_outputs(include_bytecode=False)})
json.dump({"packages": sorted(distribution.packages), "files": files}, sys.stdout)
"""


@pytest.fixture(scope="module")
def built():
    """The packages and the files that setuptools would put into a wheel."""
    asked = subprocess.run([sys.executable, "-c", _ASK], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert asked.returncode == 0, asked.stderr
    return json.loads(asked.stdout.splitlines()[-1])


def in_tree(pattern):
    """Files of the three rooms, under their import names."""
    for folder, name in FOLDERS.items():
        for path in (ROOT / folder).rglob(pattern):
            if path.is_file() and "__pycache__" not in path.parts:
                yield Path(name) / path.relative_to(ROOT / folder)


def test_every_folder_with_code_is_a_package(built):
    folders = {".".join(path.parent.parts) for path in in_tree("*.py")}
    assert set(built["packages"]) == folders


def test_every_file_of_the_tree_is_in_the_wheel(built):
    assert built["files"] == sorted(str(path) for path in in_tree("*"))


def test_every_room_says_that_it_is_typed(built):
    assert {f"{name}/py.typed" for name in FOLDERS.values()} <= set(built["files"])


def test_every_extra_is_documented():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    page = (ROOT / "docs" / "installing.md").read_text()
    assert [name for name in extras if f"| `{name}` |" not in page] == []


def test_the_versions_of_python_are_the_same_everywhere():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    versions = [name.rpartition(" ")[2] for name in settings["project"]["classifiers"] if "Python :: 3." in name]
    oldest = versions[0]
    assert settings["project"]["requires-python"] == f">={oldest}"
    assert settings["tool"]["ruff"]["target-version"] == "py" + oldest.replace(".", "")
    for page in ("README.md", "docs/quickstart.md"):
        assert f"Python {oldest} to {versions[-1]}" in (ROOT / page).read_text(), page
