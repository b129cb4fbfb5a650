"""What goes from a data set goes from the selections made of it, with their pages: from those alone, and to the end."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

import embedpipe as library
from embedpipe.takedown import TakedownConfig
from embedpipe.takedown.job import takedown
from embedpipe.taken_down import TakedownRecord, TakenRow, finish_record, key_digest, write_rows
from tests.embeddings import write_dataset
from tests.unit.embedpipe.takedown.test_takedown import killed_at, listed


def data(folder, prefix, seed):
    uids = [f"{seed:016x}{i:016x}" for i in range(8)]
    image, text = np.random.default_rng(seed).normal(size=(2, 8, 4))
    keys = [f"{prefix}{i}" for i in range(8)]
    return write_dataset(folder, image, text, key=keys, columns={"uid": uids})


def dedup(emb, out):
    library.dedup(emb, str(out), library.DedupConfig(confirm="none"))
    return str(out)


def contents(out):
    return {path.name: path.read_bytes() for path in Path(out).iterdir() if path.is_file() and path.name != ".lock"}


def test_killed_anywhere_its_lists_and_page_lose_it_in_the_end(tmp_path):
    emb = data(tmp_path / "emb", "k", 1)
    dedup(emb, tmp_path / "dedup")
    shutil.copytree(emb, tmp_path / "emb-before")
    shutil.copytree(tmp_path / "dedup", tmp_path / "dedup-before")
    named = TakedownConfig(keys=listed(tmp_path, "k2"))
    selection = str(tmp_path / "dedup")

    def again():
        for name in ("emb", "dedup"):
            shutil.rmtree(tmp_path / name)
            shutil.copytree(tmp_path / f"{name}-before", tmp_path / name)

    takedown([emb, selection], named)
    wanted = contents(selection)
    assert "pairs.html" not in wanted
    assert len(np.load(tmp_path / "dedup" / "subset.npy")) == 7
    killed = 0
    for operation in range(60):
        again()
        if not killed_at(operation, lambda: takedown([emb, selection], named)):
            break
        killed += 1
        takedown([emb, selection], named)
        assert contents(selection) == wanted
    assert killed > 15


def test_the_examples_of_a_filter_go_with_rows_that_it_did_not_keep(tmp_path):
    emb = data(tmp_path / "emb", "k", 1)
    out = tmp_path / "filtered"
    library.filter(emb, str(out), library.FilterConfig(where=("key != 'k2'",)))
    assert "k2" not in pq.read_table(out / "kept.parquet")["key"].to_pylist()
    takedown([emb, str(out)], TakedownConfig(keys=listed(tmp_path, "k2")))
    assert not (out / "examples.html").exists()


def test_the_same_key_of_another_data_set_stays(tmp_path):
    """Input shards are called 00000.tar everywhere, and their keys are numbers."""
    mine, other = data(tmp_path / "mine", "k", 1), data(tmp_path / "other", "k", 2)
    selection = dedup(other, tmp_path / "dedup")
    before = contents(selection)
    # What went from `mine` before: a row that is in `other`, too, would go from both.
    write_rows(mine, TakedownRecord(1, "", None, (TakenRow("0" * 32, None, None, key_digest("00000.tar", "k2")),)))
    finish_record(mine, TakedownRecord(1, "", "2026-12-01"), {})
    takedown([mine, other, selection], TakedownConfig(urls=listed(tmp_path, "http://nowhere.example/")))
    assert contents(selection) == before
