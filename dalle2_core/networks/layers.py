"""Layers of the transformer. Parameter names follow DALLE2-pytorch's state dict, so that its weights fit.

Letters: B batch, L length of the sequence, S = L + 1 keys (the null key first), H heads, E width of a head,
D width of the model.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LayerNorm(nn.Module):
    """Layer norm with a gain and no bias, over the last dimension."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.g.shape, self.g)


class SwiGLU(nn.Module):
    """Shazeer 2002.05202: the first half of the channels times silu of the second."""

    def forward(self, x: Tensor) -> Tensor:
        value, gate = x.chunk(2, dim=-1)
        return value * F.silu(gate)


def feed_forward(dim: int, mult: int, dropout: float, normformer: bool) -> nn.Sequential:
    """Pre-norm SwiGLU feed-forward; normformer (Shleifer et al. 2110.09456) norms the hidden layer too."""
    hidden = mult * dim
    return nn.Sequential(
        LayerNorm(dim),
        nn.Linear(dim, 2 * hidden, bias=False),
        SwiGLU(),
        LayerNorm(hidden) if normformer else nn.Identity(),
        nn.Dropout(dropout),
        nn.Linear(hidden, dim, bias=False),
    )


class RelPosBias(nn.Module):
    """T5's relative position bias for causal attention (Raffel et al. 1910.10683, section 2.1)."""

    def __init__(self, heads: int, num_buckets: int = 32, max_distance: int = 128) -> None:
        super().__init__()
        self.num_buckets = num_buckets
        self.max_distance = max_distance
        self.relative_attention_bias = nn.Embedding(num_buckets, heads)

    def forward(self, place: Tensor) -> Tensor:
        """Bias [B or 1, H, L, S]. place: [B or 1, L], where each token stands; the null key stands before place 0."""
        # DALLE2-pytorch numbers keys with the null key first, so a token and the one before share bucket 0.
        key = nn.functional.pad(place + 1, (1, 0), value=0)
        distance = (place[:, :, None] - key[:, None, :]).clamp(min=0)
        exact = self.num_buckets // 2
        spread = torch.log(distance.clamp(min=1) / exact) / math.log(self.max_distance / exact)
        far = exact + (spread * (self.num_buckets - exact)).long()
        bucket = torch.where(distance < exact, distance, far.clamp(max=self.num_buckets - 1))
        bias: Tensor = self.relative_attention_bias(bucket)
        return bias.permute(0, 3, 1, 2)


Angles = tuple[Tensor, Tensor]


class Rotary(nn.Module):
    """Rotary embedding (Su et al. 2104.09864) of the first `dim` channels, pairs of neighbours rotated together."""

    freqs: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        freqs = 10000.0 ** (-torch.arange(0, dim, 2, dtype=torch.float32) / dim)
        self.register_buffer("freqs", freqs, persistent=False)

    def forward(self, place: Tensor) -> Angles:
        """cos and sin for places [..., L], each [..., L, dim / 2]."""
        angle = place[..., None] * self.freqs
        return angle.cos(), angle.sin()

    @staticmethod
    def rotate(x: Tensor, angles: Angles) -> Tensor:
        """x: [..., L, E]."""
        cos, sin = angles
        turned, rest = x[..., : 2 * cos.shape[-1]], x[..., 2 * cos.shape[-1] :]
        even, odd = turned[..., 0::2], turned[..., 1::2]
        pairs = torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1)
        return torch.cat((pairs.flatten(-2), rest), dim=-1)


class Attention(nn.Module):
    """Multi-query attention (Shazeer 1911.02150): H query heads, one key and value head, one null key and value.

    Cosine similarity times a fixed scale (Henry et al. 2010.04245). The null key lets a token attend to nothing,
    and keeps a row whose keys are all masked finite.
    """

    SCALE = 16.0

    def __init__(self, dim: int, heads: int, dim_head: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.norm = LayerNorm(dim)
        self.to_q = nn.Linear(dim, heads * dim_head, bias=False)
        self.to_kv = nn.Linear(dim, 2 * dim_head, bias=False)
        self.null_kv = nn.Parameter(torch.randn(2, dim_head))
        self.to_out = nn.Sequential(nn.Linear(heads * dim_head, dim, bias=False), LayerNorm(dim))

    def forward(self, x_BLD: Tensor, bias: Tensor, angles: Angles | None) -> Tensor:
        """bias: added to the logits, broadcast to [B, H, L, S]; -inf hides a key. angles: [B or 1, L, .] or None."""
        batch, length, _ = x_BLD.shape
        x_BLD = self.norm(x_BLD)
        q_BHLE = self.to_q(x_BLD).view(batch, length, self.heads, -1).transpose(1, 2)
        k_BLE, v_BLE = self.to_kv(x_BLD).chunk(2, dim=-1)
        if angles is not None:
            q_BHLE = Rotary.rotate(q_BHLE, (angles[0][:, None], angles[1][:, None]))
            k_BLE = Rotary.rotate(k_BLE, angles)
        null_k, null_v = self.null_kv.to(k_BLE.dtype).expand(batch, 1, 2, -1).unbind(dim=2)
        k_BSE, v_BSE = torch.cat((null_k, k_BLE), dim=1), torch.cat((null_v, v_BLE), dim=1)

        out_BHLE = F.scaled_dot_product_attention(
            F.normalize(q_BHLE, dim=-1),
            F.normalize(k_BSE, dim=-1)[:, None].expand(-1, self.heads, -1, -1),
            v_BSE[:, None].expand(-1, self.heads, -1, -1),
            attn_mask=bias.to(q_BHLE.dtype),
            dropout_p=self.dropout if self.training else 0.0,
            scale=self.SCALE,
        )
        out: Tensor = self.to_out(out_BHLE.transpose(1, 2).reshape(batch, length, -1))
        return out


class SinusoidalTime(nn.Module):
    """Sines and cosines of the timestep (Vaswani et al. 1706.03762, section 3.5): [b] → [b, dim]."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, t: Tensor) -> Tensor:
        half = self.dim // 2
        freqs = torch.exp(-math.log(10000.0) / max(1, half - 1) * torch.arange(half, device=t.device))
        angle = t[:, None].float() * freqs
        # An odd width gets one zero.
        return F.pad(torch.cat((angle.sin(), angle.cos()), dim=-1), (0, self.dim - 2 * half))


class MLP(nn.Module):
    """Two hidden layers of twice the output's width, with SiLU."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        hidden = 2 * dim_out
        self.net = nn.Sequential(
            nn.Sequential(nn.Linear(dim_in, hidden), nn.SiLU()),
            nn.Sequential(nn.Linear(hidden, hidden), nn.SiLU()),
            nn.Linear(hidden, dim_out),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out
