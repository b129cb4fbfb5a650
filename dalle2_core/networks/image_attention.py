"""Attention over feature maps.

Letters: B batch, C channels of the feature map, N its pixels, H heads, E width of a head, K keys (the null key first),
D width of a condition's token. Feature maps come as tokens [B, N, C]: with channels last that is a view.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dalle2_core.networks.layers import LayerNorm

COSINE_SCALE = 16.0


def as_tokens(image: Tensor) -> Tensor:
    """[b, c, h, w] → [b, h w, c]."""
    return image.flatten(2).transpose(1, 2)


def as_image(tokens: Tensor, like: Tensor) -> Tensor:
    """[b, h w, c] → [b, c, h, w], h and w being those of `like`."""
    return tokens.transpose(1, 2).view(len(tokens), -1, *like.shape[-2:])


class SelfAttention(nn.Module):
    """Multi-query attention of every pixel to every other, with a null key, added to its input."""

    def __init__(self, dim: int, heads: int, dim_head: int, cosine_sim: bool, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.cosine_sim = cosine_sim
        self.scale = COSINE_SCALE if cosine_sim else dim_head**-0.5
        self.norm = LayerNorm(dim)
        self.to_q = nn.Linear(dim, heads * dim_head, bias=False)
        self.to_kv = nn.Linear(dim, 2 * dim_head, bias=False)
        self.null_kv = nn.Parameter(torch.randn(2, dim_head))
        self.to_out = nn.Sequential(nn.Linear(heads * dim_head, dim, bias=False), LayerNorm(dim))

    def forward(self, image: Tensor) -> Tensor:
        """[B, C, h, w] → the same shape."""
        x_BNC = self.norm(as_tokens(image))
        q_BHNE = self.to_q(x_BNC).view(*x_BNC.shape[:2], self.heads, -1).transpose(1, 2)
        null = self.null_kv.to(x_BNC.dtype).flatten().expand(len(x_BNC), 1, -1)
        k_BKE, v_BKE = torch.cat((null, self.to_kv(x_BNC)), dim=1).chunk(2, dim=-1)
        if self.cosine_sim:
            q_BHNE, k_BKE = F.normalize(q_BHNE, dim=-1), F.normalize(k_BKE, dim=-1)
        out_BHNE = F.scaled_dot_product_attention(
            q_BHNE,
            k_BKE[:, None].expand(-1, self.heads, -1, -1),
            v_BKE[:, None].expand(-1, self.heads, -1, -1),
            dropout_p=self.dropout if self.training else 0.0,
            scale=self.scale,
        )
        return as_image(self.to_out(out_BHNE.transpose(1, 2).flatten(2)), image) + image


class CrossAttention(nn.Module):
    """Attention of every pixel to a condition's tokens, with a null key."""

    HEADS, DIM_HEAD = 8, 64  # DALLE2-pytorch's, which fixes them

    def __init__(self, dim: int, context_dim: int, cosine_sim: bool) -> None:
        super().__init__()
        inner = self.HEADS * self.DIM_HEAD
        self.cosine_sim = cosine_sim
        self.norm = LayerNorm(dim)
        self.null_kv = nn.Parameter(torch.randn(2, self.DIM_HEAD))
        self.to_q = nn.Linear(dim, inner, bias=False)
        self.to_kv = nn.Linear(context_dim, 2 * inner, bias=False)
        self.to_out = nn.Sequential(nn.Linear(inner, dim, bias=False), LayerNorm(dim))

    def forward(self, image: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
        """[B, C, h, w] → the same shape. context: [B, K - 1, D]. mask: [B, K - 1] bool, False hides a token."""
        x_BNC = self.norm(as_tokens(image))
        k_BHKE, v_BHKE = self._keys_and_values(context)
        seen_BK = None if mask is None else F.pad(mask, (1, 0), value=True)
        if self.cosine_sim or k_BHKE.shape[2] > self.DIM_HEAD:
            attended = self._directly(x_BNC, k_BHKE, v_BHKE, seen_BK)
        else:
            attended = self._through_few_keys(x_BNC, k_BHKE, v_BHKE, seen_BK)
        return as_image(self.to_out[1](attended), image)

    def _keys_and_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        k, v = self.to_kv(context).view(*context.shape[:2], 2, self.HEADS, self.DIM_HEAD).permute(2, 0, 3, 1, 4)
        null_k, null_v = self.null_kv.to(k.dtype)[:, None, None, None].expand(-1, *k.shape[:2], -1, -1)
        return torch.cat((null_k, k), dim=2), torch.cat((null_v, v), dim=2)

    def _directly(self, x_BNC: Tensor, k_BHKE: Tensor, v_BHKE: Tensor, seen_BK: Tensor | None) -> Tensor:
        q_BHNE = self.to_q(x_BNC).view(*x_BNC.shape[:2], self.HEADS, -1).transpose(1, 2)
        scale = self.DIM_HEAD**-0.5
        if self.cosine_sim:
            q_BHNE, k_BHKE, scale = F.normalize(q_BHNE, dim=-1), F.normalize(k_BHKE, dim=-1), COSINE_SCALE
        visible = None if seen_BK is None else seen_BK[:, None, None]
        out_BHNE = F.scaled_dot_product_attention(q_BHNE, k_BHKE, v_BHKE, attn_mask=visible, scale=scale)
        out: Tensor = self.to_out[0](out_BHNE.transpose(1, 2).flatten(2))
        return out

    def _through_few_keys(self, x_BNC: Tensor, k_BHKE: Tensor, v_BHKE: Tensor, seen_BK: Tensor | None) -> Tensor:
        """The same numbers with the projections of queries and outputs moved to the keys' side.

        (x Wq) · k = x · (Wq k): with a handful of keys and thousands of pixels, projecting the keys costs nothing,
        and the queries, H E wide for every pixel, are never made.
        """
        w_query = self.to_q.weight.view(self.HEADS, self.DIM_HEAD, -1)
        w_out = self.to_out[0].weight.view(-1, self.HEADS, self.DIM_HEAD)  # type: ignore[operator]
        k_BHKC = torch.einsum("bhke,hec->bhkc", k_BHKE, w_query) / math.sqrt(self.DIM_HEAD)
        v_BHKC = torch.einsum("bhke,che->bhkc", v_BHKE, w_out)
        # Keys before pixels, so that the softmax over the keys runs along the pixels.
        logits_BHKN = (k_BHKC.flatten(1, 2) @ x_BNC.transpose(1, 2)).view(*k_BHKC.shape[:3], -1)
        if seen_BK is not None:
            logits_BHKN = logits_BHKN.masked_fill(~seen_BK[:, None, :, None], float("-inf"))
        weights = logits_BHKN.softmax(dim=2).flatten(1, 2)
        out: Tensor = weights.transpose(1, 2) @ v_BHKC.flatten(1, 2).to(weights.dtype)
        return out


class LinearAttention(nn.Module):
    """Attention whose cost is linear in the pixels (Shen et al. 1812.01243), added to its input."""

    def __init__(self, dim: int, heads: int, dim_head: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale = dim_head**-0.5
        self.norm = LayerNorm(dim)
        self.to_qkv = nn.Linear(dim, 3 * heads * dim_head, bias=False)
        self.to_out = nn.Sequential(nn.Linear(heads * dim_head, dim, bias=False), LayerNorm(dim))

    def forward(self, image: Tensor) -> Tensor:
        """[B, C, h, w] → the same shape."""
        x_BNC = self.norm(as_tokens(image))
        q, k, v = self.to_qkv(x_BNC).view(*x_BNC.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        # Values of norm 1, averaged over the pixels: the sums do not grow with the size of the image.
        summary_BHEE = k.softmax(dim=2).transpose(2, 3) @ F.normalize(v, dim=-1)
        out_BHNE = (q.softmax(dim=-1) * self.scale) @ summary_BHEE
        return as_image(self.to_out(F.gelu(out_BHNE.transpose(1, 2).flatten(2))), image) + image
