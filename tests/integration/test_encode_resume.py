"""encode as a process of its own, ended in every way there is: run again, it gives what an undisturbed run gives."""

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from embedpipe_cli import main

from embedpipe.lock import exclusive
from embedpipe.verify import verify
from tests import shards

SHARDS, PER_SHARD = 6, 12


def command(source, out, model, workers):
    return [
        *(sys.executable, "-m", "embedpipe_cli", "encode", str(source), str(out), "--model", model, "--gpus", "0"),
        *("--workers", str(workers), "--threads", "1", "--batch-size", "4", "--json"),
    ]


def fork(arguments, stderr=os.devnull):
    """The same command in a fork of this process, which has imported torch already. Returns its pid."""
    import embedpipe.encode.loading  # noqa: F401 - so that the child need not

    handler = signal.signal(signal.SIGTERM, main._interrupt)  # as the console script does before anything else
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            os.dup2(os.open(os.devnull, os.O_RDWR), 1)
            os.dup2(os.open(stderr, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
            sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
            sys.argv = ["embedpipe", *arguments[3:]]
            os._exit(main._run())
        finally:
            os._exit(99)
    signal.signal(signal.SIGTERM, handler)
    return pid


def ended(pid):
    """Wait for a fork; its exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def group_is_empty(group):
    """Whether no living process is left in the group (zombies nobody has waited for are dead)."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, _, found = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
            except OSError:
                continue
            if int(found) == group and state != "Z":
                return False
    return True


def until(condition, seconds=600):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume") / "shards"
    for i in range(SHARDS):
        members = shards.samples(PER_SHARD, first=i * PER_SHARD)
        shards.write_tar(folder / f"{i:05d}.tar", [*members, (f"bad{i}.jpg", b"x"), (f"bad{i}.txt", b"bad")])
    return folder


@pytest.fixture(scope="module")
def undisturbed(source, tiny_model, tiny_encoder, tmp_path_factory):
    """Files of a run nobody touched."""
    folder = tmp_path_factory.mktemp("undisturbed")
    out, said = folder / "emb", folder / "stderr"
    assert ended(fork(command(source, out, tiny_model, 1), str(said))) == 0, said.read_text()
    return shards.tree(out)


def assert_finished(out, undisturbed):
    assert shards.tree(out) == undisturbed
    keys = [key for path in sorted(out.glob("metadata/*")) for key in pq.read_table(path)["key"].to_pylist()]
    assert keys == [f"{i:05d}" for i in range(SHARDS * PER_SHARD)]
    assert verify(str(out), shards.DEEP).whole


def test_killed_at_any_moment_and_run_again_it_gives_the_same_bytes(source, tiny_model, undisturbed, tmp_path):
    rng = random.Random(0)
    moments = []
    for attempt in range(6):
        out = tmp_path / str(attempt)
        for _ in range(2):
            pid = fork(command(source, out, tiny_model, 1))
            wanted = len(list(out.glob("manifest/*.json"))) + rng.randrange(3)
            deadline = time.monotonic() + 600
            while os.waitpid(pid, os.WNOHANG) == (0, 0) and time.monotonic() < deadline:
                if (out / "embedpipe.json").exists() and len(list(out.glob("manifest/*.json"))) >= wanted:
                    time.sleep(rng.uniform(0, 0.02))
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
                    break
                time.sleep(0.002)  # it may have this core
            moments.append(len(list(out.glob("manifest/*.json"))))
            assert verify(str(out), shards.DEEP).whole, "what is committed is whole at any moment"
        assert ended(fork(command(source, out, tiny_model, 1))) == 0
        assert_finished(out, undisturbed)
    assert len(set(moments)) > 2, "the moments were not random"


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_ends_with_130_and_can_be_resumed(how, source, tiny_model, undisturbed, tmp_path):
    out = tmp_path / "emb"
    pid = fork(command(source, out, tiny_model, 1))
    until(lambda: list(out.glob("manifest/*.json")))
    os.kill(pid, how)
    assert ended(pid) == 130
    assert not [path for path in out.rglob("*") if ".tmp-" in path.name]
    assert ended(fork(command(source, out, tiny_model, 1))) == 0
    assert_finished(out, undisturbed)


def _workers(pid):
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            with contextlib.suppress(OSError):
                if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                    found.append(int(child))
    return found


@pytest.mark.slow
def test_two_workers_killed_and_interrupted_and_one_of_them_killed_write_the_same_bytes_as_one(
    source, tiny_model, undisturbed, tmp_path
):
    out, said = tmp_path / "emb", tmp_path / "stderr"
    arguments = command(source, out, tiny_model, 2)

    def until_one_more_is_committed():
        before = len(list(out.glob("manifest/*.json")))
        until(lambda: len(list(out.glob("manifest/*.json"))) > before)

    pid = fork(arguments)
    until_one_more_is_committed()
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    until(lambda: group_is_empty(pid))  # workers notice that their parent is gone, once they have loaded
    assert verify(str(out), shards.DEEP).whole

    (out / "manifest" / "00000.json").unlink(missing_ok=True)  # whichever shard was done first
    pid = fork(arguments, str(said))
    until_one_more_is_committed()
    os.killpg(pid, signal.SIGINT)  # a terminal's Ctrl-C reaches the whole group
    assert ended(pid) in (0, 130), said.read_text()
    assert "Traceback" not in said.read_text()
    until(lambda: group_is_empty(pid))
    assert not [path for path in out.rglob("*") if ".tmp-" in path.name]
    assert verify(str(out), shards.DEEP).whole

    for number in range(3):
        (out / "manifest" / f"{number:05d}.json").unlink(missing_ok=True)
    pid = fork(arguments, str(said))
    until(lambda: len(_workers(pid)) == 2)
    os.kill(_workers(pid)[0], signal.SIGKILL)
    assert ended(pid) == 0, said.read_text()
    assert_finished(out, undisturbed)


def test_a_second_run_is_refused_while_the_first_holds_the_output(source, tiny_model, tmp_path):
    with exclusive(str(tmp_path / "emb")):
        assert ended(fork(command(source, tmp_path / "emb", tiny_model, 1), str(tmp_path / "stderr"))) == 1
    said = (tmp_path / "stderr").read_text()
    assert f"in use by process {os.getpid()}" in said
    assert said.count("\n") == 1


@pytest.fixture
def small_disk(tmp_path):
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=44k", "tmpfs", str(place)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("a small file system needs the right to mount one")
    yield place
    subprocess.run(["umount", str(place)], check=False)


def test_a_full_disk_ends_the_run_with_one_line_and_what_is_committed_whole(
    source, tiny_model, undisturbed, small_disk
):
    out = small_disk / "emb"
    said = small_disk.parent / "stderr"
    assert ended(fork(command(source, out, tiny_model, 1), str(said))) == 1
    assert "no space left" in said.read_text()
    assert re.search(r" shards? (are|is) left, about [\d.]+ \w+ more are needed, .* are free", said.read_text())
    assert said.read_text().count("\n") == 1
    assert not [path for path in out.rglob("*") if ".tmp-" in path.name]
    report = verify(str(out), shards.DEEP)
    assert report.whole
    assert report.missing > 0
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    assert ended(fork(command(source, out, tiny_model, 1))) == 0
    assert_finished(out, undisturbed)
