"""Run the fast suite, or all of CI, again and again: is it always green, and how long does it take?

    python tools/repeat_suite.py 30 --busy 10   # the last ten beside a program that keeps a core busy
    python tools/repeat_suite.py 10 --ci        # `.ci/run`, each time in a new clone of what is committed

Each run's output is kept in a folder below build/repeat, with a table of what it came to. Ends with 1 where one failed.
"""

import argparse
import contextlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_RESULT = re.compile(r"^(?:\S+ )?((?:\d+ \w+, )*\d+ (?:passed|failed|errors?)[^\n]*)$", re.MULTILINE)


@contextlib.contextmanager
def busy_core(wanted: bool) -> Iterator[None]:
    """Keep one core busy while the block runs."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if wanted else None
    try:
        yield
    finally:
        if process is not None:
            process.kill()
            process.wait()


@contextlib.contextmanager
def clean_clone() -> Iterator[Path]:
    """A new clone of what is committed."""
    with tempfile.TemporaryDirectory(prefix="embedpipe-ci-") as folder:
        subprocess.run(["git", "clone", "--quiet", ROOT, folder], check=True)
        yield Path(folder)


def run_once(log: Path, whole: bool) -> tuple[bool, str]:
    """Whether it was green, and what it said of that."""
    with clean_clone() if whole else contextlib.nullcontext(ROOT) as place, log.open("w") as said:
        command = [".ci/run"] if whole else ["make", "test"]
        code = subprocess.run(command, cwd=place, stdout=said, stderr=subprocess.STDOUT, check=False).returncode
    text = log.read_text(errors="replace")
    lines = re.findall(r"^(?:FAILED|ERROR) .*|^=== .*: .*", text, re.MULTILINE) or _RESULT.findall(text)[-1:]
    return code == 0, "; ".join(line.removeprefix("=== ") for line in lines) or f"exit code {code}"


def main() -> int:
    """Repeat; 0 if all were green."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=int)
    parser.add_argument("--busy", type=int, default=0, help="How many of them run beside a busy core: the last ones.")
    parser.add_argument("--ci", action="store_true", help="All of CI, in clean clones.")
    options = parser.parse_args()
    kept = ROOT / "build" / "repeat" / time.strftime("%Y%m%d-%H%M%S")
    kept.mkdir(parents=True)
    table, all_green = kept / "table.md", True
    rows = ["| run | beside a busy core | minutes | green | what it said |", "|---|---|---|---|---|"]
    print(*rows, sep="\n", flush=True)
    for number in range(1, options.runs + 1):
        busy, begun = number > options.runs - options.busy, time.monotonic()
        with busy_core(busy):
            green, said = run_once(kept / f"{number:02d}.log", options.ci)
        minutes = (time.monotonic() - begun) / 60
        rows.append(f"| {number} | {'yes' if busy else ''} | {minutes:.1f} | {'yes' if green else 'NO'} | {said} |")
        table.write_text("\n".join(rows) + f"\n\n{os.uname().machine}, {os.cpu_count()} cores\n")
        print(rows[-1], flush=True)
        all_green &= green
    return 0 if all_green else 1


if __name__ == "__main__":
    sys.exit(main())
