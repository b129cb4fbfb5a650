"""The same url twice, the same bytes twice: asked for once, no pair lost, and the same result however it is run."""

import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedpipe import manifest
from embedpipe.fetch import FetchConfig, fetch
from embedpipe.fetch.shards import seen as duplicates
from embedpipe.verify import verify
from tests import web
from tests.integration.test_fetch import shard_bytes, table_of
from tests.shards import DEEP

HERE = ("127.0.0.1",)


@pytest.fixture(scope="module")
def site():
    with web.serving() as running:
        yield running


def images_of(out):
    found = {}
    for tar in sorted(Path(out).glob("*.tar")):
        with tarfile.open(tar) as opened:
            found |= {m.name: opened.extractfile(m).read() for m in opened.getmembers() if m.name.endswith(".jpg")}
    return found


def config(**options):
    return FetchConfig(
        **{"samples_per_shard": 3, "allow_hosts": HERE, "processes": 2, "retries": 0, "resizer": "opencv", **options}
    )


@given(st.lists(st.lists(st.integers(0, 9), max_size=6), max_size=5), st.integers(1, 4))
def test_repeats_are_what_a_dict_says(tmp_path_factory, shards, per_bucket):
    file = tmp_path_factory.mktemp("urls") / "repeats.npy"
    rows = [((shard, row), str(n)) for shard, numbers in enumerate(shards) for row, n in enumerate(numbers)]
    before, chunk = duplicates._PER_BUCKET, duplicates._CHUNK
    duplicates._PER_BUCKET, duplicates._CHUNK = per_bucket, 2
    try:
        duplicates.index_urls(iter(rows), len(rows), file)
    finally:
        duplicates._PER_BUCKET, duplicates._CHUNK = before, chunk
    first, expected = {}, {}
    for place, url in rows:
        if url in first:
            expected[place] = first[url]
        first.setdefault(url, place)
    found = duplicates.RepeatedUrls(file)
    got = {(shard, row): at for shard in range(len(shards)) for row, at in found.of(shard).items()}
    assert got == expected
    assert [p.name for p in file.parent.iterdir()] == [file.name]


def test_a_url_is_asked_for_once_and_every_pair_is_kept(site, tmp_path):
    paths = ["/photo/901.jpg", "/status/404", "/photo/902.jpg", "/photo/901.jpg", "/status/404", "/photo/901.jpg"]
    paths += ["/photo/903.jpg", "/photo/902.jpg"]
    before = site.requests()
    urls = [site.url(path) for path in paths] + [None, "", "http://10.0.0.1/", "http://10.0.0.1/"]
    captions = [f"c{i}" for i in range(len(urls) - 1)] + ["c10"]
    pq.write_table(pa.table({"url": urls, "caption": captions}), tmp_path / "t.parquet")
    out = str(tmp_path / "out")
    seen = []
    report = fetch(str(tmp_path / "t.parquet"), out, config(), seen.append)
    asked = site.requests() - before
    assert {path: asked[path] for path in set(paths)} == dict.fromkeys(paths, 1)
    rows = table_of(out).to_pylist()
    keys = [row["key"] for row in rows]
    assert [row["duplicate_of"] and keys.index(row["duplicate_of"]) for row in rows] == [
        None, None, None, 0, 1, 0, None, 2, None, None, None, 10,
    ]  # fmt: skip
    for row in rows:
        if row["duplicate_of"]:
            first = next(other for other in rows if other["key"] == row["duplicate_of"])
            for name in ("url", "status", "error_class", "error_message", "sha256", "bytes", "width", "content_type"):
                assert row[name] == first[name]
            assert row["attempts"] == 0
    images = images_of(out)
    assert len(images) == report.succeeded == 6
    assert images[f"{rows[0]['key']}.jpg"] == images[f"{rows[3]['key']}.jpg"] == images[f"{rows[5]['key']}.jpg"]
    for row in rows:  # `offset` leads to the image
        if row["status"] == "success":
            with tarfile.open(Path(out) / f"{row['key'][:5]}.tar") as tar:
                assert tar.getmember(f"{row['key']}.jpg").offset_data == row["offset"]
    assert sum(step.rows for step in seen) == report.rows
    assert sum(step.rejected for step in seen) == report.rows - report.succeeded
    assert verify(out, DEEP).whole
    # A shard that is fetched again, and one that is new, find the firsts where they are.
    expected = shard_bytes(out)
    manifest.retract(out, 1, 5)
    fetch(str(tmp_path / "t.parquet"), out, config())
    assert shard_bytes(out) == expected
    assert (site.requests() - before)["/photo/901.jpg"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 3])
def test_dropped_duplicates_are_the_later_ones_however_they_arrive(site, tmp_path, processes):
    # The first of each content answers last.
    numbers = [1, 2, 1, 3, 2, 1, 4, 3, 1]
    lines = [site.url(f"/{'paced' if i in (0, 1, 3) else 'photo'}/91{n}.jpg") for i, n in enumerate(numbers)]
    (tmp_path / "t.txt").write_text("\n".join(lines))
    out = str(tmp_path / "out")
    chosen = config(drop_duplicates=True, processes=processes, threads=5, samples_per_shard=4)
    seen = []
    report = fetch(str(tmp_path / "t.txt"), out, chosen, seen.append)
    rows = table_of(out).to_pylist()
    assert [row["error_class"] for row in rows] == [
        None if n not in numbers[:i] else "duplicate" for i, n in enumerate(numbers)
    ]
    for i, row in enumerate(rows):
        if row["error_class"]:
            first = rows[numbers.index(numbers[i])]["key"]
            assert row["error_message"] == f"the same bytes as {first}"
            assert row["duplicate_of"] in {r["key"] for r in rows[:i]}
            assert row["sha256"] is None
    assert report.failed == {"duplicate": 5}
    assert sum(step.rejected for step in seen) == 5
    assert len(images_of(out)) == 4
    assert verify(out, DEEP).whole
    expected = shard_bytes(out)
    for number in (1, 2):
        manifest.retract(out, number, 5)
    fetch(str(tmp_path / "t.txt"), out, chosen)
    assert shard_bytes(out) == expected
    (tmp_path / "out" / ".fetch" / "contents.sqlite").unlink()  # it is derived
    manifest.retract(out, 2, 5)
    fetch(str(tmp_path / "t.txt"), out, chosen)
    assert shard_bytes(out) == expected
