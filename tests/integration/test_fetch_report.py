"""What a run says of itself: failures by class and host, in a file, at the end, in `info`, and while it goes on."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedpipe.fetch import FetchConfig, fetch
from embedpipe.fetch import report as reports
from embedpipe.info import describe
from embedpipe.progress import Progress
from tests import web

LINES = ["http://10.0.0.1/a", "http://10.0.0.1/b", "http://10.0.0.2/", "ftp://10.0.0.1/", "nonsense", "http://[::1/"]


@pytest.fixture
def refused(tmp_path):
    (tmp_path / "t.txt").write_text("\n".join(LINES))
    return str(tmp_path / "t.txt"), str(tmp_path / "out")


def test_the_report_adds_up_and_is_written_once_a_run(refused):
    urls, out = refused
    report = fetch(urls, out, FetchConfig(samples_per_shard=4, processes=1))
    assert report.report == f"{out}/reports/00001.json"
    document = json.loads(Path(report.report).read_text())
    run = document["this_run"]
    assert document["ended"] == "done"
    assert (run["rows"], run["succeeded"], run["shards"], run["success_rate"]) == (6, 0, 2, 0)
    assert run["failed"] == report.failed == {"invalid_url": 3, "refused_address": 3}
    worst = {"host": "10.0.0.1", "failed": 3, "classes": {"invalid_url": 1, "refused_address": 2}}
    assert run["hosts"] == [worst, {"host": "10.0.0.2", "failed": 1, "classes": {"refused_address": 1}}]
    assert document["total"] == {"rows": 6, "succeeded": 0, "failed": report.failed, "retried": 0}
    assert document["options"]["samples_per_shard"] == 4
    again = fetch(urls, out, FetchConfig(samples_per_shard=4, processes=1))
    assert (again.report, again.hosts) == (None, ())  # nothing was done
    retried = fetch(urls, out, FetchConfig(samples_per_shard=4, processes=1, retry_failed=True))
    assert retried.report == f"{out}/reports/00002.json"
    assert json.loads(Path(retried.report).read_text())["this_run"]["rows"] == 3
    # `info` reads the tables, and takes a row as it ended last.
    found = describe(out, most_hosts=10)
    assert [(host.host, host.failed) for host in found.hosts] == [("10.0.0.1", 3), ("10.0.0.2", 1)]
    assert describe(out).hosts == ()


def test_commands_show_classes_and_hosts(refused, embedpipe):
    urls, out = refused
    said = embedpipe("fetch", urls, out).stdout
    for words in ("0 of 6 images", "refused_address", "10.0.0.1", "invalid_url 1", f"report: {out}/reports/00001.json"):
        assert words in said
    said = embedpipe("info", out).stdout
    for words in ("refused_address", "not a public", "10.0.0.2"):
        assert words in said or words == "not a public"
    document = json.loads(embedpipe("info", out, "--json", "--hosts", "1").stdout)
    assert [host["host"] for host in document["hosts"]] == ["10.0.0.1"]
    assert json.loads(embedpipe("fetch", urls, out, "--json").stdout)["retried"] == 0


def test_what_stops_a_run_is_in_its_report(tmp_path):
    with web.serving() as site:
        (tmp_path / "t.txt").write_text("\n".join(site.url(f"/photo/{i}.jpg") for i in range(6)))

        def stop(step):
            if step.tasks:
                raise KeyboardInterrupt

        out = tmp_path / "out"
        config = FetchConfig(samples_per_shard=3, processes=1, allow_hosts=("127.0.0.1",), resizer="opencv")
        with pytest.raises(KeyboardInterrupt):
            fetch(str(tmp_path / "t.txt"), str(out), config, stop)
        document = json.loads((out / "reports" / "00001.json").read_text())
        assert (document["ended"], document["this_run"]["shards"], document["total"]["succeeded"]) == (
            "interrupted",
            1,
            3,
        )
        seen = []
        fetch(str(tmp_path / "t.txt"), str(out), config, seen.append)
        assert sum(step.bytes for step in seen) == sum(len(web.photo(i)) for i in range(3, 6))
        assert [step.planned_rows for step in seen if step.planned_rows is not None] == [3]


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from(["dns", "timeout"]))))
def test_hosts_are_counted_and_sorted(failures):
    counts = reports.HostCounts()
    counts.add((f"http://{host}/x", error_class) for host, error_class in failures)
    found = counts.worst()
    assert {entry.host: entry.failed for entry in found} == {h: [f[0] for f in failures].count(h) for h, _ in failures}
    assert [e.failed for e in found] == sorted((e.failed for e in found), reverse=True)
    assert all(sum(entry.classes.values()) == entry.failed for entry in found)


def test_progress_says_rates_success_reasons_and_what_is_left(monkeypatch):
    from embedpipe_cli import display

    view = display.ProgressView("fetch", "urls", "shards")
    monkeypatch.setattr(view, "seconds", lambda: 10.0)
    view(Progress(planned=4, planned_rows=1000))
    view(Progress(rows=200, rejected=30, rejects={"dns": 1, "http_404": 20, "timeout": 5, "tls": 4}, bytes=40_000_000))
    assert view.text() == ("0/4 shards, 200 urls, 85.0% ok (http_404 20, timeout 5, tls 4, 1 other), 20.0/s, 4.0 MB/s")
    assert view.left() == ", 40.0 s left"


def test_why_rows_failed_is_said_with_the_options_of_fetch(tmp_path, embedpipe):
    (tmp_path / "urls.csv").write_text("url,caption\nhttp://127.0.0.1:9/a.jpg,a\n")
    fetched = embedpipe("fetch", tmp_path / "urls.csv", tmp_path / "out", "--retries", 0, "--processes", 1)
    for said in (fetched.stdout, embedpipe("info", tmp_path / "out").stdout):
        assert "not named by --allow-host" in said
        assert "`" not in said
