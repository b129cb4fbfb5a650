"""`fetch` from a server that errs at random: every stored picture says which url it belongs to."""

import json
import resource
import subprocess
import sys
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))
from embedpipe.fetch import FetchConfig, fetch
from embedpipe.verify import verify
from tests import erring


def fetched(site, tmp_path, urls):
    """The number of the url of each stored picture, and the number that the picture itself says."""
    table = pa.table({"url": [site.url(number) for number in range(urls)]})
    pq.write_table(table, tmp_path / "urls.parquet")
    config = FetchConfig(
        allow_hosts=("127.0.0.1",), threads=32, per_host=32, processes=1, timeout_s=1.0, retries=4, image_format="png"
    )
    report = fetch(str(tmp_path / "urls.parquet"), str(tmp_path / "out"), config)
    found = {}
    for file in sorted((tmp_path / "out").glob("*.parquet")):
        rows = pq.read_table(file, columns=["key", "url"]).to_pylist()
        number = {row["key"]: int(row["url"].rpartition("/")[2][:-4]) for row in rows}
        with tarfile.open(file.with_suffix(".tar")) as tar:
            for member in tar:
                if member.name.endswith(".png"):
                    found[number[member.name[:-4]]] = erring.number_of(tar.extractfile(member).read())
    return report, found


def test_more_threads_than_open_files_write_no_url_off(tmp_path):
    with erring.serving((), rate=0) as site:
        (tmp_path / "urls.txt").write_text("".join(f"{site.url(number)}\n" for number in range(300)))
        options = "--threads 400 --per-host 400 --processes 1 --allow-host 127.0.0.1 --retries 0 --json"
        command = [sys.executable, "-m", "embedpipe_cli", "fetch", "urls.txt", "out", *options.split()]
        done = subprocess.run(
            command,
            cwd=tmp_path,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256)),
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
    assert json.loads(done.stdout)["succeeded"] == 300
    assert "downloading with 32 threads a process instead of 400: it may open 256 files (`ulimit -n`)" in done.stderr


@pytest.mark.parametrize("urls", [400, pytest.param(10_000, marks=pytest.mark.slow)])
def test_none_is_shifted_none_is_lost(tmp_path, urls):
    with erring.serving(erring.ERRORS, rate=0.05) as site:
        report, found = fetched(site, tmp_path, urls)
        assert site.errors.total() > urls / 40
    assert [number for number, said in found.items() if said != number] == []
    assert (report.succeeded, report.failed, len(found)) == (urls, {}, urls)
    assert verify(str(tmp_path / "out")).whole
