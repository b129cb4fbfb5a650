"""The U-Net's faster forms give the numbers of the plain ones."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dalle2_core.networks.fused_norm import norm_scale_silu
from dalle2_core.networks.image_attention import CrossAttention, SelfAttention, as_image, as_tokens
from dalle2_core.networks.recompute import recomputed_in_backward
from dalle2_core.networks.unet_blocks import Downsample, WeightStandardizedConv2d


def _norm(groups, channels):
    norm = nn.GroupNorm(groups, channels).double()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_norm_scale_silu_is_torchs_own_and_so_are_its_gradients(scaled, memory):
    torch.manual_seed(0)
    norm = _norm(3, 12)
    x = torch.randn(2, 12, 5, 4, dtype=torch.float64).contiguous(memory_format=memory)
    scale_shift = torch.randn(2, 24, dtype=torch.float64)
    upstream = torch.randn(2, 12, 5, 4, dtype=torch.float64)

    def plain(x, norm, scale_shift):
        x = norm(x)
        if scale_shift is not None:
            scale, shift = scale_shift[:, :, None, None].chunk(2, dim=1)
            x = x * (scale + 1) + shift
        return F.silu(x)

    results = []
    for function in (norm_scale_silu, plain):
        inputs = [x.clone().requires_grad_(), scale_shift.clone().requires_grad_() if scaled else None]
        norm.zero_grad()
        out = function(inputs[0], norm, inputs[1])
        if isinstance(out, tuple):
            out, again = out
            assert torch.equal(again(), out)
        out.backward(upstream)
        gradients = [it.grad.clone() for it in (*inputs, norm.weight, norm.bias) if it is not None]
        results.append((out, *gradients))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-9)


def test_norm_scale_silu_keeps_one_feature_map():
    norm = nn.GroupNorm(2, 8)
    x = torch.randn(2, 8, 6, 6, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda it: kept.append(it.numel()) or it, lambda it: it):
        norm_scale_silu(x * 1.0, norm, torch.randn(2, 16))
    assert sum(size == x.numel() for size in kept) == 1


@pytest.mark.parametrize("masked", [True, False])
def test_attention_through_few_keys_is_attention(masked):
    torch.manual_seed(0)
    attention = CrossAttention(10, 7, cosine_sim=False).double()
    nn.init.normal_(attention.norm.g)
    image = torch.randn(2, 10, 3, 4, dtype=torch.float64)
    context = torch.randn(2, 5, 7, dtype=torch.float64)
    mask = torch.tensor([[True] * 5, [True, False, False, True, False]]) if masked else None
    out = attention(image, context, mask)

    # Every head by itself, as the papers write it.
    q = attention.to_q(attention.norm(as_tokens(image))).unflatten(2, (8, 64))
    k, v = attention.to_kv(context).unflatten(2, (2, 8, 64)).unbind(2)
    heads = []
    for head in range(8):
        keys = torch.cat((attention.null_kv[:1].expand(2, 1, -1), k[:, :, head]), dim=1)
        values = torch.cat((attention.null_kv[1:].expand(2, 1, -1), v[:, :, head]), dim=1)
        logits = q[:, :, head] @ keys.transpose(1, 2) / 8
        if masked:
            logits[:, :, 1:] = logits[:, :, 1:].masked_fill(~mask[:, None], float("-inf"))
        heads.append(logits.softmax(-1) @ values)
    expected = as_image(attention.to_out(torch.cat(heads, dim=-1)), image)
    torch.testing.assert_close(out, expected, atol=1e-9, rtol=1e-9)
    # With a key more than few it goes the other way; hidden keys change nothing.
    long = torch.cat((context, torch.randn(2, 90, 7, dtype=torch.float64)), dim=1)
    seen = torch.cat(
        (torch.ones(2, 5, dtype=torch.bool) if mask is None else mask, torch.zeros(2, 90, dtype=torch.bool)), 1
    )
    torch.testing.assert_close(attention(image, long, seen), expected, atol=1e-9, rtol=1e-9)


def test_self_attention_is_multi_query_attention_with_a_null_key():
    torch.manual_seed(0)
    attention = SelfAttention(6, heads=3, dim_head=4, cosine_sim=False).double()
    image = torch.randn(2, 6, 3, 2, dtype=torch.float64)
    x = attention.norm(as_tokens(image))
    q, (k, v) = attention.to_q(x).unflatten(2, (3, 4)), attention.to_kv(x).chunk(2, -1)
    k, v = (
        torch.cat((null.expand(2, 1, -1), it), 1)
        for null, it in zip(attention.null_kv[:, None, None], (k, v), strict=True)
    )
    heads = [(q[:, :, head] @ k.transpose(1, 2) / 2).softmax(-1) @ v for head in range(3)]
    expected = as_image(attention.to_out(torch.cat(heads, -1)), image) + image
    torch.testing.assert_close(attention(image), expected, atol=1e-9, rtol=1e-9)


def test_downsampling_is_a_pixel_unshuffle_and_a_1x1_convolution():
    down = Downsample(5, 7)
    x = torch.randn(2, 5, 6, 8)
    expected = F.conv2d(F.pixel_unshuffle(x, 2), down.conv.weight, down.conv.bias)
    torch.testing.assert_close(down(x), expected, atol=1e-5, rtol=1e-5)


def test_standardized_weights_do_not_feel_scale_or_offset():
    conv = WeightStandardizedConv2d(3, 4, 3, padding=1).double()
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    before = conv(x)
    with torch.no_grad():
        conv.weight.mul_(50).add_(3)
    torch.testing.assert_close(conv(x), before, atol=1e-2, rtol=1e-2)


def test_what_is_made_again_is_not_kept_and_gives_the_same_gradients():
    parts = [torch.randn(2, 3, 4, 4, requires_grad=True) for _ in range(2)]
    conv = nn.Conv2d(6, 5, 3, padding=1)
    made, results = [], []
    for sparing in (True, False):
        joined = torch.cat(parts, dim=1)

        def again():
            made.append(1)
            return torch.cat([it.detach() for it in parts], dim=1)

        if sparing:
            with recomputed_in_backward(joined, again):
                out = conv(joined) + joined.flatten(2).square().sum()
        else:
            out = conv(joined) + joined.flatten(2).square().sum()
        for it in (*parts, conv.weight):
            it.grad = None
        out.square().sum().backward()
        results.append([it.grad.clone() for it in (*parts, conv.weight)])
    assert len(made) == 2  # once for the convolution, once for the square
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)
