"""Scores of predictions, on rows small enough to count by hand."""

import pytest
import torch
from torch.nn import functional as F

from dalle2_core.errors import ShapeError
from dalle2_core.training.prior_metrics import _derangement, compare_priors, evaluate_prior, validation_loss
from dalle2_core.types import StepLoss


def unit(rows, dim, seed=0):
    return F.normalize(torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_a_perfect_prediction():
    image, text = unit(50, 8), unit(50, 8, seed=1)
    scores = evaluate_prior(3.0 * image, image, text)
    assert scores.cosine_image == pytest.approx(1.0)
    assert (scores.recall_at_1, scores.recall_at_5, scores.recall_at_10) == (1.0, 1.0, 1.0)
    assert scores.norm == pytest.approx(3.0, abs=1e-5)
    assert scores.spread == pytest.approx(scores.spread_images)
    assert scores.cosine_text == pytest.approx(float((image * text).sum(1).mean()), abs=1e-6)
    assert scores.n == 50


def test_spread_is_the_mean_over_pairs():
    image = unit(9, 4)
    pairs = [float(image[i] @ image[j]) for i in range(9) for j in range(9) if i != j]
    scores = evaluate_prior(torch.ones(9, 4), image, image)
    assert scores.spread_images == pytest.approx(sum(pairs) / len(pairs), abs=1e-6)
    assert scores.spread == pytest.approx(1.0)


def test_a_constant_prediction_has_recall_of_k_over_n():
    image = unit(40, 8)
    scores = evaluate_prior(image.mean(0).expand(40, -1), image, image)
    assert (scores.recall_at_1, scores.recall_at_5, scores.recall_at_10) == (1 / 40, 5 / 40, 10 / 40)


def test_ranks_by_hand_with_duplicates():
    image = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-1.0, 0.0], [-0.8, 0.6], [-0.6, 0.8]])
    # Row 0 is hit; row 1 is its duplicate and is hit too; row 2's prediction is nearest to the one double, rank 2.
    predicted = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [1.0, 0.0], [-0.8, 0.6], [-0.6, 0.8]])
    scores = evaluate_prior(predicted, image, image)
    assert scores.recall_at_1 == pytest.approx(5 / 7)
    # Row 4's true image is the farthest of 6 different ones: rank 6.
    assert scores.recall_at_5 == pytest.approx(6 / 7)
    assert scores.recall_at_10 == 1.0


@pytest.mark.parametrize("n", [2, 3, 17])
def test_unrelated_rows_are_never_the_same(n):
    for seed in range(20):
        other = _derangement(n, seed)
        assert sorted(other.tolist()) == list(range(n))
        assert not bool((other == torch.arange(n)).any())


def test_scores_are_deterministic_and_block_size_does_not_matter():
    image, text, predicted = unit(1500, 6), unit(1500, 6, 1), unit(1500, 6, 2)
    assert evaluate_prior(predicted, image, text) == evaluate_prior(predicted, image, text)
    likeness = F.normalize(predicted.double(), dim=-1) @ F.normalize(image.double(), dim=-1).T
    ranks = 1 + (likeness > likeness.diagonal()[:, None]).sum(1)
    assert evaluate_prior(predicted, image, text).recall_at_10 == pytest.approx(float((ranks <= 10).double().mean()))


def test_comparison_says_who_wins():
    image, text = unit(30, 8), unit(30, 8, 1)
    result = compare_priors({"prior": image, "text": text}, image, text)
    assert result.winners == dict.fromkeys(("cosine_image", "recall_at_1", "recall_at_5", "recall_at_10"), ("prior",))
    assert result.sentence() == (
        "On 30 held-out rows, prior wins cosine_image, recall_at_1, recall_at_5, recall_at_10."
    )
    assert [row["predictor"] for row in result.table()] == ["prior", "text"]
    tie = compare_priors({"a": image, "b": image}, image, text)
    assert tie.winners["recall_at_1"] == ("a", "b")
    assert "a and b tie on" in tie.sentence()
    three = compare_priors({"a": image, "b": image, "c": image}, image, text)
    assert "a, b and c tie on" in three.sentence()


def test_a_lead_of_one_row_is_a_tie_and_errors_are_binomial():
    image, text = unit(55, 16), unit(55, 16, 1)
    hits = {"ridge": 13, "prior": 12}
    predictions = {name: torch.where(torch.arange(55)[:, None] < count, image, -image) for name, count in hits.items()}
    found = compare_priors(predictions, image, text)
    assert found.scores["ridge"].recall_at_1 == 13 / 55
    assert found.winners["recall_at_1"] == ("ridge", "prior")
    assert found.errors["ridge"]["recall_at_1"] == pytest.approx((13 / 55 * 42 / 55 / 54) ** 0.5)
    far = compare_priors({"good": image, "bad": -image}, image, text)
    assert far.winners["recall_at_1"] == ("good",)
    assert far.table()[0]["recall_at_1_error"] == 0


def test_mistakes_are_named():
    image = unit(4, 3)
    with pytest.raises(ShapeError, match="must all be the same"):
        evaluate_prior(unit(3, 3), image, image)
    broken = image.clone()
    broken[1, 2] = float("nan")
    with pytest.raises(ShapeError, match="1 of 4 predictions hold NaN"):
        evaluate_prior(broken, image, image)


def test_validation_loss_weighs_rows_not_batches():
    class Rows(list):
        def to(self, device):
            return self

    class Model(torch.nn.Module):
        def loss(self, batch, generator):
            return StepLoss(torch.tensor(float(sum(batch) / len(batch))))

    assert validation_loss(Model(), [Rows([1, 1, 1]), Rows([5])], torch.device("cpu")) == 2.0
    with pytest.raises(ShapeError, match="no rows"):
        validation_loss(Model(), [], torch.device("cpu"))
