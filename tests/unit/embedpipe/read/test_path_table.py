"""Tables of local paths: every row is a sample or a reject, and nothing outside the root is opened."""

import hashlib
import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedpipe.accounts import Ledger
from embedpipe.errors import EmptyInput, InputError, OptionError
from embedpipe.read import LocalPaths, SampleRules, open_reader
from embedpipe.read.delimited import DialectOptions
from embedpipe.types import Reject
from tests.bodies import photo

RULES = SampleRules()


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("in/a.jpg", "in/sub/b b.png", "in/ü#1.jpg", "in/a.png", "outside/d.jpg")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(photo(number))
    return tmp_path


def opened(data, rules=RULES, per_shard=10_000, **given):
    return open_reader(str(data), rules, "auto", per_shard, LocalPaths(**{"root": ".", **given}))


def everything(reader, known=()):
    """Samples and rejects; their accounts, read and counted, are those of the rows."""
    digest, ledger, counted = hashlib.sha256(), Ledger("row"), Ledger("row")
    shards = reader.shards(known)
    found = []
    for shard in shards:
        found += reader.read(shard, digest, ledger)
        reader.count(shard, counted)
    accounts = ledger.closed()
    assert accounts == counted.closed()
    assert accounts.seen == accounts.used == len(found)
    return found, shards, digest.hexdigest()


def said(found):
    return [(it.key, it.error_class if isinstance(it, Reject) else it.caption) for it in found]


def write(path, rows):
    """The rows as a table of the kind that the name says."""
    names = list(rows[0])
    if path.suffix in (".csv", ".tsv"):
        mark = "," if path.suffix == ".csv" else "\t"
        path.write_text("".join(mark.join(map(str, row)) + "\n" for row in [names, *(row.values() for row in rows)]))
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "json", "parquet"])
@pytest.mark.parametrize("column", ["file_name", "file", "path", "image"])
def test_each_row_of_each_kind_of_table_is_a_sample_or_a_reject(place, ending, column):
    names = ["a.jpg", "sub/b b.png", "ü#1.jpg", "none.jpg", "../outside/d.jpg", "a.jpg", "a.png", ""]
    rows = [{column: name, "caption": f"of {name}", "n": "1.10"} for name in names]
    found, shards, _ = everything(opened(write(place / "in" / f"t.{ending}", rows)))
    assert said(found) == [
        ("a", "of a.jpg"),
        ("sub/b b", "of sub/b b.png"),
        ("ü#1", "of ü#1.jpg"),
        ("none", "file_unreadable"),
        ("../outside/d", "file_unreadable"),
        ("a#2", "of a.jpg"),
        ("a#3", "of a.png"),
        ("000000007", "image_missing"),
    ]
    assert [it.image for it in found if not isinstance(it, Reject)] == [photo(n) for n in (0, 1, 2, 0, 3)]
    assert found[1].metadata == {"n": "1.10"}
    assert "leads out of" in found[4].message
    assert [shard.name for shard in shards] == [f"t.{ending}:0-7"]


def test_links_out_of_the_root_and_what_is_no_file_are_rejects(place):
    (place / "in" / "link.jpg").symlink_to(place / "outside" / "d.jpg")
    (place / "in" / "inner.jpg").symlink_to(place / "in" / "a.jpg")
    (place / "in" / "away").symlink_to(place / "outside")
    os.mkfifo(place / "in" / "pipe.jpg")
    names = ["link.jpg", "away/d.jpg", "pipe.jpg", "sub", "/dev/zero", "http://a.de/a.jpg", "inner.jpg", "a\0.jpg"]
    names += [f"file://{place}/in/sub/b%20b.png", "file://elsewhere/a.jpg", "\ud800.jpg", 5]
    table = write(place / "in" / "t.jsonl", [{"file": name, "caption": "c"} for name in names])
    found, *_ = everything(opened(table))
    ok = {"inner.jpg": "inner", names[8]: "sub/b b"}
    assert [it.key for it in found if not isinstance(it, Reject)] == list(ok.values())
    assert {it.error_class for it in found if isinstance(it, Reject)} == {"file_unreadable"}
    wider, *_ = everything(opened(table, root=str(place)))
    assert [it.key for it in wider if not isinstance(it, Reject)] == ["in/link", "in/away/d", "in/inner", "in/sub/b b"]


def test_a_key_is_never_there_twice(place):
    (place / "in" / "a#2.jpg").write_bytes(photo(7))
    names = ["a.jpg", "a.jpg", "a#2.jpg", "a#2.jpg", "a.jpg"]
    found, *_ = everything(opened(write(place / "in" / "t.csv", [{"file": name, "caption": "c"} for name in names])))
    assert [it.key for it in found] == ["a", "a#2", "a#2#2", "a#2#3", "a#3"]
    rows = [{"file": "a.jpg", "caption": "c", "id": key} for key in ("x", "x", "y")]
    keyed, *_ = everything(opened(write(place / "in" / "t.csv", rows), SampleRules(key_column="id")))
    assert said(keyed) == [("x", "c"), ("x", "duplicate_key"), ("y", "c")]
    assert keyed[0].metadata == {"file": "a.jpg"}, "which the key does not tell"


def test_rows_that_come_later_make_new_shards_and_change_no_other(place):
    rows = [{"file": "a.jpg", "caption": f"{n}"} for n in range(5)]
    table = write(place / "in" / "t.csv", rows)
    before = opened(table, per_shard=2).shards(())
    assert [shard.name for shard in before] == ["t.csv:0-1", "t.csv:2-3", "t.csv:4-4"]
    write(table, [*rows, *rows[:3]])
    after = opened(table, per_shard=3).shards(before)
    assert after[:3] == before
    assert [shard.name for shard in after[3:]] == ["t.csv:5-7"]
    write(table, [{"file": "a.jpg", "caption": "other"}, *rows[1:]])
    changed = opened(table, per_shard=2).shards(before)
    assert [new != old for new, old in zip(changed, before, strict=True)] == [True, False, False]
    os.utime(place / "in" / "a.jpg", (1, 1))
    assert all(new != old for new, old in zip(opened(table, per_shard=2).shards(before), before, strict=True))


def test_a_folder_of_tables_and_partitions(place):
    for part in ("lang=en", "lang=ja"):
        (place / "parts" / part).mkdir(parents=True)
        (place / "parts" / part / "x.jpg").write_bytes(photo(len(part)))
        write(place / "parts" / part / "t.csv", [{"path": "x.jpg", "text": part}])
    found, shards, _ = everything(opened(place / "parts"))
    assert said(found) == [("lang=en/x", "lang=en"), ("lang=ja/x", "lang=ja")]
    assert [it.metadata["lang"] for it in found] == ["en", "ja"]
    assert [shard.name for shard in shards] == ["lang=en/t.csv:0-0", "lang=ja/t.csv:0-0"]


def test_captions(place):
    rows = [
        {"file": "a.jpg", "caption": value, "ja": "x"} for value in (["", "b"], " ", None, 5, "c" * (1 << 20) + "c")
    ]
    table = write(place / "in" / "t.jsonl", rows)
    found, *_ = everything(opened(table))
    wrong = ["caption_missing"] * 3 + ["caption_too_large"]
    assert [name for _, name in said(found)] == ["b", *wrong]
    assert found[0].metadata["caption"] == ["", "b"]
    assert [name for _, name in said(everything(opened(table, SampleRules(caption_key="ja")))[0])] == ["x"] * 5
    alone, *_ = everything(opened(table, SampleRules(need_image=False)))
    assert (alone[0].image, alone[0].caption) == (None, "b")
    images, *_ = everything(opened(table, SampleRules(need_caption=False)))
    assert [it.image for it in images] == [photo(0)] * 5


def test_the_digest_sees_rows_and_images(place):
    table = write(place / "in" / "t.csv", [{"file": "a.jpg", "caption": "c"}])
    digests = {everything(opened(table))[2]}
    (place / "in" / "a.jpg").write_bytes(photo(8))
    digests.add(everything(opened(table))[2])
    write(table, [{"file": "a.jpg", "caption": "d"}])
    digests.add(everything(opened(table))[2])
    assert len(digests) == 3


def test_the_dialect_is_detected_or_given(place):
    table = place / "in" / "t.csv"
    table.write_bytes("file;caption\na.jpg;Ä\n".encode("cp1252"))
    with pytest.raises(InputError, match=r"t\.csv: line 2: not UTF-8"):
        opened(table).shards(())
    found, *_ = everything(opened(table, dialect=DialectOptions(encoding="cp1252")))
    assert said(found) == [("a", "Ä")]


def test_what_is_refused_says_what_to_do(place):
    table = write(place / "in" / "t.csv", [{"where": "a.jpg", "caption": "c"}])
    for data in (table, place / "tables"):
        (place / "tables").mkdir(exist_ok=True)
        write(place / "tables" / "t.csv", [{"file": "a.jpg"}])
        with pytest.raises(InputError, match=r"a table.*`local_root='DIR'`"):
            open_reader(str(data), RULES)
    parquet = write(place / "in" / "t.parquet", [{"file": "a.jpg", "caption": "c"}])
    reader = open_reader(str(parquet), RULES)
    with pytest.raises(InputError, match=r"'file' holds local paths, give `local_root='DIR'`"):
        list(reader.read(reader.shards(())[0], hashlib.sha256()))
    for given, expected in (
        ({}, r"none of its columns is called file_name, .*`file_column`: where, caption"),
        ({"column": "wher"}, r"no column 'wher'.*where"),
        ({"column": "where", "root": "/no/where"}, r"/no/where: no such folder.*`local_root`"),
    ):
        with pytest.raises(InputError, match=expected):
            opened(table, **given).shards(())
    with pytest.raises(InputError, match=r"no column 'nope'"):
        opened(table, SampleRules(caption_key="nope"), column="where").shards(())
    table.write_text("file,caption\n")
    with pytest.raises(EmptyInput, match=r"no rows in it"):
        opened(table).shards(())
    with pytest.raises(InputError, match=r"this machine only"):
        opened("memory://t.csv").shards(())
    with pytest.raises(OptionError, match=r"`local_root` is for a table of local paths"):
        open_reader(str(table), RULES, "folder", 10, LocalPaths("."))


def test_paths_mean_the_files_that_are_there(place):
    """Blanks around them, names in a Mac's spelling, and backslashes are how tables come; a file of that name wins."""
    (place / "in" / "sub" / "é.jpg").write_bytes(photo(4))
    (place / "in" / " odd.jpg").write_bytes(photo(5))
    names = [" a.jpg", "a.jpg\t", "sub/e\u0301.jpg", "sub\\é.jpg", ".\\a.jpg", " odd.jpg", "..\\outside\\d.jpg"]
    table = write(place / "in" / "t.jsonl", [{"file": name, "caption": "c"} for name in names])
    found, *_ = everything(opened(table))
    assert [it.key for it in found[:6]] == ["a", "a#2", "sub/é", "sub/é#2", "a#3", " odd"]
    assert isinstance(found[6], Reject)
    assert "leads out" in found[6].message
    hub = pa.table({"image": [{"bytes": None, "path": "a.jpg"}], "caption": ["c"]})
    pq.write_table(hub, place / "in" / "hub.parquet")
    assert said(everything(opened(place / "in" / "hub.parquet"))[0]) == [("a", "c")]


def test_blank_lines_are_counted_and_a_pointer_is_named(place):
    table = place / "in" / "t.csv"
    table.write_text("file,caption\n\na.jpg,c\n\n")
    assert opened(table).survey(()).accounts.said() == "2 lines passed over: 2 blank"
    table.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    with pytest.raises(InputError, match="a pointer of Git LFS"):
        opened(table).shards(())
