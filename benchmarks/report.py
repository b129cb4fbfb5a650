"""Writes what a benchmark found: a dated file with the command, the versions, the machine, and what is missing."""

from __future__ import annotations

import datetime
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
_PACKAGES = ("torch", "torchvision", "open_clip_torch", "numpy", "pillow", "simplejpeg", "pyarrow")
# The instructions that decide which number formats are fast on a CPU.
_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")


@dataclass(frozen=True, slots=True)
class Started:
    """When, how and on what a benchmark was started; made before anything else is done."""

    at: datetime.datetime
    command: str
    load: tuple[float, float, float]
    cores: int
    processor: str


def start(script: str, cores: Sequence[int]) -> Started:
    """Take down the circumstances. `script` is the module that was run, such as `benchmarks.encode_memory`."""
    words = [f"-m {script}", *map(shlex.quote, sys.argv[1:])]
    return Started(
        at=datetime.datetime.now(),
        command=f"python {' '.join(words)}",
        load=os.getloadavg(),
        cores=len(cores),
        processor=_processor(),
    )


def write(
    name: str,
    answers: str,
    sections: Sequence[str],
    started: Started,
    *,
    not_measured: Sequence[str],
    peers: Sequence[str] = (),
    folder: Path = RESULTS,
) -> Path:
    """Write `<folder>/<name>_<date>.md` and print it. A later run of the same day takes its place."""
    lines = [
        f"# {name}: {answers}",
        "\n\n".join(sections),
        "## How",
        table(("", ""), [("command", f"`{started.command}`"), *_circumstances(started), *(("peer", p) for p in peers)]),
        "## Not measured",
        "\n".join(f"- {item}" for item in not_measured),
    ]
    text = "\n\n".join(lines) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}_{started.at:%Y-%m-%d}.md"
    path.write_text(text)
    print(text)
    print(f"written to {path}")
    return path


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; all columns but the first are aligned right."""
    rule = ["---", *["---:"] * (len(head) - 1)] if any(head) else ["---"] * len(head)
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in (head, rule, *rows))


def _circumstances(started: Started) -> list[tuple[str, str]]:
    ended = os.getloadavg()
    loads = " · ".join(f"{load:.2f}" for load in started.load)
    minutes = (datetime.datetime.now() - started.at).total_seconds() / 60
    return [
        ("date", f"{started.at:%Y-%m-%d %H:%M}, {minutes:.0f} minutes"),
        ("machine", f"{started.processor}; {started.cores} of {os.cpu_count()} cores used; {_memory()}"),
        ("system", f"{platform.system()} {platform.release()}, python {platform.python_version()}"),
        ("torch threads", _torch_threads()),
        ("load average at the start", f"{loads} (1, 5, 15 minutes); at the end {ended[0]:.2f} (this run is in it)"),
        ("embedpipe", revision()),
        ("versions", ", ".join(f"{name} {_version(name)}" for name in _PACKAGES)),
    ]


def _processor() -> str:
    try:
        lines = [line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines()]
    except OSError:
        return platform.processor() or "unknown processor"
    facts = {name.strip(): value.strip() for name, _, value in lines}
    flags = [flag for flag in _FLAGS if flag in facts.get("flags", "").split()]
    family = f"family {facts.get('cpu family', '?')}, model {facts.get('model', '?')}"
    return f"{facts.get('model name', 'unknown processor')} ({family}; {' '.join(flags) or 'no wide vectors'})"


def _memory() -> str:
    return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"


def _torch_threads() -> str:
    """What torch takes when nobody tells it, on the cores this process may use."""
    asked = subprocess.run(
        [sys.executable, "-c", "import torch; print(torch.get_num_threads())"], capture_output=True, text=True
    )
    set_to = os.environ.get("OMP_NUM_THREADS")
    return asked.stdout.strip() + (f" (OMP_NUM_THREADS={set_to})" if set_to else " (its default)")


def revision() -> str:
    """Version and commit, and whether the tree has changes."""
    git = ["git", "-C", str(Path(__file__).parent)]
    commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    changed = subprocess.run(
        [*git, "status", "--porcelain", "--", ":/embedpipe", ":/cli"], capture_output=True, text=True
    ).stdout.strip()
    return f"{_version('embedpipe')}, commit {commit or 'unknown'}{' with changes' if changed else ''}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(not installed)"
