"""Keys of members with dots in their names, and images that are found by their content."""

import bz2
import gzip
import lzma

import pyarrow as pa
import pytest

from embedpipe.accounts import Ledger
from embedpipe.errors import InputError
from embedpipe.images.formats import EXTENSIONS
from embedpipe.read import SampleRules, grouping, open_reader
from embedpipe.types import Sample
from tests import shards

RULES = SampleRules()
JPEG, PNG = shards.jpeg(1), shards.png(2)
IMAGES = SampleRules(need_caption=False)
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"/>'


def tar(folder, names, rules=RULES):
    """(rows as key → caption, rejects as key → class, passed over) of a tar of members with these names."""
    members = names if isinstance(names, dict) else {name: contents(name) for name in names}
    place = shards.write_tar(folder / "a.tar", members.items())
    return told(open_reader(place, rules))


def contents(name):
    return name.encode() if name.endswith("txt") else b'{"caption": "of json"}' if name.endswith("json") else JPEG


def told(reader):
    rows, rejects, passed = {}, {}, {}
    for shard in reader.shards(()):
        ledger = Ledger(reader.unit)
        for found in reader.read(shard, shards.Digest(), ledger):
            if isinstance(found, Sample):
                rows[found.key] = found.caption
            else:
                rejects[found.key] = found.error_class
        assert ledger.closed().add_up
        passed |= ledger.closed().passed_over
    return rows, rejects, passed


def test_dots_in_file_names_lose_no_sample(tmp_path):
    names = [f"{key}.{ending}" for key in ("Dr. No", "IMG_1.0", "IMG_1.1", "ok") for ending in ("jpg", "txt")]
    rows, rejects, passed = tar(tmp_path, names)
    assert rows == {key: f"{key}.txt" for key in ("Dr. No", "IMG_1.0", "IMG_1.1", "ok")}
    assert (rejects, passed) == ({}, {})


def test_members_named_behind_the_first_dot_are_one_sample(tmp_path):
    rows, rejects, passed = tar(tmp_path, ["s1.input.png", "s1.outputs.txt", "s2.input.png", "s2.outputs.txt"])
    assert rows == {"s1": "s1.outputs.txt", "s2": "s2.outputs.txt"}
    assert (rejects, passed) == ({}, {})


@pytest.mark.parametrize(
    ("names", "rows", "rejects", "passed"),
    [
        # As in webdataset and in version 0.1: the key's own image and caption count, other parts do not.
        (["0.jpg", "0.seg.png", "0.txt"], {"0": "0.txt"}, {}, {"second_image": 1}),
        (["0.0.png", "0.1.png", "0.jpg", "0.txt"], {"0": "0.txt"}, {}, {"second_image": 2}),
        (["0.alt.txt", "0.jpg", "0.txt"], {"0": "0.txt"}, {}, {"second_caption": 1}),
        (["0.avif", "0.jpg", "0.svg", "0.txt"], {"0": "0.txt"}, {}, {"second_image": 2}),
        # A part takes the place of what is missing.
        (["0.left.jpg", "0.right.jpg", "0.txt"], {"0": "0.txt"}, {}, {"second_image": 1}),
        (["0.jpg", "0.ja.txt"], {"0": "0.ja.txt"}, {}, {}),
        (["0.jpg", "0.json", "0.ja.txt"], {"0": "of json"}, {}, {"unused_part": 1}),
        (["0.jpg", "0.seg.json", "0.txt"], {"0": "0.txt"}, {}, {"unused_part": 1}),
        (["photo.jpg", "photo.jpg.txt"], {"photo": "photo.jpg.txt"}, {}, {}),
        # The caption of a part with an image of its own belongs to no other image.
        (["Mr.jpg", "Mr.Bean.jpg", "Mr.Bean.txt"], {"Mr.Bean": "Mr.Bean.txt"}, {"Mr": "caption_missing"}, {}),
        # All of one kind: each is a sample, or the reject of one.
        (["0.left.jpg", "0.right.jpg"], {}, {"0.left": "caption_missing", "0.right": "caption_missing"}, {}),
        # Pairs by the last dot.
        (["x.v1.jpg", "x.v1.txt", "x.v2.jpg", "x.v2.txt"], {"x.v1": "x.v1.txt", "x.v2": "x.v2.txt"}, {}, {}),
        (["x.v1.jpg", "x.v1.txt", "x.v2.jpg"], {"x.v1": "x.v1.txt"}, {"x.v2": "caption_missing"}, {}),
        # Pieces of a file name are never paired with one another.
        (["Dr. No.jpg", "Dr. Who.txt"], {}, {"Dr. No": "caption_missing", "Dr. Who": "image_missing"}, {}),
        (["Dr. No.jpg", "Dr.txt"], {}, {"Dr. No": "caption_missing", "Dr": "image_missing"}, {}),
        (["Dr. No.jpg", "Dr. No.txt", "Dr.jpg", "Dr.txt"], {"Dr": "Dr.txt", "Dr. No": "Dr. No.txt"}, {}, {}),
    ],
)
def test_several_dots(names, rows, rejects, passed, tmp_path):
    assert tar(tmp_path, names) == (rows, rejects, passed)


def test_of_pictures_alone_each_with_a_dot_is_a_row(tmp_path):
    names = ["2020.01.31 beach.jpg", "2020.01.31 dog.jpg", "a.left.jpg", "a.right.jpg", "b.jpg", "c.0.png"]
    assert list(tar(tmp_path, names, IMAGES)[0]) == [name.rpartition(".")[0] for name in names]


def test_a_tar_of_thousands_of_names_that_begin_alike(tmp_path):
    names = [f"2020.{i:04d}.{ending}" for i in range(500) for ending in ("jpg", "txt")]
    rows, rejects, passed = tar(tmp_path, dict.fromkeys(names, b"x"))
    assert list(rows) == [f"2020.{i:04d}" for i in range(500)]
    assert (rejects, passed) == ({}, {})
    names = [f"day.{'abcdefghij'[i // 100]}{i}.jpg" for i in range(1000)]
    assert list(tar(tmp_path, dict.fromkeys(names, b"x"), IMAGES)[0]) == [name[:-4] for name in names]


def test_the_members_that_count_can_be_named(tmp_path):
    names = ["0.jpg", "0.left.jpg", "0.right.jpg", "0.ja.txt", "0.txt"]
    rules = SampleRules(image_member="right.JPG", caption_member=".ja.txt")
    members = {name: name.encode() for name in names}
    reader = open_reader(shards.write_tar(tmp_path / "a.tar", members.items()), rules)
    ((sample,), rejects) = shards.read(reader)
    assert (sample.key, sample.image, sample.caption) == ("0", b"0.right.jpg", "0.ja.txt")
    assert rejects == []
    assert told(reader)[2] == {"not_named": 3}
    assert tar(tmp_path, names, SampleRules(image_member="depth.png"))[1] == {"0": "image_missing"}


def test_what_version_0_1_grouped_is_grouped_as_it_was_under_its_rules(tmp_path):
    members = {
        "0.jpg": JPEG,
        "0.seg.png": PNG,
        "0.txt": b"c",
        "1.avif": JPEG,
        "1.txt": b"d",
        "x.0.jpg": JPEG,
        "y": JPEG,
    }
    rows, rejects, passed = tar(tmp_path, members, SampleRules(reading=1))
    assert (rows, rejects) == ({"0": "c"}, {"1": "image_missing"})
    assert passed == {"no_extension": 1, "unknown_type .avif": 1, "unknown_type .jpg": 1, "unknown_type .png": 1}


def test_every_format_is_taken_by_any_of_its_names_and_without_one(tmp_path):
    endings = [ending for endings in EXTENSIONS.values() for ending in endings]
    files = {f"{ending}.{ending.upper()}": JPEG for ending in endings} | {"noext": JPEG, "photo.1": PNG, "x.orig": JPEG}
    files |= {
        "notes.md": b"text",
        "LICENSE": b"text",
        "a.npy": JPEG,
        ".DS_Store": b"x",
        "raw.NEF": b"II*\0" + bytes(50),
    }
    passed = {"hidden": 1, "no_extension": 1, "unknown_type .md": 1, "unknown_type .nef": 1, "unknown_type .npy": 1}
    rows = {*endings, "noext", "photo.1", "x"}
    found = tar(tmp_path, files, IMAGES)
    assert ({*found[0]}, found[1], found[2]) == (rows, {}, passed)
    reader = open_reader(shards.write_files(tmp_path / "in", files.items()), IMAGES)
    assert {*told(reader)[0]} == rows
    assert reader.survey(()).accounts.passed_over == passed


@pytest.mark.parametrize("kind", ["tar", "folder"])
def test_a_caption_beside_something_else_is_told_what_that_is(kind, tmp_path):
    members = {"swallow.txt": b"a bird", "swallow.cr2": b"raw", "lone.txt": b"alone"}
    if kind == "tar":
        place = shards.write_tar(tmp_path / "a.tar", sorted(members.items()))
    else:
        place = shards.write_files(tmp_path / "in", [*members.items(), ("ok.jpg", JPEG)])
    rejects = {
        reject.key: reject.message for reject in shards.read(open_reader(place, SampleRules(need_caption=False)))[1]
    }
    assert rejects == {
        "swallow": "no image that can be read beside the caption, only swallow.cr2",
        "lone": "no image beside the caption",
    }


def test_an_svg_is_an_image_that_is_refused_later_by_name(tmp_path):
    reader = open_reader(shards.write_tar(tmp_path / "a.tar", [("s.svg", SVG), ("s.txt", b"a bird")]), RULES)
    assert [sample.image for sample in shards.read(reader)[0]] == [SVG]


# Tars that are not as they should be.


def zstd(data):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


PACKERS = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zstd}


@pytest.mark.parametrize("ending", PACKERS)
def test_compressed_tars_are_read_and_their_damage_is_told(ending, tmp_path):
    data = PACKERS[ending](shards.tar_bytes(shards.samples(5)))
    place = tmp_path / f"00000.tar.{ending}"
    place.write_bytes(data)
    reader = open_reader(str(tmp_path), RULES)
    samples, rejects = shards.read(reader)
    assert [sample.key for sample in samples] == [f"{i:05d}" for i in range(5)]
    assert rejects == []
    for cut in (3, len(data) // 3, len(data) - 9):
        place.write_bytes(data[:cut])
        torn, rejects = shards.read(open_reader(str(place), RULES))
        assert torn == samples[: len(torn)]
        assert [reject.error_class for reject in rejects] == ["shard_truncated"]
    place.write_bytes(data[: len(data) // 2] + b"\xff" * 40 + data[len(data) // 2 + 40 :])
    if ending != "zst":  # its frames have no checksum unless asked for
        torn, rejects = shards.read(open_reader(str(place), RULES))
        assert len(torn) < 5
        assert rejects[-1].error_class == "shard_truncated"


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.mark.parametrize("name", ["00000.tar", "00000.parquet"])
def test_a_pointer_of_git_lfs_is_named_with_its_remedy(name, tmp_path):
    (tmp_path / name).write_bytes(POINTER)
    reader = open_reader(str(tmp_path), RULES)
    with pytest.raises(InputError, match=rf"{name}: a pointer of Git LFS, not the file\. Run: git lfs pull"):
        shards.read(reader)


def test_pointers_of_git_lfs_in_the_place_of_images_and_captions(tmp_path):
    members = [("a.jpg", POINTER), ("a.txt", b"c"), ("b.jpg", JPEG), ("b.txt", POINTER)]
    reader = open_reader(shards.write_files(tmp_path, members), RULES)
    rejects = shards.read(reader)[1]
    assert [(reject.key, reject.error_class) for reject in rejects] == [
        ("a", "git_lfs_pointer"),
        ("b", "git_lfs_pointer"),
    ]
    assert all("git lfs pull" in reject.message for reject in rejects)


def test_an_unsorted_tar_is_told_as_one(tmp_path):
    members = [(f"{i}.jpg", JPEG) for i in range(3)] + [(f"{i}.txt", b"c") for i in range(3)]
    rejects = shards.read(open_reader(shards.write_tar(tmp_path / "a.tar", members), RULES))[1]
    assert [reject.error_class for reject in rejects] == ["caption_missing"] * 3 + ["members_apart"] * 3
    assert rejects[3].message.startswith(
        "its image came earlier, apart from it: the members of a sample must be next to"
    )


def test_images_and_captions_in_folders_of_their_own_are_told_of_each_other(tmp_path):
    members = [(f"captions/{i}.txt", b"c") for i in range(2)] + [(f"images/{i}.jpg", JPEG) for i in range(2)]
    rejects = shards.read(open_reader(shards.write_tar(tmp_path / "a.tar", members), RULES))[1]
    assert [reject.error_class for reject in rejects] == ["image_missing"] * 2 + ["caption_missing"] * 2
    said = "no caption; 'captions/0' has the other half: samples are paired by the whole path, and the folders differ"
    assert rejects[2].message == said


def test_what_macos_leaves_beside_shards_is_no_shard(tmp_path):
    shards.write_shards(tmp_path, shards=2, per_shard=1)
    others = ["._00000.tar", ".DS_Store", "00000.json", "README"]
    shards.write_files(tmp_path, [(name, b"") for name in others])
    for place in (tmp_path, f"{tmp_path}/*.tar"):
        assert [shard.name for shard in open_reader(str(place), RULES).shards(())] == ["00000.tar", "00001.tar"]
    accounts = open_reader(str(tmp_path), RULES).survey(()).accounts
    assert (accounts.seen, accounts.used) == (6, 2)
    assert accounts.passed_over == {"companion": 1, "hidden": 2, "no_extension": 1}
    assert accounts.said() == "3 files passed over: 2 hidden (.DS_Store), 1 without extension (README)"


def test_a_key_with_too_many_bytes_to_hold_is_counted_as_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(grouping, "_MOST_BYTES", 1000)
    names = [f"day.{name}.{ending}" for name in ("a", "b", "c") for ending in ("jpg", "png")] + ["day.d.txt", "day.txt"]
    place = shards.write_tar(tmp_path / "a.tar", [(name, bytes(600)) for name in names])
    reader = open_reader(place, RULES)
    (shard,) = reader.shards(())
    read, counted = Ledger(reader.unit), Ledger(reader.unit)
    list(reader.read(shard, shards.Digest(), read))
    reader.count(shard, counted)
    assert read.closed() == counted.closed()
    assert read.closed().add_up


def test_what_fetch_and_a_lock_leave_beside_shards_is_nothing_to_speak_of(tmp_path):
    shards.write_shards(tmp_path, shards=1, per_shard=1)
    shards.write_files(tmp_path, [(".lock", b"{}"), ("00000.parquet", b""), ("00000_stats.json", b"{}")])
    assert open_reader(str(tmp_path), RULES).survey(()).accounts.said() == ""
