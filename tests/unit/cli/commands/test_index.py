"""`embedpipe index` from the command line."""

import json
import os
import re
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from embedpipe.index import recall
from tests import clusters
from tests.embeddings import write_dataset


@pytest.fixture(autouse=True)
def few_queries(monkeypatch):
    monkeypatch.setattr(recall, "QUERIES", 60)


@pytest.fixture
def root(tmp_path):
    return clusters.write(tmp_path / "emb", {0: 200, 1: 300})


def test_it_says_what_it_made_and_how_well_it_finds(embedpipe, root):
    result = embedpipe("index", root, "--type", "ivf")
    assert result.exit_code == 0, result.stderr
    assert f"{root}: built: image index of 500 rows × 32: RR32,IVF16,RaBitQ" in result.stdout
    assert re.search(r"recall@10 \d\.\d{3} \(image rows\), \d\.\d{3} \(text rows\), of 60 queries each", result.stdout)
    assert result.stderr == f"{root}: no image index yet; building one (RR32,IVF16,RaBitQ)\n"
    again = embedpipe("index", root, "--json")
    assert again.stderr == ""
    assert json.loads(again.stdout)["rows"] == 500
    clusters.write(root, {0: 200, 1: 300, 2: 100})
    extended = embedpipe("index", root)
    assert extended.stderr == f"{root}: 1 shard to add; adding to the index (RR32,IVF16,RaBitQ)\n"
    assert f"{root}: extended: image index of 600 rows" in extended.stdout
    assert f"{root}: up to date, nothing to do: image index of 600 rows" in embedpipe("index", root).stdout


def test_an_exact_index_finds_everything_and_says_so_whatever_repeats(embedpipe, tmp_path):
    rows = np.random.default_rng(0).normal(size=(40, 8)).repeat(12, axis=0)
    root = write_dataset(tmp_path / "copies", rows, rows, 2)
    assert "recall@10 1.000 (image rows), 1.000 (text rows)" in embedpipe("index", root, "--type", "flat").stdout


def test_workers_that_an_index_in_memory_has_no_use_for_are_told(embedpipe, root):
    result = embedpipe("index", root, "--workers", 2)
    assert result.exit_code == 0
    assert "note: Flat is held in memory, so this process adds all rows to it" in result.stderr


def test_a_dry_run_says_what_it_would_do_and_does_nothing(embedpipe, root):
    result = embedpipe("index", root, "--dry-run", "--type", "ivf")
    assert result.exit_code == 0, result.stderr
    for said in ("build", "no image index yet", "RR32,IVF16,RaBitQ, image, 500 rows", "500 in 2 shards"):
        assert said in result.stdout
    plan = json.loads(embedpipe("index", root, "--dry-run", "--json", "--memory", "1G").stdout)
    assert plan["config"]["memory"] == "1G"
    assert plan["plan"]["kind"]["factory"] == "Flat"
    assert not (Path(root) / "index").exists()


def test_a_recall_that_is_not_reached_is_a_warning(embedpipe, root):
    result = embedpipe("index", root, "--type", "IVF16,PQ1", "--recall", "1")
    assert result.exit_code == 0
    assert "warning: recall@10 is" in result.stderr or "1.000 (image rows), 1.000" in result.stdout


def test_an_index_of_data_that_have_grown_much_is_worth_training_again(embedpipe, root):
    assert "--rebuild" not in embedpipe("index", root, "--type", "ivf").stderr
    clusters.write(root, {0: 200, 1: 300, 2: 1500})
    assert "trained when there were 500 rows, now 2,000" in embedpipe("index", root).stderr
    assert "--rebuild" not in embedpipe("index", root, "--rebuild", "--type", "ivf").stderr


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--type", "tree"), 2, "no such index type"),
        (("--type", "IVF16,Nonsense", "--dry-run"), 1, "faiss does not know it"),
        (("--memory", "much"), 2, "is no size"),
        (("--memory", "1M"), 2, "not built in less than"),
        (("--recall", "2"), 2, "must be above 0"),
    ],
)
def test_mistakes_are_one_line(embedpipe, root, arguments, code, said):
    result = embedpipe("index", root, *arguments)
    assert result.exit_code == code
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.slow
def test_killed_at_any_moment_and_run_again_it_gives_the_same_index(embedpipe_process, tmp_path, monkeypatch):
    sizes = dict.fromkeys(range(12), 4000)
    command = ("--type", "IVF128,RaBitQ", "--memory", "256M", "--json")
    whole = clusters.write(tmp_path / "whole", sizes, dim=64)
    out, err = embedpipe_process("index", whole, *command).communicate()
    card = json.loads(out)
    root = clusters.write(tmp_path / "emb", sizes, dim=64)
    folder, kills = Path(root) / "index", 0
    begun = time.monotonic()
    while True:
        process = embedpipe_process("index", root, *command)
        # Wait until it does something it had not done yet, then give it a moment of another length each time.
        before = sorted(folder.rglob("*")) if folder.exists() else []
        while process.poll() is None and (sorted(folder.rglob("*")) if folder.exists() else []) == before:
            time.sleep(0.002)
        time.sleep(0.05 * (kills % 7))
        if process.poll() is not None or kills >= 12:
            break
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        kills += 1
        assert time.monotonic() - begun < 600
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert kills >= 3
    assert json.loads(out)["sha256"] == card["sha256"]
    assert json.loads(out)["recall"] == card["recall"]
    made = json.loads(out)["file"]
    assert {path.name for path in folder.iterdir()} == {".lock", "image.json", made, made.replace("faiss", "npz")}
