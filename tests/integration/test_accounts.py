"""What readers passed over: in manifests, said by encode, fetch and info, checked by verify, summed by merge."""

import dataclasses
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedpipe import manifest
from embedpipe.accounts import Accounts
from embedpipe.encode.job import encode
from embedpipe.errors import DatasetError, EmptyInput, InputError, OptionError, RunMismatch
from embedpipe.fetch import FetchConfig, fetch, make_plan
from embedpipe.fetch.planned_rows import shard_rows
from embedpipe.load import EmbeddingDataset
from embedpipe.merge import merge
from embedpipe.verify import verify
from tests import shards
from tests.integration.test_fetch import table_of

JPEG = shards.jpeg(1)
MEMBERS = [
    *shards.samples(3),
    ("00000.npy", b"1"),
    ("._00000.jpg", b"2"),
    ("Dr. No.jpg", JPEG),
    ("Dr. No.txt", b"Bond"),
]


@pytest.fixture
def source(tmp_path):
    shards.write_tar(tmp_path / "in" / "0.tar", MEMBERS)
    shards.write_files(tmp_path / "in", [("._0.tar", b"x"), ("0.json", b"{}")])
    return tmp_path / "in"


def test_what_is_passed_over_is_recorded_said_and_shown(source, tmp_path, embedpipe, tiny_model):
    out = tmp_path / "emb"
    done = embedpipe("encode", source, out, "--model", tiny_model, "--gpus", 0, "--threads", 1)
    assert done.exit_code == 0, done.stderr
    assert "1 file passed over: 1 hidden (._0.tar)\n" in done.stdout
    assert "2 members passed over: 1 hidden (._00000.jpg), 1 .npy (00000.npy)\n" in done.stdout
    entry = manifest.read_manifest(str(out), 0, 5)
    assert (entry.accounts.seen, entry.accounts.used, entry.rows_out) == (13, 11, 4)
    assert entry.accounts.passed_over == {"hidden": 1, "unknown_type .npy": 1}
    assert manifest.read_run(str(out)).listing.passed_over == {"companion": 1, "hidden": 1}
    shown = embedpipe("info", out)
    assert "13 seen, 11 used, 2 passed over: 1 hidden, 1 .npy" in shown.stdout
    told = json.loads(embedpipe("info", out, "--json").stdout)
    assert (told["accounts"]["seen"], told["unaccounted"], told["listing"]["seen"]) == (13, 0, 3)
    assert EmbeddingDataset(str(out)).metadata["key"].read().to_pylist()[-1] == "Dr. No"


def test_verify_checks_the_sum_and_counts_again(source, tmp_path, encode_config):
    out = tmp_path / "emb"
    encode(str(source), str(out), encode_config())
    assert verify(str(out), shards.DEEP).whole
    place = out / "manifest" / "00000.json"

    def lose_one(document):
        document["accounts"]["seen"] -= 1

    def lose_one_from_both_sides(document):
        document["accounts"]["passed_over"].pop("hidden")

    shards.edit(place, lose_one)
    assert [fault.what for fault in verify(str(out)).faults] == [
        "12 members seen, 11 used and 2 passed over do not add up"
    ]
    shards.edit(place, lose_one_from_both_sides)
    assert verify(str(out)).whole
    assert [fault.what for fault in verify(str(out), shards.DEEP).faults] == [
        "its input has 13 members, 11 used, passed over 1 hidden, 1 unknown_type .npy, "
        "but the manifest says 12 members, 11 used, passed over 1 unknown_type .npy"
    ]
    (source / "0.tar").touch()  # another file, for all that is known
    assert verify(str(out), shards.DEEP).whole


def test_a_manifest_without_accounts_is_one_of_before(source, tmp_path, encode_config, embedpipe):
    out = tmp_path / "emb"
    encode(str(source), str(out), encode_config())
    shards.edit(out / "manifest" / "00000.json", lambda document: document.pop("accounts"))
    shards.edit(out / "embedpipe.json", lambda document: document.pop("listing"))
    assert verify(str(out), shards.DEEP).whole
    assert "not recorded" in embedpipe("info", out).stdout


def test_merged_data_sets_sum_them_up(source, tmp_path, encode_config):
    shards.write_tar(tmp_path / "other" / "1.tar", [*shards.samples(2, first=50), ("x.cls", b"1")])
    parts = []
    for name, place in (("a", source), ("b", tmp_path / "other")):
        parts.append(str(tmp_path / name))
        encode(str(place), parts[-1], encode_config())
    merge(parts, str(tmp_path / "all"))
    total = manifest.total_accounts(manifest.read_manifests(str(tmp_path / "all"), 5))
    assert (total.seen, total.used) == (20, 17)
    assert total.passed_over == {"hidden": 1, "unknown_type .cls": 1, "unknown_type .npy": 1}
    assert manifest.read_run(str(tmp_path / "all")).listing.seen == 4
    assert verify(str(tmp_path / "all"), shards.DEEP).whole


# Folders, the same in encode and fetch.

NAMES = ["a.png", "b.jfif", "c.avif", "noext", "sub/g.JPG", "Dr. No.png", os.fsdecode(b"caf\xe9.png"), "d.orig"]
FETCH = FetchConfig(processes=1, resizer="opencv", samples_per_shard=100)


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "photos"
    shards.write_files(place, [(name, shards.jpeg(i)) for i, name in enumerate(NAMES)])
    shards.write_files(place, [("s.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>"), ("s.txt", b"a swallow")])
    shards.write_files(place, [("notes.md", b"x"), (".DS_Store", b"x"), ("twice.jpg", JPEG), ("twice.png", JPEG)])
    (place / "nowhere.jpg").symlink_to(tmp_path / "gone.jpg")
    (place / "linked").symlink_to(place / "sub")
    return place


KEYS = {"a", "b", "c", "noext", "sub/g", "Dr. No", "caf\\xe9", "d", "twice"}
LISTED = {"hidden": 1, "linked_folder": 1, "unknown_type .md": 1}


def test_every_picture_of_a_folder_is_encoded_or_told_of(folder, tmp_path, encode_config):
    out = str(tmp_path / "emb")
    report = encode(str(folder), out, encode_config(stage={"texts": False}))
    dataset = EmbeddingDataset(out)
    assert set(dataset.metadata["key"].read().to_pylist()) == KEYS
    assert report.rejects == {"file_unreadable": 1, "image_unsupported": 1}
    assert report.listing.passed_over == LISTED
    assert report.report.accounts.passed_over == {"second_image": 1}
    assert verify(out, shards.DEEP).whole


def test_every_picture_of_a_folder_is_fetched_or_told_of(folder, tmp_path):
    out = str(tmp_path / "out")
    report = fetch(str(folder), out, FETCH)
    rows = {row["url"]: row for row in table_of(out).to_pylist()}
    stored = {url for url, row in rows.items() if row["status"] == "success"}
    assert {url.rpartition(".")[0] or url for url in stored} == KEYS
    assert {url: row["error_class"] for url, row in rows.items() if url not in stored} == {
        "nowhere.jpg": "unreadable",
        "s.svg": "unsupported",
    }
    assert "SVG" in rows["s.svg"]["error_message"]
    assert report.listing.passed_over == LISTED
    assert report.accounts.passed_over == {"second_image": 1}
    assert (report.accounts.seen, report.accounts.used) == (13, 12)
    assert verify(out, shards.DEEP).whole
    (folder / os.fsdecode(b"caf\xe8.png")).write_bytes(b"")  # fails, and is read again by its own name
    again = fetch(str(folder), out, dataclasses.replace(FETCH, retry_failed=True))
    assert (again.failed, again.retried) == ({"empty": 1, "unreadable": 1, "unsupported": 1}, 3)


def test_no_usable_sample_says_why(tmp_path, encode_config):
    members = [
        ("images/0.jpg", JPEG),
        ("texts/0.txt", b"c"),
        ("x.npy", b"1"),
        ("0.jpg", JPEG),
        ("1.jpg", JPEG),
        ("0.txt", b"c"),
    ]
    place = shards.write_tar(tmp_path / "a.tar", members)
    with pytest.raises(EmptyInput) as problem:
        encode(place, str(tmp_path / "emb"), encode_config())
    said = str(problem.value)
    assert said.startswith(
        "no usable sample in 1 shard: 3 caption_missing (images/0: no caption); 1 image_missing (texts/0: "
    )
    assert "; 1 members_apart (0: its image came earlier, apart from it: " in said
    assert "; 1 member passed over: 1 .npy (x.npy)." in said


# The source of captions that is named wins, and one without effect is an error.


def captions(place, out, encode_config, **chosen):
    encode(place, out, encode_config(**chosen))
    return EmbeddingDataset(out).metadata["caption"].read().to_pylist()


def test_a_named_field_comes_before_the_txt(tmp_path, encode_config):
    fields = json.dumps({"ja": "neko", "caption": "of json", "many": [" ", "first", "second"]}).encode()
    members = [("a.jpg", JPEG), ("a.json", fields), ("a.txt", b"of txt")]
    for kind in ("tar", "folder"):
        place = str(tmp_path / kind)
        if kind == "tar":
            shards.write_tar(Path(place) / "0.tar", members)
        else:
            shards.write_files(place, members)
        found = {
            key: captions(place, f"{place}-{key}", encode_config, caption_key=key)
            for key in (None, "ja", "caption", "many")
        }
        assert found == {None: ["of txt"], "ja": ["neko"], "caption": ["of json"], "many": ["first"]}
        (stored,) = EmbeddingDataset(f"{place}-many").metadata["many"].read().to_pylist()
        assert json.loads(stored) == [" ", "first", "second"]
        with pytest.raises(EmptyInput, match=r"no text in 'de'; its fields are ja, caption, many"):
            captions(place, f"{place}-de", encode_config, caption_key="de")


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ({"key_column": "id"}, "`key_column` is for a table, and the input is none"),
        ({"image_column": "id"}, "`image_column` is for a table"),
        ({"caption_key": "ja", "stage": {"texts": False}}, "`caption_key` has no effect: texts were turned off"),
        ({"image_member": "a.png", "stage": {"images": False}}, "`image_member` has no effect: images were turned off"),
        ({"caption_key": "ja", "caption_member": "ja.txt"}, "both say where captions are"),
    ],
)
def test_an_option_without_effect_is_an_error(chosen, said, source, tmp_path, encode_config):
    with pytest.raises(OptionError, match=said):
        encode(str(source), str(tmp_path / "emb"), encode_config(**chosen))


def test_members_are_named_in_tars_alone(tmp_path, encode_config):
    shards.write_files(tmp_path / "in", shards.samples(1))
    with pytest.raises(OptionError, match="`image_member` is for a tar, and the input is none"):
        encode(str(tmp_path / "in"), str(tmp_path / "emb"), encode_config(image_member="input.png"))


def test_an_output_of_before_goes_on_under_its_rules(tmp_path, encode_config):
    """As one that an older version began: no `reading` in its options, the caption's field spelled out."""
    out = tmp_path / "emb"
    shards.write_tar(tmp_path / "in" / "0.tar", shards.samples(3))
    encode(str(tmp_path / "in"), str(out), encode_config())

    def older(document):
        document["options"].pop("reading")
        document["options"]["caption_key"] = "caption"

    shards.edit(out / "embedpipe.json", older)
    shards.write_tar(tmp_path / "in" / "1.tar", MEMBERS)
    encode(str(tmp_path / "in"), str(out), encode_config())
    assert EmbeddingDataset(str(out)).metadata["key"].read().to_pylist() == [f"{i:05d}" for i in (0, 1, 2, 0, 1, 2)]
    assert manifest.read_manifest(str(out), 1, 5).accounts.passed_over["unknown_type .jpg"] == 1
    assert verify(str(out), shards.DEEP).whole


def test_captions_of_a_fetched_folder_come_from_the_named_field(tmp_path):
    fields = json.dumps({"ja": "neko", "many": ["first", "second"]}).encode()
    shards.write_files(tmp_path / "in", [("a.jpg", JPEG), ("a.json", fields), ("a.txt", b"of txt")])
    found = {}
    for key in (None, "ja", "many"):
        plan = make_plan(str(tmp_path / "in"), str(tmp_path / "none"), dataclasses.replace(FETCH, caption_col=key))
        ((_, rows),) = shard_rows(plan, frozenset({0}))
        (found[key],) = rows.column("caption").to_pylist()
    assert found == {None: "of txt", "ja": "neko", "many": "first"}
    fetch(str(tmp_path / "in"), str(tmp_path / "out-ja"), dataclasses.replace(FETCH, caption_col="ja"))
    assert table_of(str(tmp_path / "out-ja")).column("caption").to_pylist() == ["neko"]
    with pytest.raises(RunMismatch, match='caption_col was "ja", now "many"'):
        fetch(str(tmp_path / "in"), str(tmp_path / "out-ja"), dataclasses.replace(FETCH, caption_col="many"))
    with pytest.raises(InputError, match="no caption in the field 'de' of the .json files; their fields are ja, many"):
        fetch(str(tmp_path / "in"), str(tmp_path / "de"), dataclasses.replace(FETCH, caption_col="de"))
    with pytest.raises(OptionError, match="`url_col` is for a table"):
        fetch(str(tmp_path / "in"), str(tmp_path / "de"), dataclasses.replace(FETCH, url_col="link"))


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_of_a_list_of_captions_the_first_counts_and_all_are_kept(kind, tmp_path, encode_config):
    captions = [["one", "two"], [" ", "three"], [], None]
    place = tmp_path / f"t.{kind}"
    if kind == "parquet":
        pq.write_table(pa.table({"url": ["x:/"] * 4, "caption": captions}), place)
    else:
        place.write_text("".join(json.dumps({"url": "x:/", "caption": it}) + "\n" for it in captions))
    fetch(str(place), str(tmp_path / "out"), FETCH)
    rows = table_of(str(tmp_path / "out")).to_pylist()
    assert [row["caption"] for row in rows] == ["one", "three", None, None]
    assert [row["source_caption"] for row in rows] == captions


def test_of_a_list_of_captions_in_a_table_of_images_too(tmp_path, encode_config):
    captions = [["one", "two"], [" ", "three"], [], None]
    shards.write_table(tmp_path / "t.parquet", shards.table(4, caption=captions))
    report = encode(str(tmp_path / "t.parquet"), str(tmp_path / "emb"), encode_config())
    assert report.rejects == {"caption_missing": 2}
    dataset = EmbeddingDataset(str(tmp_path / "emb"))
    assert dataset.metadata["caption"].read().to_pylist() == ["one", "three"]
    assert json.loads(dataset.metadata["extra"].read().to_pylist()[1]) == {"caption": [" ", "three"]}
    assert report.report.accounts == Accounts("row", 4, 4)


def test_a_pipeline_of_webdataset_leaves_no_row_out_silently(source, tmp_path, encode_config):
    from embedpipe.load.webdataset import webdataset_pipeline

    encode(str(source), str(tmp_path / "emb"), encode_config())
    with pytest.raises(DatasetError, match=r"has a row 'Dr\. No': webdataset ends keys at the first dot"):
        list(webdataset_pipeline(EmbeddingDataset(str(tmp_path / "emb"))))
