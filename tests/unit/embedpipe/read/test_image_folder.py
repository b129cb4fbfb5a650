"""Hugging Face's image folders: captions and fields come from the tables, and nothing disappears."""

import hashlib
import json
import os
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedpipe.accounts import Ledger
from embedpipe.errors import EmptyInput, InputError
from embedpipe.read import SampleRules, open_reader
from embedpipe.read.folder import FolderReader
from embedpipe.read.image_folder_reader import ImageFolderReader
from embedpipe.types import Reject
from tests.bodies import photo

RULES = SampleRules()


def write_table(path, rows):
    if path.suffix == ".csv":
        path.write_text("\n".join(",".join(map(str, row)) for row in [rows[0], *(row.values() for row in rows)]) + "\n")
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)


@pytest.fixture
def folder(tmp_path):
    for split in ("train", "test"):
        (tmp_path / split / "deep").mkdir(parents=True)
        for number, name in enumerate(("a.jpg", "deep/b.jpg", "extra.jpg")):
            (tmp_path / split / name).write_bytes(photo(number))
    (tmp_path / "train" / "a.txt").write_text("not this")
    return tmp_path


def described(folder, ending):
    for split in ("train", "test"):
        names = ("a.jpg", "deep/b.jpg", "gone.jpg", "../../out.jpg")
        rows = [{"file_name": name, "text": f"{split} {name}", "n": "1.10"} for name in names]
        write_table(folder / split / f"metadata.{ending}", rows)
    return str(folder)


def everything(reader, known=()):
    digest = hashlib.sha256()
    shards = reader.shards(known)
    return [it for shard in shards for it in reader.read(shard, digest)], shards, digest.hexdigest()


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_rows_describe_images_and_nothing_disappears(folder, ending):
    reader = open_reader(described(folder, ending), RULES)
    assert isinstance(reader, ImageFolderReader)
    found, shards, _ = everything(reader)
    taken = {it.key: (it.caption, it.metadata) for it in found if not isinstance(it, Reject)}
    keys = [(split, name) for split in ("test", "train") for name in ("a", "deep/b")]
    assert taken == {f"{split}/{name}": (f"{split} {name}.jpg", {"n": "1.10"}) for split, name in keys}
    assert next(it.image for it in found if it.key == "train/deep/b") == photo(1)
    wrong = {it.key: (it.error_class, it.message) for it in found if isinstance(it, Reject)}
    assert {key: error for key, (error, _) in wrong.items()} == dict.fromkeys(
        ("../out", "test/gone", "train/gone"), "file_unreadable"
    )
    assert "leads out of the folder" in wrong["../out"][1]
    accounts = reader.survey(()).accounts
    assert accounts.passed_over == {"no_row": 2, "repeated_row": 1, "unknown_type .txt": 1}
    assert accounts.add_up
    ledger = Ledger("file")
    for shard in shards:
        list(reader.read(shard, hashlib.sha256(), ledger))
    counted = Ledger("file")
    for shard in shards:
        reader.count(shard, counted)
    assert ledger.closed() == counted.closed()


def test_captions_only_and_images_only(folder):
    place = described(folder, "csv")
    texts, *_ = everything(open_reader(place, SampleRules(need_image=False)))
    assert {it.image for it in texts if not isinstance(it, Reject)} == {None}
    images, *_ = everything(open_reader(place, SampleRules(need_caption=False)))
    assert {it.caption for it in images if not isinstance(it, Reject)} == {None}


def test_a_caption_column_can_be_named_and_lists_have_a_first(folder):
    rows = [{"image": "a.jpg", "text": "t", "ja": ["日本", "x"]}, {"image": "extra.jpg", "text": "u", "ja": None}]
    write_table(folder / "train" / "metadata.jsonl", rows)
    found, *_ = everything(open_reader(str(folder), SampleRules(caption_key="ja")))
    assert (found[0].caption, found[0].metadata) == ("日本", {"text": "t", "ja": ["日本", "x"]})
    assert (found[1].key, found[1].error_class) == ("train/extra", "caption_missing")
    with pytest.raises(InputError, match="no column 'jp'. Did you mean ja"):
        everything(open_reader(str(folder), SampleRules(caption_key="jp")))


def test_new_rows_go_to_new_shards_and_a_changed_row_changes_its_shard_alone(folder):
    write_table(folder / "train" / "metadata.csv", [{"file_name": "a.jpg", "text": "x"}])
    reader = ImageFolderReader(str(folder), RULES, 1)
    (first,) = reader.shards(())
    rows = [{"file_name": "a.jpg", "text": "x"}, {"file_name": "deep/b.jpg", "text": "y"}]
    write_table(folder / "train" / "metadata.csv", rows)
    known, fresh = reader.shards((first,))
    assert known == first
    assert fresh.members == ("train/deep/b.jpg",)
    before = everything(reader, (first,))[2]
    rows[1]["text"] = "z"
    write_table(folder / "train" / "metadata.csv", rows)
    assert [shard == old for shard, old in zip(reader.shards((known, fresh)), (known, fresh), strict=True)] == [
        True,
        False,
    ]
    assert everything(reader, (known, fresh))[2] != before


def test_a_data_set_begun_with_loose_files_goes_on_with_them(folder):
    loose = FolderReader(str(folder), RULES)
    shards = loose.shards(())
    before = [it.caption for it in loose.read(shards[0], hashlib.sha256()) if not isinstance(it, Reject)]
    reader = open_reader(described(folder, "csv"), RULES)
    assert reader.shards(shards) == shards
    after = [it.caption for it in reader.read(shards[0], hashlib.sha256()) if not isinstance(it, Reject)]
    assert before == after == ["not this"]


def test_tables_that_describe_no_image_are_told(folder):
    write_table(folder / "train" / "metadata.csv", [{"name": "a.jpg", "text": "x"}])
    with pytest.raises(InputError, match=r"no column 'file_name'; it has name, text.*`input='folder'`"):
        open_reader(str(folder), RULES).shards(())
    assert isinstance(open_reader(str(folder), RULES, "folder"), FolderReader)
    (folder / "train" / "metadata.csv").write_text("file_name,text\n")
    with pytest.raises(EmptyInput, match="no rows of metadata tables"):
        open_reader(str(folder), RULES).shards(())


def test_no_name_in_a_row_ends_the_run(folder):
    shutil.copy(folder / "test" / "a.jpg", os.fsencode(folder / "test") + b"/lat\xe9.jpg")
    names = [r"\ud800.jpg", r"lat\udce9.jpg", r"nul\u0000.jpg", "n" * 5000 + ".jpg", "a.jpg"]
    rows = "".join(f'{{"file_name": "{name}", "text": "{number}"}}\n' for number, name in enumerate(names))
    (folder / "test" / "metadata.jsonl").write_text(rows)
    found, _, _ = everything(open_reader(str(folder), RULES))
    taken = {it.key: it.caption for it in found if not isinstance(it, Reject)}
    assert taken == {r"test/lat\xe9": "1", "test/a": "4"}
    assert {it.error_class for it in found if isinstance(it, Reject)} == {"file_unreadable"}
    assert len(found) == len(names)


def test_a_row_too_deep_to_be_parsed_is_named(folder):
    (folder / "test" / "metadata.jsonl").write_text('{"file_name": "a.jpg", "x": ' + "[" * 50_000 + "]" * 50_000 + "}")
    with pytest.raises(InputError, match="line 1: not JSON: .*recursion"):
        everything(open_reader(str(folder), RULES))


def test_a_hidden_table_is_neither_read_nor_counted_as_used(folder):
    reader = open_reader(described(folder, "csv"), RULES)
    before = reader.survey(()).accounts
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "metadata.csv").write_text("file_name,text\na.jpg,x\n")
    after = reader.survey(()).accounts
    assert after.used == before.used
    assert after.passed_over == {**before.passed_over, "hidden": 1}


def test_rows_that_are_passed_over_are_accounted_for(folder):
    rows = [{"file_name": name, "text": "x"} for name in ("a.jpg", "./a.jpg", "", None, 7)]
    write_table(folder / "test" / "metadata.jsonl", [*rows, {"text": "x"}])
    reader = open_reader(str(folder), RULES)
    found, _, _ = everything(reader)
    assert [it.key for it in found] == ["test/a"]
    accounts = reader.survey(()).accounts
    assert accounts.add_up
    passed = {why: count for why, count in accounts.passed_over.items() if why.endswith("_row")}
    assert (passed["repeated_row"], passed["nameless_row"]) == (1, 4)
    assert "4 row without the name of an image, " in accounts.said()
