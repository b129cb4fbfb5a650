"""Classifier-free guidance of a decoder's stage, by image embedding and by text."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dalle2_core.conditioning import DecoderCondition
from dalle2_core.diffusion.learned_variance import Estimate

StageEstimate = Callable[[Tensor, Tensor, DecoderCondition, Tensor | None], Estimate]


def guided_estimate(estimate: StageEstimate, scale: float, text_scale: float | None = None) -> StageEstimate:
    """Move the estimate of x0 past the conditional one. All branches see the same x_t, in one batched call.

    nothing + scale (image - nothing) + text_scale (both - image): each condition with a scale of its own, as in
    Brooks et al. 2211.09800, equation 3. text_scale None is the same as `scale`, and needs no branch of its own:
    nothing + scale (both - nothing); Ho & Salimans 2207.12598, equation 6. Where both are 1 nothing is guided.
    The variance's fraction stays that of the conditional estimate.
    """
    if text_scale is None or text_scale == scale:
        if scale == 1.0:
            return estimate
        weights = {"both": scale, "nothing": 1.0 - scale}
    else:
        weights = {"both": text_scale, "image": scale - text_scale, "nothing": 1.0 - scale}
    # A branch without weight is not computed; the conditional one is, for its variance.
    kept = {name: weight for name, weight in weights.items() if weight != 0.0 or name == "both"}

    def estimate_guided(x_t: Tensor, t: Tensor, condition: DecoderCondition, self_cond: Tensor | None) -> Estimate:
        branches = {"both": condition}
        if "image" in kept:
            branches["image"] = condition.without_text()
        if "nothing" in kept:
            branches["nothing"] = condition.unconditional()
        first, *others = branches.values()
        for other in others:
            first = first.joined(other)
        times = len(branches)
        every = estimate(
            torch.cat([x_t] * times),
            torch.cat([t] * times),
            first,
            None if self_cond is None else torch.cat([self_cond] * times),
        )
        parts = every.x0.chunk(times)
        x0 = sum((kept[name] * part for name, part in zip(branches, parts, strict=True)), torch.zeros_like(x_t))
        fraction = None if every.fraction is None else every.fraction[: len(x_t)]
        return Estimate(x0, fraction)

    return estimate_guided
