"""The autoregressive prior's network: an image embedding as a sentence of codes.

Sequence: [text tokens?, text embedding, likeness, code 1 … code k-1]; from the likeness on, each token's output says
how likely each bucket is for the next code. Ramesh et al. 2204.06125, section 2.2.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from dalle2_core.networks.causal_transformer import CausalTransformer, Memory, PriorNetworkConfig, TextConditioned
from dalle2_core.types import TextCondition


class AutoregressiveNetwork(TextConditioned):
    """(codes, likeness, text) → logits."""

    def __init__(self, config: PriorNetworkConfig, codes: int, buckets: int, likeness_buckets: int) -> None:
        """config: with both widths known. codes: k, how many make an image. buckets: values of a code."""
        dim = config.dim
        assert dim is not None
        super().__init__(dim, config)
        self.codes = codes
        self.likeness = nn.Embedding(likeness_buckets, dim)
        self.code = nn.Embedding(buckets, dim)
        # Which code comes next; what a bucket means differs from one to another.
        self.turn = nn.Parameter(0.02 * torch.randn(codes, dim))
        self.causal_transformer = CausalTransformer(dim, buckets, config)

    def forward(self, codes: Tensor, likeness: Tensor, text: TextCondition) -> Tensor:
        """Logits [b, k, buckets]. codes: [b, k] integer, of which each is predicted from those before it.

        likeness: [b] integer.
        """
        told = torch.cat((self.likeness(likeness)[:, None], self.code(codes[:, :-1])), dim=1) + self.turn
        out: Tensor = self.causal_transformer(self.text(text).then(told), self.codes)
        return out

    def generate(self, likeness: Tensor, text: TextCondition, choose: Callable[[Tensor], Tensor]) -> Tensor:
        """Codes [b, k], one after the other: `choose` takes the next code's logits [b, buckets] and gives [b]."""
        tokens = self.text(text).then(self.likeness(likeness)[:, None] + self.turn[0])
        memory: Memory | None = None
        codes: list[Tensor] = []
        while True:
            logits, memory = self.causal_transformer.go_on(tokens, memory, 1)
            codes.append(choose(logits.squeeze(1)))
            if len(codes) == self.codes:
                return torch.stack(codes, dim=1)
            tokens = memory.next(self.code(codes[-1])[:, None] + self.turn[len(codes)])
