"""`embedpipe encode`: exit codes, one line for each mistake, JSON for machines."""

import json
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from embedpipe_cli import display

from tests import shards


@pytest.fixture
def encode(embedpipe, tiny_model):
    def run(source, out, *options, model=tiny_model):
        return embedpipe("encode", source, out, "--model", model, "--gpus", 0, "--threads", 1, *options)

    return run


@pytest.fixture
def source(tmp_path):
    members = [*shards.samples(9), ("bad.jpg", b"x"), ("bad.txt", b"c")]
    shards.write_tar(tmp_path / "in" / "0.tar", members)
    return tmp_path / "in"


def test_it_tells_what_was_done_and_what_was_rejected(encode, source, tmp_path):
    result = encode(source, tmp_path / "emb")
    assert result.exit_code == 0, result.stderr
    assert "9 rows in 1 shard," in result.stdout
    assert "image_undecodable" in result.stdout
    again = encode(source, tmp_path / "emb")
    assert again.exit_code == 0
    assert "nothing to do" in again.stdout


def test_json_is_all_of_stdout(encode, source, tmp_path):
    result = encode(source, tmp_path / "emb", "--json")
    report = json.loads(result.stdout)
    assert (report["planned"], report["rows"], report["rejected"]) == (1, 9, 1)
    assert report["report"]["rejects"] == {"image_undecodable": 1}


@pytest.mark.parametrize(("limit", "code"), [("0", 3), ("1", 0), ("5%", 3), ("10%", 0), ("9.9%", 3), ("100%", 0)])
def test_too_many_rejects_are_exit_code_3_also_when_there_is_nothing_left_to_do(encode, source, tmp_path, limit, code):
    assert encode(source, tmp_path / "emb", "--max-rejects", limit).exit_code == code
    again = encode(source, tmp_path / "emb", "--max-rejects", limit)
    assert again.exit_code == code
    assert "nothing to do" in again.stdout
    said = f"too many rejects: 1 of 10 (10.0%), and --max-rejects allows {limit}"
    assert (said in again.stderr) is (code == 3)


def test_a_file_that_is_no_tar_is_warned_of(encode, source, tmp_path):
    (source / "1.tar").write_text("<html>not found</html>")
    result = encode(source, tmp_path / "emb")
    assert result.exit_code == 0
    assert "warning: 1 input shard cut short or damaged" in result.stderr


def test_samples_without_captions_are_explained(encode, tmp_path):
    members = [member for member in shards.samples(5) if not member[0].endswith((".txt", ".json"))]
    shards.write_tar(tmp_path / "in" / "0.tar", [*members, *shards.samples(1, first=5)])
    assert "--no-text encodes images without" in encode(tmp_path / "in", tmp_path / "emb").stderr


def test_it_says_that_the_model_is_being_loaded(encode, source, tmp_path, tiny_model, monkeypatch):
    monkeypatch.setattr(display, "_WORTH_SAYING_S", 0.001)
    assert f"encode: loading {tiny_model}\n" in encode(source, tmp_path / "emb").stderr


def test_a_dry_run_changes_nothing(encode, source, tmp_path):
    before = shards.tree(tmp_path)
    result = encode(source, tmp_path / "emb", "--dry-run")
    assert result.exit_code == 0
    plan = json.loads(result.stdout)
    assert (plan["shards"], plan["to_encode"]) == (1, [0])
    assert plan["config"]["stage"]["batch_size"] == 64
    assert shards.tree(tmp_path) == before
    assert not (tmp_path / "emb").exists()


def test_what_is_amiss_is_warned_of(encode, source, tmp_path):
    shards.write_tar(source / "1.tar", shards.samples(2))
    encode(source, tmp_path / "emb")
    (source / "1.tar").unlink()
    (tmp_path / "emb" / "img_emb" / "img_emb_00000.npy").unlink()
    result = encode(source, tmp_path / "emb")
    assert result.exit_code == 0
    assert "warning: the files of 0.tar were missing or cut short" in result.stderr
    assert "warning: input shard 1.tar is no longer there" in result.stderr


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--input", "tar"], 2, "no input format 'tar'"),
        (["--format", "nyp"], 2, "no storage format 'nyp'"),
        (["--executor", "threads"], 2, "no executor 'threads'"),
        (["--no-image", "--no-text"], 2, "nothing to encode"),
        (["--pretrained", "openai"], 1, "brings its own weights"),
        (["--gpus", "99"], 1, "99 GPUs asked for"),
    ],
)
def test_a_refusal_is_one_line_and_leaves_nothing(encode, source, tmp_path, options, code, said):
    result = encode(source, tmp_path / "new" / "emb", *options)
    assert result.exit_code == code
    assert said in result.stderr
    assert not (tmp_path / "new").exists()
    assert len(result.stderr.splitlines()) == 1


def test_wrong_places_are_one_line_and_exit_code_1(encode, source, tmp_path, other_model):
    encode(source, tmp_path / "emb")
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    for result, said in (
        (encode(tmp_path / "no", tmp_path / "x"), "no: no such file or folder"),
        (encode(tmp_path / "empty", tmp_path / "x"), "no images in it"),
        (encode(tmp_path / "file", tmp_path / "x"), "no usable sample"),
        (encode(source, tmp_path / "file"), "a file is there"),
        (encode(source, tmp_path / "x", model="ViT-B-33"), "no model 'ViT-B-33'"),
        (encode(source, tmp_path / "x", model=tmp_path / "gone"), "gone: no such folder"),
        (encode(source, tmp_path / "emb", model=other_model), "was made with another encoder"),
        (encode(source, tmp_path / "emb", "--caption-key", "alt"), 'caption_key was not set, now "alt"'),
    ):
        assert result.exit_code == 1, said
        assert said in result.stderr
        assert len(result.stderr.splitlines()) == 1
        assert "internal error" not in result.stderr


# Seeing it work.


def test_json_tells_rates_shares_of_time_rejects_and_what_was_set_aside(encode, tmp_path):
    for i in range(2):
        shards.write_table(
            tmp_path / "in" / f"{i}.parquet", shards.table(4, 4 * i, image=[shards.jpeg(i)] * 3 + [b"x"])
        )
    (tmp_path / "in" / "torn.parquet").write_bytes(b"PAR1")
    result = encode(tmp_path / "in", tmp_path / "emb", "--json")
    assert result.exit_code == 3
    report = json.loads(result.stdout)
    assert (report["rows"], report["rejects"]) == (6, {"image_undecodable": 2})
    assert [aside["task"]["name"] for aside in report["failed_tasks"]] == ["torn.parquet"]
    assert "cannot be read as parquet" in report["failed_tasks"][0]["reason"]
    assert report["samples_per_s"] == pytest.approx(8 / report["seconds"])
    assert {"model", "write"} <= report["time_share"].keys()
    assert sum(report["time_share"].values()) == pytest.approx(1)


def test_verbose_says_what_each_worker_did(encode, source, tmp_path):
    shards.write_tar(source / "1.tar", shards.samples(4, first=100))
    quiet = encode(source, tmp_path / "1")
    assert "worker" not in quiet.stderr
    result = encode(source, tmp_path / "2", "--verbose")
    lines = [line for line in result.stderr.splitlines() if line.startswith("worker ")]
    assert len(lines) == 2
    said = r"worker 0: {}: {} samples{}, [\d.]+ s, [\d.,]+/s, .*model \d+%"
    assert re.match(said.format(r"0\.tar", 9, ", 1 rejected"), lines[0])
    assert re.match(said.format(r"1\.tar", 4, ""), lines[1])
    assert "time: " in result.stdout


def test_overwrite_begins_again(encode, source, tmp_path, other_model):
    encode(source, tmp_path / "emb")
    (tmp_path / "emb" / "notes.txt").write_bytes(b"mine")
    refused = encode(source, tmp_path / "emb", model=other_model)
    assert refused.exit_code == 1
    assert "--overwrite" in refused.stderr
    assert encode(source, tmp_path / "emb", "--overwrite", model=other_model).exit_code == 0
    assert (tmp_path / "emb" / "notes.txt").read_bytes() == b"mine"
    assert other_model in (tmp_path / "emb" / "embedpipe.json").read_text()


def test_a_run_past_hope_is_one_line_and_exit_code_3(encode, source, tmp_path):
    shards.write_tar(source / "1.tar", shards.samples(4))
    result = encode(source, tmp_path / "emb", "--max-rejects", "0")
    assert result.exit_code == 3
    assert len(result.stderr.splitlines()) == 1
    assert "1 of the first 10 samples were rejected (1 image_undecodable)" in result.stderr
    assert len(list((tmp_path / "emb" / "manifest").iterdir())) == 1


@pytest.mark.parametrize("workers", [1, 2])
def test_what_pillow_says_of_metadata_is_not_shown(workers, tmp_path, tiny_model, embedpipe_process):
    for number in range(2):
        palette = shards.pixels(number).quantize(16)
        odd = shards.encoded(palette, "PNG", transparency=bytes([0, 128, 255]))
        shards.write_tar(tmp_path / "in" / f"{number}.tar", [("a.png", odd), ("a.txt", b"a cat")])
    command = ("encode", tmp_path / "in", tmp_path / "emb", "--model", tiny_model, "--gpus", 0, "--workers", workers)
    process = embedpipe_process(*command)
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    assert "2 rows" in stdout
    assert "Warning" not in stderr


def test_columns_of_a_table_are_named_by_options(encode, tmp_path):
    table = shards.table(3, key=None, image=None, caption=None, id=["a", "b", "c"], alt=["x", "y", "z"])
    table = table.append_column("pic", [[shards.jpeg(i) for i in range(3)]])
    shards.write_table(tmp_path / "t.parquet", table)
    options = ("--image-col", "pic", "--caption-col", "alt", "--key-col", "id")
    assert encode(tmp_path / "t.parquet", tmp_path / "emb", *options).exit_code == 0
    assert pq.read_table(tmp_path / "emb" / "metadata" / "metadata_00000.parquet")["key"].to_pylist() == ["a", "b", "c"]
    refused = encode(tmp_path / "t.parquet", tmp_path / "emb", *options[:4])
    assert 'key_column was "id", now not set' in refused.stderr


def test_a_folder_of_a_model_beside_a_misspelled_name_is_named(embedpipe, tiny_model, tmp_path, monkeypatch):
    monkeypatch.chdir(Path(tiny_model).parent)
    wrong = f"{Path(tiny_model).name}y"
    refused = embedpipe("encode", tmp_path, tmp_path / "emb", "--model", wrong, "--gpus", 0)
    assert f"no model '{wrong}'. Did you mean the folder {Path(tiny_model).name}?" in refused.stderr
