"""dedup finds what was planted, keeps whom it should, and tells what other thresholds would do."""

import errno
import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest

from embedpipe.curate import KEEP, DedupConfig, assign, dedup, duplicates
from embedpipe.encode.job import encode
from embedpipe.errors import DatasetError, DiskFull, InputError, OutputBusy, OutputUnwritable
from embedpipe.load import EmbeddingDataset
from embedpipe.lock import exclusive
from tests import embeddings, shards


def planted(folder, count=400, copies=40, dim=24, shards_=3, seed=0):
    """A data set with near-copies: (folder, {(original, copy)}), copies behind their originals."""
    rng = np.random.default_rng(seed)
    image = embeddings.normalised(rng.normal(size=(count, dim)))
    copy = np.sort(rng.choice(np.arange(count // 2, count), copies, replace=False))
    original = rng.choice(count // 2, copies, replace=False)
    image[copy] = embeddings.normalised(image[original] + rng.normal(size=(copies, dim)) * 0.01)
    place = embeddings.write_dataset(folder, image, rng.normal(size=(count, dim)), shards_)
    return place, set(zip(original.tolist(), copy.tolist(), strict=True))


def table(out, name):
    return pq.read_table(f"{out}/{name}.parquet").to_pydict()


@pytest.mark.parametrize("one_cluster", [20_000, 50])
def test_planted_copies_are_found_and_nothing_else(tmp_path, one_cluster, monkeypatch):
    monkeypatch.setattr(assign, "_ONE_CLUSTER", one_cluster)
    monkeypatch.setattr(assign, "_ROWS_PER_CLUSTER", 50)
    place, pairs = planted(tmp_path / "emb")
    out = str(tmp_path / "out")
    report = dedup(place, out, DedupConfig(threshold=0.98))
    dropped, kept = table(out, "dropped"), table(out, "kept")
    found = set(zip(dropped["of_row"], dropped["row"], strict=True))
    assert found <= pairs
    assert len(found) >= (len(pairs) if report.clusters == 1 else 0.95 * len(pairs))
    assert sorted(dropped["row"] + kept["row"]) == list(range(400))
    assert (report.rows, report.kept, report.dropped) == (400, len(kept["row"]), len(dropped["row"]))
    keys = EmbeddingDataset(place).keys()
    assert kept["key"] == [keys[row] for row in kept["row"]]
    assert dropped["of_key"] == [keys[row] for row in dropped["of_row"]]
    assert min(dropped["cosine"]) >= 0.98
    assert json.loads((tmp_path / "out" / "report.json").read_text())["kept"] == report.kept
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        ".dedup",
        ".lock",
        "dropped.parquet",
        "kept.parquet",
        "pairs.html",
        "report.json",
    ]


def test_the_sweep_says_what_each_threshold_would_keep(tmp_path):
    place, _ = planted(tmp_path / "emb", dim=4)
    report = dedup(place, str(tmp_path / "a"), DedupConfig(threshold=0.9))
    for value in ("0.9", "0.99", "0.8"):
        again = dedup(place, str(tmp_path / value), DedupConfig(threshold=float(value)))
        assert again.kept == report.sweep[value]
    assert report.kept == report.sweep["0.9"]


def test_of_kept_rows_no_two_are_near_in_one_cluster(tmp_path):
    place, _ = planted(tmp_path / "emb", dim=3)
    out = str(tmp_path / "out")
    dedup(place, out, DedupConfig(threshold=0.95))
    rows = embeddings.normalised(EmbeddingDataset(place).image.read()[table(out, "kept")["row"]])
    alike = rows @ rows.T
    assert alike[~np.eye(len(rows), dtype=bool)].max() < 0.95


@pytest.mark.parametrize("keep", KEEP)
def test_the_rule_decides_who_stays(tmp_path, keep):
    rng = np.random.default_rng(0)
    image = embeddings.normalised(rng.normal(size=(40, 16)))
    image[1] = embeddings.normalised(image[:1] + 0.02 * rng.normal(size=16))[0]
    text = np.roll(image, 3, axis=0)
    text[1] = image[1]  # the second agrees with its caption
    place = embeddings.write_dataset(tmp_path / "emb", image, text, 1, similarity=(image * text).sum(1))
    out = str(tmp_path / "out")
    assert dedup(place, out, DedupConfig(threshold=0.97, keep=keep)).dropped == 1
    center = embeddings.normalised(image.astype(np.float16).astype(np.float32).mean(axis=0)[None])[0]
    nearer = int(image[1] @ center > image[0] @ center)
    stays = {"first": 0, "similarity": 1, "closest": nearer, "farthest": 1 - nearer}[keep]
    assert table(out, "dropped")["of_row"] == [stays]


def test_the_same_file_twice_is_told_and_shown(tmp_path, encode_config):
    members = [*shards.samples(6), *shards.sample(2, key="again"), ("noise.jpg", shards.jpeg(9)), ("noise.txt", b"x")]
    source = shards.write_tar(tmp_path / "in.tar", members)
    encode(source, str(tmp_path / "emb"), encode_config())
    report = dedup(str(tmp_path / "emb"), str(tmp_path / "out"), DedupConfig(threshold=0.9999))
    dropped = table(str(tmp_path / "out"), "dropped")
    assert (dropped["key"], dropped["of_key"], dropped["same_content"]) == (["again"], ["00002"], [True])
    assert report.same_content == 1
    page = (tmp_path / "out" / "pairs.html").read_text()
    assert page.count("<img") == page.count("<td><img") == 2 * (page.count("<tr") - 1)
    assert "again" not in page, "of two of the same file there is nothing to judge"
    (tmp_path / "in.tar").unlink()
    dedup(str(tmp_path / "emb"), str(tmp_path / "out"), DedupConfig(threshold=0.9999))
    assert "<img" not in (tmp_path / "out" / "pairs.html").read_text()
    with pytest.raises(InputError, match="nowhere"):
        dedup(str(tmp_path / "emb"), str(tmp_path / "out"), DedupConfig(images=str(tmp_path / "nowhere.tar")))


def test_what_cannot_be_done_says_why(tmp_path):
    place, _ = planted(tmp_path / "emb", count=20, copies=2)
    with pytest.raises(InputError, match="no such rule.*closest"):
        DedupConfig(keep="closes")
    with pytest.raises(InputError, match="above 0"):
        DedupConfig(threshold=1.5)
    with pytest.raises(InputError, match="local folder"):
        dedup(place, "memory://out")
    with pytest.raises((InputError, DatasetError), match="nowhere"):
        dedup(str(tmp_path / "nowhere"), str(tmp_path / "out"))
    with exclusive(str(tmp_path / "busy")), pytest.raises(OutputBusy):
        dedup(place, str(tmp_path / "busy"))
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputUnwritable, match="file"):
        dedup(place, str(tmp_path / "file"))


def test_a_full_disk_is_told_and_no_report_says_that_all_is_well(tmp_path, monkeypatch):
    place, _ = planted(tmp_path / "emb", count=20, copies=2)
    out = tmp_path / "out"
    dedup(place, str(out))
    shutil.rmtree(out / ".dedup")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device", str(out))

    monkeypatch.setattr(duplicates.ScratchRows, "write", full)
    with pytest.raises(DiskFull):
        dedup(place, str(out))
    assert not (out / "report.json").exists()
