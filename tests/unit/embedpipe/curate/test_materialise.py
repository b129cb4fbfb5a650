"""A selection as a data set of its own: the chosen rows of every file, under the same numbers, whole after any kill."""

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest

from embedpipe import manifest
from embedpipe.curate import DedupConfig, FilterConfig, dedup, filter, materialise
from embedpipe.encode.job import encode
from embedpipe.errors import RunMismatch
from embedpipe.index import build_index
from embedpipe.load import EmbeddingDataset
from embedpipe.subset import read_subset
from embedpipe.verify import verify
from tests import shards

NONE_OF_THE_SECOND = FilterConfig(where=("number % 3 = 1 and src_shard <> '00001.tar'",), materialise=True)


@pytest.fixture(scope="module", params=["npy", "parquet"])
def source(request, tmp_path_factory, encode_config):
    """(input shards, data set with tokens and rejects, shard 3 with rejects only)."""
    root = tmp_path_factory.mktemp("source")
    folder = shards.write_shards(root / "in")
    shards.write_tar(root / "in" / "00001.tar", [*shards.samples(5, first=7), ("x.jpg", b"no image"), ("x.txt", b"x")])
    shards.write_tar(root / "in" / "00003.tar", [("x.jpg", b"no image"), ("x.txt", b"x")])
    encode(folder, str(root / "emb"), encode_config(stage={"text_tokens": True}, format=request.param))
    return folder, str(root / "emb")


def test_every_file_holds_the_chosen_rows(source, tmp_path):
    before = EmbeddingDataset(source[1])
    out = str(tmp_path / "out")
    report = filter(source[1], out, NONE_OF_THE_SECOND)
    rows = read_subset(before, out)
    after = EmbeddingDataset(out)
    assert len(after) == report.kept == len(rows) > 3
    assert np.array_equal(after.image[:], before.image[rows])
    assert np.array_equal(after.text[:], before.text[rows])
    for i, row in enumerate(rows.tolist()):
        assert np.array_equal(after.text_tokens[i], before.text_tokens[row])
    for name in before.column_names():
        assert after.column(name).to_pylist() == before.column(name).take(rows).to_pylist()
    assert after.card == before.card
    assert verify(out, shards.DEEP).whole
    build_index(out)
    entries = {entry.number: entry for entry in after.manifests}
    assert sorted(entries) == [0, 1, 2, 3]
    assert (entries[1].rows_in, entries[1].rows_out, entries[1].rows_rejected, entries[1].rows_dropped) == (6, 0, 1, 5)
    for entry in before.manifests:
        kept = entries[entry.number]
        assert (kept.source, kept.rejects, kept.rows_in) == (entry.source, entry.rejects, entry.rows_in)
        errors = f"errors/errors_{entry.number:05d}.parquet"
        if entry.rows_rejected:
            assert pq.read_table(f"{out}/{errors}").equals(pq.read_table(f"{source[1]}/{errors}"))


def test_killed_anywhere_and_run_again_it_is_the_same(source, tmp_path, monkeypatch):
    filter(source[1], str(tmp_path / "whole"), NONE_OF_THE_SECOND)
    expected = shards.tree(tmp_path / "whole")
    commit = manifest.commit
    for survives in range(4):
        left = [survives]

        def dies(*arguments, left=left):
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            commit(*arguments)

        monkeypatch.setattr(materialise.manifest, "commit", dies)
        out = tmp_path / f"killed-{survives}"
        with pytest.raises(KeyboardInterrupt):
            filter(source[1], str(out), NONE_OF_THE_SECOND)
        monkeypatch.setattr(materialise.manifest, "commit", commit)
        assert not (out / "report.json").exists()
        assert len(list((out / "manifest").glob("*.json"))) == survives
        filter(source[1], str(out), NONE_OF_THE_SECOND)
        assert shards.tree(out) == expected
    (tmp_path / "killed-0" / "manifest" / "00002.json").unlink()
    filter(source[1], str(tmp_path / "killed-0"), NONE_OF_THE_SECOND)
    assert shards.tree(tmp_path / "killed-0") == expected


def test_an_output_of_other_rows_is_refused_and_left_alone(source, tmp_path, encode_config):
    out = tmp_path / "out"
    filter(source[1], str(out), NONE_OF_THE_SECOND)
    before = shards.tree(out)
    other = FilterConfig(where=("number % 3 = 2",))
    with pytest.raises(RunMismatch, match="another selection: 4 rows"):
        filter(source[1], str(out), other)
    with pytest.raises(RunMismatch, match="made by `embedpipe filter`.*, by dedup"):
        dedup(source[1], str(out), DedupConfig(confirm="none"))
    assert shards.tree(out, without=[f".dedup/{name}" for name in NAMES]) == before
    with pytest.raises(RunMismatch, match="was made by `embedpipe filter` out of another data set"):
        encode(source[0], str(out), encode_config(stage={"text_tokens": True}))


NAMES = ("identity.json", "nearest.npy", "close.npy", "counts.npy")


def test_a_selection_of_a_selection(source, tmp_path):
    filter(source[1], str(tmp_path / "a"), NONE_OF_THE_SECOND)
    report = filter(str(tmp_path / "a"), str(tmp_path / "b"), FilterConfig(where=("number > 3",), materialise=True))
    numbers = EmbeddingDataset(str(tmp_path / "b")).column("number").to_pylist()
    assert numbers == [n for n in EmbeddingDataset(str(tmp_path / "a")).column("number").to_pylist() if n > 3]
    assert len(numbers) == report.kept
    assert verify(str(tmp_path / "b"), shards.DEEP).whole
    assert json.loads((tmp_path / "b" / "embedpipe.json").read_text())["options"]["selection"]["made_by"] == "filter"


def test_dedup_materialises_too(source, tmp_path):
    twice = shutil.copytree(source[1], tmp_path / "emb")
    report = dedup(str(twice), str(tmp_path / "out"), DedupConfig(threshold=0.5, confirm="none", materialise=True))
    assert len(EmbeddingDataset(str(tmp_path / "out"))) == report.kept < report.rows
    assert verify(str(tmp_path / "out"), shards.DEEP).whole
