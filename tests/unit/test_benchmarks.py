"""The benchmark scripts at toy size: they run, and what they say can be believed."""

import importlib
import json
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

import benchmarks
from benchmarks import (
    dedup_demo,
    embeddings,
    encode_overlap,
    encode_vs_clip_retrieval,
    gpu,
    gpu_phases,
    measure,
    photos,
    ray_overhead,
    report,
    vectors,
)

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the benchmarks read /proc")


SCRIPTS = sorted(
    path.stem for path in Path(benchmarks.__file__).parent.glob("*.py") if "ArgumentParser" in path.read_text()
)


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_says_what_it_takes(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"benchmarks.{name}").main()
    assert ended.value.code == 0
    assert "usage: " in capsys.readouterr().out


@pytest.fixture(scope="module")
def photo_folder(tmp_path_factory):
    """Six photos in two shards, where the scripts look for them."""
    return photos.make(tmp_path_factory.mktemp("work") / "photos-6", photos.PhotoSet(6, 2))


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
    assert len(samples) == 6
    assert all(photos.SMALLEST_BYTES <= len(data) <= photos.LARGEST_BYTES for _, data, _ in samples)
    assert 0.29e6 < facts["width"] * facts["height"] < 1.01e6
    assert photos.describe(photo_folder)["pictures"] == "6"


def test_photos_that_are_there_are_not_made_again(photo_folder):
    before = [path.stat().st_mtime_ns for path in sorted(photo_folder.iterdir())]
    photos.make(photo_folder, photos.PhotoSet(6, 2))
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
    options = ("--n", 6, "--shards", 2, "--rounds", 1, "--free-rounds", 2, "--model", tiny_model)
    results = arguments(*options, "--work", photo_folder.parent)
    encode_overlap.main()
    (written,) = results.glob("encode_overlap_*.md")
    text = written.read_text()
    assert "end to end / the longer of the two" in text
    assert "whole job, model free" in text
    assert "## Not measured\n\n- CUDA" in text


def test_a_rate_leaves_starting_out_and_counts_all_workers():
    clock = ray_overhead.Clock(begun=0.0)
    clock.finished = {0: [(6.0, 40), (7.0, 5), (8.0, 15)], 1: [(4.0, 10), (7.0, 30)]}
    assert clock.rate() == 20 / 2 + 30 / 3
    assert clock.shard_ms() == 1000
    with pytest.raises(RuntimeError, match="give more"):
        ray_overhead.Clock(finished={0: [(1.0, 10)]}).rate()


def test_planted_copies_are_judged_by_what_they_go_back_to(photo_folder, tmp_path):
    pictures = dedup_demo.read_pictures(photo_folder)
    twice = [*pictures, dedup_demo.Picture("", "", pictures[0].data, "the same once more")]
    planted = dedup_demo.plant(twice, tmp_path / "planted", 4, seed=0)
    assert len(dedup_demo.read_pictures(tmp_path / "planted")) == 11
    copies = sorted(planted.kind)
    assert [planted.kind[key] for key in copies] == list(dedup_demo.KINDS)
    original = {key: f"{planted.origin[key]:09d}" for key in copies}
    assert all(planted.pixels[key] != planted.pixels[original[key]] for key in copies)
    other = next(key for key in sorted(planted.origin) if planted.origin[key] not in map(planted.origin.get, copies))
    done = dedup_demo.judge(
        [
            (copies[0], original[copies[0]]),
            (original[copies[1]], copies[1]),
            ("000000006", "000000000"),
            (other, copies[2]),
        ],
        planted,
    )
    assert (done.dropped, done.right, done.recall) == (4, 3, 0.5)
    assert done.found == {"re-encoded": (1, 1), "resized": (1, 1), "cropped": (0, 1), "all three": (0, 1)}


def test_what_a_prior_is_to_learn_is_likely_where_it_was_drawn():
    from benchmarks import mixture

    task = mixture.make(50, 16, seed=0)
    assert task.text.norm(dim=1).allclose(torch.ones(50))
    likeness = (task.image[:, None] * task.modes).sum(dim=2)
    assert (likeness.argmax(dim=1) == task.drawn).float().mean() > 0.9


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


def test_every_phase_of_a_gpu_has_a_limit(monkeypatch):
    assert list(gpu.LIMITS_S) == list(gpu_phases.PHASES)
    monkeypatch.setattr(sys, "argv", ["gpu", "--only", "exactness,speed", "--device", "cpu", "--tiny"])
    with pytest.raises(SystemExit, match="no phase speed; known: setup, exactness"):
        gpu.main()


@pytest.mark.slow
def test_all_phases_of_a_gpu_run_on_a_cpu(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu", "--device", "cpu", "--tiny", "--work", str(tmp_path)])
    assert gpu.main() == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["phase"] for line in lines] == list(gpu.LIMITS_S)
    assert all(line["passed"] and line["tiny"] and line["device"] == "cpu" for line in lines)


@pytest.mark.slow
def test_a_phase_that_crashes_costs_itself_alone(tmp_path, monkeypatch, capsys):
    (tmp_path / "tiny-model").write_text("no folder")
    monkeypatch.setattr(sys, "argv", ["gpu", "--device", "cpu", "--tiny", "--only", "exactness,prior_rate"])
    sys.argv += ["--work", str(tmp_path)]
    assert gpu.main() == 1
    crashed, fine = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (crashed["passed"], crashed["ended"], fine["passed"]) == (False, "exit code 1", True)
    assert "tiny-model" in crashed["stderr"]
