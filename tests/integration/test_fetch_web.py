"""Over a thousand urls of every misbehaviour in one run of the command: what each ends as, in what time and memory."""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests import certificates, web

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc"),
]

TIMEOUT_S, RETRIES, THREADS, PROCESSES, PER_HOST = 4.0, 1, 32, 2, 64
START_S = 100.0  # imports, and whatever else the machine is doing

# What `{}` of each kind of path ends as, and after how many tries. None: an image.
GOOD = {
    "/photo/{}.jpg": (None, 1),
    "/kept/{}.jpg": (None, 1),
    "/png/{}.png": (None, 1),
    "/avif/{}.avif": (None, 1),
    "/webp/{}.webp": (None, 1),
    "/cmyk/{}.jpg": (None, 1),
    "/turned/6/{}.jpg": (None, 1),
    "/animated/{}.gif": (None, 1),
    "/gzip/{}.jpg": (None, 1),
    "/chunked/{}.jpg": (None, 1),
    "/typed/{}.jpg": (None, 1),
    "/hops/5/{}.jpg": (None, 1),
    "/redirect?to=/photo/{}.jpg": (None, 1),
    "/flaky/1/x/{}.jpg": (None, 2),
    "/tag/{}.jpg?X-Robots-Tag=otherbot:+noindex,+noai": (None, 1),
    "/tag/{}.jpg?X-Robots-Tag=max-snippet:+5,+nofollow": (None, 1),
}
BAD = {
    "/status/404/{}": ("http_404", 1),
    "/status/410/{}": ("http_404", 1),
    "/status/403/{}": ("http_403", 1),
    "/status/418/{}": ("http_4xx", 1),
    "/status/429/{}": ("http_429", 2),
    "/status/500/{}": ("http_5xx", 2),
    "/garbage.jpg?{}": ("not_an_image", 1),
    "/html.jpg?{}": ("not_an_image", 1),
    "/svg.svg?{}": ("unsupported", 1),
    "/zeros.jpg?{}": ("not_an_image", 1),
    "/empty.jpg?{}": ("empty", 1),
    "/truncated/{}.jpg": ("damaged", 1),
    "/long/{}.jpg": ("damaged", 1),
    "/bomb.png?{}": ("too_large", 1),
    "/gzipbomb.jpg?{}": ("too_large", 1),
    "/short/{}.jpg": ("connection", 2),
    "/cut/{}.jpg": ("connection", 2),
    "/unended/{}.jpg": ("connection", 2),
    "/reset?{}": ("connection", 2),
    "/nohttp?{}": ("connection", 2),
    "/loop?{}": ("redirect", 1),
    "/hops/6/{}.jpg": ("redirect", 1),
    "/redirect?to=http://169.254.169.254/{}": ("refused_address", 1),
    "/redirect?to=http://[::ffff:10.0.0.1]/{}": ("refused_address", 1),
    "/redirect?to=file:///etc/passwd?{}": ("invalid_url", 1),
    "/tag/{}.jpg?X-Robots-Tag=noai": ("opt_out", 1),
    "/tag/{}.jpg?X-Robots-Tag=unavailable_after:+25+Jun+2010+15:00:00+PST,+none": ("opt_out", 1),
    "/tag/{}.jpg?X-Robots-Tag=otherbot:+all&X-Robots-Tag=embedpipe:+noml": ("opt_out", 1),
    "/tag/{}.jpg?tdm-reservation=1": ("opt_out", 1),
}
SLOW = {
    "/slow/30?{}": ("timeout", 2),
    "/drip/{}.jpg": ("timeout", 2),
    "/dripheader?{}": ("timeout", 2),
    "/endless.jpg?{}": ("timeout", 2),
}
# Of another host, which asks for quiet: the others need not wait for it.
QUIET = {
    "/later/429/1/1/x/{}.jpg": (None, 2),
    "/later/503/date/1/x/{}.jpg": (None, 2),
    "/later/429/3600/9/x/{}.jpg": ("http_429", 1),
}
ELSEWHERE = {
    "http://10.0.0.{}/a.jpg": ("refused_address", 0),
    "http://[fd00::{}]/a.jpg": ("refused_address", 0),
    "ftp://example.org/{}.jpg": ("invalid_url", 0),
    "http://no-such-host-{}.invalid/a.jpg": ("dns", None),  # once or twice: resolvers differ
    "http://127.0.0.1:1/{}.jpg": ("connection", 2),
}
TLS = {
    "good": (None, 1),
    "expired": ("tls", 1),
    "elsewhere": ("tls", 1),
    "unknown": ("tls", 1),
    "selfsigned": ("tls", 1),
}


def expectations(site):
    """Every url with what it must end as. Kinds follow each other in turns, as they would in a table."""
    kinds = [(f"{site.url('')}{path}", end, 30) for path, end in GOOD.items()]
    kinds += [(f"{site.url('')}{path}", end, 20) for path, end in BAD.items()]
    kinds += [(f"{site.url('')}{path}", end, 10) for path, end in SLOW.items()]
    kinds += [(f"{site.url('', host='localhost')}{path}", end, 4) for path, end in QUIET.items()]
    kinds += [(url, end, 10) for url, end in ELSEWHERE.items()]
    kinds += [(site.url("/kept/{}.jpg", name), end, 10) for name, end in TLS.items()]
    return {url.format(i + 1): end for i in range(30) for url, end, times in kinds if i < times}


@pytest.fixture(scope="module")
def authorities(tmp_path_factory):
    return certificates.make(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def site(authorities):
    with web.serving(authorities[0]) as running:
        for path in ("/bomb.png", "/gzipbomb.jpg"):  # made when first asked for, which takes a while
            urllib.request.urlopen(running.url(path), timeout=30).close()
        yield running


def command(urls, out, authority, home, **options):
    call = [sys.executable, "-m", "embedpipe_cli.main", "fetch", str(urls), str(out), "--json"]
    call += ["--timeout", TIMEOUT_S, "--retries", RETRIES, "--threads", THREADS, "--processes", PROCESSES]
    call += ["--per-host", PER_HOST, "--samples-per-shard", 400, "--ca-file", authority]
    call += ["--allow-host", "127.0.0.1", "--allow-host", "localhost"]
    surroundings = {**os.environ, "HOME": str(home), "TMPDIR": str(home), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.Popen(
        [str(word) for word in call],
        cwd=home,
        env=surroundings,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def worst_case_s(n, shards):
    """How long the page on fetching says that it may take, one process having half of the shards."""
    try_s, at_once = 3 * TIMEOUT_S, min(THREADS, PER_HOST // PROCESSES)
    one = n / shards * (RETRIES + 1) * try_s / at_once + (RETRIES + 1) * try_s + RETRIES * 30 + 60
    return -(-shards // PROCESSES) * one


def test_every_misbehaviour_at_once(site, authorities, tmp_path):
    expected = expectations(site)
    assert len(expected) >= 1_200
    home = tmp_path / "home"
    home.mkdir()
    pq.write_table(pa.table({"url": list(expected)}), tmp_path / "urls.parquet")
    begun = time.monotonic()
    run = command(tmp_path / "urls.parquet", tmp_path / "out", authorities[1], home)
    with watched_mib(run.pid) as peaks:
        stdout, stderr = run.communicate()
    seconds = time.monotonic() - begun
    assert run.returncode == 0, stderr

    rows = pa.concat_tables(pq.read_table(path) for path in sorted((tmp_path / "out").glob("*.parquet"))).to_pylist()
    assert [row["url"] for row in rows] == list(expected)  # each once, in order
    got = {row["url"]: (row["error_class"], row["attempts"]) for row in rows}
    wrong = {
        url: (got[url], end, next(row["error_message"] for row in rows if row["url"] == url))
        for url, end in expected.items()
        if got[url][0] != end[0] or end[1] not in (None, got[url][1])
    }
    assert not wrong
    report = json.loads(stdout)
    failed = Counter(end[0] for end in expected.values() if end[0])
    assert (report["rows"], report["failed"]) == (len(expected), failed)

    assert seconds < START_S + worst_case_s(len(expected), report["shards"])
    assert len(peaks) >= 1 + PROCESSES
    assert max(peaks.values()) <= 600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "out", "urls.parquet"]
    assert not list(home.iterdir())


def test_no_process_outlives_a_killed_parent_whatever_its_servers_do(site, authorities, tmp_path):
    urls = [site.url(path.format(i)) for i in range(1_000, 1_060) for path in SLOW]
    pq.write_table(pa.table({"url": urls}), tmp_path / "urls.parquet")
    run = command(tmp_path / "urls.parquet", tmp_path / "out", authorities[1], tmp_path)
    end = time.monotonic() + 600
    while site.requests()["/endless.jpg?1000"] == 0:
        assert time.monotonic() < end
        time.sleep(0.1)
    workers = [pid for pid, parent in parents().items() if parent == run.pid]
    assert len(workers) == PROCESSES
    run.kill()
    run.communicate()
    end = time.monotonic() + 20  # what they have in hand takes longer
    while parents().keys() & set(workers):
        assert time.monotonic() < end
        time.sleep(0.1)


@contextlib.contextmanager
def watched_mib(pid):
    """While the block runs: the peak resident size of a process and of each of its children, in MiB.

    As the kernel keeps it for a program: `wait4` would count the process that started it as well, before its exec.
    """
    peaks, ended = {}, threading.Event()

    def watch():
        while not ended.wait(0.05):
            for each in [pid, *(child for child, parent in parents().items() if parent == pid)]:
                with contextlib.suppress(OSError, StopIteration):
                    lines = Path(f"/proc/{each}/status").read_text().splitlines()
                    peaks[each] = int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peaks
    finally:
        ended.set()
        thread.join()


def parents():
    """The parent of every process that is not gone."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it ended in between
        if fields[0] != "Z":
            found[int(stat.parent.name)] = int(fields[1])
    return found
