"""Guidance by image and text, each with a scale of its own."""

import torch

from dalle2_core import DecoderCondition
from dalle2_core.decoder.stage_sampler import guidance_branches
from dalle2_core.diffusion.guidance import guided
from dalle2_core.diffusion.posterior import Posterior


class Recorder:
    """100 for the image, 10 for the text, and x_t: says what was kept."""

    def __init__(self):
        self.calls = []

    def __call__(self, x_t, t, condition, self_cond):
        self.calls.append((x_t, t, condition, self_cond))
        told = torch.zeros(len(x_t))
        for keep, worth in ((condition.image_keep, 100.0), (condition.text_keep, 10.0)):
            told += worth * (torch.ones(len(x_t)) if keep is None else keep.float())
        return Posterior(x_t + told[:, None], told[:, None])


def told(rows=2):
    return DecoderCondition(torch.randn(rows, 3), torch.randn(rows, 4, 5), lowres=torch.randn(rows, 1))


def guided_by(record, condition, scale, text_scale):
    branched, weights = guidance_branches(condition, scale, text_scale)
    return guided(lambda x_t, t, self_cond: record(x_t, t, branched, self_cond), weights)


def run(scale, text_scale):
    record, x = Recorder(), torch.randn(2, 1)
    estimate = guided_by(record, told(), scale, text_scale)(x, torch.tensor([3, 4]), x * 2)
    return record.calls, x, estimate


def test_scale_1_is_the_unguided_estimate():
    record, condition = Recorder(), told()
    branched, weights = guidance_branches(condition, 1.0, 1.0)
    assert branched is condition
    assert guided(record, weights) is record


def test_one_scale_guides_by_both_from_nothing_in_one_call():
    calls, x, estimate = run(scale=3.0, text_scale=3.0)
    assert len(calls) == 1
    x_all, t_all, condition, cond_all = calls[0]
    assert torch.equal(x_all, torch.cat((x, x)))
    assert t_all.tolist() == [3, 4, 3, 4]
    assert torch.equal(cond_all, 2 * x_all)
    assert torch.equal(condition.lowres[:2], condition.lowres[2:])
    assert condition.image_keep.tolist() == condition.text_keep.tolist() == [True, True, False, False]
    torch.testing.assert_close(estimate.x0, x + 3 * 110)
    assert estimate.fraction.tolist() == [[110.0], [110.0]]  # the conditional one's


def test_two_scales_guide_each_by_itself():
    calls, x, estimate = run(scale=2.0, text_scale=5.0)
    assert len(calls) == 1
    assert calls[0][2].image_keep.tolist() == [True] * 4 + [False] * 2
    assert calls[0][2].text_keep.tolist() == [True] * 2 + [False] * 4
    torch.testing.assert_close(estimate.x0, x + 2 * 100 + 5 * 10)


def test_branches_without_weight_are_not_computed():
    calls, x, estimate = run(scale=1.0, text_scale=4.0)
    assert len(calls[0][0]) == 4  # both, and the image alone
    torch.testing.assert_close(estimate.x0, x + 100 + 4 * 10)
    calls, x, estimate = run(scale=0.0, text_scale=0.0)
    torch.testing.assert_close(estimate.x0, x)


def test_scale_without_text_needs_no_text():
    record, x = Recorder(), torch.randn(2, 1)
    out = guided_by(record, DecoderCondition(torch.randn(2, 3)), 2.0, 2.0)(x, torch.zeros(2), None)
    assert record.calls[0][2].text_tokens is None
    torch.testing.assert_close(out.x0, x + 210)  # the recorder counts a text that is not there
