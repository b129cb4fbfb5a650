"""What the commands of version 0.1 left is read, verified, and gone on with.

`version_0_1_outputs.tar.xz` was written by version 0.1, each command as it stands in COMMANDS below: fetched shards,
data sets in both formats, an index, a selection, an export, and three trainings that were interrupted (the decoder's
weights are zeros, for the archive's size).
"""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from dalle2_core import load_autoencoder, load_decoder, load_prior
from embedpipe import EmbeddingDataset, read_subset
from tests.commands import result_of, run

ARCHIVE = Path(__file__).parents[1] / "oracles" / "version_0_1_outputs.tar.xz"


def settings(**values):
    return [word for name, value in values.items() for word in ("--set", f"{name.replace('__', '.')}={value}")]


RUN = {"train__steps": 6, "train__batch_size": 8, "train__save_every": 2, "train__log_every": 2}
RUN |= {"train__evaluate_every": 3}
HELD_OUT = ["--valid-share", "0.2", "--device", "cpu"]
PRIOR = settings(
    **RUN,
    network__dim=16,
    network__depth=1,
    diffusion__timesteps=20,
    diffusion__sample_timesteps=4,
    optim__warmup_steps=2,
)
VAE = settings(**RUN, vae__image_size=16, vae__dim=4, vae__resnet_groups=2, vae__vq_codebook_size=8)
VAE += settings(vae__use_vgg_and_gan="false")
DECODER = ["--sizes", "8", "--dims", "4", "--timesteps", "10", "--steps", "4", "--batch-size", "6"]
COMMANDS = {
    "prior": ["train-prior", "emb", "prior", *PRIOR, *HELD_OUT],
    "vae": ["train-vae", "fetched", "vae", *VAE, *HELD_OUT],
    "decoder": ["train-decoder", "fetched", "emb", "decoder", *DECODER, *HELD_OUT],
}


@pytest.fixture
def outputs(tmp_path, monkeypatch):
    """The archive's content, in which the test works: all paths that it holds are relative."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["fetched", "emb", "emb-parquet", "dedup", "filtered"])
def test_an_output_is_whole_and_told(outputs, name):
    assert result_of("verify", name, "--deep")["whole"]
    assert result_of("info", name)


def test_both_formats_hold_the_same_rows(outputs):
    npy, parquet = EmbeddingDataset("emb"), EmbeddingDataset("emb-parquet")
    assert len(npy) == 32
    for side in ("image", "text"):
        assert np.array_equal(getattr(npy, side)[:], getattr(parquet, side)[:])
    assert npy.metadata["caption"].read().to_pylist() == [f"a colour of number {row}" for row in range(32)]


@pytest.mark.parametrize("name", ["dedup", "filtered"])
def test_a_selection_names_its_rows(outputs, name):
    kept = read_subset(EmbeddingDataset("emb"), f"{name}/kept.parquet")
    chosen = EmbeddingDataset(name)
    assert len(chosen) == len(kept) > 0
    assert np.array_equal(chosen.image[:], EmbeddingDataset("emb").image[kept])


def test_the_index_answers_and_the_export_is_found_finished(outputs):
    key = EmbeddingDataset("emb").metadata["key"][5]
    (nearest,) = result_of("search", "emb", "--key", key, "-k", "1")
    assert nearest["key"] == key
    report = result_of("export", "emb", "export", "--to", "parquet")
    assert report["already"] == report["parts"] == 2


@pytest.mark.parametrize("name", list(COMMANDS))
def test_an_interrupted_training_goes_on(outputs, name):
    folder = outputs / name / "stage-1" if name == "decoder" else outputs / name
    steps = [int(path.name[5:]) for path in (folder / "checkpoints").iterdir()]
    outcome = run(*COMMANDS[name])
    assert outcome.exit_code == 0, outcome.output
    assert f"goes on from step {max(steps)}" in outcome.stderr
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert max(record["step"] for record in records) == (4 if name == "decoder" else 6)
    {"prior": load_prior, "vae": load_autoencoder, "decoder": load_decoder}[name](name)
