"""`fetch` of tables as people bring them, against a real server."""

import dataclasses

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedpipe import manifest
from embedpipe.fetch import FetchConfig, fetch
from embedpipe.fetch.shards.commit import uid
from tests import web

CONFIG = FetchConfig(allow_hosts=("127.0.0.1",), processes=1, retries=0, timeout_s=5)


@pytest.fixture(scope="module")
def site():
    with web.serving() as running:
        yield running


def table_of(out):
    return pa.concat_tables(pq.read_table(path) for path in sorted(out.glob("*.parquet")))


def test_urls_are_requested_as_browsers_do_and_kept_as_they_were(site, tmp_path):
    urls = [
        f"  {site.url('/photo/1.jpg')}",
        f"{site.url('/photo/2.jpg')}\n",
        site.url("/photo/3.jpg#section 1"),
        site.url("/photo/3.jpg"),
        site.url("/photo/x/../4.jpg").replace("http:", "HTTP:"),
        site.url("/tag/5.jpg?a=b c&d=ü"),
        "photo/6.jpg",
    ]
    pq.write_table(pa.table({"url": urls}), tmp_path / "t.parquet")
    report = fetch(str(tmp_path / "t.parquet"), str(tmp_path / "out"), CONFIG)
    rows = table_of(tmp_path / "out").to_pylist()
    assert [row["url"] for row in rows] == urls
    assert [row["uid"] for row in rows] == [uid(url, None) for url in urls]
    assert [row["error_class"] for row in rows] == [None] * 6 + ["invalid_url"]
    assert rows[3]["duplicate_of"] == rows[2]["key"]
    asked = site.requests()
    assert asked["/photo/3.jpg"] == asked["/photo/4.jpg"] == asked["/tag/5.jpg?a=b%20c&d=%C3%BC"] == 1
    assert report.failed == {"invalid_url": 1}


def test_urls_that_an_earlier_version_refused_are_retried_and_others_not(site, tmp_path):
    urls = [site.url("/photo/7.jpg"), site.url("/photo/8.jpg"), "nowhere", site.url("/photo/8.jpg#again")]
    pq.write_table(pa.table({"url": urls}), tmp_path / "t.parquet")
    table, out = str(tmp_path / "t.parquet"), str(tmp_path / "out")
    fetch(table, out, CONFIG)
    # As an earlier version left it: the second url refused, equal urls told letter by letter.
    run = manifest.read_run(out)
    options = {name: value for name, value in run.options.items() if name not in ("same_url", "infer_types")}
    manifest.write_run(out, dataclasses.replace(run, options=options))
    shard = pq.read_table(f"{out}/00000.parquet")
    classes = [None, "invalid_url", "invalid_url", "http_404"]
    place = shard.schema.get_field_index("error_class")
    shard = shard.set_column(place, "error_class", pa.array(classes))
    pq.write_table(shard, f"{out}/00000.parquet")
    (record,) = manifest.read_manifests(out, run.shard_digits)
    size = (tmp_path / "out" / "00000.parquet").stat().st_size
    kept = tuple(
        dataclasses.replace(file, bytes=size) if file.path.endswith("parquet") else file for file in record.files
    )
    manifest.commit(out, dataclasses.replace(record, files=kept), run.shard_digits)
    fetch(table, out, dataclasses.replace(CONFIG, retry_failed=True, only=("invalid_url",)))
    again = pq.read_table(f"{out}/00001.parquet")
    assert again.column("url").to_pylist() == urls[1:2]
    assert again.column("status").to_pylist() == ["success"]
    assert "same_url" not in manifest.read_run(out).options
