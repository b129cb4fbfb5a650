"""--retry-failed: failed rows again, in new shards; finished ones stay as they are, and no key comes twice."""

import contextlib
import tarfile
import urllib.request
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedpipe import manifest
from embedpipe.errors import InputError
from embedpipe.fetch import FetchConfig, fetch
from embedpipe.fetch.shards.commit import uid
from embedpipe.info import describe
from embedpipe.manifest import ShardManifest, totals
from embedpipe.types import SourceShard
from embedpipe.verify import verify
from tests import web
from tests.integration.test_fetch import shard_bytes, table_of
from tests.shards import DEEP


@pytest.fixture(scope="module")
def site():
    with web.serving() as running:
        yield running


def config(**options):
    return FetchConfig(
        **{
            "samples_per_shard": 4,
            "allow_hosts": ("127.0.0.1",),
            "processes": 1,
            "retries": 0,
            "resizer": "opencv",
            **options,
        }
    )


def keys_in_tars(out):
    keys = []
    for tar in sorted(Path(out).glob("*.tar")):
        with tarfile.open(tar) as opened:
            keys += [name.split(".")[0] for name in opened.getnames() if name.endswith(".jpg")]
    return keys


def data_of(out):
    return {name: data for name, data in shard_bytes(out).items() if name.startswith(("0", "manifest"))}


def test_what_failed_is_fetched_into_new_shards_until_nothing_is_left(site, tmp_path):
    # /flaky/N: fails N times, then answers.
    paths = ["/photo/1.jpg", "/flaky/1/a/2.jpg", "/status/404", "/flaky/2/b/3.jpg", "/flaky/1/a/2.jpg", "/photo/4.jpg"]
    table = pa.table(
        {
            "URL": pa.array([site.url(path) for path in paths] + [None]).dictionary_encode(),
            "TEXT": pa.array([f"caption {i}" for i in range(7)], pa.large_string()),
            "key": pa.array([[i, None] for i in range(7)], pa.list_(pa.int16())),
            ":x": pa.array([{"a": i, "b": str(i)} for i in range(7)]),
        }
    )
    pq.write_table(table, tmp_path / "t.parquet")
    urls, out = str(tmp_path / "t.parquet"), str(tmp_path / "out")
    options = {"url_col": "URL", "caption_col": "TEXT"}
    first = fetch(urls, out, config(**options))
    assert (first.rows, first.succeeded, first.failed) == (7, 2, {"http_404": 1, "http_5xx": 3, "invalid_url": 1})
    before = data_of(out)

    only = fetch(urls, out, config(**options, retry_failed=True, only=("5xx", "timeout")))
    # One of /flaky/1 was asked for in round 0: the url has failed once and answers now, to both of its rows.
    assert (only.rows, only.succeeded, only.failed) == (7, 4, {"http_404": 1, "http_5xx": 1, "invalid_url": 1})
    assert (only.retried, only.shards, only.shards_now) == (3, 3, 1)
    assert data_of(out).items() >= before.items()
    rows = table_of(out).to_pylist()
    again = rows[7:]
    assert [row["retry_of"] for row in rows[:7]] == [None] * 7
    assert [row["retry_of"] for row in again] == [rows[1]["key"], rows[3]["key"], rows[4]["key"]]
    originals = {row["key"]: row for row in rows[:7]}
    for row in again:
        for name in ("uid", "url", "caption", "source_key", ":x"):
            assert row[name] == originals[row["retry_of"]][name]
        assert row["uid"] == uid(row["url"], row["caption"])
    assert again[2]["duplicate_of"] == again[0]["key"]  # within the round, a url is asked for once, too

    every = fetch(urls, out, config(**options, retry_failed=True))
    assert (every.rows, every.succeeded, every.failed) == (7, 5, {"http_404": 1, "invalid_url": 1})
    rows = table_of(out).to_pylist()
    assert [row["retry_of"] for row in rows[10:]] == [rows[2]["key"], rows[3]["key"]]
    assert (describe(out).rows, describe(out).rejects, describe(out).retried) == (5, every.failed, 5)
    assert len({row["key"] for row in rows}) == len(rows)
    keys = keys_in_tars(out)
    assert len(set(keys)) == len(keys) == 5
    assert keys == [row["key"] for row in rows if row["status"] == "success"]
    checked = verify(out, DEEP)
    assert checked.whole
    assert (checked.rows, checked.rejected) == (5, 2), "as fetch and info count them"

    # Nothing but what cannot change is left of 5xx: nothing happens.
    whole = shard_bytes(out)
    nothing = fetch(urls, out, config(**options, retry_failed=True, only=("5xx",)))
    assert (nothing.shards_now, shard_bytes(out)) == (0, whole)
    # A table that is added later gets numbers behind the retries.
    plain = fetch(urls, out, config(**options))
    assert (plain.shards_now, plain.failed) == (0, every.failed)


def test_a_round_that_was_cut_off_is_finished_and_not_begun_again(site, tmp_path):
    paths = [f"/flaky/1/cut{i}/{i}.jpg" for i in range(9)]
    (tmp_path / "t.txt").write_text("\n".join(site.url(path) for path in paths))
    urls, out = str(tmp_path / "t.txt"), str(tmp_path / "out")
    assert fetch(urls, out, config()).succeeded == 0
    undisturbed = fetch(urls, out, config(retry_failed=True))
    assert (undisturbed.succeeded, undisturbed.shards, undisturbed.failed) == (9, 6, {})
    expected = shard_bytes(out)
    for mode in (True, False):  # with the option and without it
        for number in (4, 5):
            manifest.retract(out, number, 5)
        for path in paths[4:]:  # the server's turn to fail has come again
            with contextlib.suppress(urllib.error.HTTPError):
                urllib.request.urlopen(site.url(path)).close()
        report = fetch(urls, out, config(retry_failed=mode))
        assert (report.shards_now, report.succeeded) == (2, 9)
        assert shard_bytes(out) == expected


def shard_of(rows_in, rejects, retried):
    rejected = sum(rejects.values())
    return ShardManifest(
        0, SourceShard("", 0, ""), "", rows_in, rows_in - rejected, rejected, rejects, (), retried=retried
    )


def test_totals_count_a_row_once_as_it_ended_last():
    shards = [
        shard_of(10, {"timeout": 3, "dns": 1}, {}),
        shard_of(4, {"http_404": 1, "dns": 1}, {"timeout": 3, "dns": 1}),
        shard_of(1, {}, {"dns": 1}),
    ]
    found = totals(shards)
    assert (found.rows, found.succeeded, found.failed, found.retried) == (10, 9, {"http_404": 1}, 5)
    assert found.rows == found.succeeded + Counter(found.failed).total()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"only": ("timeout",)}, "`only` says what to retry. Give `retry_failed=True`"),
        ({"retry_failed": True, "only": ("time",)}, "`only='time'`: no such error class. Did you mean timeout"),
        ({"retry_failed": True, "only": ("duplicate",)}, "`only='duplicate'`: another try cannot change these"),
    ],
)
def test_options_that_make_no_sense(options, words):
    with pytest.raises(InputError, match=words):
        FetchConfig(**options)
