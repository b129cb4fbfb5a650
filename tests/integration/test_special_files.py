"""Pipes, sockets, devices and folders where files are expected are refused at once, by every command."""

import os
import shutil
import socket
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import faiss
import pytest

from embedpipe import files
from embedpipe.errors import InputError
from embedpipe.index.card import index_path, read_card


def special(path, kind):
    """Put a pipe, socket, device or folder at `path`."""
    if path.exists():
        path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        at = os.getcwd()
        os.chdir(path.parent)  # its whole path may be too long for a socket
        try:
            socket.socket(socket.AF_UNIX).bind(path.name)
        finally:
            os.chdir(at)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    return path


KINDS = ("pipe", "socket", "device", "folder")


@pytest.mark.parametrize("kind", KINDS)
def test_no_way_of_reading_waits(tmp_path, kind):
    path = str(special(tmp_path / "it", kind))
    for read in (
        files.read_bytes,
        files.read_if_there,
        files.sha256,
        files.stat,
        lambda place: files.read_range(place, 0, 3),
        lambda place: files.reading(place).__enter__(),
    ):
        with pytest.raises(InputError, match=f"a {kind}, not a regular file"):
            read(path)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("file", ["embedpipe.json", "manifest/00000.json", "img_emb/img_emb_00000.npy"])
def test_commands_over_an_output_with_one(encoded, embedpipe, kind, file, tmp_path):
    special(encoded / file, kind)
    for command in (("info", encoded), ("verify", encoded), ("verify", encoded, "--deep"), ("index", encoded)):
        done = embedpipe(*command)
        assert done.exit_code == 1 or command[0] == "info", command
        assert "internal error" not in done.stderr, command


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", KINDS)
def test_commands_over_a_table_an_index_a_model_and_a_run(encoded, tiny_model, embedpipe, kind, tmp_path):
    table = special(tmp_path / "urls.parquet", kind)
    assert embedpipe("index", encoded, "--type", "flat").exit_code == 0
    special(Path(index_path(str(encoded), read_card(str(encoded), "image"))), kind)
    model = shutil.copytree(tiny_model, tmp_path / "model")
    special(model / "open_clip_config.json", kind)
    run = tmp_path / "run"
    run.mkdir()
    special(run / "run.json", kind)
    stage = tmp_path / "decoder"
    (stage / "stage-1").mkdir(parents=True)
    special(stage / "stage-1" / "config.json", kind)
    for command in (
        ("fetch", table, tmp_path / "out"),
        ("encode", table, tmp_path / "out", "--model", tiny_model, "--gpus", "0"),
        ("search", encoded, "text"),
        ("search", encoded, "--image", table),
        ("search", encoded, "text", "--model", model),
        ("evaluate", run, encoded),
        ("generate", "text", "--decoder", stage, "--out", tmp_path / "x.png"),
    ):
        done = embedpipe(*command)
        assert done.exit_code in (1, 2), (command, done.output)
        assert "internal error" not in done.stderr, (command, done.stderr)


@pytest.mark.parametrize("kind", ["IxF2", "IxFI", "IHNf"])
def test_an_index_that_claims_more_than_its_file_holds_is_refused(tmp_path, kind):
    from embedpipe.index.index_file import open_file

    head = kind.encode() + struct.pack("<iqqqbi", 16, 1 << 34, 1 << 20, 1 << 20, 1, 0)
    (tmp_path / "index").write_bytes(head + struct.pack("<Q", 1 << 30) * 8)  # 4 GiB of float32
    bound = faiss.get_deserialization_vector_byte_limit(), faiss.get_deserialization_loop_limit()
    with ThreadPoolExecutor(8) as pool:
        index = str(tmp_path / "index")
        read = [pool.submit(open_file, index, lists=False, mapped=mapped) for mapped in [False, True] * 20]
    assert {type(done.exception()) for done in read} == {RuntimeError}
    assert all("deserialization" in str(done.exception()) for done in read[::2]), "before anything is allocated"
    assert bound == (faiss.get_deserialization_vector_byte_limit(), faiss.get_deserialization_loop_limit())
