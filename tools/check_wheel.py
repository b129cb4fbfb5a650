"""Build the distribution, install it as users do, and run the commands from an empty folder outside the tree.

    python tools/check_wheel.py                # all of it: minutes, most of them pip's and torch's
    python tools/check_wheel.py --files-only   # build, and hold the wheel's files against the tree's
    python tools/check_wheel.py --keep DIR     # leave what was made in DIR; its environment is used again next time

Needs nothing but Python's own library and pip's package index. Ends with 1 at the first thing that is not right.
"""

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

from story import Failed, tell

ROOT = Path(__file__).resolve().parents[1]
# The folders that are installed, under the names by which they are imported.
ROOMS = {"embedpipe": "embedpipe", "dalle2_core": "dalle2_core", "cli": "embedpipe_cli"}
_NOT_CODE = {"__pycache__", ".mypy_cache", ".ruff_cache"}


def main() -> int:
    """Run the check; 0 if all is right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files-only", action="store_true", help="Build and compare files; install and run nothing.")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="Work there and leave it, its environment for reuse.")
    options = parser.parse_args()
    try:
        with _workplace(options.keep) as work:
            wheel = build(work)
            compare(wheel)
            if not options.files_only:
                with _stage("install the wheel with its extra `demo`"):
                    python = install(wheel, work / "env")
                tell(python, work / "elsewhere", _stage)
    except Failed as problem:
        print(f"FAILED: {problem}", file=sys.stderr)
        return 1
    print("the wheel is whole and works")
    return 0


@contextlib.contextmanager
def _workplace(keep: Path | None) -> Iterator[Path]:
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        yield keep.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="embedpipe-wheel-") as folder:
        yield Path(folder)


@contextlib.contextmanager
def _stage(what: str) -> Iterator[None]:
    print(f"{what} …", flush=True)
    begun = time.monotonic()
    yield
    print(f"  {time.monotonic() - begun:.0f} s", flush=True)


def build(work: Path) -> Path:
    """The wheel that is built from the source distribution, as package indexes' users get it."""
    copy, dist = work / "tree", work / "dist"
    for folder in (copy, dist):
        shutil.rmtree(folder, ignore_errors=True)
    # Of a copy: an older egg-info in the tree would say what belongs to the distribution.
    shutil.copytree(ROOT, copy, symlinks=True, ignore=_leftovers)
    with _stage("build the source distribution, and the wheel from it"):
        python = _environment(work / "builder")
        _call(python, "-m", "pip", "install", "--quiet", "build")
        _call(python, "-m", "build", "--outdir", str(dist), str(copy))
    shutil.rmtree(copy)
    wheels = list(dist.glob("*.whl"))
    if len(wheels) != 1 or not list(dist.glob("*.tar.gz")):
        raise Failed(f"{dist} holds {sorted(path.name for path in dist.iterdir())}")
    return wheels[0]


def _leftovers(folder: str, names: list[str]) -> set[str]:
    """What is made in a tree and does not belong to it."""
    hidden = {name for name in names if name.startswith(".") and name != ".ci"}
    top = {"build", "dist", "demo-out", "shared"} & set(names) if Path(folder) == ROOT else set()
    return hidden | top | {name for name in names if name in _NOT_CODE or name.endswith(".egg-info")}


def compare(wheel: Path) -> None:
    """Raise Failed unless the wheel holds just the files of the tree's packages."""
    wanted = set()
    for folder, name in ROOMS.items():
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and not _NOT_CODE & set(path.parts):
                wanted.add(f"{name}/{path.relative_to(ROOT / folder).as_posix()}")
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name and not name.endswith("/")}
    if wanted != found:
        raise Failed(
            f"{wheel.name} lacks {sorted(wanted - found) or 'nothing'} and holds {sorted(found - wanted) or 'nothing'}"
            " that the tree does not"
        )
    print(f"  {wheel.name}: {len(found)} files, those of the tree")


def install(wheel: Path, folder: Path) -> Path:
    """An environment with the wheel, its demo extra, and what these need; its Python."""
    python = _environment(folder)
    _call(python, "-m", "pip", "install", "--quiet", "--no-compile", f"{wheel}[demo]")
    _call(python, "-m", "pip", "install", "--quiet", "--no-compile", "--force-reinstall", "--no-deps", str(wheel))
    _call(python, "-m", "pip", "check")
    return python


def _environment(folder: Path) -> Path:
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        _call(python, "-m", "pip", "install", "--quiet", "--upgrade", "pip")
    return python


def _call(python: Path, *arguments: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        [str(python), *arguments], cwd=python.parents[1], env=environment, stdout=subprocess.PIPE, text=True,
        stderr=subprocess.STDOUT, check=False,
    )  # fmt: skip
    if done.returncode:
        raise Failed(f"`python {' '.join(arguments)}` ended with {done.returncode}:\n{done.stdout[-4000:]}")


if __name__ == "__main__":
    sys.exit(main())
