"""`embedpipe filter`: what it prints, as a table and as JSON, and that a dry run writes nothing."""

import json

import numpy as np
import pytest

from tests import embeddings


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    rng = np.random.default_rng(0)
    similarity = np.linspace(0, 0.58, 30)
    place = tmp_path_factory.mktemp("filter") / "emb"
    return embeddings.write_dataset(
        place, rng.normal(size=(30, 8)), rng.normal(size=(30, 8)), similarity=similarity, columns={"label": ["x"] * 30}
    )


def test_it_says_what_each_condition_drops(embedpipe, data, tmp_path):
    done = embedpipe("filter", data, tmp_path / "out", "--min-similarity", 0.2, "--where", "caption_length > 9")
    assert done.exit_code == 0, done.output
    assert f"{tmp_path}/out: 20 of 30 rows kept" in done.stdout
    assert "similarity >= 0.2" in done.stdout
    assert "caption_length > 9" in done.stdout
    assert "examples.html" in done.stdout


def test_json_is_the_report(embedpipe, data, tmp_path):
    done = embedpipe("filter", data, tmp_path / "out", "--top", 0.1, "--json")
    report = json.loads(done.stdout)
    assert report["kept"] == 3
    kept = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report == {name: kept[name] for name in report}


def test_a_dry_run_counts_and_writes_nothing(embedpipe, data, tmp_path):
    done = embedpipe(
        "filter", data, tmp_path / "out", "--where", "label = 'x'", "--where", "similarity < 0.1", "--dry-run"
    )
    told = json.loads(done.stdout)
    assert told["would"]["kept"] == 5
    assert told["config"]["where"] == ["label = 'x'", "similarity < 0.1"]
    assert not (tmp_path / "out").exists()


def test_what_dedup_dropped_can_be_left_out(embedpipe, data, tmp_path):
    assert embedpipe("dedup", data, tmp_path / "dedup", "--threshold", 0.5, "--materialise").exit_code == 0
    dropped = json.loads((tmp_path / "dedup" / "report.json").read_text())["dropped"]
    assert dropped
    done = embedpipe("filter", data, tmp_path / "out", "--not-keys", tmp_path / "dedup" / "dropped.parquet", "--json")
    assert json.loads(done.stdout)["kept"] == 30 - dropped
    assert embedpipe("verify", tmp_path / "dedup").exit_code == 0


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ([], 2, "error: nothing to filter by. Give --min-similarity"),
        (["--where", "lable = 'x'"], 1, "error: --where \"lable = 'x'\": no column 'lable'. Did you mean label?"),
        (["--where", "width >="], 2, "something is missing, at its end"),
        (["--keys", "nowhere.txt"], 1, "error: nowhere.txt: no such file. Check the path"),
    ],
)
def test_errors_are_one_line(embedpipe, data, tmp_path, options, code, message):
    done = embedpipe("filter", data, tmp_path / "out", *options)
    assert done.exit_code == code
    assert message in done.stderr
    assert done.stderr.strip().count("\n") == 0


def test_dedup_has_a_dry_run(embedpipe, data, tmp_path):
    done = embedpipe("dedup", data, tmp_path / "out", "--dry-run")
    plan = json.loads(done.stdout)["plan"]
    assert {name: plan[name] for name in ("rows", "clusters", "scratch_bytes", "confirmed_by")} == {
        **{"rows": 30, "clusters": 1, "scratch_bytes": 480},
        "confirmed_by": "none",
    }
    assert not (tmp_path / "out").exists()
