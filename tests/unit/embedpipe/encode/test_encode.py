"""encode: every sample once, in order, committed shard by shard; continued only where it is the same run."""

import dataclasses
import json
import multiprocessing
import os
import shutil
import time
import uuid
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from embedpipe import files, manifest
from embedpipe.encode import EncoderConfig, batching, load_encoder
from embedpipe.encode.base import Embedded
from embedpipe.encode.batching import BatchingConfig
from embedpipe.encode.job import encode, plan_encode
from embedpipe.encode.pipeline import encode_shards
from embedpipe.errors import (
    DatasetError,
    DiskFull,
    EmptyInput,
    InputError,
    ModelError,
    OutputBusy,
    OutputUnwritable,
    RunMismatch,
)
from embedpipe.execute import Task, open_executor
from embedpipe.load import EmbeddingDataset
from embedpipe.lock import exclusive
from embedpipe.progress import TaskReport, silent
from embedpipe.read import SampleRules, open_reader
from embedpipe.types import Sample, SourceShard
from embedpipe.verify import verify
from tests import shards, tiny_clip


def encode_alone(reader, encoder, config):
    """The first input shard, gathered, and as an embedding shard; nothing is written."""
    (source, *_) = reader.shards(())
    made = []

    class Alone:
        def start(self, worker):
            return lambda desk: encode_shards(desk, reader, encoder, config, finish=lambda done: keep(desk, done))

    def keep(desk, gathered):
        made.append(gathered)
        desk.done(gathered.task, TaskReport())

    open_executor("inline", 1).run(Alone(), [Task(0, source.name, source)], silent)
    return made[0], made[0].shard(encoder.card.dtype, {})


@dataclasses.dataclass
class Ready:
    """Embeddings that need not be waited for."""

    made: Embedded

    def wait(self):
        return self.made


def rows(out, name, number=0):
    path = Path(out) / name / f"{name}_{number:05d}.parquet"
    return pq.read_table(path).to_pylist() if path.exists() else []


BAD = [
    *shards.sample(0),
    ("text.jpg", b"no picture"),
    ("text.txt", b"a caption"),
    *shards.sample(1),
    ("cut.jpg", shards.jpeg(5)[:300]),
    ("cut.txt", b"a caption"),
    ("mute.jpg", shards.jpeg(6)),
    ("zero.jpg", b""),
    ("zero.txt", b"a caption"),
    *shards.sample(0),
    *shards.sample(2),
]


def test_rows_are_in_input_order_and_rejects_keep_their_reason(tmp_path, encode_config):
    source = shards.write_tar(tmp_path / "in.tar", BAD)
    out = str(tmp_path / "emb")
    report = encode(source, out, encode_config(stage={"batch_size": 2}))
    assert (report.report.rows, report.report.rejected) == (report.rows, report.rejected) == (3, 5)
    assert [(row["key"], row["src_index"]) for row in rows(out, "metadata")] == [
        ("00000", 0),
        ("00001", 2),
        ("00002", 7),
    ]
    assert [(r["key"], r["src_index"], r["stage"], r["error_class"]) for r in rows(out, "errors")] == [
        ("text", 1, "decode", "image_undecodable"),
        ("cut", 3, "decode", "image_damaged"),
        ("mute", 4, "read", "caption_missing"),
        ("zero", 5, "read", "image_empty"),
        ("00000", 6, "read", "duplicate_key"),
    ]
    assert all(r["message"] and r["src_shard"] == "in.tar" for r in rows(out, "errors"))
    (entry,) = manifest.read_manifests(out, 5)
    assert (entry.rows_in, entry.rows_out, entry.rows_rejected) == (8, 3, 5)
    assert entry.rejects == {
        "caption_missing": 1,
        "duplicate_key": 1,
        "image_damaged": 1,
        "image_empty": 1,
        "image_undecodable": 1,
    }
    assert entry.source_sha256 == files.sha256(source)
    assert verify(out, shards.DEEP).whole


def test_metadata_says_what_was_encoded(encoded_once):
    _, out = encoded_once
    for number in range(3):
        for i, row in enumerate(rows(out, "metadata", number)):
            sample = number * 7 + i
            assert row["key"] == row["image_path"] == f"{sample:05d}"
            assert row["caption"] == shards.caption(sample)
            assert (row["width"], row["height"], row["number"], row["label"]) == (48, 40, sample, f"l{sample % 3}")
            assert (row["src_shard"], row["src_index"]) == (f"{number:05d}.tar", i)
            assert row["extra"] is None
    dataset = EmbeddingDataset(out)
    image, text = dataset.image.read(), dataset.text.read()
    assert np.abs(np.linalg.norm(image, axis=1) - 1).max() < 1e-3
    told = dataset.column("similarity").to_numpy()
    assert np.abs((image * text).sum(1) - told).max() < 2e-3


def test_a_shard_of_rejects_alone_has_no_arrays(tmp_path, encode_config):
    shards.write_shards(tmp_path / "in", shards=1, per_shard=2)
    shards.write_tar(tmp_path / "in" / "00001.tar", [("x.jpg", b"bad"), ("x.txt", b"c"), ("y.jpg", shards.jpeg())])
    shards.write_tar(tmp_path / "in" / "00002.tar", [])
    out = tmp_path / "emb"
    encode(str(tmp_path / "in"), str(out), encode_config())
    for folder in ("img_emb", "text_emb", "metadata"):
        assert len(list((out / folder).iterdir())) == 1, folder
    assert [entry.rows_out for entry in manifest.read_manifests(str(out), 5)] == [2, 0, 0]
    assert [r["error_class"] for r in rows(out, "errors", 1)] == ["image_undecodable", "caption_missing"]
    assert verify(str(out), shards.DEEP).whole
    assert len(EmbeddingDataset(str(out))) == 2


def test_a_torn_shard_keeps_what_precedes_the_tear(tmp_path, encode_config):
    data = shards.tar_bytes(shards.samples(5))
    (tmp_path / "in.tar").write_bytes(data[: len(data) // 3])
    out = str(tmp_path / "emb")
    encode(str(tmp_path / "in.tar"), out, encode_config())
    kept = [row["key"] for row in rows(out, "metadata")]
    assert kept
    assert kept == [f"{i:05d}" for i in range(len(kept))]
    assert [r["error_class"] for r in rows(out, "errors")] == ["shard_truncated"]


def test_each_distinct_caption_is_encoded_once(tmp_path, tiny_encoder):
    seen = []

    class Counting:
        card = tiny_encoder.card
        prepare = tiny_encoder.prepare

        def images(self, pixels):
            return tiny_encoder.images(pixels)

        def texts(self, captions):
            seen.extend(captions)
            return tiny_encoder.texts(captions)

    reader = open_reader(shards.write_shards(tmp_path, shards=1, per_shard=40), SampleRules())
    _, made = encode_alone(reader, Counting(), BatchingConfig(batch_size=7))
    captions = [shards.caption(i) for i in range(40)]
    assert sorted(seen) == sorted(set(captions))
    expected = tiny_encoder.texts(captions).rows
    assert np.abs(made.text.astype(np.float32) - expected).max() < 1e-3


def test_embeddings_that_are_not_finite_are_rejects(tmp_path, tiny_encoder):
    class Broken:
        card = tiny_encoder.card
        prepare = tiny_encoder.prepare

        def images(self, pixels):
            made = tiny_encoder.images(pixels).wait()
            made.rows[1] = np.nan
            return Ready(made)

        def texts(self, captions):
            made = tiny_encoder.texts(captions)
            made.rows[[caption == shards.caption(3) for caption in captions]] = np.inf
            return made

    reader = open_reader(shards.write_shards(tmp_path, shards=1, per_shard=6), SampleRules())
    gathered, made = encode_alone(reader, Broken(), BatchingConfig())
    assert made.metadata["key"] == ["00000", "00002", "00004", "00005"]
    assert [(r.key, r.error_class) for r in made.rejects] == [
        ("00001", "embedding_nonfinite"),
        ("00003", "embedding_nonfinite"),
    ]
    assert made.image.shape == made.text.shape == (4, 16)
    assert gathered.rows_in == 6


def test_one_side_alone(tmp_path, encode_config):
    source = shards.write_tar(tmp_path / "in.tar", [*shards.samples(2), ("mute.jpg", shards.jpeg(9)), ("t.txt", b"t")])
    for stage, keys, columns in (
        ({"texts": False}, ["00000", "00001", "mute"], (True, False)),
        ({"images": False}, ["00000", "00001", "t"], (False, True)),
    ):
        out = str(tmp_path / str(columns))
        encode(source, out, encode_config(stage=stage))
        dataset = EmbeddingDataset(out)
        assert dataset.keys() == keys
        assert (dataset.image is not None, dataset.text is not None) == columns
        assert dataset.column("similarity").null_count == 3
        assert verify(out, shards.DEEP).whole
    with pytest.raises(InputError, match="nothing to encode"):
        encode(source, str(tmp_path / "none"), encode_config(stage={"texts": False, "images": False}))


def test_loose_files_and_tars_of_the_same_samples_give_the_same_rows(tmp_path, encode_config):
    members = shards.samples(5)
    encode(shards.write_tar(tmp_path / "a.tar", members), str(tmp_path / "1"), encode_config())
    encode(shards.write_files(tmp_path / "loose", members), str(tmp_path / "2"), encode_config(samples_per_shard=2))
    one, two = EmbeddingDataset(str(tmp_path / "1")), EmbeddingDataset(str(tmp_path / "2"))
    assert one.keys() == two.keys()
    assert [len(shard.manifest.source.members) for shard in two.shards] == [6, 6, 3]
    assert np.abs(one.image.read() - two.image.read()).max() < 1e-3


def test_an_output_in_memory_reads_back(encoded_once, encode_config):
    source, out = encoded_once
    place = f"memory://{uuid.uuid4().hex}/emb"
    encode(source, place, encode_config())
    assert verify(place, shards.DEEP).whole
    here, there = EmbeddingDataset(out), EmbeddingDataset(place)
    assert there.keys() == here.keys()
    assert np.array_equal(there.image[:], here.image[:])
    assert encode(source, place, encode_config()).report.tasks == 0


def test_input_in_memory(encoded_once, encode_config, tmp_path):
    source, out = encoded_once
    base = f"memory://{uuid.uuid4().hex}"
    for name in ("00000.tar", "00001.tar", "00002.tar"):
        files.write_bytes(f"{base}/{name}", (Path(source) / name).read_bytes())
    encode(f"{base}/*.tar", str(tmp_path / "emb"), encode_config())
    assert np.array_equal(EmbeddingDataset(str(tmp_path / "emb")).image[:], EmbeddingDataset(out).image[:])


def test_the_float32_output_is_float32(tmp_path, encode_config):
    encode(
        shards.write_tar(tmp_path / "a.tar", shards.samples(2)), str(tmp_path / "emb"), encode_config(dtype="float32")
    )
    assert np.load(tmp_path / "emb" / "img_emb" / "img_emb_00000.npy").dtype == np.float32
    assert verify(str(tmp_path / "emb"), shards.DEEP).whole


# The same command again.


@pytest.fixture
def run(encoded_once, encoded, encode_config):
    """(input of one's own, output of one's own); the input is a copy with the same times, at the same names."""
    source, _ = encoded_once
    copy = encoded.parent / "shards"
    shutil.copytree(source, copy)
    return copy, encoded


def test_again_with_nothing_to_do_changes_nothing(encoded_once, encoded, encode_config):
    before = {path: path.stat().st_mtime_ns for path in encoded.rglob("*.npy")}
    report = encode(encoded_once[0], str(encoded), encode_config())
    assert (report.planned, report.already, report.report.tasks, report.rows) == (3, 3, 0, 21)
    assert {path: path.stat().st_mtime_ns for path in encoded.rglob("*.npy")} == before
    assert shards.tree(encoded) == shards.tree(encoded_once[1])


def test_only_the_shard_without_a_manifest_is_redone(encoded_once, encoded, encode_config):
    (encoded / "manifest" / "00001.json").unlink()
    (encoded / "img_emb" / "img_emb_00001.npy").write_bytes(b"half of")
    (encoded / "img_emb" / "img_emb_00001.npy.tmp-77-abc").write_bytes(b"left behind")
    report = encode(encoded_once[0], str(encoded), encode_config())
    assert (report.already, report.report.tasks, report.redone) == (2, 1, ())
    assert shards.tree(encoded) == shards.tree(encoded_once[1])


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_data_file_cut_short_is_redone_and_told(damage, encoded_once, encoded, encode_config):
    path = encoded / "text_emb" / "text_emb_00002.npy"
    path.write_bytes(path.read_bytes()[:-1]) if damage == "cut" else path.unlink()
    report = encode(encoded_once[0], str(encoded), encode_config())
    assert report.redone == ("00002.tar",)
    assert report.report.tasks == 1
    assert shards.tree(encoded) == shards.tree(encoded_once[1])


def test_files_of_shards_that_were_never_committed_are_swept(run, encode_config):
    source, out = run
    (out / "manifest" / "00001.json").unlink()
    shards.write_tar(source / "00001.tar", [("x.jpg", b"bad"), ("x.txt", b"c")])
    stranger = out / "img_emb" / "mine.npy"
    stranger.write_bytes(b"")
    encode(str(source), str(out), encode_config())
    assert sorted(path.name for path in (out / "img_emb").iterdir()) == [
        "img_emb_00000.npy",
        "img_emb_00002.npy",
        "mine.npy",
    ]
    assert not (out / "metadata" / "metadata_00001.parquet").exists()
    assert verify(str(out), shards.DEEP).whole


def test_a_touched_shard_with_the_same_bytes_is_accepted(run, encode_config):
    source, out = run
    before = shards.tree(out, ["embedpipe.json"])
    os.utime(source / "00001.tar", (1, 1))
    assert encode(str(source), str(out), encode_config()).report.tasks == 0
    assert shards.tree(out, ["embedpipe.json"]) == before
    assert encode(str(source), str(out), encode_config()).report.tasks == 0


def test_a_changed_shard_is_refused_and_named(run, encode_config):
    source, out = run
    before = shards.tree(out)
    changed = bytearray((source / "00001.tar").read_bytes())
    changed[2000] ^= 1
    (source / "00001.tar").write_bytes(changed)
    with pytest.raises(RunMismatch, match=r"input shard 00001\.tar changed.*manifest/00001\.json"):
        encode(str(source), str(out), encode_config())
    shards.write_tar(source / "00001.tar", shards.samples(3))
    with pytest.raises(RunMismatch, match=r"00001\.tar changed"):
        encode(str(source), str(out), encode_config())
    assert shards.tree(out) == before


def test_a_shard_that_changed_before_it_was_encoded_is_encoded_as_it_is(run, encode_config):
    source, out = run
    (out / "manifest" / "00001.json").unlink()
    shards.write_tar(source / "00001.tar", shards.samples(3, first=50))
    assert encode(str(source), str(out), encode_config()).report.rows == 3
    assert [row["key"] for row in rows(out, "metadata", 1)] == ["00050", "00051", "00052"]
    assert verify(str(out), shards.DEEP).whole
    assert encode(str(source), str(out), encode_config()).report.tasks == 0


def test_new_tars_are_appended_whatever_their_names_sort_like(run, encode_config):
    source, out = run
    before = shards.tree(out, ["embedpipe.json"])
    shards.write_tar(source / "0.tar", shards.samples(2, first=100))
    report = encode(str(source), str(out), encode_config())
    assert (report.planned, report.already, report.report.tasks, report.rows) == (4, 3, 1, 23)
    after = shards.tree(out, ["embedpipe.json"])
    assert {name: after[name] for name in before} == before
    assert [row["src_shard"] for row in rows(out, "metadata", 3)] == ["0.tar"] * 2


def test_a_vanished_tar_is_told_and_its_embeddings_are_kept(run, encode_config):
    source, out = run
    before = shards.tree(out, ["embedpipe.json"])
    (source / "00000.tar").unlink()
    report = encode(str(source), str(out), encode_config())
    assert report.vanished == ("00000.tar",)
    assert shards.tree(out, ["embedpipe.json"]) == before
    path = out / "text_emb" / "text_emb_00000.npy"
    path.write_bytes(path.read_bytes()[:-1])
    encode(str(source), str(out), encode_config())
    assert (out / "img_emb" / "img_emb_00000.npy").exists()
    assert [fault.number for fault in verify(str(out), shards.DEEP).faults] == [0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": "other"}, "another encoder: weights_sha256 was"),
        ({"dtype": "float32"}, 'another encoder: dtype was "float16", now "float32"'),
        ({"stage": {"texts": False}}, "another set of options: texts was true, now false"),
        ({"stage": {"max_pixels": 99}}, "max_pixels was 100000000, now 99"),
        ({"caption_key": "alt"}, 'caption_key was not set, now "alt"'),
    ],
)
def test_another_run_is_refused_with_what_differs(change, said, encoded_once, encoded, encode_config, other_model):
    before = shards.tree(encoded)
    options = {**change, **({"model": other_model} if "model" in change else {})}
    with pytest.raises(RunMismatch) as caught:
        encode(encoded_once[0], str(encoded), encode_config(**options))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert shards.tree(encoded) == before


def test_other_data_of_the_same_names_is_refused(tmp_path, encoded, encode_config):
    for i in range(3):
        shards.write_tar(tmp_path / "else" / f"{i:05d}.tar", shards.samples(2, first=90))
    with pytest.raises(RunMismatch, match=r"00000\.tar changed"):
        encode(str(tmp_path / "else"), str(encoded), encode_config())


def test_an_output_in_use_is_refused(encoded_once, encoded, encode_config):
    with exclusive(str(encoded)), pytest.raises(OutputBusy):
        encode(encoded_once[0], str(encoded), encode_config())


def test_the_callers_torch_has_as_many_threads_as_before(encoded_once, tmp_path, encode_config):
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        encode(encoded_once[0], str(tmp_path / "emb"), encode_config(threads_per_worker=1))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_options_that_do_not_shape_the_data_may_change(encoded_once, encoded, encode_config):
    (encoded / "manifest" / "00000.json").unlink()
    config = encode_config(executor="inline", stage={"batch_size": 3, "decode_threads": 4})
    assert encode(encoded_once[0], str(encoded), config).report.tasks == 1
    assert EmbeddingDataset(str(encoded)).keys() == EmbeddingDataset(encoded_once[1]).keys()


def test_manifests_without_a_run_card_are_not_overwritten(encoded_once, encoded, encode_config):
    (encoded / "embedpipe.json").unlink()
    with pytest.raises(RunMismatch, match=r"has manifests but no embedpipe\.json"):
        encode(encoded_once[0], str(encoded), encode_config())


def test_a_dry_run_knows_the_plan_and_touches_nothing(run, encode_config, tmp_path):
    source, out = run
    (out / "manifest" / "00001.json").unlink()
    shards.write_tar(source / "0.tar", shards.samples(1))
    (source / "00002.tar").unlink()
    before = shards.tree(out)
    change, todo = plan_encode(str(source), str(out), encode_config())
    assert (todo, change.added, change.vanished) == ([1, 3], 1, (2,))
    assert shards.tree(out) == before
    assert plan_encode(str(source), str(tmp_path / "new"), encode_config())[1] == [0, 1, 2]
    assert not (tmp_path / "new").exists()


def test_input_that_holds_nothing_is_told(tmp_path, encode_config):
    shards.write_tar(tmp_path / "in" / "0.tar", [])
    with pytest.raises(EmptyInput, match="no usable sample in 1 shard"):
        encode(str(tmp_path / "in"), str(tmp_path / "emb"), encode_config())
    with pytest.raises(InputError, match="no such file or folder"):
        encode(str(tmp_path / "nothing"), str(tmp_path / "emb"), encode_config())


def test_metadata_fixed_columns_hold_across_shards(tmp_path, encode_config):
    def sample(key, metadata):
        return [(f"{key}.jpg", shards.jpeg(1)), (f"{key}.json", json.dumps(metadata).encode()), (f"{key}.txt", b"c")]

    first = sample("a", {"n": 1, "f": 0.5, "s": "x", "url": "http://u", "key": "other"})
    second = sample("b", {"n": "two", "f": 10**400, "s": 3, "url": 7, "new": [1], "\ud800": 1, "extra": "e"})
    shards.write_tar(tmp_path / "in" / "0.tar", first)
    shards.write_tar(tmp_path / "in" / "1.tar", second)
    out = tmp_path / "emb"
    encode(str(tmp_path / "in"), str(out), encode_config())
    tables = [pq.read_table(out / "metadata" / f"metadata_0000{i}.parquet") for i in range(2)]
    assert tables[0].schema == tables[1].schema
    one, two = (table.to_pylist()[0] for table in tables)
    assert (one["n"], one["f"], one["s"], one["url"]) == (1, 0.5, "x", "http://u")
    assert json.loads(one["extra"]) == {"key": "other"}
    assert (two["n"], two["f"], two["s"], two["url"]) == (None, None, "3", None)
    assert json.loads(two["extra"]) == {"n": "two", "f": 10**400, "url": 7, "new": [1], "\ud800": 1, "extra": "e"}


def test_memory_does_not_hold_all_pictures_at_once(tmp_path, tiny_encoder, monkeypatch):
    begun, encoded_rows, most = [], [], []
    real = batching.guarded_decode

    def decode(*given, **more):
        begun.append(1)
        most.append(len(begun) - len(encoded_rows))
        return real(*given, **more)

    class Slow:
        card = tiny_encoder.card
        prepare = tiny_encoder.prepare

        def images(self, pixels):
            time.sleep(0.02)
            encoded_rows.extend([1] * len(pixels))
            return tiny_encoder.images(pixels)

        texts = tiny_encoder.texts

    monkeypatch.setattr(batching, "guarded_decode", decode)
    reader = open_reader(shards.write_shards(tmp_path, shards=1, per_shard=80), SampleRules())
    encode_alone(reader, Slow(), BatchingConfig(batch_size=4))
    assert len(begun) == 80
    assert max(most) <= 6 * 4 + 2  # under way, in the making, two waiting, in the model, and those in a thread's hand


def test_memory_does_not_hold_many_large_files(tmp_path, tiny_encoder, monkeypatch):
    """Files that are large and cheap to refuse wait for their turn on disk."""
    size, read, decoded, most = 1 << 20, [], [], []
    monkeypatch.setattr(batching, "_BYTES_AHEAD", 3 * size)
    real = batching.guarded_decode

    def decode(data, *given, **more):
        time.sleep(0.01)
        decoded.append(len(data))
        return real(data, *given, **more)

    class Counting:
        unit = "member"

        def shards(self, known):
            return [SourceShard("0", 0, "")]

        def read(self, shard, digest, ledger):
            for i in range(30):
                read.append(size)
                most.append(sum(read) - sum(decoded))
                yield Sample(f"{i}", i, shards.jpeg() + bytes(size - len(shards.jpeg())), "a caption")

    monkeypatch.setattr(batching, "guarded_decode", decode)
    _, made = encode_alone(Counting(), tiny_encoder, BatchingConfig(batch_size=64))
    assert len(made.metadata["key"]) == 30
    assert max(most) <= 5 * size  # as much as there is room for, one in the reader's hand and one just decoded


def test_a_shard_is_read_while_the_one_before_is_written(tmp_path, tiny_encoder, monkeypatch):
    reader = open_reader(shards.write_shards(tmp_path, shards=3, per_shard=6), SampleRules())
    decoded, when_written = [], []
    real = batching.guarded_decode
    monkeypatch.setattr(batching, "guarded_decode", lambda *given, **more: decoded.append(1) or real(*given, **more))

    class Work:
        def start(self, worker):
            return lambda desk: encode_shards(desk, reader, tiny_encoder, BatchingConfig(batch_size=3), written(desk))

    def written(desk):
        def finish(gathered):
            until = time.monotonic() + 600
            while len(decoded) < min(18, 6 * gathered.task.number + 12) and time.monotonic() < until:
                time.sleep(0.01)
            when_written.append((gathered.task.number, len(decoded)))
            desk.done(gathered.task, TaskReport(tasks=1))

        return finish

    tasks = [Task(number, shard.name, shard) for number, shard in enumerate(reader.shards(()))]
    assert open_executor("inline", 1).run(Work(), tasks, silent).report.tasks == 3
    assert [number for number, _ in when_written] == [0, 1, 2]
    assert [count for _, count in when_written] >= [12, 18, 18]


def test_what_a_killed_worker_left_half_written_is_gone_at_the_end(tmp_path, encode_config):
    source = shards.write_shards(tmp_path / "in", shards=2, per_shard=4)
    left = tmp_path / "emb" / "metadata" / "metadata_00000.parquet.tmp-1-abc"

    def listen(step):
        if step.rows and not left.exists():
            left.parent.mkdir(exist_ok=True)
            left.write_bytes(b"half")

    encode(source, str(tmp_path / "emb"), encode_config(), listen)
    assert sorted(path.name for path in left.parent.iterdir()) == ["metadata_00000.parquet", "metadata_00001.parquet"]


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])  # each of two imports torch anew
def test_an_output_that_cannot_be_written_ends_the_run_at_once(tmp_path, encode_config, workers):
    """Also where a worker waits for its next shard while the last one fails to be written."""
    source = shards.write_shards(tmp_path / "in", shards=6, per_shard=4)
    (tmp_path / "emb").mkdir()
    (tmp_path / "emb" / "metadata").write_bytes(b"in the way")
    with pytest.raises(OutputUnwritable, match="metadata"):
        encode(source, str(tmp_path / "emb"), encode_config(workers=workers))
    assert manifest.committed_numbers(str(tmp_path / "emb")) == []
    assert multiprocessing.active_children() == []
    (tmp_path / "emb" / "metadata").unlink()
    assert encode(source, str(tmp_path / "emb"), encode_config()).rows == 24


def test_a_disk_that_fails_ends_the_run_with_what_is_committed_whole(tmp_path, encode_config, monkeypatch):
    source = shards.write_shards(tmp_path / "in", shards=5, per_shard=4)
    real = manifest.commit

    def commit(root, entry, digits):
        if entry.number == 2:
            raise DiskFull("no room", "Free some")
        real(root, entry, digits)

    monkeypatch.setattr(manifest, "commit", commit)
    out = str(tmp_path / "emb")
    with pytest.raises(DiskFull, match="no room"):
        encode(source, out, encode_config(executor="inline"))
    assert manifest.committed_numbers(out) == [0, 1]
    monkeypatch.undo()
    assert encode(source, out, encode_config()).rows == 20


# Models.


@pytest.mark.slow
def test_a_compiled_tower_gives_the_same_rows_and_says_what_it_took(tmp_path, encode_config):
    source = shards.write_shards(tmp_path / "in", shards=2, per_shard=11)  # batches of 8 and of 3
    config = encode_config(dtype="float32")
    encode(source, str(tmp_path / "plain"), config)
    config = dataclasses.replace(config, encoder=dataclasses.replace(config.encoder, compile=True))
    report = encode(source, str(tmp_path / "compiled"), config)
    plain, compiled = (EmbeddingDataset(str(tmp_path / name)).image.read() for name in ("plain", "compiled"))
    assert np.abs(plain - compiled).max() < 1e-5
    assert report.report.spent_s["compile"] > 0


@pytest.mark.parametrize(
    ("model", "pretrained", "said"),
    [
        ("ViT-B32", "openai", "no model 'ViT-B32'.*ViT-B-32"),
        ("ViT-B-32", "", "no weights given.*`pretrained`"),
        ("ViT-B-32", "opnai", "no pretrained tag or checkpoint file 'opnai'.*openai"),
        ("local-dir:/nowhere", "", r"no open_clip_config\.json"),
        ("{tiny}", "openai", "brings its own weights"),
    ],
)
def test_a_wrong_model_is_named_with_the_near_ones(model, pretrained, said, tiny_model):
    with pytest.raises(ModelError, match=said):
        load_encoder(EncoderConfig(model.format(tiny=tiny_model), pretrained))


def test_an_unknown_encoder_is_named():
    with pytest.raises(ModelError, match="no encoder 'openclip'.*open_clip"):
        load_encoder(EncoderConfig("x", encoder="openclip"))


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "open_clip_config.json").write_text("{"),
        lambda folder: (folder / "open_clip_config.json").write_text("{}"),
        lambda folder: (folder / "open_clip_config.json").write_text('{"model_cfg": {"embed_dim": 4}}'),
        lambda folder: (folder / "open_clip_config.json").write_text('{"model_cfg": [], "preprocess_cfg": {}}'),
        lambda folder: (folder / "open_clip_model.safetensors").write_bytes(b"\0" * 100),
        lambda folder: (folder / "open_clip_model.safetensors").write_bytes(b""),
        lambda folder: os.truncate(folder / "open_clip_model.safetensors", 5000),
        lambda folder: (folder / "open_clip_model.safetensors").unlink(),
        lambda folder: (
            tiny_clip.write(folder.parent / "x", tiny_clip.RESNET)
            and shutil.copy(folder.parent / "x" / "open_clip_model.safetensors", folder)
        ),
    ],
)
def test_a_damaged_model_folder_is_a_model_error(damage, tmp_path, tiny_model):
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    damage(folder)
    with pytest.raises(ModelError) as caught:
        load_encoder(EncoderConfig(str(folder)))
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_a_checkpoint_that_is_no_checkpoint_is_a_model_error(tmp_path):
    (tmp_path / "w.pt").write_bytes(b"no weights")
    with pytest.raises(ModelError, match="weights do not load"):
        load_encoder(EncoderConfig("RN50", str(tmp_path / "w.pt")))


def test_the_card_tells_models_apart(tiny_model, other_model, tiny_encoder):
    other = load_encoder(EncoderConfig(other_model, precision="fp32"))
    again = load_encoder(EncoderConfig(tiny_model, precision="fp32"))
    assert again.card == tiny_encoder.card
    assert other.card.fingerprint() != tiny_encoder.card.fingerprint()
    assert other.card.preprocess == tiny_encoder.card.preprocess
    assert np.array_equal(again.texts(["a cat"]).rows, tiny_encoder.texts(["a cat"]).rows)


@pytest.mark.parametrize("mean", [[0, 0, 0], 0, [0.5, 1, 0]])
def test_whole_numbers_in_a_model_configuration_do_not_part_a_run_from_itself(mean, tmp_path, encode_config):
    model = tiny_clip.write(tmp_path / "model", preprocess={"mean": mean, "std": [1, 1, 1], "size": 32})
    source, out = shards.write_shards(tmp_path / "in", shards=1, per_shard=2), str(tmp_path / "emb")
    encode(source, out, encode_config(model))
    assert len(EmbeddingDataset(out)) == 2
    assert encode(source, out, encode_config(model)).already == 1


def test_damage_of_a_manifest_is_named_when_the_run_goes_on(encoded_once, encoded, encode_config):
    (encoded / "manifest" / "00001.json").write_bytes(b"{")
    with pytest.raises(DatasetError, match=r"manifest/00001\.json: damaged"):
        encode(encoded_once[0], str(encoded), encode_config())


def test_auto_precision_goes_on_with_what_the_run_began_with(encoded_once, tmp_path, encode_config, monkeypatch):
    """The same command on a machine that would choose otherwise must not be refused."""
    source = shards.write_shards(tmp_path / "in", shards=1)
    out = str(tmp_path / "emb")
    begun = encode_config()
    encode(source, out, dataclasses.replace(begun, encoder=dataclasses.replace(begun.encoder, precision="bf16")))
    (tmp_path / "emb" / "manifest" / "00000.json").unlink()
    report = encode(
        source, out, dataclasses.replace(begun, encoder=dataclasses.replace(begun.encoder, precision="auto"))
    )
    assert report.report.tasks == 1
    assert manifest.read_run(out).encoder.precision == "bf16"
    with pytest.raises(RunMismatch, match='precision was "bf16", now "fp32"'):
        encode(source, out, begun)


@pytest.mark.parametrize("precision", ["fp8", "fp16"])
def test_a_precision_that_cannot_be_is_refused(precision, tmp_path, encode_config):
    source = shards.write_shards(tmp_path / "in", shards=1)
    config = encode_config()
    with pytest.raises(InputError, match="precision"):
        encode(
            source,
            str(tmp_path / "o"),
            dataclasses.replace(config, encoder=dataclasses.replace(config.encoder, precision=precision)),
        )
