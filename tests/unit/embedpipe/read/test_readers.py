"""What holds for every reader in READERS: a new one is tested here before its own tests are written."""

import hashlib
import json
import pickle
import shutil
from pathlib import Path

import pytest

from embedpipe.errors import InputError
from embedpipe.read import READERS, LocalPaths, SampleRules
from embedpipe.read import open_reader as open_any
from embedpipe.types import Reject, Sample, SourceShard
from tests import shards

RULES = SampleRules()
FOLDERS = ("folder", "imagefolder")
LOOSE = (*FOLDERS, "paths")
COUNT = 6


def write(kind, folder, count=COUNT, first=0):
    """The same samples, as each reader wants them, in two shards of half as many."""
    half = count // 2
    if kind == "folder":
        shards.write_files(folder, shards.samples(count, first))
    if kind == "imagefolder":
        for i in range(first, first + count):
            shards.write_files(folder, [(f"{i:05d}.jpg", shards.jpeg(i))])
            row = {"file_name": f"{i:05d}.jpg", "text": shards.caption(i), "number": i, "label": f"l{i % 3}"}
            with (Path(folder) / "metadata.jsonl").open("a") as table:
                table.write(json.dumps(row) + "\n")
    if kind == "paths":
        shards.write_path_table(Path(folder) / f"{first:05d}.jsonl", count, first)
    for part in range(2) if kind not in LOOSE else ():
        begin = first + part * half
        if kind == "webdataset":
            shards.write_tar(Path(folder) / f"{begin:05d}.tar", shards.samples(half, begin))
        else:
            shards.write_table(Path(folder) / f"{begin:05d}.parquet", shards.table(half, begin), row_group_size=2)
    return str(folder)


def open_reader(data, rules, kind, samples_per_shard=10_000, named="auto"):
    """A table of local paths is read only where the user says so; all else is found without being named."""
    return open_any(data, rules, named, samples_per_shard, LocalPaths(".") if kind == "paths" else None)


@pytest.fixture(params=READERS)
def kind(request):
    return request.param


@pytest.fixture
def reader(kind, tmp_path):
    return open_reader(write(kind, tmp_path / "in"), RULES, kind, samples_per_shard=COUNT // 2)


def everything(reader, shard, digest=None):
    return list(reader.read(shard, digest or hashlib.sha256()))


def test_it_is_found_without_being_named(kind, reader):
    assert type(reader) is READERS[kind]


def test_samples_come_whole_and_in_order_with_keys_of_their_own(reader):
    plan = reader.shards(())
    assert len(plan) == 2
    assert len({shard.name for shard in plan}) == 2
    assert all(isinstance(shard, SourceShard) and shard.bytes > 0 and shard.modified for shard in plan)
    found = [everything(reader, shard) for shard in plan]
    assert found == [
        [
            Sample(f"{i:05d}", place, shards.jpeg(i), shards.caption(i), {"number": i, "label": f"l{i % 3}"})
            for place, i in enumerate(range(first, first + COUNT // 2))
        ]
        for first in (0, COUNT // 2)
    ]


def test_reading_twice_gives_the_same_and_a_copy_in_another_process_would(reader):
    copy = pickle.loads(pickle.dumps(reader))
    assert copy == reader
    for shard in reader.shards(()):
        one, two = hashlib.sha256(), hashlib.sha256()
        assert everything(reader, shard, one) == everything(copy, pickle.loads(pickle.dumps(shard)), two)
        assert one.digest() == two.digest()


def test_the_digest_covers_every_byte(kind, reader, tmp_path):
    class Bytes:
        def __init__(self):
            self.data = b""

        def update(self, data):
            self.data += data

    for shard in reader.shards(()):
        fed = Bytes()
        everything(reader, shard, fed)
        if kind == "paths":
            assert all(sample.image in fed.data for sample in everything(reader, shard))
            continue
        for path in shard.members or (shard.name,):
            stored = (tmp_path / "in" / path).read_bytes()
            assert stored in fed.data
            if kind not in FOLDERS:
                assert stored == fed.data


def test_known_shards_keep_their_names_as_the_input_grows(kind, reader, tmp_path):
    before = reader.shards(())
    write(kind, tmp_path / "in", 2, first=50)
    after = {shard.name: shard for shard in reader.shards(before)}
    assert [after[shard.name] for shard in before] == before
    assert len(after) > len(before)


def test_a_shard_that_is_gone_raises(kind, reader, tmp_path):
    (shard, _) = reader.shards(())
    if kind in FOLDERS:
        shutil.rmtree(tmp_path / "in")  # a single file would be a reject
    else:
        (tmp_path / "in" / shard.name.partition(":")[0]).unlink()
    with pytest.raises(InputError, match="no such f"):
        everything(reader, shard)


def test_input_that_is_not_there_raises(kind, tmp_path):
    with pytest.raises(InputError, match="no such"):
        open_reader(str(tmp_path / "no"), RULES, kind, named=kind).shards(())
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no .* (in it|files)"):
        open_reader(str(tmp_path / "empty"), RULES, kind, named=kind).shards(())


@pytest.mark.parametrize("asked", [{"need_caption": False}, {"need_image": False}])
def test_what_is_not_asked_for_is_not_given(kind, asked, tmp_path):
    reader = open_reader(write(kind, tmp_path / "in"), SampleRules(**asked), kind)
    found = [sample for shard in reader.shards(()) for sample in everything(reader, shard)]
    assert len(found) == COUNT
    assert not any(isinstance(sample, Reject) for sample in found)
    assert all((sample.image is None) == ("need_image" in asked) for sample in found)
    assert all((sample.caption is None) == ("need_caption" in asked) for sample in found)
