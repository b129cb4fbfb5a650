"""Classifier-free guidance."""

import torch

from dalle2_core.diffusion.guidance import branches, combined, guided
from dalle2_core.diffusion.posterior import Posterior
from dalle2_core.types import TextCondition


class Recorder:
    """Gives the text's first number where the text is kept, and the image's where it is dropped."""

    def __init__(self):
        self.calls = []

    def __call__(self, x_t, t, condition, self_cond):
        self.calls.append((x_t, t, condition, self_cond))
        keep = torch.ones(len(x_t), dtype=torch.bool) if condition.keep is None else condition.keep
        return Posterior(torch.where(keep[:, None], condition.embed, x_t))


def guided_by(denoise, text, scale):
    condition, weights = branches((text, text.unconditional()), (scale,))
    return guided(lambda x_t, t, self_cond: denoise(x_t, t, condition, self_cond), weights)


def test_scale_1_is_the_unguided_denoiser():
    denoise, text = Recorder(), TextCondition(torch.randn(3, 5))
    condition, weights = branches((text, text.unconditional()), (1.0,))
    assert condition is text
    assert guided(denoise, weights) is denoise


def test_both_branches_see_the_same_noise_in_one_call_and_only_text_is_dropped():
    denoise = Recorder()
    x, text, self_cond = torch.randn(3, 3, 5)
    tokens = torch.randn(3, 2, 5)
    t = torch.tensor([1, 2, 3])
    out = guided_by(denoise, TextCondition(text, tokens), 3.0)(x, t, self_cond)
    assert len(denoise.calls) == 1
    x_both, t_both, condition, cond_both = denoise.calls[0]
    for both, one in ((x_both, x), (t_both, t), (cond_both, self_cond), (condition.tokens, tokens)):
        assert torch.equal(both[:3], one)
        assert torch.equal(both[3:], one)
    assert condition.keep.tolist() == [True] * 3 + [False] * 3
    torch.testing.assert_close(out.x0, x + 3.0 * (text - x))
    assert out.fraction is None


def test_scale_0_is_the_unconditional_estimate():
    x, text = torch.randn(2, 3, 5)
    out = guided_by(Recorder(), TextCondition(text), 0.0)(x, torch.zeros(3, dtype=torch.long), None)
    torch.testing.assert_close(out.x0, x)


def test_any_number_of_conditions_is_weighed_as_the_formula_says_with_the_fewest_branches():
    """The weights of the estimates, written out: s1 (a - b) + s2 (b - c) + s3 (c - d) + d."""
    values = {name: float(10**place) for place, name in enumerate("abcd")}

    class Name(str):
        def joined(self, other):
            return Name(self + other)

    for scales, names in (
        ((2.0, 3.0, 4.0), "abcd"), ((2.0, 2.0, 4.0), "acd"), ((2.0, 4.0, 4.0), "abd"), ((3.0, 3.0, 3.0), "ad"),
        ((5.0, 2.0, 1.0), "abc"), ((5.0, 1.0, 1.0), "ab"), ((1.0, 1.0, 1.0), "a"), ((0.0, 0.0, 1.0), "ac"),
        ((1.0, 5.0, 1.0), "abc"), ((0.0, 1.0, 0.0), "abcd"),
    ):  # fmt: skip
        joined, weights = branches([Name(name) for name in "abcd"], scales)
        assert joined == names
        a, b, c, d = values.values()
        expected = scales[0] * (a - b) + scales[1] * (b - c) + scales[2] * (c - d) + d
        stacked = torch.tensor([[values[name]] for name in joined])
        assert float(combined(stacked, weights)) == expected
