"""`embedpipe export`: what it prints, plans and refuses."""

import json

import numpy as np
import pytest

from tests import embeddings


@pytest.fixture
def emb(tmp_path):
    rng = np.random.default_rng(0)
    return embeddings.write_dataset(tmp_path / "emb", rng.normal(size=(30, 8)), rng.normal(size=(30, 8)), 3)


def test_it_says_what_was_written_and_how_to_open_it(tmp_path, emb, embedpipe):
    done = embedpipe("export", emb, tmp_path / "out", "--to", "hf")
    assert done.exit_code == 0, done.stderr
    assert "30 rows in 3 parts, 3 files" in done.stdout
    assert f'opened by datasets.load_dataset("{tmp_path}/out")' in done.stdout
    again = embedpipe("export", emb, tmp_path / "out", "--to", "hf")
    assert "3 parts (3 of them were there already)" in again.stdout


def test_json_and_dry_run(tmp_path, emb, embedpipe):
    planned = json.loads(embedpipe("export", emb, tmp_path / "out", "--to", "datacomp", "--dry-run").stdout)
    assert (planned["rows"], planned["parts"], planned["to_write"]) == (30, 3, 3)
    assert planned["options"] == {"to": "datacomp", "dtype": "float16", "text_tokens": False, "model_name": "made_up"}
    assert not (tmp_path / "out").exists()
    report = json.loads(embedpipe("export", emb, tmp_path / "out", "--to", "datacomp", "--json").stdout)
    assert (report["rows"], report["files"], report["already"]) == (30, 6, 0)
    assert (
        json.loads(embedpipe("export", emb, tmp_path / "out", "--to", "datacomp", "--dry-run").stdout)["to_write"] == 0
    )


def test_only_the_rows_of_a_subset(tmp_path, emb, embedpipe):
    (tmp_path / "keys.txt").write_text("000029\n000003\n")
    options = ("--to", "clip-retrieval", "--keys", tmp_path / "keys.txt", "--embedding-dtype", "float32")
    assert embedpipe("export", emb, tmp_path / "out", *options).exit_code == 0
    found = [np.load(path) for path in sorted((tmp_path / "out" / "img_emb").iterdir())]
    assert [(len(rows), rows.dtype) for rows in found] == [(1, np.float32), (1, np.float32)]


def test_errors_are_one_line_with_a_remedy(tmp_path, emb, embedpipe):
    failed = embedpipe("export", emb, tmp_path / "out", "--to", "hugging")
    assert failed.exit_code == 2
    assert failed.stderr.count("\n") == 1
    assert failed.stderr.startswith("error: no layout 'hugging'")
    failed = embedpipe("export", emb, tmp_path, "--to", "hf")
    assert (failed.exit_code, failed.stderr.count("\n")) == (1, 1)
    assert "holds something else (emb). Give a new or empty output folder" in failed.stderr
    failed = embedpipe("export", tmp_path / "nowhere", tmp_path / "out", "--to", "hf")
    assert "nowhere: no such folder" in failed.stderr


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ((), "with --to: a layout, or images"),
        (("--to", "hf", "--images", "shards"), "--images is for --to images"),
        (("--images", "--splits", "valid=0.1"), "no options but --keys and --images"),
        (("--to", "hf", "--data", "shards"), "--images is for --to images"),
    ],
)
def test_options_that_do_not_go_together_are_usage_errors(tmp_path, emb, embedpipe, options, told):
    failed = embedpipe("export", emb, tmp_path / "out", *options)
    assert failed.exit_code == 2
    assert told in failed.stderr
    assert not (tmp_path / "out").exists()
