"""The benchmark scripts at toy size: they run, and what they say can be believed."""

import sys
import tarfile

import numpy as np
import pytest
import torch

from benchmarks import (
    dedup_demo,
    dedup_scale,
    embeddings,
    encode_memory,
    encode_overlap,
    encode_vs_clip_retrieval,
    index_vs_autofaiss,
    load_vs_embedding_reader,
    measure,
    photos,
    ray_overhead,
    report,
    vectors,
    verify_speed,
)

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the benchmarks read /proc")


@pytest.fixture(scope="module")
def photo_folder(tmp_path_factory):
    """Twelve photos in two shards, where the scripts look for them."""
    return photos.make(tmp_path_factory.mktemp("work") / "photos-12", photos.PhotoSet(12, 2))


@pytest.fixture
def arguments(monkeypatch, tmp_path):
    """Sets sys.argv, results go to tmp_path; the cores of this process are left as they are."""
    monkeypatch.setattr(measure, "use_cores", lambda count: [0])

    def set_to(*options):
        monkeypatch.setattr(sys, "argv", ["benchmark", *map(str, options), "--results", str(tmp_path / "results")])
        return tmp_path / "results"

    return set_to


def test_photos_are_photo_sized_and_the_same_every_time(photo_folder):
    jpeg, caption, facts = photos.picture(0)
    samples = embeddings.samples(photo_folder, 100)
    assert samples[0] == ("00000000", jpeg, caption)
    assert len(samples) == 12
    assert all(photos.SMALLEST_BYTES <= len(data) <= photos.LARGEST_BYTES for _, data, _ in samples)
    assert 0.29e6 < facts["width"] * facts["height"] < 1.01e6
    assert photos.describe(photo_folder)["pictures"] == "12"


def test_photos_that_are_there_are_not_made_again(photo_folder):
    before = [path.stat().st_mtime_ns for path in sorted(photo_folder.iterdir())]
    photos.make(photo_folder, photos.PhotoSet(12, 2))
    assert [path.stat().st_mtime_ns for path in sorted(photo_folder.iterdir())] == before


def test_a_run_counts_the_children_too(tmp_path):
    work = (
        "import subprocess, sys, time\n"
        "child = 'import time; end = time.process_time() + 0.5; data = bytearray(80 << 20)\\n'"
        "'while time.process_time() < end: pass'\n"
        "subprocess.run([sys.executable, '-c', child]); print('done')"
    )
    made = measure.run([sys.executable, "-c", work], tmp_path / "log", timeout_s=60).require("the command")
    assert made.stdout == "done\n"
    assert made.cpu_s >= 0.5
    assert made.wall_s >= 0.5
    assert made.largest_mib >= 80
    assert made.together_mib >= 80


def test_a_run_that_hangs_is_killed_with_its_children(tmp_path):
    hang = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(600)'])"
    made = measure.run([sys.executable, "-c", hang], tmp_path / "log", timeout_s=1)
    assert made.exit_code is None
    assert made.wall_s < 30
    with pytest.raises(RuntimeError, match="hanger was killed at its timeout"):
        made.require("hanger")


def test_a_run_that_fails_says_how(tmp_path):
    made = measure.run([sys.executable, "-c", "raise SystemExit('no such thing')"], tmp_path / "log", timeout_s=60)
    with pytest.raises(RuntimeError, match=r"(?s)it ended with 1.*no such thing"):
        made.require("it")


def test_spread():
    assert measure.spread([3.0, 1.0, 2.5], 1) == "2.5 (1.0–3.0)"
    assert measure.spread([2.0]) == "2.00"


def test_distances_go_by_key_not_by_row():
    rows = np.eye(3, dtype=np.float16)
    ours = embeddings.Embeddings(("a", "b", "c"), rows, rows)
    theirs = embeddings.Embeddings(("c", "a"), rows[[2, 0]], rows[[1, 0]])
    assert embeddings.distances(ours, theirs, "image") == "0.0e+00 (0.0e+00)"
    assert embeddings.distances(ours, theirs, "text") == "1.0e+00 (5.0e-01)"


def test_written_rows_are_read_as_they_are(encoded_once):
    made = embeddings.read(report.Path(encoded_once[1]))
    assert len(made.keys) == len(set(made.keys)) == 21
    assert made.image.shape == made.text.shape == (21, 16)
    assert "decode" in embeddings.card(report.Path(encoded_once[1]))


def test_configurations_take_turns_and_name_the_same_model(tmp_path):
    for name in ("00000.tar", "00001.tar"):
        with tarfile.open(tmp_path / name, "w"):
            pass
    made = encode_vs_clip_retrieval.configurations(["--batch-size 8"], [256, 64], 2)
    assert [c.ours for c in made[:4]] == [False, True, False, True]
    assert [c.name for c in made if not c.ours] == ["clip-retrieval, batch 256", "clip-retrieval, batch 64"]
    peer, ours = (c.command(tmp_path, tmp_path / "out", "ViT-B-32", tmp_path / "w.pt") for c in made[:2])
    assert f"--clip_model=open_clip:ViT-B-32/{tmp_path}/w.pt" in peer
    assert f"--input_dataset={tmp_path}/{{00000..00001}}.tar" in peer
    assert ours[ours.index("--pretrained") + 1] == f"{tmp_path}/w.pt"
    assert len({c.out(tmp_path) for c in made}) == len(made)


def test_overlap(arguments, tiny_model, photo_folder, monkeypatch):
    monkeypatch.setattr(report, "_torch_threads", lambda: "2")  # asks a new process, which the next test does, too
    options = ("--n", 12, "--shards", 2, "--rounds", 1, "--free-rounds", 2, "--model", tiny_model)
    results = arguments(*options, "--work", photo_folder.parent)
    encode_overlap.main()
    (written,) = results.glob("encode_overlap_*.md")
    text = written.read_text()
    assert "end to end / the longer of the two" in text
    assert "whole job, model free" in text
    assert "## Not measured\n\n- CUDA" in text


def test_memory(arguments, tmp_path):
    results = arguments("--counts", 20, "--per-shard", 5, "--rounds", 1, "--model", "", "--work", tmp_path / "work")
    encode_memory.main()
    (written,) = results.glob("encode_memory_*.md")
    assert "| 20 samples |" in written.read_text()


@pytest.mark.slow
def test_load_vs_embedding_reader(arguments, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "_torch_threads", lambda: "2")
    few = {"bare readinto", "batches, float16, reuse", "embedding-reader, batch 10000", "loader, float16, reuse"}
    for name in set(load_vs_embedding_reader.WAYS) - few:
        monkeypatch.delitem(load_vs_embedding_reader.WAYS, name)
    monkeypatch.setattr(load_vs_embedding_reader, "FINITE", "batches, float16, reuse")
    monkeypatch.setattr(load_vs_embedding_reader, "FLOAT32", "batches, float16, reuse")
    results = arguments("--rows", 20_500, "--rounds", 1, "--work", tmp_path / "work", "--tmpfs", tmp_path)
    load_vs_embedding_reader.main()
    (written,) = results.glob("load_vs_embedding_reader_*.md")
    text = written.read_text()
    assert "| MB/s, batches float16 / bare readinto |" in text
    assert "| writing |" in text
    assert not (tmp_path / "embedpipe-writing-rows-20500").exists()


def test_a_rate_leaves_starting_out_and_counts_all_workers():
    clock = ray_overhead.Clock(begun=0.0)
    clock.finished = {0: [(6.0, 40), (7.0, 5), (8.0, 15)], 1: [(4.0, 10), (7.0, 30)]}
    assert clock.rate() == 20 / 2 + 30 / 3
    assert clock.shard_ms() == 1000
    with pytest.raises(RuntimeError, match="give more"):
        ray_overhead.Clock(finished={0: [(1.0, 10)]}).rate()


@pytest.mark.slow
def test_ray_overhead(arguments, tiny_model, tmp_path):
    pytest.importorskip("ray")
    options = ("--n", 12, "--shards", 6, "--rounds", 1, "--workers", 1, "--tasks", 20, "--model", tiny_model)
    results = arguments(*options, "--work", tmp_path / "work")
    ray_overhead.main()
    (written,) = results.glob("ray_overhead_*.md")
    assert "| processes, ms a shard | ray, ms a shard |" in written.read_text()


def test_dedup_scale(arguments, tmp_path):
    results = arguments("--counts", 3000, "--dim", 32, "--near", 0, "--work", tmp_path / "work")
    dedup_scale.main()
    (written,) = results.glob("dedup_scale_*.md")
    assert "| 3,000 |" in written.read_text()
    assert "| 2,000 | 1,000 of 1,000 |" in written.read_text()


@pytest.mark.slow
def test_verify_speed(arguments, tmp_path):
    results = arguments("--counts", 200, "--dim", 8, "--rounds", 1, "--work", tmp_path / "work")
    verify_speed.main()
    (written,) = results.glob("verify_speed_*.md")
    for format in ("npy", "parquet"):
        assert f"| {format} | 200 | deep, 2 workers |" in written.read_text()


def test_planted_copies_are_judged_by_what_they_go_back_to(photo_folder, tmp_path):
    pictures = dedup_demo.read_pictures(photo_folder)
    twice = [*pictures, dedup_demo.Picture("", "", pictures[0].data, "the same once more")]
    planted = dedup_demo.plant(twice, tmp_path / "planted", 4, seed=0)
    assert len(dedup_demo.read_pictures(tmp_path / "planted")) == 17
    copies = sorted(planted.kind)
    assert [planted.kind[key] for key in copies] == list(dedup_demo.KINDS)
    original = {key: f"{planted.origin[key]:09d}" for key in copies}
    assert all(planted.pixels[key] != planted.pixels[original[key]] for key in copies)
    other = next(key for key in sorted(planted.origin) if planted.origin[key] not in map(planted.origin.get, copies))
    done = dedup_demo.judge(
        [
            (copies[0], original[copies[0]]),
            (original[copies[1]], copies[1]),
            ("000000012", "000000000"),
            (other, copies[2]),
        ],
        planted,
    )
    assert (done.dropped, done.right, done.recall) == (4, 3, 0.5)
    assert done.found == {"re-encoded": (1, 1), "resized": (1, 1), "cropped": (0, 1), "all three": (0, 1)}


def test_prior_learning_at_toy_size(monkeypatch, tmp_path):
    from benchmarks import mixture, prior_learning

    task = mixture.make(50, 16, seed=0)
    assert task.text.norm(dim=1).allclose(torch.ones(50))
    likeness = (task.image[:, None] * task.modes).sum(dim=2)
    assert (likeness.argmax(dim=1) == task.drawn).float().mean() > 0.9
    monkeypatch.setattr(measure, "use_cores", lambda count: [0])
    options = ["--seeds", "1", "--n", "400", "--held-out", "40", "--steps", "3", "--samples", "4", "--dim", "16"]
    monkeypatch.setattr(sys, "argv", ["benchmark", *options, "--results", str(tmp_path)])
    prior_learning.main()
    text = next(tmp_path.glob("prior_learning_*.md")).read_text()
    rows = {line.split("|")[1].strip(): line.split("|") for line in text.splitlines() if line.startswith("| ")}
    assert {"diffusion", "ridge", "mean", "the truth"} <= set(rows)
    assert float(rows["the truth"][2].split()[0]) > 0.25
    assert float(rows["the truth"][3].split()[0]) > 0.95


@pytest.mark.slow
def test_index_without_the_peer(arguments, tmp_path):
    options = ("--n", 600, "--dim", 32, "--shards", 2, "--queries", 20, "--peers", "--work", tmp_path / "work")
    results = arguments(*options)
    index_vs_autofaiss.main()
    (written,) = results.glob("index_vs_autofaiss_*.md")
    assert "| 1.0000 |" in written.read_text(), "so few rows are searched exactly"


def test_made_up_vectors_are_the_same_every_time_and_lie_in_clusters(tmp_path):
    spec = vectors.VectorSet(500, 64, 2, centres=20, text=True)
    first, again = (vectors.make(tmp_path / name, spec) for name in ("a", "b"))
    rows = [np.load(folder / "img_emb" / "img_emb_00001.npy") for folder in (first, again)]
    assert np.array_equal(*rows)
    cosines = rows[0].astype(np.float32) @ rows[0].astype(np.float32).T
    assert np.diag(cosines) == pytest.approx(1, abs=1e-3)
    assert np.median(np.sort(cosines, axis=1)[:, -2]) > 0.7
    assert np.median(cosines) < 0.3
    drawn = vectors.queries(spec, 10)
    assert (drawn @ rows[0].astype(np.float32).T).max() < 0.999, "queries are no rows"


@pytest.mark.slow
def test_a_prior_is_trained_and_sampled_in_a_process_of_its_own(tmp_path):
    from benchmarks import prior_vs_dalle2_pytorch as priors

    lengths = ((3, 1), (2, 5))
    for told in ({"lengths": lengths}, {"sample_steps": 2}):
        side = priors.Configuration("ours", True, rows=2, repeats=2, **told)
        done = priors.run_round(side, 1, tmp_path, 120)
        assert done.wall > 0
        assert done.cpu > 0
        assert done.peak_mib > 100
    table = priors.tables({side: [done], priors.Configuration("peer", False, need=2): [done]})[1]
    assert "| peer / ours | 1.00 | 1.00 | 1.00 | 2: not met |" in table
