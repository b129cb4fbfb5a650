"""Small wrong changes to modules that decide numbers or bytes: do the tests notice? Run by hand, not in CI.

    python -m tools.mutate                                    every module of tools/mutants.toml, 20 mutants of each
    python -m tools.mutate embedpipe/store/rows.py -n 50 -s 1 other ones of one module

Changes are made to a copy of the tree. The libraries are imported once, and each mutant has a process forked from
there, which runs the fast tests of the module's test files until one fails. Running past a limit counts as noticed.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import hashlib
import json
import os
import random
import resource
import shlex
import shutil
import signal
import sys
import tempfile
import time
import tomllib
from collections import Counter
from pathlib import Path

from tools.mutants import mutants_of

ROOT = Path(__file__).parents[1]
VERDICTS = ROOT / ".mutants.json"
_COPIED = ("cli", "dalle2_core", "embedpipe", "tests", "benchmarks", "docs")
_MOST_BYTES = 24 << 30  # of address space: some mutants would take all there is
_LIBRARIES = (
    *("click", "diffusers", "faiss", "hypothesis", "numpy", "open_clip", "pyarrow.parquet"),
    *("pydantic", "pytest", "rich", "safetensors", "torch", "torchvision"),
)


class Copy:
    """A copy of the tree in a folder of its own, in which one module at a time is changed."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in _COPIED:
            shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__", "peers"))
        for file in ROOT.iterdir():
            if file.is_file() and not file.name.startswith("."):
                shutil.copy(file, root)
        (root / "embedpipe_cli").symlink_to("cli")  # as it is installed

    def write(self, module: str, source: str) -> None:
        """Change a module; what was compiled of it goes, since it is told by size and second only."""
        file = self.root / module
        file.write_text(source)
        for compiled in file.parent.glob(f"__pycache__/{file.stem}.*"):
            compiled.unlink()

    def passes(self, tests: list[str], cpu_s: int, wall_s: float) -> tuple[bool, float]:
        """Whether the fast tests of these files pass in a process forked from this one, and its CPU seconds."""
        child = os.fork()
        if not child:
            resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s))
            resource.setrlimit(resource.RLIMIT_AS, (_MOST_BYTES, _MOST_BYTES))
            os._exit(self._test(tests))
        end = time.monotonic() + wall_s
        pid = 0
        while not pid and time.monotonic() < end:
            time.sleep(0.02)
            pid, status, used = os.wait4(child, os.WNOHANG)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(
                child, signal.SIGKILL
            )  # itself where it waits for ever, else processes that its tests left behind
        if not pid:
            os.waitpid(child, 0)
            return False, wall_s
        return status == 0, used.ru_utime + used.ru_stime

    def _test(self, tests: list[str]) -> int:
        import pytest

        os.setsid()
        os.chdir(self.root)
        log = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        tempfile.tempdir = os.environ["TMPDIR"] = str(self.root / "tmp")
        shutil.rmtree(self.root / "tmp", ignore_errors=True)
        (self.root / "tmp").mkdir()
        os.environ["PYTHONPATH"] = str(self.root)  # for processes that tests start
        sys.path.insert(0, str(self.root))
        for name in [name for name in sys.modules if name.split(".")[0] in ("tools", "tests")]:
            del sys.modules[name]
        options = "-x -q --tb=short -p no:cacheprovider -p no:xdist -m 'not slow'"
        for file in tests:
            if pytest.main(shlex.split(f"{file} {options}")) != pytest.ExitCode.OK:
                return 1
        return 0


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*")
    parser.add_argument("-n", "--mutants", type=int, default=20, help="of each module")
    parser.add_argument("-s", "--seed", type=int, default=0)
    parser.add_argument("-k", "--keep-kills", action="store_true", help="those known of the same source and seed stay")
    asked = parser.parse_args()
    table = tomllib.loads(Path(__file__).with_name("mutants.toml").read_text())
    _prepare()
    rows = ["| module | mutants | killed | equivalent | survivors |", "|---|---|---|---|---|"]
    total: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="mut") as folder:
        copy = Copy(Path(folder))
        for module in asked.modules or table["tests"]:
            equivalent = {(e["line"], e["change"]) for e in table["equivalent"] if e["module"] == module}
            found = _judge(copy, module, table["tests"][module], equivalent, asked)
            rows.append(_row(module, found))
            total += found
    print("\n".join([*rows, _row("all", total)]))


def _prepare() -> None:
    """Import the libraries, on one thread; examples are always the same, and a failing one is not made smaller."""
    os.environ.update(OMP_NUM_THREADS="1", HYPOTHESIS_PROFILE="mutants")
    for name in _LIBRARIES:
        __import__(name)
    from hypothesis import HealthCheck, Phase, settings

    few = {"phases": (Phase.explicit, Phase.generate), "max_examples": 30, "report_multiple_bugs": False}
    settings.register_profile(
        "mutants", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], **few
    )
    gc.freeze()  # else each process copies what it counts


def _judge(
    copy: Copy, module: str, tests: list[str], equivalent: set[tuple[str, str]], asked: argparse.Namespace
) -> Counter[str]:
    source = (ROOT / module).read_text()
    every = mutants_of(source)
    drawn = random.Random(f"{asked.seed} {module}").sample(every, min(asked.mutants, len(every)))
    fine, cpu_s = copy.passes(tests, 1200, 7200)
    if not fine:
        sys.exit(f"{module}: its tests fail without a change:\n{(copy.root / 'log').read_text()[-3000:]}")
    print(f"{module}: {len(drawn)} of {len(every)} mutants, tests take {cpu_s:.1f} s", flush=True)
    known = json.loads(VERDICTS.read_text()) if VERDICTS.exists() else {}
    found: Counter[str] = Counter()
    for mutant in drawn:
        key = hashlib.sha256(f"{module} {mutant.source}".encode()).hexdigest()[:20]
        if (mutant.text, mutant.change) in equivalent:
            verdict = "equivalent"
        elif asked.keep_kills and known.get(key) == "killed":
            verdict = "killed"
        else:
            copy.write(module, mutant.source)
            # In company a process may get a small part of a core: only what waits for ever is ended by the clock.
            survived, _ = copy.passes(tests, int(3 * cpu_s + 10), 100 * cpu_s + 600)
            verdict = "survived" if survived else "killed"
        known[key] = verdict
        found[verdict] += 1
        if verdict == "survived":
            print(f"  {module}:{mutant.line}: {mutant.text}\n    {mutant.change}", flush=True)
        VERDICTS.write_text(json.dumps(known))
    copy.write(module, source)
    return found


def _row(name: str, found: Counter[str]) -> str:
    return f"| {name} | {found.total()} | {found['killed']} | {found['equivalent']} | {found['survived']} |"


if __name__ == "__main__":
    main()
