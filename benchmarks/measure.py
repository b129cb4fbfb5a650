"""Runs a command as a process tree of its own and measures it: wall time, CPU time, memory. Linux only (/proc)."""

from __future__ import annotations

import contextlib
import os
import signal
import statistics
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_SAMPLE_EVERY_S = 0.25
_LOOK_EVERY_S = 0.02
_ORPHANS_MAY_TAKE_S = 5.0


@dataclass(frozen=True, slots=True)
class Measured:
    """One run of a command.

    exit_code: None when it was killed at its timeout. cpu_s: user and system time of the process and of all its
    descendants that were waited for. largest_mib: the peak resident size of the largest process. together_mib: the
    peak of the sum over all processes, pages that several of them share counted once (PSS), sampled four times a
    second. load: the one-minute load average when it began, this run not in it.
    """

    exit_code: int | None
    wall_s: float
    cpu_s: float
    largest_mib: float
    together_mib: float
    load: float
    stdout: str
    stderr: str

    def require(self, what: str) -> Measured:
        """This run, if it ended well. Raises RuntimeError with the end of what it printed."""
        if self.exit_code != 0:
            how = "was killed at its timeout" if self.exit_code is None else f"ended with {self.exit_code}"
            raise RuntimeError(f"{what} {how}:\n{self.stdout[-1500:]}\n{self.stderr[-3000:]}")
        return self


def run(
    command: Sequence[str], logs: Path, *, timeout_s: float, environment: Mapping[str, str] | None = None
) -> Measured:
    """Run `command` in a session of its own; at the timeout, and after the end, kill whatever of it is left.

    What it prints goes to `logs`.out and `logs`.err. `environment` is added to this process's.
    """
    logs.parent.mkdir(parents=True, exist_ok=True)
    out, err = logs.with_name(f"{logs.name}.out"), logs.with_name(f"{logs.name}.err")
    load = os.getloadavg()[0]
    with out.open("w") as stdout, err.open("w") as stderr:
        begun = time.perf_counter()
        process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )
        try:
            status, usage, memory = _watch(process.pid, begun + timeout_s)
            wall_s = time.perf_counter() - begun
        finally:
            _kill_session(process.pid)
    killed = status is None
    process.returncode = -signal.SIGKILL if killed else os.waitstatus_to_exitcode(status)
    return Measured(
        exit_code=None if killed else process.returncode,
        wall_s=wall_s,
        cpu_s=usage.ru_utime + usage.ru_stime,
        largest_mib=memory.largest_kib / 1024,
        together_mib=memory.together_kib / 1024,
        load=load,
        stdout=out.read_text(errors="replace"),
        stderr=err.read_text(errors="replace"),
    )


@dataclass(slots=True)
class _Memory:
    largest_kib: int = 0
    together_kib: int = 0


def _watch(pid: int, until: float) -> tuple[int | None, object, _Memory]:
    """Wait for `pid`, sampling memory. The status is None when it had to be killed."""
    memory, next_sample = _Memory(), 0.0
    while True:
        waited, status, usage = os.wait4(pid, os.WNOHANG)
        if waited:
            return status, usage, memory
        now = time.perf_counter()
        if now > until:
            _kill_session(pid)
            _, _, usage = os.wait4(pid, 0)
            return None, usage, memory
        if now >= next_sample:
            _sample(pid, memory)
            next_sample = now + _SAMPLE_EVERY_S
        time.sleep(_LOOK_EVERY_S)


def _sample(session: int, memory: _Memory) -> None:
    together = 0
    for pid in _members(session):
        # VmHWM, not ru_maxrss: that one also counts the process that forked the command, before its exec.
        memory.largest_kib = max(memory.largest_kib, _kib(f"/proc/{pid}/status", "VmHWM:"))
        together += _kib(f"/proc/{pid}/smaps_rollup", "Pss:")
    memory.together_kib = max(memory.together_kib, together)


def _members(session: int) -> list[int]:
    """The processes of a session, those that are gone but not waited for left out."""
    members = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                fields = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue  # it ended between the listing and the reading
            if int(fields[3]) == session and fields[0] != "Z":
                members.append(int(name))
    return members


def _kib(path: str, name: str) -> int:
    try:
        for line in Path(path).read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1])
    except OSError:
        pass  # it ended, or it belongs to somebody else
    return 0


def _kill_session(session: int) -> None:
    """Kill every process of the session: process groups are not enough, a child may have made its own."""
    until = time.perf_counter() + _ORPHANS_MAY_TAKE_S
    while (members := _members(session)) and time.perf_counter() < until:
        for pid in members:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(_LOOK_EVERY_S)


def use_cores(count: int | None) -> list[int]:
    """Keep this process, and all it starts, on the first `count` of the cores it may use. Returns these."""
    cores = sorted(os.sched_getaffinity(0))[:count]
    os.sched_setaffinity(0, cores)
    return cores


def spread(values: Sequence[float], digits: int = 2) -> str:
    """`median (min–max)`; a single value alone."""
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})"
