"""On a GPU the heads of multi-query attention are further queries of one: the same function, and the same gradients."""

import pytest
import torch

from dalle2_core.networks.layers import Attention, folded_attention, multi_query_attention

BATCH, HEADS, ASKING, KEYS, WIDTH = 3, 5, 4, 7, 8


def everything(attend, tensors, hidden):
    """The result and the gradients of all that goes in."""
    inputs = [it.clone().requires_grad_() for it in tensors]
    q, k, v, bias = inputs
    shown = bias.masked_fill(hidden, float("-inf"))
    out = attend(q, k, v, shown, 0.0, 0.3)
    out.square().sum().backward()
    return [out, *(it.grad for it in inputs)]


@pytest.mark.parametrize("heads", [1, HEADS])
@pytest.mark.parametrize("rows", [1, BATCH])
def test_folded_heads_give_the_same_result_and_gradients(rows, heads):
    torch.manual_seed(0)
    shapes = [(BATCH, HEADS, ASKING, WIDTH), (BATCH, KEYS, WIDTH), (BATCH, KEYS, WIDTH), (rows, heads, ASKING, KEYS)]
    tensors = [torch.randn(shape) for shape in shapes]
    hidden = torch.zeros(rows, 1, 1, KEYS, dtype=torch.bool)
    hidden[0, ..., 2:4] = True
    plain = everything(multi_query_attention, tensors, hidden)
    folded = everything(folded_attention, tensors, hidden)
    for one, other in zip(plain, folded, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    q, k, v, bias = (it.double() for it in tensors)
    logits = torch.einsum("bhae,bse->bhas", q, k) * 0.3 + bias.masked_fill(hidden, float("-inf"))
    wanted = torch.einsum("bhas,bse->bhae", logits.softmax(-1), v)
    torch.testing.assert_close(folded[0].double(), wanted, atol=1e-5, rtol=1e-5)


def test_a_module_on_another_device_folds_and_on_the_cpu_does_not(monkeypatch):
    seen = []
    for name in ("folded_attention", "multi_query_attention"):
        real = {"folded_attention": folded_attention, "multi_query_attention": multi_query_attention}[name]
        spy = lambda *given, name=name, real=real: seen.append(name) or real(*given)  # noqa: E731
        monkeypatch.setattr(f"dalle2_core.networks.layers.{name}", spy)
    for device in ("cpu", "meta"):
        attention = Attention(16, HEADS, WIDTH, 0.0).to(device)
        x = torch.randn(BATCH, KEYS - 1, 16, device=device)
        out, _ = attention(x, torch.zeros(1, HEADS, ASKING, KEYS, device=device), None)
        assert out.shape == (BATCH, ASKING, 16)
    assert seen == ["multi_query_attention", "folded_attention"]
