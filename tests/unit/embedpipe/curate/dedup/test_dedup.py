"""dedup finds what was planted, keeps whom it should, and tells what other thresholds would do."""

import errno
import hashlib
import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedpipe import files
from embedpipe.curate import KEEP, DedupConfig, dedup, plan_dedup
from embedpipe.curate.dedup import clusters, job, order, scratch_rows, workspace
from embedpipe.curate.dedup import search as duplicates
from embedpipe.encode.job import encode
from embedpipe.errors import DatasetError, DiskFull, InputError, OutputBusy, OutputUnwritable, RunMismatch
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
    monkeypatch.setattr(clusters, "_ONE_CLUSTER", one_cluster)
    monkeypatch.setattr(clusters, "_ROWS_PER_CLUSTER", 50)
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


def test_a_row_of_unknown_similarity_gives_way_to_one_that_is_known(tmp_path):
    rng = np.random.default_rng(0)
    image = embeddings.normalised(rng.normal(size=(10, 16)))
    image[1] = image[0]
    similarity = np.full(10, -0.5)
    similarity[0] = np.nan
    place = embeddings.write_dataset(tmp_path / "emb", image, rng.normal(size=(10, 16)), 1, similarity=similarity)
    out = str(tmp_path / "out")
    assert dedup(place, out, DedupConfig(threshold=0.97, keep="similarity")).dropped == 1
    assert (table(out, "dropped")["row"], table(out, "dropped")["of_row"]) == ([0], [1])


def test_the_steps_that_were_planned_are_those_that_are_taken(tmp_path, many_clusters):
    """Assigning and sorting the rows of each shard, and each group of comparisons."""
    place, _ = planted(tmp_path / "emb", shards_=3)
    planned, tasks = [], []

    def listen(progress):
        planned.append(progress.planned)
        tasks.append(progress.tasks)

    search = duplicates.Search("image", "first", 0, 1)
    found = duplicates.nearest_predecessors(EmbeddingDataset(place), search, tmp_path / "out", listen)
    told = [number for number in planned if number]
    groups = sum(tasks) - 2 * 3
    assert groups >= 1
    assert told == [7, 6 + groups]
    assert found.close.dtype == duplicates.CLOSE
    assert len(found.close) == 0
    assert (found.cosine[0], found.row[0]) == (-1, -1), "before the first row there is none"


def test_of_each_row_the_nearest_before_it_and_the_close_ones_are_those_of_all_products(tmp_path):
    """In one cluster nothing is missed; the texts have no hashes to look at."""
    rng = np.random.default_rng(0)
    image, text = (embeddings.normalised(rng.normal(size=(30, 4))) for _ in range(2))
    data = EmbeddingDataset(embeddings.write_dataset(tmp_path / "emb", image, text, 2))
    for modality, stored in (("image", data.image[:]), ("text", data.text[:])):
        search = duplicates.Search(modality, "first", 0, 1, most=3, floor=0.5)
        found = duplicates.nearest_predecessors(data, search, tmp_path / modality, lambda _: None)
        rows = embeddings.normalised(stored.astype(np.float32))
        alike = np.where(np.tri(30, 30, -1) > 0, rows @ rows.T, -np.inf)
        np.testing.assert_allclose(found.cosine[1:], alike[1:].max(axis=1), atol=1e-5)
        assert found.row.tolist() == [-1, *alike[1:].argmax(axis=1)]
        close = [(row, of) for row in range(30) for of in np.argsort(-alike[row])[:3].tolist() if alike[row, of] >= 0.5]
        assert list(zip(found.close["row"].tolist(), found.close["of"].tolist(), strict=True)) == close
        np.testing.assert_allclose(found.close["cosine"], [alike[pair] for pair in close], atol=1e-5)
        assert (found.clusters, found.twice) == (1, 0)


def test_the_same_file_twice_is_told_and_shown(tmp_path, encode_config):
    members = [*shards.samples(6), *shards.sample(2, key="again"), ("noise.jpg", shards.jpeg(9)), ("noise.txt", b"x")]
    source = shards.write_tar(tmp_path / "in.tar", members)
    encode(source, str(tmp_path / "emb"), encode_config())
    report = dedup(str(tmp_path / "emb"), str(tmp_path / "out"), DedupConfig(threshold=0.9999))
    dropped = table(str(tmp_path / "out"), "dropped")
    assert (dropped["key"], dropped["of_key"], dropped["same_content"]) == (["again"], ["00002"], [True])
    assert report.same_content == 1
    page = (tmp_path / "out" / "pairs.html").read_text()
    assert page.count("<img") == page.count("</b><img") == 2 * page.count('<div class="line ')
    assert "again" not in page, "of two of the same file there is nothing to judge"
    (tmp_path / "in.tar").unlink()
    dedup(str(tmp_path / "emb"), str(tmp_path / "out"), DedupConfig(threshold=0.9999))
    assert "<img" not in (tmp_path / "out" / "pairs.html").read_text()
    with pytest.raises(InputError, match="nowhere"):
        dedup(str(tmp_path / "emb"), str(tmp_path / "out"), DedupConfig(images=str(tmp_path / "nowhere.tar")))


def test_an_object_store_gets_the_same_rows(tmp_path):
    place, _ = planted(tmp_path / "emb", count=20, copies=2)
    for out in (str(tmp_path / "out"), "memory://dedup"):
        report = dedup(place, out)
    assert report.dropped
    for name in ("kept.parquet", "dropped.parquet"):
        assert files.read_bytes(f"memory://dedup/{name}") == (tmp_path / "out" / name).read_bytes()
    assert dedup(place, "memory://dedup") == report


def test_what_cannot_be_done_says_why(tmp_path):
    place, _ = planted(tmp_path / "emb", count=20, copies=2)
    with pytest.raises(InputError, match="no such rule.*closest"):
        DedupConfig(keep="closes")
    with pytest.raises(InputError, match="above 0"):
        DedupConfig(threshold=1.5)
    with pytest.raises((InputError, DatasetError), match="nowhere"):
        dedup(str(tmp_path / "nowhere"), str(tmp_path / "out"))
    with exclusive(str(tmp_path / "busy")), pytest.raises(OutputBusy):
        dedup(place, str(tmp_path / "busy"))
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputUnwritable, match="file"):
        dedup(place, str(tmp_path / "file"))


def test_a_full_disk_is_told_and_what_was_there_stays_as_it_was(tmp_path, monkeypatch):
    place, _ = planted(tmp_path / "emb", count=20, copies=2)
    out = tmp_path / "out"
    dedup(place, str(out))
    shutil.rmtree(out / ".dedup")
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.name != ".lock"}

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device", str(out))

    monkeypatch.setattr(duplicates.ScratchRows, "write", full)
    with pytest.raises(DiskFull):
        dedup(place, str(out))
    assert {name: (out / name).read_bytes() for name in before} == before
    monkeypatch.undo()
    monkeypatch.setattr(job, "_write_dropped", full)
    with pytest.raises(OSError, match="No space"):
        dedup(place, str(out))
    assert not (out / "report.json").exists(), "files of two runs are not passed off as one"


@pytest.fixture
def many_clusters(monkeypatch):
    monkeypatch.setattr(clusters, "_ONE_CLUSTER", 50)
    monkeypatch.setattr(clusters, "_ROWS_PER_CLUSTER", 50)
    monkeypatch.setattr(order, "TILE", 16)


def with_hashes(folder, hashes, **options):
    """The planted data set, with these sha256 by row."""
    place, pairs = planted(folder, **options)
    dataset = EmbeddingDataset(place)
    for number, shard in enumerate(dataset.shards):
        path = folder / "metadata" / f"metadata_{number:05d}.parquet"
        table = pq.read_table(path)
        column = pa.array([hashes.get(row) for row in range(shard.start, shard.stop)], pa.string())
        pq.write_table(table.set_column(table.schema.get_field_index("sha256"), "sha256", column), path)
        shards.record_anew(place, int(path.stem[-5:]), path)
    return place, pairs


@pytest.mark.parametrize("keep", ["first", "closest"])
def test_the_same_file_is_a_duplicate_at_any_threshold_in_any_cluster(tmp_path, many_clusters, keep):
    names = {row: hashlib.sha256(bytes([row % 7])).hexdigest() for row in range(0, 400, 9)}
    place, _ = with_hashes(tmp_path / "emb", names)
    report = dedup(place, str(tmp_path / "out"), DedupConfig(threshold=1, keep=keep))
    assert report.clusters == 8
    dropped = table(str(tmp_path / "out"), "dropped")
    groups = {}
    for row, name in names.items():
        groups.setdefault(name, set()).add(row)
    assert report.same_content == report.dropped == len(names) - len(groups) == len(dropped["row"])
    assert max(report.sweep.values()) <= 400 - report.dropped
    for row, of, cosine, same in zip(*(dropped[c] for c in ("row", "of_row", "cosine", "same_content")), strict=True):
        assert (names[row], same, cosine) == (names[of], True, None)
        assert of not in dropped["row"]
    if keep == "first":
        assert set(dropped["of_row"]) == {min(rows) for rows in groups.values()}


def test_no_row_is_like_another_for_want_of_a_hash(tmp_path):
    place, _ = planted(tmp_path / "emb", count=60, copies=1)
    assert dedup(place, str(tmp_path / "out"), DedupConfig(threshold=1)).dropped == 0
    place, _ = with_hashes(tmp_path / "bad", {3: "no hash"}, count=60, copies=1)
    with pytest.raises(DatasetError, match="column sha256 holds what is no sha256"):
        dedup(place, str(tmp_path / "bad-out"))


def test_pairs_across_the_border_of_two_clusters_are_found(tmp_path, many_clusters, monkeypatch):
    place, _ = planted(tmp_path / "emb", count=2000, copies=600, dim=24)
    rows = embeddings.normalised(EmbeddingDataset(place).image.read())
    alike = np.tril(rows @ rows.T, -1)
    expected = set(np.flatnonzero(alike.max(axis=1) >= 0.99).tolist())
    assert len(expected) >= 600
    missed = {}
    for border in (0, clusters.BORDER):
        monkeypatch.setattr(clusters, "BORDER", border)
        out = str(tmp_path / str(border))
        report = dedup(place, out, DedupConfig(threshold=0.99))
        missed[border] = len(expected - set(table(out, "dropped")["row"]))
        assert report.clusters == 40
        assert (report.twice > 0) == (border > 0)
    assert missed[0] > 3 * missed[clusters.BORDER]
    assert missed[clusters.BORDER] <= 3


def test_of_two_predecessors_that_are_equally_near_the_first_found_counts():
    """Row 7 stands in two clusters, at places 1 and 4; so do the rows before it, at places 0 and 3."""
    places = order.Order(np.array([5, 7, 8, 6, 7]), np.array([False, False, False, False, True]), np.array([0, 3, 5]))

    def found(*entries):
        return np.array(list(entries), duplicates._FOUND)

    def entered(*groups):
        nearest = np.array([(-1, -1)] * 9, duplicates._NEAREST)
        for group in groups:
            duplicates._take(nearest, places, group)
        return nearest[7].item()

    for own, again, expected in ((0.5, 0.5, (0.5, 5)), (0.5, 0.625, (0.625, 6)), (0.75, 0.625, (0.75, 5))):
        one, other = (1, 0, own), (4, 3, again)
        assert entered(found(one, other)) == expected
        assert entered(found(one), found(other)) == expected
    assert entered(found((4, 3, 0.5)), found((1, 0, 0.5))) == (0.5, 6)
    assert entered(found((1, 0, 0.5), (1, 2, 0.25), (4, 3, 0.375))) == (0.5, 5), "the nearest of a place comes first"
    assert entered(found((2, 0, 0.5))) == (-1, -1)


def test_threads_make_no_difference(tmp_path, many_clusters):
    place, _ = planted(tmp_path / "emb", count=700, copies=100)
    for threads in (1, 3):
        dedup(place, str(tmp_path / str(threads)), DedupConfig(threads=threads))
    assert (tmp_path / "1/.dedup/nearest.npy").read_bytes() == (tmp_path / "3/.dedup/nearest.npy").read_bytes()


def test_a_worker_that_does_not_see_the_workspace_says_so(tmp_path):
    place, _ = planted(tmp_path / "emb")
    with pytest.raises(OutputUnwritable, match="does not see what the run has begun"):
        clusters.AssignWork(place, "image", tmp_path / "elsewhere", 1).start(0)


def test_killed_anywhere_and_run_again_it_finds_the_same(tmp_path, many_clusters, monkeypatch):
    monkeypatch.setattr(duplicates, "_PRODUCTS_IN_GROUP", 10)
    place, _ = planted(tmp_path / "emb")
    keep, kept = workspace.Kept.keep, []

    def counted(self, name, array):
        keep(self, name, array)
        kept.append(name)

    monkeypatch.setattr(workspace.Kept, "keep", counted)
    dedup(place, str(tmp_path / "whole"))
    steps = list(kept)
    assert len(steps) > 12
    for survives in {*range(0, len(steps), 3), len(steps) - 1}:
        kept.clear()

        def dies(self, name, array, survives=survives):
            if len(kept) == survives:
                raise KeyboardInterrupt
            counted(self, name, array)

        monkeypatch.setattr(workspace.Kept, "keep", dies)
        out = tmp_path / f"killed-{survives}"
        with pytest.raises(KeyboardInterrupt):
            dedup(place, str(out), DedupConfig(threads=1))
        monkeypatch.setattr(workspace.Kept, "keep", counted)
        dedup(place, str(out), DedupConfig(threads=1))
        assert set(kept) == set(steps)
        again = 2 * (survives == len(steps) - 1) + (survives == len(steps) - 2)
        assert len(kept) - len(steps) <= again, "no step is done twice, but for the last counts"
        for name in (".dedup/nearest.npy", "kept.parquet", "dropped.parquet", "pairs.html"):
            assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
        assert sorted(path.name for path in (out / ".dedup").iterdir()) == [
            "close.npy",
            "counts.npy",
            "identity.json",
            "nearest.npy",
        ]


def test_another_threshold_compares_nothing_anew_and_other_data_does(tmp_path, monkeypatch):
    place, _ = planted(tmp_path / "emb")
    out = str(tmp_path / "out")
    sweep = dedup(place, out, DedupConfig(threshold=0.5)).sweep
    searched = []
    find = duplicates._find
    monkeypatch.setattr(duplicates, "_find", lambda *arguments: (searched.append(1), find(*arguments)))
    assert dedup(place, out, DedupConfig(threshold=0.9)).kept == sweep["0.9"]
    assert not searched
    dedup(place, out, DedupConfig(keep="closest"))
    assert len(searched) == 1
    shutil.rmtree(tmp_path / "emb")
    planted(tmp_path / "emb", seed=1)
    assert dedup(place, out, DedupConfig(keep="closest")).sweep != sweep
    assert len(searched) == 2


def test_bad_data_is_named(tmp_path):
    place, _ = planted(tmp_path / "emb", count=30, copies=2)
    path = tmp_path / "emb" / "img_emb" / "img_emb_00001.npy"
    array = np.load(path)
    array[4, 2] = np.nan
    np.save(path, array)
    shards.record_anew(tmp_path / "emb", 1, path)
    with pytest.raises(DatasetError, match=r"the image embedding of row 14 \(00001.tar 000014\) is not finite.*verify"):
        dedup(place, str(tmp_path / "out"))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DatasetError, match="img_emb_00001.npy: 100 bytes, but its manifest says .*verify"):
        dedup(place, str(tmp_path / "out"))
    path.unlink()
    with pytest.raises(DatasetError, match="img_emb_00001.npy: cannot be read.*verify"):
        dedup(place, str(tmp_path / "out"))
    shards.edit(tmp_path / "emb" / "embedpipe.json", lambda run: run["encoder"].update(weights_sha256="1" * 64))
    with pytest.raises(DatasetError, match="shard 0 was made by another encoder.*verify"):
        dedup(place, str(tmp_path / "out"))


def test_too_little_room_is_told_before_the_work(tmp_path, monkeypatch):
    place, _ = planted(tmp_path / "emb", count=30, copies=2)
    monkeypatch.setattr(scratch_rows.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 100))
    with pytest.raises(DiskFull, match="sorting the rows takes 0.00 GB"):
        dedup(place, str(tmp_path / "out"))


def test_an_output_with_a_data_set_of_ones_own_is_refused(tmp_path):
    place, _ = planted(tmp_path / "emb", count=30, copies=2)
    with pytest.raises(RunMismatch, match="is the data set itself"):
        dedup(place, place)


def test_the_plan_compares_nothing(tmp_path):
    place, _ = planted(tmp_path / "emb", count=30, copies=2)
    plan = plan_dedup(place)
    assert (plan.rows, plan.clusters, plan.scratch_bytes) == (30, 1, 30 * 24 * 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["emb"]
