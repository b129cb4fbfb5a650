"""What this machine lacks is said in one line, and never held against the data: under real limits."""

import errno
import os
import resource
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from embedpipe import files, scarcity
from embedpipe.errors import OutOfResources
from embedpipe.load import EmbeddingDataset
from tests import erring
from tests.embeddings import write_dataset

ROOT = Path(__file__).parents[3]


def python(code, *arguments, **limits):
    """The output of `code` in a process with these limits (`NOFILE=30`), which must succeed."""

    def limit():
        for name, most in limits.items():
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (most, most))

    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    done = subprocess.run(command, preexec_fn=limit, capture_output=True, text=True, timeout=120, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


FILLED = """
import os, sys
def fill():
    try:
        while True:
            os.open(os.devnull, os.O_RDONLY)
    except OSError:
        pass
"""


@pytest.mark.parametrize(
    ("problem", "lack"),
    [
        (OSError(errno.EMFILE, "too many"), "open files"),
        (OSError(errno.ENFILE, "too many"), "open files"),
        (OSError(errno.ENOMEM, "no memory"), "memory"),
        (OSError(errno.ENOBUFS, "no buffers"), "memory for its network"),
        (OSError(errno.EADDRNOTAVAIL, "no port"), "ports"),
        (BlockingIOError(errno.EAGAIN, "no more processes"), "processes"),
        (MemoryError(), "memory"),
        (RuntimeError("can't start new thread"), "threads"),
    ],
)
def test_lacks_are_told_from_other_errors(problem, lack):
    said = f"this machine has run out of {lack}.* What is committed is whole"
    with pytest.raises(OutOfResources, match=said), scarcity.telling():
        raise problem


@pytest.mark.parametrize(
    "problem", [OSError(errno.ENOENT, "none"), RuntimeError("a bug"), ConnectionResetError(104), socket.gaierror(-2)]
)
def test_other_errors_stay_what_they_are(problem):
    with pytest.raises(type(problem)), scarcity.telling():
        raise problem


def test_reading_without_a_free_file_says_so(tmp_path):
    (tmp_path / "a.json").write_text("{}")
    said = python(
        FILLED
        + """
from embedpipe import files
from embedpipe.errors import OutOfResources
from embedpipe.load import EmbeddingDataset
fill()
for read in (files.read_bytes, files.read_if_there, files.sha256, lambda p: files.read_range(p, 0, 1)):
    try:
        read(sys.argv[1])
    except OutOfResources as problem:
        print(problem.what)
try:
    files.write_bytes(sys.argv[1], b"x")
except OutOfResources as problem:
    print(problem.what)
""",
        tmp_path / "a.json",
        NOFILE=40,
    )
    assert said.splitlines() == ["this machine has run out of open files (see `ulimit -n`)"] * 5


def test_a_repair_without_a_free_file_drops_nothing(tmp_path):
    write_dataset(tmp_path / "emb", [[1.0, 2.0]] * 4, [[2.0, 1.0]] * 4)
    before = {path: path.read_bytes() for path in sorted((tmp_path / "emb").rglob("*")) if path.is_file()}
    said = python(
        FILLED
        + """
from embedpipe.errors import OutOfResources
from embedpipe.load import EmbeddingDataset
from embedpipe.verify import VerifyConfig
from embedpipe.verify.job import verify
from embedpipe import files
verify(sys.argv[1], VerifyConfig(deep=True))  # everything is loaded
held = []
real = files.sha256
def scarce(location):
    fill()
    return real(location)
files.sha256 = scarce
try:
    verify(sys.argv[1], VerifyConfig(deep=True, repair=True))
except OutOfResources as problem:
    print(problem.what)
""",
        tmp_path / "emb",
        NOFILE=60,
    )
    assert "open files" in said
    (tmp_path / "emb" / ".lock").unlink()
    assert {path: path.read_bytes() for path in sorted((tmp_path / "emb").rglob("*")) if path.is_file()} == before


LOOP = """
import sys
from embedpipe.fetch.download.threads import DownloadLoop
from embedpipe.fetch.http.client import HttpClient, Limits
from embedpipe.fetch.http.connections import Connections
from embedpipe.fetch.http.resolver import Resolver
url, urls, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
sender = HttpClient(Limits(20, 40), "embedpipe/0", Connections(Resolver(), ("127.0.0.1", "localhost")))
"""
ASK = """
found = dict(DownloadLoop(sender, threads, 0, threads).answers([url.replace("/0.", f"/{i}.") for i in range(urls)]))
print(sum(answer.body is not None for answer in found.values()), {str(a.failure) for a in found.values() if a.failure})
"""


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_more_threads_than_open_files_lose_no_url(host):
    with erring.serving((), rate=0) as site:
        url = site.url(0).replace("127.0.0.1", host)
        assert python(LOOP + ASK, url, 200, 60, NOFILE=40) == "200 set()"


def test_more_threads_than_there_is_memory_for_lose_no_url():
    with erring.serving((), rate=0) as site:
        code = (
            LOOP
            + """
import resource
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + (150 << 20),) * 2)
"""
            + ASK
        )
        assert python(code, site.url(0), 60, 400) == "60 set()"


def test_a_lookup_that_had_no_free_file_is_no_answer_and_not_kept():
    code = (
        LOOP
        + FILLED
        + """
from embedpipe.errors import OutOfResources
from embedpipe.load import EmbeddingDataset
import os, resource, socket
socket.getaddrinfo("localhost", 80)
resolver = sender.connections.resolver
last = os.dup(0)
fill()
try:
    print(resolver.addresses("no-such-host.invalid", 20))
except (OSError, OutOfResources) as problem:
    print(problem)
print(len(resolver.kept))
"""
    )
    said = python(code, "", 0, 0, NOFILE=40)
    assert "open files" in said
    assert said.endswith("0")


def routes(tmp_path, monkeypatch, ipv4, ipv6):
    head = "Iface\tDestination\tGateway \tFlags\n"
    (tmp_path / "route").write_text(head + "".join(f"{name}\t00000000\t010200C0\t0003\n" for name in ipv4))
    line = "{} 00 00000000000000000000000000000000 00 00000000000000000000000000000000 0 1 0 1 {}\n"
    (tmp_path / "ipv6_route").write_text("".join(line.format(*route) for route in ipv6))
    monkeypatch.setattr(scarcity, "_IPV4_ROUTES", tmp_path / "route")
    monkeypatch.setattr(scarcity, "_IPV6_ROUTES", tmp_path / "ipv6_route")


@pytest.mark.parametrize(
    ("ipv4", "ipv6", "has"),
    [
        (["eth0"], [], True),
        ([], [], False),
        (["lo"], [("0" * 32, "lo"), ("fe80" + "0" * 28, "eth0"), ("ff00" + "0" * 28, "eth0")], False),
        ([], [("0" * 32, "eth0")], True),
        ([], [("2001" + "0" * 28, "eth0")], True),
    ],
)
def test_a_machine_has_a_network_if_it_has_a_route_to_others(tmp_path, monkeypatch, ipv4, ipv6, has):
    routes(tmp_path, monkeypatch, ipv4, ipv6)
    assert scarcity.has_network() == has


def test_where_routes_cannot_be_read_there_may_be_a_network(tmp_path, monkeypatch):
    monkeypatch.setattr(scarcity, "_IPV4_ROUTES", tmp_path / "none")
    assert scarcity.has_network()


def test_a_full_disk_is_none_of_them():
    assert files.unwritable("x", OSError(errno.EDQUOT, "quota")).what == "x: no space left on the device"


@pytest.mark.parametrize("lack", [pa.lib.ArrowMemoryError("malloc"), MemoryError(), OSError(errno.ENOMEM, "mmap")])
@pytest.mark.parametrize("read", ["metadata", "image"])
def test_a_shard_that_does_not_fit_in_memory_is_not_damaged(tmp_path, monkeypatch, lack, read):
    def fail(*_, **__):
        raise lack

    dataset = EmbeddingDataset(write_dataset(tmp_path / "emb", [[1.0, 2.0]] * 4, [[2.0, 1.0]] * 4))
    monkeypatch.setattr(pq, "ParquetFile", fail)
    monkeypatch.setattr(np, "load", fail)
    monkeypatch.setattr(os, "open", fail if isinstance(lack, OSError) else os.open)
    with pytest.raises((OutOfResources, type(lack)), match="memory|malloc|^$"):
        dataset.metadata[0] if read == "metadata" else dataset.image[0]


def test_workers_that_cannot_be_started_are_a_lack(tmp_path):
    code = (
        FILLED
        + """
from embedpipe.errors import OutOfResources
from embedpipe.load import EmbeddingDataset
from embedpipe.execute.base import Task
from embedpipe.execute.processes import ProcessExecutor
from embedpipe.progress import silent
import multiprocessing.popen_spawn_posix, multiprocessing.resource_tracker
from tests.works import Doing
fill()
try:
    ProcessExecutor(2).run(Doing("x"), [Task(0, "a", None), Task(1, "b", None)], silent)
except OutOfResources as problem:
    print(problem.what)
"""
    )
    assert "open files" in python(code, NOFILE=60)


@pytest.mark.parametrize(
    ("problem", "lack"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), "memory of its GPU"),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
            "memory of its GPU",
        ),
        (RuntimeError("can't start new thread"), "threads"),
        (RuntimeError("CUDA error: device-side assert triggered"), None),
    ],
)
def test_what_torch_says_of_memory_is_a_lack(problem, lack):
    found = scarcity.lack_of(problem)
    assert found is None if lack is None else found.startswith(lack)
