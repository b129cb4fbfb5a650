"""What a run held out is never taken for held out by a run that was trained on it."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from embedpipe.errors import RunMismatch
from embedpipe.load import EmbeddingDataset, splits
from embedpipe.load.split import KEY
from embedpipe.merge import merge
from embedpipe.unclip.evaluate.priors import evaluate_priors
from embedpipe.unclip.runs.split import SplitConfig
from embedpipe.unclip.train.prior import prior_job, run_prior
from tests.commands import result_of, run
from tests.embeddings import write_dataset


def pairs(n=300, dim=8, seed=0):
    rng = np.random.default_rng(seed)
    text = rng.normal(size=(n, dim))
    return text @ np.linalg.qr(np.random.default_rng(7).normal(size=(dim, dim)))[0] + rng.normal(size=(n, dim)), text


def trained(emb, out, by=None, share=0.2, **options):
    """A ridge; by: the rule of earlier versions, which left no list of rows either."""
    job = prior_job(emb, str(out), prior="ridge", valid_share=share, device="cpu", **options)
    if by is not None:
        job = dataclasses.replace(job, split=SplitConfig(None, share, by))
    run_prior(job)
    if by is not None:
        (out / "train_rows.npy").unlink()
    return str(out)


@pytest.fixture
def merged(tmp_path):
    """Two data sets whose shards have the same names, and both merged."""
    parts = [
        write_dataset(tmp_path / name, *pairs(seed=seed), sha256=[f"{300 * seed + row:064x}" for row in range(300)])
        for seed, name in enumerate(("a", "b"))
    ]
    merge(parts, str(tmp_path / "all"))
    return parts[0], str(tmp_path / "all")


def test_a_prior_that_saw_held_out_rows_of_another_is_refused(merged, tmp_path):
    part, whole = merged
    one, two = trained(part, tmp_path / "one", KEY), trained(whole, tmp_path / "two", KEY)
    with pytest.raises(RunMismatch, match=r"one: was trained on \d+ of the \d+ held-out rows of .*all"):
        evaluate_priors([one, two], whole, device="cpu")
    found = evaluate_priors([one, two], whole, device="cpu", common=True)
    names = splits(EmbeddingDataset(whole), None, 0.2, by=KEY)
    before = splits(EmbeddingDataset(part), None, 0.2, by=KEY)
    expected = int(((names == "valid")[:300] & (before == "valid")).sum() + (names == "valid")[300:].sum())
    assert found.scores["one"].n == expected
    assert found.notes == (f"{expected} rows held out by all 2 priors",)
    shutil.rmtree(part)  # what it saw is no longer known: by either name it may have
    with pytest.raises(RunMismatch, match=r"one: was trained on"):
        evaluate_priors([one, two], whole, device="cpu")


def test_by_content_merging_moves_no_row(merged, tmp_path):
    part, whole = merged
    one, two = trained(part, tmp_path / "one"), trained(whole, tmp_path / "two")
    found = evaluate_priors([one, two], whole, device="cpu")
    held = splits(EmbeddingDataset(whole), None, 0.2) == "valid"
    assert found.scores["one"].n == held.sum()
    assert np.array_equal(held[:300], splits(EmbeddingDataset(part), None, 0.2) == "valid")
    assert json.loads((tmp_path / "one" / "run.json").read_text())["split"]["by"] == "content"


def test_the_common_rows_of_different_shares_are_those_of_the_smaller(merged, tmp_path):
    _, whole = merged
    runs = [trained(whole, tmp_path / f"{share}", share=share) for share in (0.1, 0.3)]
    with pytest.raises(RunMismatch, match=r"another split.*or give `common=True`: \d+ rows were held out by all"):
        evaluate_priors(runs, whole, device="cpu")
    found = evaluate_priors(runs, whole, device="cpu", common=True)
    assert found.scores["0.1"].n == (splits(EmbeddingDataset(whole), None, 0.1) == "valid").sum()


def test_a_run_of_an_earlier_version_goes_on_by_its_rule(merged, tmp_path):
    part, _ = merged
    out = tmp_path / "one"
    trained(part, out, KEY)
    facts = json.loads((out / "run.json").read_text())
    assert "by" not in facts["split"]
    trained(part, out)
    again = json.loads((out / "run.json").read_text())
    assert (again["split"], again["train_rows"]) == (facts["split"], facts["train_rows"])
    assert facts["train_rows"] == (splits(EmbeddingDataset(part), None, 0.2, by=KEY) == "train").sum()


def test_a_column_that_other_data_lack_is_named_with_the_remedy(tmp_path):
    split = ["valid" if row % 5 == 0 else "train" for row in range(300)]
    emb = write_dataset(tmp_path / "emb", *pairs(), columns={"split": split})
    other = write_dataset(tmp_path / "other", *pairs(seed=3), names=["x.tar", "y.tar"])
    assert run("train-prior", emb, tmp_path / "run", "--prior", "ridge", "--split-column", "split").exit_code == 0
    failed = run("evaluate", tmp_path / "run", other)
    assert "run: held out rows by the column 'split', which " in str(failed.exception)
    assert "`split_column` or `valid_share`" in str(failed.exception)
    found = result_of("evaluate", tmp_path / "run", other, "--valid-share", "0.2", "--device", "cpu")
    assert found["rows"][0]["n"] == (splits(EmbeddingDataset(other), None, 0.2) == "valid").sum()
    failed = run("evaluate", tmp_path / "run", emb, "--valid-share", "0.2")
    assert "was trained on" in str(failed.exception)


def test_built_in_baselines_have_the_norms_of_runs_and_ties_are_told(merged, tmp_path):
    part, _ = merged
    trained(part, tmp_path / "my-ridge")
    found = evaluate_priors([str(tmp_path / "my-ridge"), trained(part, tmp_path / "other")], part, device="cpu")
    assert found.scores["my-ridge"] == found.scores["ridge"]
    assert found.scores["my-ridge"].norm < 0.99
    assert set(found.winners["recall_at_1"]) >= {"my-ridge", "other", "ridge"}
    outcome = run("evaluate", tmp_path / "my-ridge", part, "--device", "cpu")
    assert "cosine_image" in outcome.stdout
    assert "±" in outcome.stdout
    assert "tie on" in outcome.stdout
