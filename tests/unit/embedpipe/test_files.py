"""Files appear whole or not at all, wherever they go."""

import errno
import hashlib
import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from embedpipe import files
from embedpipe.errors import DiskFull, InputError, OutputUnwritable


@pytest.fixture(params=["local", "file-url", "memory"])
def folder(request, tmp_path):
    return {
        "local": str(tmp_path / "x"),
        "file-url": f"file://{tmp_path}/x",
        "memory": f"memory://{uuid.uuid4().hex}/x",
    }[request.param]


def test_what_is_written_is_read_back(folder):
    place = files.join(folder, "deep", "er", "a.bin")
    written = files.write_bytes(place, b"abc" * 1000)
    assert files.read_bytes(place) == b"abc" * 1000
    assert written.bytes == files.stat(place).bytes == 3000
    assert written.sha256 == files.sha256(place) == hashlib.sha256(b"abc" * 1000).hexdigest()
    assert files.exists(place)
    assert files.is_folder(files.join(folder, "deep"))
    assert files.names(files.join(folder, "deep", "er"), ".bin") == ["a.bin"]
    files.remove(place)
    files.remove(place)
    assert not files.exists(place)


def test_a_missing_file_is_an_input_error_that_names_it(folder):
    place = files.join(folder, "nothing.bin")
    for look in (files.stat, files.read_bytes, files.sha256):
        with pytest.raises(InputError, match=r"nothing\.bin"):
            look(place)
    assert files.names(folder) == []


def test_an_exception_while_writing_leaves_what_was_there(folder):
    place = files.join(folder, "a.bin")

    class Boom(Exception):
        pass

    def write_half():
        with files.writing(place) as stream:
            stream.write(b"new")
            raise Boom

    with pytest.raises(Boom):
        write_half()
    assert not files.exists(place)
    files.write_bytes(place, b"old")
    with pytest.raises(Boom):
        write_half()
    assert files.read_bytes(place) == b"old"
    assert files.names(folder) == ["a.bin"]


def test_a_file_below_a_file_is_no_file(tmp_path):
    (tmp_path / "a").write_bytes(b"x")
    for look in (files.stat, files.read_bytes):
        with pytest.raises(InputError):
            look(str(tmp_path / "a" / "b"))
    with pytest.raises(OutputUnwritable, match="a file is there"):
        files.write_bytes(str(tmp_path / "a" / "b"), b"")


def test_a_dangling_link_is_a_missing_file(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    with pytest.raises(InputError, match="no such file"):
        files.stat(str(tmp_path / "link"))


def test_an_unknown_protocol_is_an_input_error():
    with pytest.raises(InputError, match="nosuch"):
        files.exists("nosuch://bucket/x")


KILLED_WRITER = """
import os, signal, sys
from embedpipe import files
with files.writing(sys.argv[1]) as stream:
    stream.write(b"new" * 100000)
    stream.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_writer_killed_midway_leaves_the_old_file_and_a_leftover_that_is_swept(tmp_path):
    place = tmp_path / "a.bin"
    place.write_bytes(b"old")
    ended = subprocess.run([sys.executable, "-c", KILLED_WRITER, str(place)], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert place.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 2
    assert files.names(str(tmp_path)) == ["a.bin"]
    assert files.sweep_temporaries(str(tmp_path)) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]


def test_sweeping_a_folder_that_is_not_there_is_fine(tmp_path):
    assert files.sweep_temporaries(str(tmp_path / "no")) == 0
    assert files.sweep_temporaries("memory://no") == 0


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_leaves_nothing_and_says_so(tmp_path, monkeypatch, code):
    def full(descriptor):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(DiskFull) as caught:
        files.write_bytes(str(tmp_path / "a.bin"), b"x")
    assert "a.bin: no space left" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("a small file system needs the right to mount one")
    yield place
    subprocess.run(["umount", str(place)], check=False)


def test_a_disk_that_really_is_full_leaves_nothing_and_says_so(small_disk):
    with pytest.raises(DiskFull, match="Free some space"):
        files.write_bytes(str(small_disk / "a.bin"), b"x" * (2 << 20))
    assert list(small_disk.iterdir()) == []
    files.write_bytes(str(small_disk / "a.bin"), b"x" * 1000)


@pytest.mark.parametrize("form", ["absolute", "relative", "dot", "memory", "file-url"])
def test_globs_come_back_in_the_form_they_were_given(form, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base = {
        "absolute": str(tmp_path / "d"),
        "relative": "d",
        "dot": "./d",
        "memory": f"memory://{uuid.uuid4().hex}",
        "file-url": f"file://{tmp_path}/d",
    }[form]
    for name in ("b.tar", "a.tar", "c.txt"):
        files.write_bytes(files.join(base, name), b"x")
    assert files.glob(f"{base}/*.tar") == [f"{base}/a.tar", f"{base}/b.tar"]


def test_a_glob_in_the_working_folder_gives_bare_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.tar").write_bytes(b"")
    assert files.glob("*.tar") == ["a.tar"]
