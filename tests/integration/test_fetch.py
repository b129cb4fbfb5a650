"""`fetch` against a real web server that misbehaves, with real img2dataset processes."""

import contextlib
import datetime
import hashlib
import io
import json
import os
import resource
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))
from embedpipe import manifest
from embedpipe.errors import InputError, MissingExtra, OutputBusy, OutputUnwritable, RunMismatch
from embedpipe.fetch import ERROR_CLASSES, FetchConfig, fetch, resizers
from embedpipe.fetch.shards.commit import uid
from embedpipe.lock import exclusive
from embedpipe.read import open_reader
from embedpipe.read.grouping import SampleRules
from tests import shards, web
from tests.shards import DEEP

HERE = ("127.0.0.1",)


@pytest.fixture(scope="module")
def site():
    with web.serving() as running:
        yield running


def shard_bytes(out):
    """Every file that makes the data, by its path; what hides behind a dot and what tells of a run is not data."""
    found = {str(p.relative_to(out)): p for p in Path(out).rglob("*") if p.is_file()}
    return {name: p.read_bytes() for name, p in found.items() if not name.startswith((".", "reports/"))}


def table_of(out):
    return pa.concat_tables(pq.read_table(p) for p in sorted(Path(out).glob("*.parquet")))


# --- one run over everything a server may do ---

EXPECTED = {
    "/status/404": ("http_404", 1),
    "/status/410": ("http_404", 1),
    "/status/403": ("http_403", 1),
    "/status/418": ("http_4xx", 1),
    "/status/429": ("http_429", 2),
    "/status/500": ("http_5xx", 2),
    "/slow/9.jpg": ("timeout", 2),
    "/drip/1.jpg": ("timeout", 2),
    "/truncated/1.jpg": ("damaged", 1),
    "/short/1.jpg": ("connection", 2),
    "/reset": ("connection", 2),
    "/garbage.jpg": ("not_an_image", 1),
    "/html.jpg": ("not_an_image", 1),
    "/empty.jpg": ("empty", 1),
    "/robots/noai/1.jpg": ("opt_out", 1),
    "/redirect?to=http://169.254.169.254/latest": ("refused_address", 1),
    "/redirect?to=http://localhost/": ("refused_address", 1),
    "/flaky/1/x/1.jpg": (None, 2),
    "/png/1.png": (None, 1),
    "/typed/1.jpg": (None, 1),
    "/redirect?to=/photo/3.jpg": (None, 1),
}
REFUSED = {
    None: "invalid_url",
    "": "invalid_url",
    "file:///etc/passwd": "invalid_url",
    "http://localhost:1/": "refused_address",
    "http://10.0.0.1/": "refused_address",
}
PHOTOS = 30


@pytest.fixture(scope="module")
def story(site, tmp_path_factory):
    """A table of all of the above, fetched."""
    folder = tmp_path_factory.mktemp("story")
    urls = [*REFUSED, *(site.url(path) for path in EXPECTED), *(site.url(f"/photo/{i}.jpg") for i in range(PHOTOS))]
    urls += ["http://127.0.0.1:1/closed.jpg", f"https://127.0.0.1:{site.port}/tls.jpg"]
    n = len(urls)
    table = pa.table(
        {
            "url": pa.array(urls),
            "caption": pa.array([None if i % 7 == 3 else f"caption ü {i}" for i in range(n)]),
            "when": pa.array(
                [datetime.datetime(2020, 1, 1, 0, 0, i) if i % 2 else None for i in range(n)], pa.timestamp("us", "UTC")
            ),
            "box": pa.array([[i / 2, float("nan")] if i % 3 else None for i in range(n)], pa.list_(pa.float32())),
            "width": pa.array(range(n), pa.int16()),
        }
    )
    pq.write_table(table, folder / "urls.parquet")
    seen = []
    config = FetchConfig(samples_per_shard=25, timeout_s=2.5, retries=1, allow_hosts=HERE, processes=2)
    report = fetch(str(folder / "urls.parquet"), str(folder / "out"), config, seen.append)
    return folder, table, config, report, seen


def test_every_row_is_accounted_for_once_in_input_order(story):
    folder, source, _, report, seen = story
    rows = table_of(folder / "out")
    assert rows.column("url").to_pylist() == source.column("url").to_pylist()
    assert rows.column("caption").to_pylist() == source.column("caption").to_pylist()
    assert rows.column("uid").to_pylist() == [uid(r["url"], r["caption"]) for r in source.to_pylist()]
    failed = Counter(c for c in rows.column("error_class").to_pylist() if c)
    assert report.failed == failed
    assert (report.rows, report.succeeded) == (source.num_rows, source.num_rows - failed.total())
    assert sum(step.rows for step in seen) == report.rows
    assert sum(step.rejected for step in seen) == failed.total()
    assert sum(step.tasks for step in seen) == report.shards == report.shards_now == 3
    assert next(step.planned for step in seen if step.planned is not None) == 3


def test_every_misbehaviour_has_its_class_and_its_number_of_tries(site, story):
    rows = {row["url"]: row for row in table_of(story[0] / "out").to_pylist()}
    got = {path: (rows[site.url(path)]["error_class"], rows[site.url(path)]["attempts"]) for path in EXPECTED}
    assert got == EXPECTED
    assert {url: rows[url]["error_class"] for url in REFUSED} == REFUSED
    assert rows["http://127.0.0.1:1/closed.jpg"]["error_class"] == "connection"
    assert rows[f"https://127.0.0.1:{site.port}/tls.jpg"]["error_class"] == "tls"
    for row in rows.values():
        assert (row["status"] == "success") == (row["error_class"] is None) == (row["sha256"] is not None)
        assert row["error_class"] is None or (row["error_class"] in ERROR_CLASSES and row["error_message"])
    assert rows[site.url("/png/1.png")]["content_type"] == "image/png"
    assert rows[site.url("/typed/1.jpg")]["content_type"] == "text/html"


def test_columns_pass_through_with_their_types(story):
    folder, source, *_ = story
    rows = table_of(folder / "out")
    assert rows.schema.names[-3:] == ["when", "box", "source_width"]  # `width` is the stored image's
    assert rows.column("when").equals(source.column("when"))
    assert rows.column("box").type == pa.list_(pa.float32())
    assert rows.column("source_width").equals(source.column("width"))


def test_the_tar_holds_what_the_parquet_says(story):
    folder, *_ = story
    rows = {row["key"]: row for row in table_of(folder / "out").to_pylist() if row["status"] == "success"}
    members = {}
    for tar in sorted((folder / "out").glob("*.tar")):
        with tarfile.open(tar) as opened:
            infos = opened.getmembers()
            names = [info.name for info in infos]
            assert names == sorted(names)
            assert {(i.mtime, i.uid, i.gid, i.uname, i.gname, i.mode) for i in infos} == {(0, 0, 0, "", "", 0o644)}
            assert all(name.startswith(tar.stem) for name in names)
            members |= {info.name: opened.extractfile(info).read() for info in infos}
    assert {name.split(".")[0] for name in members} == rows.keys()
    for key, row in rows.items():
        image = members[f"{key}.jpg"]
        assert (hashlib.sha256(image).hexdigest(), len(image)) == (row["sha256"], row["bytes"])
        assert Image.open(io.BytesIO(image)).size == (row["width"], row["height"])
        assert members.get(f"{key}.txt", b"").decode() == (row["caption"] or "")
        document = json.loads(members[f"{key}.json"], parse_constant=pytest.fail)  # NaN is no JSON
        for name in ("uid", "url", "key", "sha256", "width", "height", "original_width", "source_width"):
            assert document[name] == row[name]
        assert document["when"] == (row["when"].isoformat() if row["when"] else None)
        assert document["box"] == ([row["box"][0], None] if row["box"] else None)


def test_images_are_resized_only_if_bigger(story, site):
    rows = {row["url"]: row for row in table_of(story[0] / "out").to_pylist()}
    for i in range(PHOTOS):
        row = rows[site.url(f"/photo/{i}.jpg")]
        original = Image.open(io.BytesIO(web.photo(i))).size
        assert (row["original_width"], row["original_height"]) == original
        assert min(row["width"], row["height"]) == min(*original, 256)


def test_other_readers_read_it(story):
    folder, _, _, report, _ = story
    tars = sorted(str(p) for p in (folder / "out").glob("*.tar"))
    dataset = webdataset.WebDataset(tars, shardshuffle=False, empty_check=False).decode("pil")
    keys = [sample["__key__"] for sample in dataset]
    rows = table_of(folder / "out").to_pylist()
    assert keys == [row["key"] for row in rows if row["status"] == "success"]
    assert len(keys) == report.succeeded
    reader = open_reader(str(folder / "out"), SampleRules())
    samples = [sample for shard in reader.shards([]) for sample in reader.read(shard, hashlib.sha256())]
    assert [sample.key for sample in samples] == keys
    captions = {row["key"]: row["caption"] for row in rows}
    assert [getattr(sample, "caption", None) for sample in samples] == [captions[key] for key in keys]


def test_verify_finds_it_whole(story):
    from embedpipe.verify import verify

    assert verify(str(story[0] / "out"), DEEP).whole


@pytest.mark.slow
def test_same_answers_same_bytes_whatever_the_parallelism(story):
    folder, _, config, _, _ = story
    other = FetchConfig(**{**{f: getattr(config, f) for f in config.__slots__}, "processes": 1, "threads": 3})
    fetch(str(folder / "urls.parquet"), str(folder / "again"), other)
    assert shard_bytes(folder / "again") == shard_bytes(folder / "out")


# --- going on with an output ---


def refused_urls(path, n, name="10.0.0.1"):
    """A table whose rows all fail without a request: quick to fetch."""
    path.write_text("url,caption\n" + "".join(f"http://{name}/{i},c{i}\n" for i in range(n)))
    return str(path)


def test_a_finished_output_is_left_alone_and_grows_by_files(tmp_path):
    tables = tmp_path / "tables"
    tables.mkdir()
    refused_urls(tables / "m.csv", 5)
    out = str(tmp_path / "out")
    config = FetchConfig(samples_per_shard=2, processes=1, resizer="opencv")
    first = fetch(str(tables), out, config)
    assert (first.rows, first.succeeded, first.failed, first.shards_now) == (5, 0, {"refused_address": 5}, 3)
    before = shard_bytes(out)
    again = fetch(str(tables), out, config)
    assert (again.rows, again.shards_now) == (5, 0)
    assert shard_bytes(out) == before
    (tables / "m.csv").touch()  # a new date over the same bytes is no change
    refused_urls(tables / "a.csv", 3, "10.0.0.2")  # sorts first, is numbered last
    grown = fetch(str(tables), out, config)
    assert (grown.rows, grown.shards, grown.shards_now) == (8, 5, 2)
    assert table_of(out).column("url").to_pylist()[-1] == "http://10.0.0.2/2"
    after = shard_bytes(out)
    assert {name: after[name] for name in before if name != "embedpipe.json"} == {
        name: data for name, data in before.items() if name != "embedpipe.json"
    }
    # A shard that lost a file is fetched again.
    (tmp_path / "out" / "00001.tar").unlink()
    assert fetch(str(tables), out, config).shards_redone == 1
    assert shard_bytes(out) == after


def test_drift_is_refused_with_the_difference(tmp_path):
    urls, out = refused_urls(tmp_path / "t.csv", 3), str(tmp_path / "out")
    fetch(urls, out)
    with pytest.raises(RunMismatch, match='image_size was 256, now 64; resize_mode was "keep_ratio", now "no"'):
        fetch(urls, out, FetchConfig(image_size=64, resize_mode="no"))
    with pytest.raises(RunMismatch, match=r"made from t\.csv; t\.csv is not among.*other\.csv"):
        fetch(refused_urls(tmp_path / "other.csv", 3), out)
    refused_urls(tmp_path / "t.csv", 4)
    with pytest.raises(RunMismatch, match=r"t\.csv changed since.*file of their own"):
        fetch(urls, out)
    fetch(refused_urls(tmp_path / "t.csv", 3), out, FetchConfig(threads=5, retries=0, timeout_s=3))  # no drift


def test_outputs_that_are_not_ours_or_not_free_or_not_writable(tmp_path):
    urls = refused_urls(tmp_path / "t.csv", 1)
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "00000.tar").write_bytes(b"")
    with pytest.raises(RunMismatch, match=r"\.tar files that fetch did not write"):
        fetch(urls, str(theirs))
    with exclusive(str(tmp_path / "busy")), pytest.raises(OutputBusy, match=f"process {os.getpid()}"):
        fetch(urls, str(tmp_path / "busy"))
    with pytest.raises(OutputUnwritable, match="a file is there"):
        fetch(urls, str(tmp_path / "t.csv" / "out"))


def test_a_bad_table_leaves_no_output_behind(tmp_path):
    with pytest.raises(InputError):
        fetch(str(tmp_path / "missing.csv"), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("module", "package"), [("img2dataset", "img2dataset"), ("imghdr", "standard-imghdr")])
def test_a_missing_module_is_told_with_its_package(tmp_path, monkeypatch, module, package):
    real = resizers.importlib.util.find_spec
    monkeypatch.setattr(resizers.importlib.util, "find_spec", lambda name: None if name == module else real(name))
    with pytest.raises(MissingExtra, match=f"the module {module} is not installed.*`pip install {package}`"):
        fetch(refused_urls(tmp_path / "t.csv", 1), str(tmp_path / "out"), FetchConfig(resizer="img2dataset"))


def test_shards_are_the_same_whatever_resizes(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for seed, mode in enumerate(("RGB", "L", "RGBA") * 3):
        (images / f"{seed}.png").write_bytes(shards.png(seed, 40 + 31 * seed, 300 - 29 * seed, mode))
    for name in resizers.RESIZERS:
        report = fetch(str(images), str(tmp_path / name), FetchConfig(resizer=name, image_size=100, processes=1))
        assert report.succeeded == 9
    first, *others = ((tmp_path / name / "00000.tar").read_bytes() for name in resizers.RESIZERS)
    assert all(other == first for other in others)


# --- kills, as a command of its own ---


def command(*args, **options):
    call = [sys.executable, "-m", "embedpipe_cli.main", "fetch", *map(str, args)]
    return subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def children_of(pid):
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(stat.parent.name))
    return found


def until(condition, seconds):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.02)


def gone(pids):
    return not any(Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids)


@pytest.fixture(scope="module")
def paced(site, tmp_path_factory):
    """A table whose fetching takes a few seconds, and its shards as an undisturbed run leaves them."""
    folder = tmp_path_factory.mktemp("paced")
    (folder / "urls.csv").write_text(
        "url,caption\n" + "".join(f"{site.url(f'/paced/{i}.jpg')},caption {i}\n" for i in range(160))
    )
    options = ["--samples-per-shard", 20, "--allow-host", "127.0.0.1", "--threads", 2, "--processes", 2]
    config = FetchConfig(samples_per_shard=20, allow_hosts=HERE, processes=2, threads=32)
    fetch(str(folder / "urls.csv"), str(folder / "undisturbed"), config)
    return folder, options, shard_bytes(folder / "undisturbed")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
def test_sigkill_leaves_no_process_and_the_same_command_ends_with_the_same_bytes(paced):
    folder, options, expected = paced
    out = folder / "killed"
    run = command(folder / "urls.csv", out, *options)
    until(lambda: len(manifest.committed_numbers(str(out))) >= 2, 600)
    workers = children_of(run.pid)
    assert len(workers) == 2
    run.kill()
    run.communicate()
    until(lambda: gone(workers), 60)
    committed = manifest.committed_numbers(str(out))
    assert 2 <= len(committed) < 8
    # Resumed, it loses a download process on the way, which costs nothing but time.
    run = command(folder / "urls.csv", out, *options, "--json")
    until(lambda: len(manifest.committed_numbers(str(out))) > len(committed), 600)
    os.kill(children_of(run.pid)[0], signal.SIGKILL)
    stdout, stderr = run.communicate(timeout=600)
    assert run.returncode == 0, stderr
    assert json.loads(stdout)["shards_now"] == 8 - len(committed)
    assert shard_bytes(out) == expected
    assert not list((out / ".fetch").glob("parts/*"))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
def test_ctrl_c_ends_it_at_once_with_130(paced):
    folder, options, _ = paced
    # One url at a time, so that it is still at work when the interruption comes.
    run = command(folder / "urls.csv", folder / "interrupted", *options, "--per-host", 1)
    until(lambda: len(children_of(run.pid)) == 2, 600)
    workers = children_of(run.pid)
    with pytest.raises(OutputBusy):
        fetch(str(folder / "urls.csv"), str(folder / "interrupted"), FetchConfig(samples_per_shard=20))
    run.send_signal(signal.SIGINT)
    _, stderr = run.communicate(timeout=600)
    assert run.returncode == 130
    assert "Traceback" not in stderr
    assert gone(workers)


@pytest.mark.slow
def test_a_disk_that_takes_no_more_is_one_line(paced):
    folder, options, _ = paced

    def small_files_only():
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))

    run = command(folder / "urls.csv", folder / "full", *options, preexec_fn=small_files_only)
    _, stderr = run.communicate(timeout=600)
    assert run.returncode == 1
    assert stderr.strip().splitlines()[-1].startswith("error: ")
    assert "cannot write: " in stderr
    assert "too large" in stderr
    assert "Traceback" not in stderr


def test_too_many_rejects_exit_with_3(tmp_path):
    urls = refused_urls(tmp_path / "t.csv", 4)
    run = command(urls, tmp_path / "out", "--max-rejects", "50%")
    stdout, stderr = run.communicate(timeout=600)
    assert run.returncode == 3
    assert "none of 4 images was fetched: 4 rejected as refused_address" in stderr
    assert "too many rejects: 4 of 4 (100.0%), and --max-rejects allows 50%" in stderr
    assert "0 of 4 images" in stdout
    assert "refused_address" in stdout
    again = command(urls, tmp_path / "out")
    stdout, _ = again.communicate(timeout=600)
    assert again.returncode == 3
    assert "every row was tried before" in stdout
