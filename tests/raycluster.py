"""A Ray cluster of several nodes on loopback, in a process of its own, that can lose one.

with raycluster.start(2) as cluster:
    cluster.address
    cluster.kill_last()
"""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

_ROOT = str(Path(__file__).parents[1])


def environment():
    """What processes of a cluster need besides what `tests.conftest` sets: our code on the path."""
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH", ""), _ROOT]))
    return {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


class RunningCluster:
    """Talks to the process that owns the nodes."""

    def __init__(self, process):
        self._process = process
        self.address = self._answer()

    def _answer(self):
        line = self._process.stdout.readline().strip()
        if line.split(" ")[0] != "ok":
            raise RuntimeError(f"the cluster says {line!r}")
        return line[3:]

    def kill_last(self):
        """End the last node at once, with all that runs on it."""
        self._process.stdin.write("kill\n")
        self._process.stdin.flush()
        self._answer()

    def add(self):
        """Another node like the others."""
        self._process.stdin.write("add\n")
        self._process.stdin.flush()
        self._answer()


@contextlib.contextmanager
def start(nodes, cpus=1):
    """A cluster of that many nodes; all of it is gone at the end of the block."""
    process = subprocess.Popen(
        [sys.executable, __file__, str(nodes), str(cpus)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, **environment()},
        start_new_session=True,
    )
    try:
        yield RunningCluster(process)
    finally:
        with contextlib.suppress(OSError):
            process.stdin.close()
        try:
            process.wait(timeout=60)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def _own(nodes, cpus):
    from ray.cluster_utils import Cluster

    said = os.dup(1)
    os.dup2(2, 1)  # Ray talks on stdout
    say = os.fdopen(said, "w", buffering=1)
    options = {"num_cpus": cpus, "node_ip_address": "127.0.0.1", "object_store_memory": 80 * 1024**2}
    cluster = Cluster(initialize_head=True, head_node_args={**options, "include_dashboard": False})
    running = [cluster.add_node(**options) for _ in range(nodes - 1)]
    say.write(f"ok {cluster.address}\n")
    for line in sys.stdin:
        if line.strip() == "kill":
            cluster.remove_node(running.pop(), allow_graceful=False)
        else:
            running.append(cluster.add_node(**options))
        say.write("ok \n")
    cluster.shutdown()


if __name__ == "__main__":
    _own(int(sys.argv[1]), int(sys.argv[2]))
