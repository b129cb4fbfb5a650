"""Layers of the transformer. Parameter names follow DALLE2-pytorch's state dict, so that its weights fit.

Letters: B batch, L length of the sequence, S = L + 1 keys (the null key first), H heads, E width of a head,
D width of the model, A tokens that ask (the last ones), P tokens of the past.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LayerNorm(nn.Module):
    """Layer norm with a gain and no bias, over the last dimension.

    scaled: first divide by the largest entry, as DALLE2-pytorch does in places. It changes what the epsilon weighs,
    and turns the sign of a token that has no positive entry.
    """

    def __init__(self, dim: int, scaled: bool = False) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.ones(dim))
        self.scaled = scaled

    def forward(self, x: Tensor) -> Tensor:
        if self.scaled:
            x = x / x.amax(dim=-1, keepdim=True).detach()
        return F.layer_norm(x, self.g.shape, self.g)


class SwiGLU(nn.Module):
    """Shazeer 2002.05202: the first half of the channels times silu of the second."""

    def forward(self, x: Tensor) -> Tensor:
        value, gate = x.chunk(2, dim=-1)
        return value * F.silu(gate)


def feed_forward(dim: int, mult: int, dropout: float, normformer: bool, scaled_norms: bool = False) -> nn.Sequential:
    """Pre-norm SwiGLU feed-forward; normformer (Shleifer et al. 2110.09456) norms the hidden layer too."""
    hidden = mult * dim
    return nn.Sequential(
        LayerNorm(dim, scaled_norms),
        nn.Linear(dim, 2 * hidden, bias=False),
        SwiGLU(),
        LayerNorm(hidden, scaled_norms) if normformer else nn.Identity(),
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

    def forward(self, place: Tensor, key_place: Tensor) -> Tensor:
        """Bias [B or 1, H, L, S] of tokens at `place` [B or 1, L] for the null key and the keys at `key_place`.

        The null key stands before place 0.
        """
        # DALLE2-pytorch numbers keys with the null key first, so a token and the one before share bucket 0.
        key = nn.functional.pad(key_place + 1, (1, 0), value=0)
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


KeysValues = tuple[Tensor, Tensor]


class Attention(nn.Module):
    """Multi-query attention (Shazeer 1911.02150): H query heads, one key and value head, one null key and value.

    "cosine": cosine similarity times a fixed scale (Henry et al. 2010.04245); "dot": the scaled dot product. The null
    key lets a token attend to nothing, and keeps a row whose keys are all masked finite.
    """

    COSINE_SCALE = 16.0

    def __init__(
        self, dim: int, heads: int, dim_head: int, dropout: float, kind: str = "cosine", scaled_norms: bool = False
    ) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.cosine = kind == "cosine"
        self.scale = self.COSINE_SCALE if self.cosine else dim_head**-0.5
        self.norm = LayerNorm(dim, scaled_norms)
        self.to_q = nn.Linear(dim, heads * dim_head, bias=False)
        self.to_kv = nn.Linear(dim, 2 * dim_head, bias=False)
        self.null_kv = nn.Parameter(torch.randn(2, dim_head))
        self.to_out = nn.Sequential(nn.Linear(heads * dim_head, dim, bias=False), LayerNorm(dim, scaled_norms))

    def forward(
        self, x_BLD: Tensor, bias: Tensor, angles: Angles | None, past: KeysValues | None = None
    ) -> tuple[Tensor, KeysValues]:
        """What the last tokens take from all: [B, A, D], and the keys and values [B, P + L, E] of the P earlier ones
        and these.

        bias: added to the logits, broadcast to [B, H, A, S]; its A is how many of the last tokens ask; -inf hides a
        key. angles: of the L tokens, [B or 1, L, .], or None. past: keys and values of the P tokens before.
        """
        batch, asking = len(x_BLD), bias.shape[2]
        x_BLD = self.norm(x_BLD)
        q_BHAE = self.to_q(x_BLD[:, -asking:]).view(batch, asking, self.heads, -1).transpose(1, 2)
        k_BLE, v_BLE = self.to_kv(x_BLD).chunk(2, dim=-1)
        if angles is not None:
            cos, sin = angles
            q_BHAE = Rotary.rotate(q_BHAE, (cos[:, None, -asking:], sin[:, None, -asking:]))
            k_BLE = Rotary.rotate(k_BLE, angles)
            if self.null_kv.dtype != torch.float32:  # angles are float32; autocast is left to choose
                q_BHAE, k_BLE = q_BHAE.to(self.null_kv.dtype), k_BLE.to(self.null_kv.dtype)
        null_k, null_v = self.null_kv.to(k_BLE.dtype).expand(batch, 1, 2, -1).unbind(dim=2)
        # The null key is the first of the past, where there is none yet.
        before_k, before_v = (null_k, null_v) if past is None else past
        k_BSE, v_BSE = torch.cat((before_k, k_BLE), dim=1), torch.cat((before_v, v_BLE), dim=1)

        # On a CPU as ever, to the bit.
        attend = multi_query_attention if x_BLD.device.type == "cpu" else folded_attention
        out_BHAE = attend(
            F.normalize(q_BHAE, dim=-1) if self.cosine else q_BHAE,
            F.normalize(k_BSE, dim=-1) if self.cosine else k_BSE,
            v_BSE,
            bias.to(q_BHAE.dtype),
            self.dropout if self.training else 0.0,
            self.scale,
        )
        out: Tensor = self.to_out(out_BHAE.transpose(1, 2).reshape(batch, asking, -1))
        return out, (k_BSE, v_BSE)


def multi_query_attention(
    q_BHAE: Tensor, k_BSE: Tensor, v_BSE: Tensor, bias: Tensor, dropout: float, scale: float
) -> Tensor:
    """What H heads take from one head's keys and values: [B, H, A, E]. bias: broadcast to [B, H, A, S]."""
    heads = q_BHAE.shape[1]
    k_BHSE, v_BHSE = (it[:, None].expand(-1, heads, -1, -1) for it in (k_BSE, v_BSE))
    return F.scaled_dot_product_attention(q_BHAE, k_BHSE, v_BHSE, attn_mask=bias, dropout_p=dropout, scale=scale)


def folded_attention(
    q_BHAE: Tensor, k_BSE: Tensor, v_BSE: Tensor, bias: Tensor, dropout: float, scale: float
) -> Tensor:
    """The same as `multi_query_attention`, with heads as further queries of one head.

    Kernels of CUDA work on tiles of 64 queries by 64 keys, for each head one or more: four queries fill little of one,
    those of all heads most of it.
    """
    batch, heads, asking, _ = q_BHAE.shape
    bias = bias.expand(-1, heads, asking, -1).flatten(1, 2)[:, None].expand(batch, -1, -1, -1)
    q_B1QE = q_BHAE.flatten(1, 2)[:, None]
    out: Tensor = F.scaled_dot_product_attention(
        q_B1QE, k_BSE[:, None], v_BSE[:, None], attn_mask=bias, dropout_p=dropout, scale=scale
    )
    return out[:, 0].reshape(batch, heads, asking, -1)


class SinusoidalTime(nn.Module):
    """Sines and cosines of the timestep (Vaswani et al. 1706.03762, section 3.5): [b] → [b, dim]."""

    like: Tensor

    def __init__(self, dim: int, truncated: bool = False) -> None:
        """truncated: to whole numbers, as old weights of DALLE2-pytorch want it."""
        super().__init__()
        self.dim = dim
        self.truncated = truncated
        # Follows the model to another dtype; the waves themselves are computed in float32.
        self.register_buffer("like", torch.zeros(()), persistent=False)

    def forward(self, t: Tensor) -> Tensor:
        half = self.dim // 2
        freqs = torch.exp(-math.log(10000.0) / max(1, half - 1) * torch.arange(half, device=t.device))
        angle = t[:, None].float() * freqs
        waves = torch.cat((angle.sin(), angle.cos()), dim=-1)
        # An odd width gets one zero.
        return F.pad(waves.trunc() if self.truncated else waves, (0, self.dim - 2 * half)).to(self.like.dtype)


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
