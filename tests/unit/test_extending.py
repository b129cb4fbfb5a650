"""docs/extending.md: its parts work through the commands, and pass the contract tests of their registries."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import embedpipe
from dalle2_core.priors import PRIORS, load_prior
from embedpipe.export import EXPORTS
from tests import embeddings, extending

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def uses(tmp_path, monkeypatch):
    """The page's parts are registered; its other blocks."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    before = set(PRIORS), set(EXPORTS)
    yield extending.register(tmp_path)
    for registry, names in zip((PRIORS, EXPORTS), before, strict=True):
        for name in set(registry) - names:
            del registry[name]
    for module in ("linear_prior", "json_lines"):
        sys.modules.pop(module, None)


@pytest.fixture
def emb(tmp_path):
    rng = np.random.default_rng(0)
    text = rng.normal(size=(300, 8))
    return embeddings.write_dataset(tmp_path / "emb", text @ rng.normal(size=(8, 8)), text)


def test_the_pages_training_learns_and_is_loaded_again(uses):
    (block,) = uses
    names = {}
    torch.manual_seed(0)
    exec(block, names)
    assert type(names["prior"]) is PRIORS["linear"]
    assert names["predicted"].shape == (128, 16)
    torch.testing.assert_close(names["predicted"].norm(dim=1), torch.ones(128))
    cosines = torch.nn.functional.cosine_similarity(names["predicted"], names["image"])
    assert float(cosines.mean()) > 0.9


def test_the_prior_is_trained_by_its_command_with_its_own_settings(uses, emb, embedpipe):
    settings = ["linear.penalty=0.001", "train.steps=40", "train.batch_size=32", "train.evaluate_every=40"]
    done = embedpipe("train-prior", emb, "run", "--prior", "linear", *[f"--set={it}" for it in settings])
    assert done.exit_code == 0, done.output
    assert "linear prior of 72 parameters, 40 steps" in done.stdout
    prior = load_prior("run")
    assert type(prior) is PRIORS["linear"]
    assert prior.config.penalty == 0.001
    assert prior.sample(torch.randn(2, 8)).shape == (2, 8)
    wrong = embedpipe("train-prior", emb, "other", "--prior", "linear", "--set", "linear.penalti=1")
    assert wrong.exit_code == 2
    assert "no setting 'linear.penalti'. Did you mean linear.penalty" in wrong.stderr


def test_the_exporter_writes_what_it_says(uses, emb):
    report = embedpipe.export(emb, "out", embedpipe.ExportConfig("jsonl"))
    assert (report.rows, report.parts) == (300, 2)
    read = extending.json_lines("out")
    dataset = embedpipe.EmbeddingDataset(emb)
    for row in (0, 299):
        image, text, caption = read[dataset.metadata["key"][row]]
        assert image == dataset.image[row].tolist()
        assert text == dataset.text[row].tolist()
        assert caption == dataset.metadata["caption"][row]


@pytest.mark.parametrize(
    ("command", "registry"),
    [
        ("train-prior", "dalle2_core.priors:PRIORS"),
        ("train-prior", "dalle2_core.presets:PRIOR_PRESETS"),
        ("train-prior", "dalle2_core.training.loggers:LOGGERS"),
        ("export", "embedpipe.export:EXPORTS"),
        ("encode", "embedpipe.store:FORMATS"),
        ("encode", "embedpipe.read:READERS"),
        ("encode", "embedpipe.execute:EXECUTORS"),
        ("fetch", "embedpipe.fetch.resizers:RESIZERS"),
    ],
)
def test_the_help_of_a_command_names_every_entry(embedpipe, command, registry):
    module, _, name = registry.partition(":")
    said = re.findall(r"[\w-]+", embedpipe(command, "--help").stdout)
    assert set(getattr(importlib.import_module(module), name)) - set(said) == set()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "files", "least"),
    [
        ("linear", ["unit/dalle2_core/priors/test_registry.py"], 6),
        ("jsonl", ["unit/embedpipe/export/test_export.py", "properties/test_export_round_trip.py"], 8),
    ],
)
def test_the_contract_tests_take_them(tmp_path, name, files, least):
    environment = {**os.environ, "EXTENDING_FOLDER": str(tmp_path), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "pytest", "-p", "tests.extending", "-p", "no:cacheprovider", "-k", name]
    done = subprocess.run(
        [*command, *(f"tests/{file}" for file in files)], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= least
