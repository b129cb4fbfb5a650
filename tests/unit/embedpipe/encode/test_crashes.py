"""A sample that crashes or hangs the decoder is a reject, whoever decodes it, and its shard is done."""

import contextlib
import signal
import subprocess
import sys
import time

import psutil
import pyarrow.parquet as pq
import pytest

from embedpipe import manifest
from embedpipe.encode import batching
from embedpipe.encode.job import encode
from tests import shards
from tests.faulty_pillow import faulty_pillow, marked

__all__ = ["faulty_pillow"]

HOW = {
    "segfault": ("decoder_died", "SIGSEGV"),
    "abort": ("decoder_died", "SIGABRT"),
    "leave": ("decoder_died", "exit code 0"),
    "spin": ("too_costly_time", "more than 1 s of processor time"),
}


def bad_sample(how, format):
    return [(f"{how}.{format.lower()}", marked(how, format)), (f"{how}.txt", b"a caption")]


def rejects_of(out):
    rows = [row for path in sorted(out.glob("errors/*.parquet")) for row in pq.read_table(path).to_pylist()]
    return {row["key"]: (row["error_class"], row["message"]) for row in rows}


def test_in_a_format_that_is_decoded_in_a_child(tmp_path, encode_config, faulty_pillow):
    members = [*shards.samples(3), *(member for how in HOW for member in bad_sample(how, "TIFF"))]
    source = shards.write_tar(tmp_path / "in" / "0.tar", [*members, *shards.samples(3, 3)])
    out = tmp_path / "emb"
    report = encode(source, str(out), encode_config(stage={"max_sample_seconds": 1.0}))
    assert (report.rows, report.failed_tasks) == (6, ())
    assert report.rejects == {"decoder_died": 3, "too_costly_time": 1}
    found = rejects_of(out)
    for how, (error_class, message) in HOW.items():
        assert found[how][0] == error_class
        assert message in found[how][1]


def test_shards_that_a_killed_run_was_at_are_decoded_with_care(tmp_path, encode_config, monkeypatch):
    source, out = shards.write_shards(tmp_path / "in", shards=6, per_shard=2), tmp_path / "emb"
    seen = []
    real = batching.guarded_decode
    monkeypatch.setattr(
        batching, "guarded_decode", lambda *given, **more: seen.append(more["careful"]) or real(*given, **more)
    )
    encode(source, str(out), encode_config())
    assert not any(seen)
    shards.forget(out, 0, 1, 2, 3, 4, 5)
    (out / ".encoding").touch()  # as a killed run leaves it
    seen.clear()
    encode(source, str(out), encode_config())
    assert seen == [True] * 8 + [False] * 4
    assert not (out / ".encoding").exists()


@pytest.mark.slow
def test_in_the_only_process_which_is_run_again(tmp_path, tiny_model, faulty_pillow):
    shards.write_tar(tmp_path / "in" / "0.tar", [*shards.samples(4), *bad_sample("segfault", "PNG")])
    command = [sys.executable, "-m", "embedpipe_cli.main", "encode", tmp_path / "in", tmp_path / "emb"]
    command += ["--model", tiny_model, "--gpus", 0, "--precision", "fp32"]
    codes = [subprocess.run(list(map(str, command)), capture_output=True).returncode for _ in range(2)]
    assert codes == [-signal.SIGSEGV, 0]
    assert list(rejects_of(tmp_path / "emb")) == ["segfault"]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_in_a_worker_which_is_replaced(workers, tmp_path, encode_config, faulty_pillow):
    for i in range(3):
        bad = bad_sample("segfault", "PNG") if i == 1 else []
        shards.write_tar(tmp_path / "in" / f"{i}.tar", [*shards.samples(4, 8 * i), *bad, *shards.samples(4, 8 * i + 4)])
    out = tmp_path / "emb"
    report = encode(str(tmp_path / "in"), str(out), encode_config(executor="processes", workers=workers))
    assert (report.rows, report.failed_tasks) == (24, ())
    assert list(rejects_of(out)) == ["segfault"]
    assert rejects_of(out)["segfault"][0] == "decoder_died"
    assert manifest.committed_numbers(str(out)) == [0, 1, 2]


def descendants(pid):
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).children(recursive=True)
    return []


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_ends_a_run_whose_decoder_hangs(workers, tmp_path, tiny_model, faulty_pillow):
    for i in range(2):
        shards.write_tar(tmp_path / "in" / f"{i}.tar", [*shards.samples(2), *bad_sample("sleep", "TIFF")])
    command = [sys.executable, "-m", "embedpipe_cli.main", "encode", tmp_path / "in", tmp_path / "emb"]
    command += ["--model", tiny_model, "--gpus", 0, "--workers", workers, "--max-sample-seconds", 1000]
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    until = time.monotonic() + 300
    servers = []
    while not any(server.children() for server in servers):  # one that decodes
        assert time.monotonic() < until
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.1)
        servers = [it for it in descendants(process.pid) if "limited.server" in " ".join(it.cmdline())]
    left = descendants(process.pid)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 130, said
    _, alive = psutil.wait_procs(left, timeout=60)
    assert not alive
