"""Weights of a lower precision, with exact norms."""

from __future__ import annotations

import torch


def lower_weights(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Give a model weights of `dtype`, for inputs of `dtype`; its layer and group norms keep and compute in fp32.

    Unlike under autocast, nothing is cast for each batch but what enters and leaves a norm.
    """
    norms = [module for module in model.modules() if isinstance(module, torch.nn.LayerNorm | torch.nn.GroupNorm)]
    exact = [{name: tensor.detach().clone() for name, tensor in norm.state_dict().items()} for norm in norms]
    model.to(dtype=dtype)
    for norm, kept in zip(norms, exact, strict=True):
        norm.float().load_state_dict(kept)
        norm.register_forward_pre_hook(lambda _norm, inputs: tuple(it.float() for it in inputs))
        norm.register_forward_hook(lambda _norm, _inputs, normed: normed.to(dtype))
