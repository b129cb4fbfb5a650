"""Samples from loose files: numbers stay as the folder grows, and a change is noticed in the shard it belongs to."""

import hashlib
import shutil
import uuid
from pathlib import Path

import pytest

from embedpipe import files
from embedpipe.errors import EmptyInput, InputError
from embedpipe.read import SampleRules, open_reader
from embedpipe.read.folder import FolderReader
from embedpipe.shard_plan import grow_plan
from tests import shards

RULES = SampleRules()


def reader(folder, size=3):
    return FolderReader(str(folder), RULES, size)


def keys(found, shard):
    samples, rejects = shards.read(found, shard)
    assert rejects == []
    return [sample.key for sample in samples]


@pytest.fixture
def folder(tmp_path):
    return Path(shards.write_files(tmp_path / "data", shards.samples(7)))


def test_a_folder_without_tars_is_read_as_loose_files(folder):
    found = open_reader(str(folder), RULES, samples_per_shard=3)
    plan = found.shards(())
    assert [shard.name for shard in plan] == ["part-00000", "part-00001", "part-00002"]
    assert [keys(found, shard) for shard in plan] == [
        ["00000", "00001", "00002"],
        ["00003", "00004", "00005"],
        ["00006"],
    ]
    samples, _ = shards.read(found, plan[2])
    assert (samples[0].image, samples[0].caption, samples[0].metadata["number"]) == (
        shards.jpeg(6),
        shards.caption(6),
        6,
    )


def test_names_of_all_kinds_nested_at_will(tmp_path):
    names = ["a", "sub/b c", "sub/ü 猫", "x/y/z/w", "Dr. No", "2020.01.31 beach", "v1.2/pic"]
    for name in names:
        shards.write_files(tmp_path, shards.sample(1, key=name))
    shards.write_files(tmp_path, [(".hidden.jpg", b"x"), ("sub/.DS_Store", b"x"), ("readme.md", b"x"), ("noext", b"x")])
    found = reader(tmp_path, 100)
    (shard,) = found.shards(())
    assert keys(found, shard) == sorted(names)


def test_a_folder_in_memory():
    base = f"memory://{uuid.uuid4().hex}"
    for name, data in shards.samples(2):
        files.write_bytes(f"{base}/sub/{name}", data)
    found = open_reader(base, RULES)
    assert keys(found, found.shards(())[0]) == ["sub/00000", "sub/00001"]


def test_numbers_stay_as_the_folder_grows(folder):
    found = reader(folder)
    plan = grow_plan((), found.shards(())).shards
    shards.write_files(folder, shards.sample(50, key="00000a"))
    shards.write_files(folder, shards.sample(51, key="aaa"))
    change = grow_plan(plan, found.shards(plan))
    assert change.shards[:3] == plan
    assert (change.added, change.changed, change.vanished) == (1, (), ())
    assert [keys(found, shard) for shard in change.shards[3:]] == [["00000a", "aaa"]]
    shards.write_files(folder, shards.sample(52, key="bbb"))
    grown = grow_plan(change.shards, found.shards(change.shards))
    assert grown.shards[:4] == change.shards
    assert keys(found, grown.shards[4]) == ["bbb"]


def test_a_change_is_noticed_in_the_shard_it_belongs_to(folder):
    found = reader(folder)
    plan = grow_plan((), found.shards(())).shards
    (folder / "00004.txt").write_bytes(b"another caption, another length")
    assert grow_plan(plan, found.shards(plan)).changed == (1,)
    shards.write_files(folder, [("00000.png", shards.png(1))])
    assert grow_plan(plan, found.shards(plan)).changed == (0, 1)
    (folder / "00003.jpg").unlink()
    (folder / "00006.jpg").unlink()
    (folder / "00006.json").unlink()
    (folder / "00006.txt").unlink()
    change = grow_plan(plan, found.shards(plan))
    assert change.changed == (0, 1)
    assert change.vanished == (2,)


def test_the_digest_covers_names_and_bytes(folder):
    found = reader(folder)

    def digests():
        hashes = []
        for shard in found.shards(()):
            digest = hashlib.sha256()
            list(found.read(shard, digest))
            hashes.append(digest.hexdigest())
        return hashes

    before = digests()
    assert before == digests()
    (folder / "00000.jpg").touch()
    assert before == digests()
    (folder / "00006.txt").rename(folder / "00006.TXT")
    assert [a == b for a, b in zip(before, digests(), strict=True)] == [True, True, False]


def test_a_file_that_is_gone_is_one_reject_and_a_folder_that_is_gone_is_an_error(folder):
    found = reader(folder)
    shard = found.shards(())[0]
    (folder / "00001.jpg").unlink()
    (folder / "00002.json").unlink()
    samples, rejects = shards.read(found, shard)
    assert [sample.key for sample in samples] == ["00000"]
    assert [(reject.key, reject.error_class, reject.message) for reject in rejects] == [
        ("00001", "file_unreadable", "00001.jpg: no such file"),
        ("00002", "file_unreadable", "00002.json: no such file"),
    ]
    shutil.rmtree(folder)
    with pytest.raises(InputError, match="no such folder"):
        list(found.read(shard, shards.Digest()))


def test_an_output_of_ours_below_the_input_is_no_input(folder):
    plan = reader(folder).shards(())
    shards.write_files(folder / "emb", [("embedpipe.json", b"{}"), ("manifest/00000.json", b"{}"), ("x.png", b"1")])
    assert reader(folder).shards(()) == plan
    shards.write_files(folder, shards.sample(9, key="emb2/a"))
    assert len(reader(folder, 100).shards(())[0].members) == 24


def test_links_that_run_in_circles_end(folder):
    (folder / "again").symlink_to(folder)
    assert len(reader(folder, 10_000).shards(())) == 1


def test_a_folder_with_nothing_in_it(tmp_path):
    with pytest.raises(EmptyInput, match="no images"):
        open_reader(str(tmp_path), RULES).shards(())
    with pytest.raises(InputError, match="no such folder"):
        open_reader(str(tmp_path / "no"), RULES, "folder").shards(())
