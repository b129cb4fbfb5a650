"""Classifier-free guidance."""

import torch

from dalle2_core.diffusion.guidance import guided
from dalle2_core.types import TextCondition


class Recorder:
    """Gives the text's first number where the text is kept, and the image's where it is dropped."""

    def __init__(self):
        self.calls = []

    def __call__(self, x_t, t, condition, self_cond):
        self.calls.append((x_t, t, condition, self_cond))
        keep = torch.ones(len(x_t), dtype=torch.bool) if condition.keep is None else condition.keep
        return torch.where(keep[:, None], condition.embed, x_t)


def test_scale_1_is_the_unguided_denoiser():
    denoise = Recorder()
    assert guided(denoise, 1.0) is denoise


def test_both_branches_see_the_same_noise_in_one_call_and_only_text_is_dropped():
    denoise = Recorder()
    x, text, self_cond = torch.randn(3, 3, 5)
    tokens = torch.randn(3, 2, 5)
    t = torch.tensor([1, 2, 3])
    out = guided(denoise, 3.0)(x, t, TextCondition(text, tokens), self_cond)
    assert len(denoise.calls) == 1
    x_both, t_both, condition, cond_both = denoise.calls[0]
    for both, one in ((x_both, x), (t_both, t), (cond_both, self_cond), (condition.tokens, tokens)):
        assert torch.equal(both[:3], one)
        assert torch.equal(both[3:], one)
    assert condition.keep.tolist() == [True] * 3 + [False] * 3
    torch.testing.assert_close(out, x + 3.0 * (text - x))


def test_scale_0_is_the_unconditional_estimate():
    x, text = torch.randn(2, 3, 5)
    out = guided(Recorder(), 0.0)(x, torch.zeros(3, dtype=torch.long), TextCondition(text), None)
    torch.testing.assert_close(out, x)
