"""The prior's network: what each token may see, and that rows do not meet."""

import pytest
import torch

from dalle2_core.errors import ConfigError, ShapeError
from dalle2_core.networks.causal_transformer import CausalTransformer, PriorNetworkConfig, Tokens
from dalle2_core.networks.layers import Rotary
from dalle2_core.networks.prior_transformer import DiffusionPriorNetwork
from dalle2_core.types import TextCondition

SMALL = {"depth": 2, "heads": 2, "dim_head": 8}
VARIANTS = [
    {},
    {"num_timesteps": 10},
    {"num_time_embeds": 2, "num_image_embeds": 3, "num_text_embeds": 2},
    {"self_cond": True},
    {"normformer": True, "norm_in": True, "norm_out": False, "final_proj": False},
    {"rotary_emb": False},
    {"embed_dim": 12},
    {"embed_dim": 12, "self_cond": True, "num_text_embeds": 2},
    {"attn_dropout": 0.5, "ff_dropout": 0.5},
    {"dim_head": 7},
]


def network(**keywords):
    torch.manual_seed(0)
    return DiffusionPriorNetwork(16, **{**SMALL, **keywords}).eval()


def inputs(net, rows=4, tokens=None, seed=0):
    draw = torch.Generator().manual_seed(seed)
    image, text = torch.randn(2, rows, net.embed_dim, generator=draw)
    t = torch.randint(10, (rows,), generator=draw)
    encodings = None if tokens is None else torch.randn(rows, tokens, 16, generator=draw)
    return image, t, text, encodings


@pytest.mark.parametrize("keywords", VARIANTS, ids=str)
def test_shape_row_independence_and_inputs_untouched(keywords):
    net = network(**keywords)
    image, t, text, _ = inputs(net)
    before = [it.clone() for it in (image, t, text)]
    out = net(image, t, TextCondition(text))
    assert out.shape == image.shape
    assert bool(torch.isfinite(out).all())
    for now, then in zip((image, t, text), before, strict=True):
        assert torch.equal(now, then)
    alone = torch.cat([net(image[i : i + 1], t[i : i + 1], TextCondition(text[i : i + 1])) for i in range(4)])
    torch.testing.assert_close(out, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("keywords", VARIANTS, ids=str)
def test_every_input_and_every_weight_matters(keywords):
    net = network(**keywords)
    image, t, text, _ = inputs(net)
    image.requires_grad_()
    text.requires_grad_()
    keep = torch.tensor([True, True, False, True])
    out = net(image, t, TextCondition(text, keep=keep), self_cond=image * 0.5)
    out.square().sum().backward()
    assert float(image.grad.abs().sum(1).min()) > 0
    assert (text.grad.abs().sum(1) > 0).tolist() == keep.tolist()
    unused = [name for name, it in net.named_parameters() if it.grad is None or not bool(it.grad.any())]
    assert unused == []
    assert not torch.allclose(net(image, t, TextCondition(text)), net(image, (t + 1) % 10, TextCondition(text)))


def sequence(x):
    return Tokens(x, torch.arange(x.shape[1])[None])


def test_a_token_sees_only_itself_and_what_came_before():
    torch.manual_seed(0)
    body = CausalTransformer(16, 16, PriorNetworkConfig(dim=16, **SMALL)).eval()
    x = torch.randn(1, 6, 16)
    every = body(sequence(x), outputs=6)
    for length in range(1, 6):
        longer = torch.cat((x[:, :length], torch.randn(1, 6 - length, 16)), dim=1)
        others = body(sequence(longer), outputs=6)
        torch.testing.assert_close(others[:, :length], every[:, :length], atol=1e-5, rtol=1e-5)
        assert not torch.allclose(others[:, -1], every[:, -1])


def test_the_last_outputs_are_those_of_all_tokens():
    torch.manual_seed(0)
    body = CausalTransformer(16, 16, PriorNetworkConfig(dim=16, **SMALL)).eval()
    x = torch.randn(3, 6, 16)
    every = body(sequence(x), outputs=6)
    for outputs in range(1, 6):
        torch.testing.assert_close(body(sequence(x), outputs), every[:, -outputs:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("keywords", [{}, {"rotary_emb": False}, {"attention": "dot"}], ids=str)
def test_going_on_from_a_memory_is_the_whole_sequence(keywords):
    torch.manual_seed(0)
    body = CausalTransformer(16, 16, PriorNetworkConfig(dim=16, **SMALL, **keywords)).eval()
    x = torch.randn(3, 7, 16)
    hidden = torch.tensor([[True] * 7, [False] + [True] * 6, [False, False] + [True] * 5])
    place = (torch.arange(7) - (~hidden).sum(1, keepdim=True)).clamp(min=0)
    for visible, at in ((None, torch.arange(7)[None]), (hidden, place)):
        every = body(Tokens(x, at, visible), outputs=7)
        first = Tokens(x[:, :4], at[:, :4], None if visible is None else visible[:, :4])
        out, memory = body.go_on(first, None, 4)
        torch.testing.assert_close(out[:, 2:], every[:, 2:4], atol=1e-5, rtol=1e-5)
        for end in (5, 7):
            begin = memory.place.shape[1]
            out, memory = body.go_on(memory.next(x[:, begin:end]), memory, end - begin)
            torch.testing.assert_close(out, every[:, begin:end], atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("tokens", [None, 3])
@pytest.mark.parametrize("padding", ["none", "learned", "masked"])
@pytest.mark.parametrize("keywords", VARIANTS, ids=str)
def test_a_text_that_was_read_gives_what_the_text_gives(keywords, padding, tokens):
    net = network(**{"max_text_len": 6, "text_padding": padding, **keywords})
    image, t, text, encodings = inputs(net, tokens=tokens)
    mask = None if tokens is None else torch.arange(tokens) < torch.tensor([3, 0, 2, 1])[:, None]
    for keep in (None, torch.tensor([True, False, True, False])):
        condition = TextCondition(text, encodings, mask, keep)
        read = net.read(condition)
        for times in (t, (t + 3) % 10):
            torch.testing.assert_close(
                net(image, times, read, image * 0.5), net(image, times, condition, image * 0.5), atol=1e-5, rtol=1e-5
            )


def test_padding_of_text_tokens_changes_nothing():
    net = network()
    image, t, text, encodings = inputs(net, tokens=5)
    lengths = torch.tensor([5, 3, 1, 0])
    mask = torch.arange(5) < lengths[:, None]
    out = net(image, t, TextCondition(text, encodings, mask))
    garbage = torch.where(mask[:, :, None], encodings, 1e3)
    longer = torch.cat((garbage, torch.full((4, 7, 16), -5.0)), dim=1)
    longer_mask = torch.cat((mask, torch.zeros(4, 7, dtype=torch.bool)), dim=1)
    torch.testing.assert_close(net(image, t, TextCondition(text, longer, longer_mask)), out, atol=1e-5, rtol=1e-5)
    # No tokens at all is the same as all of them masked.
    none = net(image[3:], t[3:], TextCondition(text[3:]))
    torch.testing.assert_close(none, out[3:], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(net(image[:1], t[:1], TextCondition(text[:1])), out[:1], atol=1e-3)


def test_dropped_text_is_forgotten_and_nothing_else():
    net = network()
    image, t, text, encodings = inputs(net, tokens=3)
    dropped = TextCondition(text, encodings).unconditional()
    out = net(image, t, dropped)
    other = net(image, t, TextCondition(-text, -encodings, keep=dropped.keep))
    torch.testing.assert_close(out, other, atol=1e-6, rtol=0)
    assert not torch.allclose(net(-image, t, dropped), out, atol=1e-3)
    assert not torch.allclose(net(image, t, TextCondition(text, encodings)), out, atol=1e-3)


def test_an_embedding_only_sequence_has_four_tokens():
    net = network()
    image, t, text, _ = inputs(net)
    seen = []
    net.causal_transformer.register_forward_pre_hook(lambda module, args: seen.append(args[0].x.shape))
    net(image, t, TextCondition(text))
    assert seen == [(4, 4, 16)]


def test_rotary_turns_by_relative_position():
    rotary = Rotary(8)
    angles = rotary(torch.arange(7))
    q, k = torch.randn(2, 8)
    turned_q, turned_k = Rotary.rotate(q.expand(7, 8), angles), Rotary.rotate(k.expand(7, 8), angles)
    products = turned_q @ turned_k.T
    for distance in range(7):
        diagonal = products.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(products[0, 0], q @ k)


def test_unknown_keyword_names_the_near_one():
    with pytest.raises(TypeError, match=r"DiffusionPriorNetwork has no keyword 'dept'; did you mean depth\?"):
        DiffusionPriorNetwork(16, dept=3)


@pytest.mark.parametrize(("keywords", "text"), [({"depth": 0}, "depth is 0"), ({"ff_dropout": 1.0}, "ff_dropout")])
def test_impossible_sizes_are_refused(keywords, text):
    with pytest.raises(ConfigError, match=text):
        DiffusionPriorNetwork(16, **keywords)


def test_embeddings_of_another_width_are_refused():
    net = network()
    with pytest.raises(ShapeError, match=r"do not fit a prior for \[b, 16\]"):
        net(torch.randn(2, 8), torch.zeros(2, dtype=torch.long), TextCondition(torch.randn(2, 8)))
    with pytest.raises(ShapeError, match="text tokens"):
        net(*inputs(net)[:2], TextCondition(torch.randn(4, 16), torch.randn(4, 3, 9)))


def test_config_takes_its_widths_from_the_embeddings():
    config = PriorNetworkConfig().for_embeddings(24)
    assert (config.dim, config.embed_dim) == (24, 24)
    with pytest.raises(ConfigError, match="embed_dim is 24, but the embeddings have 32"):
        config.for_embeddings(32)


def test_weight_names_follow_dalle2_pytorch():
    names = set(network(num_timesteps=10, normformer=True, num_text_embeds=2).state_dict())
    layer = "causal_transformer.layers.1"
    expected = {
        "learned_query",
        "null_text_embeds",
        "to_text_embeds.0.weight",
        "to_time_embeds.0.weight",
        "causal_transformer.rel_pos_bias.relative_attention_bias.weight",
        "causal_transformer.norm.g",
        "causal_transformer.project_out.weight",
        *(f"{layer}.0.{it}" for it in ("null_kv", "norm.g", "to_q.weight", "to_kv.weight", "to_out.1.g")),
        *(f"{layer}.1.{it}" for it in ("0.g", "1.weight", "3.g", "5.weight")),
    }
    assert expected <= names
    assert "to_time_embeds.0.1.net.0.0.weight" in network().state_dict()
