"""Parameterizations of the network's output: the training target, and x0 from an output.

x_t = alpha x0 + sigma noise. All tensors broadcast together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Parameterization:
    """One meaning of the output.

    target(x0, noise, alpha, sigma): what the network should give.
    to_x0(output, x_t, alpha, sigma): the estimate of x0 that an output stands for.
    error_ratio(snr): squared error of the target over the squared error of x0 that goes with it.
    """

    name: str
    target: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    to_x0: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    error_ratio: Callable[[Tensor], Tensor]


X0 = Parameterization(
    "x0",
    target=lambda x0, noise, alpha, sigma: x0,
    to_x0=lambda output, x_t, alpha, sigma: output,
    error_ratio=torch.ones_like,
)

NOISE = Parameterization(
    "noise",
    target=lambda x0, noise, alpha, sigma: noise,
    to_x0=lambda output, x_t, alpha, sigma: (x_t - sigma * output) / alpha,
    error_ratio=lambda snr: snr,
)

# Salimans & Ho 2202.00512, appendix D.
V = Parameterization(
    "v",
    target=lambda x0, noise, alpha, sigma: alpha * noise - sigma * x0,
    to_x0=lambda output, x_t, alpha, sigma: (alpha * x_t - sigma * output) / (alpha**2 + sigma**2),
    error_ratio=lambda snr: 1.0 + snr,
)

# The velocity of the straight path. Lipman et al. 2210.02747, equation 23; Liu et al. 2209.03003, equation 1.
FLOW = Parameterization(
    "flow",
    target=lambda x0, noise, alpha, sigma: noise - x0,
    to_x0=lambda output, x_t, alpha, sigma: (x_t - sigma * output) / (alpha + sigma),
    error_ratio=lambda snr: (1.0 + snr.sqrt()) ** 2,
)

PARAMETERIZATIONS = {it.name: it for it in (X0, NOISE, V, FLOW)}
