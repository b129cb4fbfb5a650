"""sample-prior: a whole data set's texts become a data set of predicted image embeddings, which nothing mixes up."""

import json
import shutil

import numpy as np
import pytest
import torch

from dalle2_core.priors.registry import load_prior
from embedpipe import EmbeddingDataset
from embedpipe import manifest as manifests
from embedpipe.errors import DatasetError, InputError, RunMismatch
from embedpipe.unclip import sample_prior as prior_sampling
from embedpipe.unclip.sample_prior import SamplingConfig, sample_prior
from embedpipe.verify import verify
from tests.embeddings import write_dataset
from tests.shards import DEEP, edit, forget

SMALL = {
    "train.steps": 4,
    "train.batch_size": 16,
    "network.dim": 16,
    "network.depth": 1,
    "network.heads": 2,
    "diffusion.timesteps": 10,
    "diffusion.sample_timesteps": 3,
}


def rows(n, seed):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 8)), rng.normal(size=(n, 8))


@pytest.fixture(scope="module")
def emb(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("emb") / "emb", *rows(90, 0), shards=3)


@pytest.fixture(scope="module")
def runs(emb, tmp_path_factory):
    """A diffusion prior and a ridge, by name."""
    from click.testing import CliRunner
    from embedpipe_cli.main import cli

    root = tmp_path_factory.mktemp("runs")
    settings = [word for name, value in SMALL.items() for word in ("--set", f"{name}={value}")]
    for name in ("diffusion", "ridge"):
        words = ["train-prior", emb, root / name, "--prior", name, "--device", "cpu", *settings]
        outcome = CliRunner().invoke(cli, list(map(str, words)), standalone_mode=False)
        assert outcome.exception is None, outcome.exception
    return {name: str(root / name) for name in ("diffusion", "ridge")}


@pytest.fixture(scope="module")
def predicted(emb, runs, tmp_path_factory):
    out = str(tmp_path_factory.mktemp("predicted") / "out")
    sample_prior(runs["diffusion"], emb, out, SamplingConfig())
    return out


def files_of(folder):
    """Bytes of every file but locks and the timings in manifests."""
    from pathlib import Path

    found = {}
    for path in sorted(Path(folder).rglob("*")):
        if path.is_file() and path.name != ".lock":
            content = path.read_bytes()
            if path.parent.name == "manifest":
                content = {k: v for k, v in json.loads(content).items() if k not in ("timing_s", "self_sha256")}
            found[str(path.relative_to(folder))] = content
    return found


def test_the_rows_are_those_of_the_texts_and_the_images_are_the_priors(emb, runs, predicted):
    source, out = EmbeddingDataset(emb), EmbeddingDataset(predicted)
    assert out.keys() == source.keys()
    assert out.column("caption").to_pylist() == source.column("caption").to_pylist()
    assert np.array_equal(out.text.read(), source.text.read())
    assert verify(predicted, DEEP).whole
    image = out.image.read()
    assert np.allclose(np.linalg.norm(image, axis=1), 1, atol=2e-3)
    assert len(np.unique(image, axis=0)) == 90
    similarity = out.column("similarity").to_numpy()
    assert np.allclose(similarity, (image * source.text.read()).sum(axis=1), atol=1e-3)
    # A mean over the draws: what the prior says by itself for those texts, by draws of its own.
    prior = load_prior(runs["diffusion"]).eval()
    text = torch.from_numpy(source.text.read())
    assert abs(float((prior.sample(text).numpy() * image).sum(axis=1).mean())) < 1.01


def test_a_closed_form_gives_exactly_its_prediction(emb, runs, tmp_path):
    sample_prior(runs["ridge"], emb, str(tmp_path / "out"), SamplingConfig())
    text = torch.from_numpy(EmbeddingDataset(emb).text.read())
    expected = load_prior(runs["ridge"]).sample(text).numpy().astype(np.float16)
    assert np.array_equal(EmbeddingDataset(str(tmp_path / "out")).image[:], expected)


def test_norms_are_those_of_the_priors_samples_and_the_texts_own(emb, runs, tmp_path):
    norms = np.random.default_rng(3).uniform(5, 20, 90).astype(np.float32)
    columns = {"text_norm": ("float", norms.tolist()), "image_norm": ("float", [1000.0] * 90)}
    with_norms = write_dataset(tmp_path / "emb", *rows(90, 0), shards=3, columns=columns)
    sample_prior(runs["ridge"], with_norms, str(tmp_path / "out"), SamplingConfig())
    out = EmbeddingDataset(str(tmp_path / "out"))
    text = torch.from_numpy(EmbeddingDataset(emb).text.read())
    expected = load_prior(runs["ridge"]).sample(text, normalize=False).numpy()
    assert np.ptp(np.linalg.norm(expected, axis=1)) > 0.01
    assert np.allclose(out.image.raw().norms(), np.linalg.norm(expected, axis=1), rtol=1e-5)
    assert np.allclose(out.image.raw().read(), expected, atol=2**-10)
    assert np.array_equal(out.text.raw().norms(), norms)
    assert verify(str(tmp_path / "out"), DEEP).whole


def test_of_texts_without_norms_the_images_have_theirs(predicted):
    out = EmbeddingDataset(predicted)
    assert "text_norm" not in out.column_names()
    assert (out.image.raw().norms() > 0).all()
    with pytest.raises(DatasetError, match="written without norms"):
        out.text.raw()


def test_an_output_of_version_0_1_goes_on_without_norms(emb, runs, predicted, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(predicted, out)
    forget(out, 0, 1, 2)
    edit(out / "embedpipe.json", columns={})
    sample_prior(runs["diffusion"], emb, str(out), SamplingConfig())
    before, now = EmbeddingDataset(predicted), EmbeddingDataset(str(out))
    assert np.array_equal(now.image[:], before.image[:])
    assert "image_norm" not in now.column_names()
    assert verify(str(out), DEEP).whole


def test_batch_sizes_and_workers_do_not_change_the_draws(emb, runs, predicted, tmp_path):
    sample_prior(runs["diffusion"], emb, str(tmp_path / "small"), SamplingConfig(), batch_size=7)
    one, other = EmbeddingDataset(predicted).image.read(), EmbeddingDataset(str(tmp_path / "small")).image.read()
    assert np.abs(one - other).max() < 2e-3
    sample_prior(runs["diffusion"], emb, str(tmp_path / "seeded"), SamplingConfig(seed=1))
    assert np.abs(one - EmbeddingDataset(str(tmp_path / "seeded")).image.read()).max() > 0.1


@pytest.mark.slow
def test_two_workers_write_the_same_bytes(emb, runs, predicted, tmp_path):
    sample_prior(runs["diffusion"], emb, str(tmp_path / "two"), SamplingConfig(), gpus=0, workers=2)
    one, other = EmbeddingDataset(predicted).image.read(), EmbeddingDataset(str(tmp_path / "two")).image.read()
    assert np.abs(one - other).max() < 2e-3


def test_interrupted_and_run_again_the_bytes_are_those_of_an_undisturbed_run(
    emb, runs, predicted, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    load = prior_sampling.LoadPredictor.__call__

    def impatient(self, device):
        predict, calls = load(self, device), []

        def once(shard, *rest):
            calls.append(shard)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return predict(shard, *rest)

        return once

    with monkeypatch.context() as patch:
        patch.setattr(prior_sampling.LoadPredictor, "__call__", impatient)
        with pytest.raises(KeyboardInterrupt):
            sample_prior(runs["diffusion"], emb, str(out), SamplingConfig())
    assert manifests.committed_numbers(str(out)) == [0]
    (out / "img_emb" / "img_emb_00001.npy").write_bytes(b"torn")
    report = sample_prior(runs["diffusion"], emb, str(out), SamplingConfig())
    assert report.already == 1
    assert files_of(out) == files_of(predicted)


def test_new_shards_are_added_and_a_cut_file_is_made_again(runs, tmp_path):
    text, image = rows(90, 0)
    grown = tmp_path / "emb"
    write_dataset(grown, image, text, shards=3)
    third = next((grown / "manifest").glob("00002.json"))
    kept = third.read_bytes()
    forget(grown, 2)
    facts = json.loads((tmp_path / "emb" / "embedpipe.json").read_text())
    assert len(facts["plan"]) == 3
    out = tmp_path / "out"
    assert sample_prior(runs["ridge"], str(grown), str(out), SamplingConfig()).rows == 60
    third.write_bytes(kept)
    whole = (out / "img_emb" / "img_emb_00000.npy").read_bytes()
    (out / "img_emb" / "img_emb_00000.npy").write_bytes(whole[:-10])
    report = sample_prior(runs["ridge"], str(grown), str(out), SamplingConfig())
    assert (report.already, report.rows) == (1, 90)
    assert (out / "img_emb" / "img_emb_00000.npy").read_bytes() == whole
    assert verify(str(out), DEEP).whole


def test_predicted_embeddings_are_not_taken_for_real_ones(emb, runs, predicted, tmp_path, embedpipe):
    source, out = EmbeddingDataset(emb), EmbeddingDataset(predicted)
    assert out.card.fingerprint() != source.card.fingerprint()
    assert out.card.of_encoder().fingerprint() == source.card.fingerprint()
    result = embedpipe("evaluate", runs["diffusion"], predicted)
    assert result.exit_code == 1
    assert "its image embeddings were predicted by a diffusion-prior" in result.stderr
    with pytest.raises(RunMismatch, match="were predicted by a diffusion-prior"):
        sample_prior(runs["diffusion"], predicted, str(tmp_path / "again"), SamplingConfig())
    with pytest.raises(RunMismatch, match="holds embeddings of real images"):
        sample_prior(runs["diffusion"], emb, _copy(emb, tmp_path / "real"), SamplingConfig())
    assert "predicted by a diffusion-prior" in embedpipe("info", predicted).stdout
    assert json.loads(embedpipe("info", predicted, "--json").stdout)["encoder"]["predicted_by"]["sampling"]["seed"] == 0
    assert embedpipe("index", _copy(predicted, tmp_path / "indexed")).exit_code == 0


def _copy(folder, to):
    shutil.copytree(folder, to)
    return str(to)


def test_an_output_made_in_another_way_is_refused_with_what_differs(emb, runs, predicted, tmp_path):
    out = _copy(predicted, tmp_path / "out")
    with pytest.raises(RunMismatch, match=r"predicted_by\.sampling\.seed was 0, now 3"):
        sample_prior(runs["diffusion"], emb, out, SamplingConfig(seed=3))
    with pytest.raises(RunMismatch, match=r'predicted_by\.kind was "diffusion-prior", now "ridge-prior"'):
        sample_prior(runs["ridge"], emb, out, SamplingConfig())
    other = write_dataset(tmp_path / "other", *rows(90, 5), shards=3)
    with pytest.raises(RunMismatch, match=r"shard 0 of .* has changed since it was predicted"):
        sample_prior(runs["diffusion"], other, out, SamplingConfig())
    encoder = write_dataset(tmp_path / "encoder", *rows(90, 5), shards=3, weights="1" * 64)
    with pytest.raises(RunMismatch, match="another encoder"):
        sample_prior(runs["diffusion"], encoder, str(tmp_path / "new"), SamplingConfig())


def test_mistakes_are_named(emb, runs, tmp_path, embedpipe):
    with pytest.raises(InputError, match=r"a ridge-prior has no `steps`"):
        sample_prior(runs["ridge"], emb, str(tmp_path / "out"), SamplingConfig(steps=4))
    with pytest.raises(InputError, match="7 GPUs asked for"):
        sample_prior(runs["ridge"], emb, str(tmp_path / "out"), SamplingConfig(), gpus=7)
    result = embedpipe("sample-prior", emb, tmp_path / "out", "--prior", emb)
    assert result.exit_code == 1
    assert "Give a folder written by `embedpipe train-prior`" in result.stderr
    assert not (tmp_path / "out").exists()


def test_the_command_line(emb, runs, tmp_path, embedpipe):
    dry = embedpipe("sample-prior", emb, tmp_path / "out", "--prior", runs["diffusion"], "--candidates", 1, "--dry-run")
    assert json.loads(dry.stdout)["predicted_by"]["sampling"]["candidates"] == 1
    assert not (tmp_path / "out").exists()
    done = embedpipe("sample-prior", emb, tmp_path / "out", "--prior", runs["diffusion"], "--candidates", 1)
    assert "90 rows in 3 shards" in done.stdout
    again = embedpipe("sample-prior", emb, tmp_path / "out", "--prior", runs["diffusion"], "--candidates", 1, "--json")
    assert json.loads(again.stdout)["already"] == 3


def test_a_prior_that_breaks_is_stopped_before_anything_is_written(emb, runs, tmp_path, monkeypatch):
    def broken(self, device):
        return lambda shard, text, listen: np.full(text.embed.shape, np.nan, np.float32)

    monkeypatch.setattr(prior_sampling.LoadPredictor, "__call__", broken)
    with pytest.raises(DatasetError, match=r"shard 0: the prior gave no finite \(30, 8\)"):
        sample_prior(runs["ridge"], emb, str(tmp_path / "out"), SamplingConfig())
    assert manifests.committed_numbers(str(tmp_path / "out")) == []


def test_in_another_precision_it_is_another_output(emb, runs, predicted, tmp_path, embedpipe):
    out, words = tmp_path / "out", ("--prior", runs["diffusion"], "--device", "cpu")
    assert embedpipe("sample-prior", emb, out, *words, "--precision", "bfloat16").exit_code == 0
    ours, exact = (EmbeddingDataset(str(it)).image.read() for it in (out, predicted))
    cosines = (ours * exact).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(exact, axis=1)
    assert 1e-8 < 1 - np.median(cosines) < 1e-3  # another of two candidates may be kept
    assert EmbeddingDataset(str(out)).card.predicted_by.sampling["precision"] == "bfloat16"
    assert "precision" not in EmbeddingDataset(predicted).card.predicted_by.sampling
    refused = embedpipe("sample-prior", emb, out, *words)
    assert refused.exit_code == 1
    assert "precision" in refused.stderr
    both = embedpipe("sample-prior", emb, tmp_path / "x", *words, "--workers", 2)
    assert both.exit_code == 2
    assert "--device is where a single worker samples" in both.stderr
