"""Trainings of several processes on loopback, as torchrun and accelerate start them; none is left afterwards."""

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil

LAUNCHERS = {
    "alone": lambda processes, restarts: [],
    "torchrun": lambda processes, restarts: [
        *("-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"),
        *("--nproc-per-node", str(processes), "--max-restarts", str(restarts)),
    ],
    "accelerate": lambda processes, restarts: [
        *("-m", "accelerate.commands.launch", "--cpu", "--num_processes", str(processes), "--num_machines", "1"),
        *("--mixed_precision", "no", "--dynamo_backend", "no", "--num_cpu_threads_per_process", "1"),
        *("--main_process_port", "0", "--max_restarts", str(restarts)),
    ],
}


def _path():
    """What is run may import tests."""
    return os.pathsep.join(filter(None, (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH"))))


@contextlib.contextmanager
def launch(*words, launcher="torchrun", processes=2, restarts=0):
    """The running launcher, whose workers run `python *words`; killed with all of them when the block ends."""
    command = [sys.executable, *LAUNCHERS[launcher](processes, restarts), *map(str, words)]
    process = subprocess.Popen(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": _path()},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        kill(process)
        process.wait()
        process.stdout.close()


def kill(process):
    """SIGKILL to a launcher and its workers, which are in sessions of their own."""
    if process.poll() is None:
        for one in [process, *psutil.Process(process.pid).children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()


def finish(*words, **options):
    """Run to the end: (exit code, what all of them said)."""
    with launch(*words, **options) as process:
        said, _ = process.communicate()
        return process.returncode, said


def kill_when(there, *words, **options):
    """Run until `there()`, then kill all of them at once."""
    with launch(*words, **options) as process:
        while not there():
            assert process.poll() is None, process.communicate()[0][-3000:]
            time.sleep(0.005)
