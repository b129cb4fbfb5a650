"""A dry run refuses what the real run would refuse, in the same words."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from embedpipe import EmbeddingDataset
from embedpipe.clip_model.encoder_card import card_from
from tests.embeddings import write_dataset


def rows(seed):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(90, 8)), rng.normal(size=(90, 8))


@pytest.fixture(scope="module")
def emb(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("emb") / "emb", *rows(0), shards=3)


@pytest.fixture(scope="module")
def places(emb, encoded_once, tmp_path_factory):
    """Data sets, runs and outputs of other commands, by name."""
    from click.testing import CliRunner
    from embedpipe_cli.main import cli

    root = tmp_path_factory.mktemp("places")

    def run(*words):
        outcome = CliRunner().invoke(cli, list(map(str, words)), standalone_mode=False)
        assert outcome.exception is None, outcome.exception

    run("train-prior", emb, root / "prior", "--prior", "ridge", "--device", "cpu")
    run("sample-prior", emb, root / "predicted", "--prior", root / "prior", "--gpus", 0)
    run("filter", emb, root / "kept", "--min-similarity", 0, "--examples", 0, "--materialise")
    run("export", emb, root / "hub", "--to", "hf")
    run("export", encoded_once[1], root / "images", "--images")
    shutil.copytree(root / "prior", root / "old-prior")
    facts = json.loads((root / "prior" / "run.json").read_text())
    old = card_from(facts["encoder"]).as_version_0_1()
    facts |= {"encoder": dataclasses.asdict(old), "fingerprint": old.fingerprint()}
    (root / "old-prior" / "run.json").write_text(json.dumps(facts))
    shutil.copytree(root / "prior", root / "tokens-prior")
    facts = json.loads((root / "prior" / "run.json").read_text())
    facts["recipe"]["text_tokens"] = True
    (root / "tokens-prior" / "run.json").write_text(json.dumps(facts))
    return {
        "EMB": emb,
        "ENCODED": encoded_once[1],
        "SHARDS": encoded_once[0],
        "CHANGED": write_dataset(root / "changed", *rows(1), shards=3),
        "OTHER": write_dataset(root / "other", *rows(0), shards=3, weights="1" * 64),
        **{path.name.upper(): path for path in root.iterdir()},
    }


CASES = {
    "sample-prior OTHER OUT --prior PRIOR": "trained on embeddings of another encoder",
    "sample-prior PREDICTED OUT --prior PRIOR": "were predicted",
    "sample-prior EMB OUT --prior OLD-PRIOR": "written before the activation was recorded",
    "sample-prior EMB OUT --prior TOKENS-PRIOR": "has no text tokens",
    "sample-prior EMB OUT --prior PRIOR --steps 4": "has no --steps",
    "sample-prior EMB OUT --prior PRIOR --gpus 99": "99 GPUs asked for",
    "sample-prior EMB KEPT --prior PRIOR": "holds embeddings of real images",
    "sample-prior EMB PREDICTED --prior PRIOR --seed 7": "made with another",
    "sample-prior CHANGED PREDICTED --prior PRIOR": "has changed since it was predicted",
    "filter EMB EMB --min-similarity 0": "is the data set itself",
    "filter EMB KEPT --min-similarity 0.5": "holds another selection",
    "dedup EMB EMB": "is the data set itself",
    "dedup EMB OTHER": "holds embedpipe/embeddings already",
    "export ENCODED OTHER --images": "holds embedpipe/embeddings, not embedpipe/image-shards",
    "export ENCODED IMAGES --images --keys KEYS": "selection",
    "export ENCODED OUT --images --data NOWHERE": "no such file or folder",
    "export OTHER HUB --to hf": "",
    "merge EMB OTHER OUT": "another encoder",
    "merge EMB EMB-TOO EMB": "is one of the data sets to merge",
}


@pytest.mark.parametrize("command", CASES)
def test_it_refuses_what_the_run_refuses(command, places, embedpipe, tmp_path):
    own = {"OUT": tmp_path / "out", "NOWHERE": tmp_path / "nowhere", "KEYS": tmp_path / "keys.txt"}
    (tmp_path / "keys.txt").write_text(EmbeddingDataset(places["ENCODED"]).keys()[0] + "\n")
    if "EMB-TOO" in command:
        own["EMB-TOO"] = shutil.copytree(places["EMB"], tmp_path / "too")
    words = [{**places, **own}.get(word, word) for word in command.split()]
    dry, real = embedpipe(*words, "--dry-run"), embedpipe(*words)
    assert (dry.exit_code, dry.stderr) == (real.exit_code, real.stderr)
    assert real.exit_code == 1, real.stderr
    assert CASES[command] in real.stderr
    assert not dry.stdout


def test_a_dry_run_of_sample_prior_says_what_is_left_and_mends_nothing(places, embedpipe, tmp_path):
    out = shutil.copytree(places["PREDICTED"], tmp_path / "out")
    command = ("sample-prior", places["EMB"], out, "--prior", places["PRIOR"], "--gpus", "0")
    assert json.loads(embedpipe(*command, "--dry-run").stdout)["to_predict"] == []
    next(out.glob("img_emb/*00001.npy")).write_bytes(b"cut")
    before = sorted((path, path.stat().st_mtime_ns) for path in out.rglob("*"))
    assert json.loads(embedpipe(*command, "--dry-run").stdout)["to_predict"] == [1]
    assert sorted((path, path.stat().st_mtime_ns) for path in out.rglob("*")) == before
    assert "2 were there already" in embedpipe(*command).stdout


def test_the_short_spelling_of_version_0_1_is_understood_and_not_shown(embedpipe, emb, tmp_path):
    done = embedpipe("export", emb, tmp_path / "out", "--to", "datacomp", "-n")
    assert (done.exit_code, list(tmp_path.iterdir())) == (0, []), done.stderr
    assert "-n is called --dry-run now" in done.stderr
    assert "-n," not in embedpipe("export", "--help").stdout
