"""Tables of local paths, and Hugging Face's image folders, as sources of `fetch`."""

import dataclasses
import json
import os
import shutil
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedpipe import manifest
from embedpipe.errors import InputError, RunMismatch
from embedpipe.fetch import FetchConfig, fetch, make_plan, plan_fetch, rows_to_retry
from tests.bodies import photo

CONFIG = FetchConfig(processes=1)


def table_of(out):
    return pa.concat_tables(pq.read_table(path) for path in sorted(out.glob("*.parquet")))


def outcomes(out):
    return {row["url"]: (row["error_class"], row["caption"]) for row in table_of(out).to_pylist()}


@pytest.fixture
def pictures(tmp_path):
    for number, name in enumerate(("in/a.jpg", "in/sub/b b.jpg", "in/ü#1.jpg", "root/c.jpg", "outside/d.jpg")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(photo(number))
    return tmp_path


def test_local_paths_are_read_below_the_root_alone(pictures, monkeypatch):
    secret = pictures / "outside" / "d.jpg"
    (pictures / "in" / "link.jpg").symlink_to(secret)
    (pictures / "in" / "inner.jpg").symlink_to(pictures / "in" / "a.jpg")
    (pictures / "in" / "away").symlink_to(pictures / "outside")
    os.mkfifo(pictures / "in" / "pipe.jpg")
    shutil.copy(pictures / "in" / "a.jpg", os.fsencode(pictures / "in") + b"/lat\xe9.jpg")
    expected = {
        "a.jpg": None,
        "./sub/../a.jpg": None,
        "sub/b b.jpg": None,
        "ü#1.jpg": None,
        "inner.jpg": None,
        str(pictures / "in" / "a.jpg"): None,
        f"file://{pictures}/in/sub/b%20b.jpg": None,
        f"FILE://localhost{pictures}/in/lat%E9.jpg": None,
        "file:a.jpg": None,
        "file://[away/a.jpg": "invalid_url",
        "../outside/d.jpg": "outside_root",
        "link.jpg": "outside_root",
        "away/d.jpg": "outside_root",
        "../nowhere/at/all.jpg": "outside_root",
        str(secret): "outside_root",
        f"file://{secret}": "outside_root",
        "/dev/zero": "outside_root",
        "none.jpg": "unreadable",
        "sub": "unreadable",
        "pipe.jpg": "unreadable",
        "http://a.de/a.jpg": "invalid_url",
        "file://elsewhere/a.jpg": "invalid_url",
        "": "invalid_url",
        "t.jsonl": "not_an_image",
    }
    lines = [json.dumps({"file": path, "caption": f"of {path}", "n": 2**63}) + "\n" for path in expected]
    (pictures / "in" / "t.jsonl").write_text("".join(lines))
    monkeypatch.chdir(pictures)
    config = dataclasses.replace(CONFIG, local_root="in", samples_per_shard=8)
    report = fetch("in/t.jsonl", "out", config)
    assert outcomes(pictures / "out") == {path: (wrong, f"of {path}") for path, wrong in expected.items()}
    assert report.rows == len(expected)
    assert table_of(pictures / "out").column("n").to_pylist() == [2**63] * len(expected)
    (pictures / "in" / "none.jpg").write_bytes(photo(9))
    again = dataclasses.replace(config, retry_failed=True, only=("unreadable",))
    assert fetch("in/t.jsonl", "out", again).succeeded == report.succeeded + 1
    with pytest.raises(RunMismatch, match="kind of source"):
        fetch("in/t.jsonl", "out", CONFIG)


def test_equal_paths_of_two_folders_are_two_files(pictures):
    for part, number in (("p=1", 20), ("p=2", 21)):
        folder = pictures / "parts" / part
        folder.mkdir(parents=True)
        (folder / "x.jpg").write_bytes(photo(number))
        (folder / "t.csv").write_text("path,caption\nx.jpg,c\nnone.jpg,c\n")
    config = dataclasses.replace(CONFIG, local_root=str(pictures / "parts"))
    fetch(str(pictures / "parts"), str(pictures / "out"), config)
    rows = table_of(pictures / "out").to_pylist()
    assert [(row["url"], row["p"], row["status"]) for row in rows] == [
        ("x.jpg", "1", "success"),
        ("none.jpg", "1", "failed"),
        ("x.jpg", "2", "success"),
        ("none.jpg", "2", "failed"),
    ]
    assert rows[0]["sha256"] != rows[2]["sha256"]
    for part, number in (("p=1", 22), ("p=2", 23)):
        (pictures / "parts" / part / "none.jpg").write_bytes(photo(number))
    fetch(str(pictures / "parts"), str(pictures / "out"), dataclasses.replace(config, retry_failed=True))
    again = pq.read_table(pictures / "out" / "00002.parquet").to_pylist()
    assert [(row["p"], row["status"], row["duplicate_of"]) for row in again] == [
        ("1", "success", None),
        ("2", "success", None),
    ]
    assert again[0]["sha256"] != again[1]["sha256"]


@pytest.mark.parametrize(
    ("column", "values", "said"),
    [
        (
            "url",
            ["a/b.jpg", "c.png", "http://a.de/"],
            r"the column 'url' holds local paths, not urls \('a/b.jpg'\).*`local_root",
        ),
        ("url", ["/data/x", "/data/y"], "holds local paths"),
        ("url", ["file:///data/x.jpg"], "holds local paths"),
        ("url", ["C:\\\\x.jpg"], "holds local paths"),
        ("file_name", ["a.jpg"], r"no column 'url'.*If 'file_name' holds local paths, give `local_root"),
    ],
)
def test_paths_taken_for_urls_are_told_before_anything_is_fetched(tmp_path, column, values, said):
    (tmp_path / "t.csv").write_text(f"{column}\n" + "".join(f"{value}\n" for value in values))
    with pytest.raises(InputError, match=said):
        fetch(str(tmp_path / "t.csv"), str(tmp_path / "out"), CONFIG)
    assert not (tmp_path / "out" / "embedpipe.json").exists()


def test_the_column_of_paths_can_be_named(pictures):
    (pictures / "in" / "t.csv").write_text("where,path,caption\na.jpg,nothing,c\n")
    config = dataclasses.replace(CONFIG, local_root=str(pictures / "in"), file_col="where")
    for _ in range(2):
        assert fetch(str(pictures / "in" / "t.csv"), str(pictures / "out"), config).succeeded == 1
    with pytest.raises(InputError, match=r"`file_col`.*`local_root"):
        make_plan(str(pictures / "in" / "t.csv"), "/nowhere", FetchConfig(file_col="where"))
    with pytest.raises(InputError, match="no such folder"):
        make_plan(str(pictures / "in" / "t.csv"), "/nowhere", FetchConfig(local_root="/no/where"))
    with pytest.raises(InputError, match="on this machine only"):
        make_plan("memory://t.csv", "/nowhere", FetchConfig(local_root="/"))


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_an_image_folder_has_the_captions_of_its_tables(tmp_path, ending):
    data = tmp_path / "data"
    for split in ("train", "test"):
        folder = data / split
        (folder / "deep").mkdir(parents=True)
        for number, name in enumerate(("a.jpg", "deep/b.jpg", "extra.jpg")):
            (folder / name).write_bytes(photo(number + 3 * (split == "test")))
        rows = [
            {"file_name": name, "text": f"{split} {name}", "score": "1.10"}
            for name in ("a.jpg", "deep/b.jpg", "gone.jpg")
        ]
        rows.append({"file_name": "../../secret.jpg", "text": "x", "score": "2"})
        if ending == "csv":
            text = "\n".join([",".join(rows[0]), *(",".join(row.values()) for row in rows)])
            (folder / "metadata.csv").write_text(text + "\n")
        elif ending == "jsonl":
            (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        else:
            pq.write_table(pa.Table.from_pylist(rows), folder / "metadata.parquet")
    (data / "README.md").write_text("of no use")
    (tmp_path / "secret.jpg").write_bytes(photo(9))
    report = fetch(str(data), str(tmp_path / "out"), CONFIG)
    found = table_of(tmp_path / "out").to_pylist()
    assert [(row["url"], row["caption"], row["score"], row["error_class"]) for row in found] == [
        (name, text if name[0] == "." else f"{split} {name}", score, wrong)
        for split in ("test", "train")
        for name, text, score, wrong in (
            ("a.jpg", "", "1.10", None),
            ("deep/b.jpg", "", "1.10", None),
            ("gone.jpg", "", "1.10", "unreadable"),
            ("../../secret.jpg", "x", "2", "outside_root"),
        )
    ]
    assert (report.rows, report.succeeded) == (8, 4)
    listing = manifest.read_run(str(tmp_path / "out")).listing
    assert listing.passed_over == {"no_row": 2, "unknown_type .md": 1}
    assert listing.examples["no_row"] == "test/extra.jpg"
    assert (listing.seen, listing.used) == (9, 6)
    with tarfile.open(tmp_path / "out" / "00000.tar") as tar:
        assert json.load(tar.extractfile("000000000.json"))["score"] == "1.10"
    assert fetch(str(data), str(tmp_path / "out"), CONFIG).shards_now == 0


def test_a_folder_that_began_as_loose_images_goes_on_so(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    (data / "a.jpg").write_bytes(photo(1))
    fetch(str(data), str(tmp_path / "out"), CONFIG)
    (data / "metadata.csv").write_text("file_name,text\na.jpg,x\n")
    with pytest.raises(InputError, match=r"`source='images'`"):
        fetch(str(data), str(tmp_path / "out"), CONFIG)
    images = dataclasses.replace(CONFIG, source="images")
    assert fetch(str(data), str(tmp_path / "out"), images).shards_now == 0
    (data / "metadata.csv").write_text("name,text\na.jpg,x\n")
    with pytest.raises(InputError, match="none of its columns is called"):
        fetch(str(data), str(tmp_path / "other"), CONFIG)


def test_links_in_an_image_folder_are_followed_as_those_of_loose_images(pictures):
    """As in the cache of the Hugging Face hub, whose snapshots are links to blobs."""
    data = pictures / "data"
    data.mkdir()
    (data / "a.jpg").symlink_to(pictures / "outside" / "d.jpg")
    rows = ["file_name,text", "a.jpg,x", "../outside/d.jpg,y", f"{pictures}/outside/d.jpg,z", "./a.jpg,w"]
    (data / "metadata.csv").write_text("\n".join(rows) + "\n")
    fetch(str(data), str(pictures / "out"), CONFIG)
    found = table_of(pictures / "out").to_pylist()
    assert [(row["caption"], row["error_class"]) for row in found] == [
        ("x", None),
        ("y", "outside_root"),
        ("z", "outside_root"),
        ("w", None),
    ]


def test_rows_of_an_image_folder_lead_nowhere_else(pictures, monkeypatch):
    """A folder from somewhere else must not have pictures of this machine packed, however it names them."""
    secret = pictures / "outside" / "d.jpg"
    inside = ["a.jpg", f"file://{pictures}/in/a.jpg", "file:sub/b%20b.jpg", str(pictures / "in" / "a.jpg")]
    away = [
        f"file://{secret}",
        f"FILE:{secret}",
        f"file://{pictures}/in/../outside/d.jpg",
        str(secret),
        "file:../d.jpg",
    ]
    rows = [{"file_name": name} for name in (*inside, *away, "file:a%00.jpg", "file:")]
    (pictures / "in" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(pictures / "root")
    fetch("../in", "../out", CONFIG)
    found = {url: wrong for url, (wrong, _) in outcomes(pictures / "out").items()}
    assert [found[name] for name in inside] == [None] * len(inside)
    assert {found[row["file_name"]] for row in rows[len(inside) :]} == {"outside_root"}


def test_values_that_python_has_no_like_of_end_no_run(pictures):
    """Text that is not UTF-8, as some writers leave it, and times beyond Python's calendar."""
    offsets, text = pa.array([0, 3, 6], pa.int32()).buffers()[1], pa.py_buffer(b"a\xffbdef")
    times = pa.array([10**15, 0], pa.int64()).cast(pa.timestamp("ms"))
    table = {
        "file": ["a.jpg", "sub/b b.jpg"],
        "caption": pa.StringArray.from_buffers(2, offsets, text),
        "time": times,
        "zone": times.cast(pa.timestamp("ms", "No/Where")),
        "dates": pa.array([[10**7], [0]], pa.list_(pa.int32())).cast(pa.list_(pa.date32())),
    }
    pq.write_table(pa.table(table), pictures / "in" / "t.parquet")
    out = pictures / "out"
    config = dataclasses.replace(CONFIG, local_root=str(pictures / "in"))
    assert fetch(str(pictures / "in" / "t.parquet"), str(out), config).succeeded == 2
    found = table_of(out)
    assert found.column("caption").to_pylist() == ["a\ufffdb", "def"]
    assert found.column("time").combine_chunks().equals(times)
    with tarfile.open(out / "00000.tar") as tar:
        fields = [json.load(tar.extractfile(name)) for name in tar.getnames() if name.endswith(".json")]
    passed = [[row["caption"], row["time"], row["dates"]] for row in fields]
    assert passed == [["a\ufffdb", None, None], ["def", "1970-01-01T00:00:00", ["1970-01-01"]]]
    assert [row["zone"] for row in fields] == [None, None]


def test_a_plan_names_what_the_run_then_does(pictures):
    (pictures / "in" / "t.csv").write_text("file\na.jpg\nnone.jpg\nsub/b b.jpg\n")
    table, out = str(pictures / "in" / "t.csv"), str(pictures / "out")
    config = dataclasses.replace(CONFIG, local_root=str(pictures / "in"), samples_per_shard=2)
    again = dataclasses.replace(config, retry_failed=True)

    def planned_and_done(config):
        before = sorted((pictures / "out").rglob("*"))
        plan, to_fetch = plan_fetch(table, out, config)
        to_retry = rows_to_retry(plan, to_fetch, out, config)
        assert sorted((pictures / "out").rglob("*")) == before
        retried = fetch(table, out, config).retried if to_retry else 0
        return to_fetch, to_retry, retried or fetch(table, out, config).shards_now

    assert planned_and_done(config) == ([0, 1], 0, 2)
    assert planned_and_done(config) == ([], 0, 0)
    (pictures / "out" / "00001.tar").unlink()
    assert planned_and_done(config) == ([1], 0, 1)
    assert planned_and_done(again) == ([], 1, 1)
    assert planned_and_done(dataclasses.replace(again, only=("timeout",))) == ([], 0, 0)
    (pictures / "out" / "00002.parquet").unlink()  # the round of retries is finished before another one
    assert planned_and_done(again) == ([2], 0, 1)
