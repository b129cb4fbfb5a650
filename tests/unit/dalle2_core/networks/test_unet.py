"""The U-Net: each option changes what it should and trains; rows do not see each other."""

import pytest
import torch

from dalle2_core import DecoderCondition, Unet
from dalle2_core.errors import ConfigError, ShapeError
from dalle2_core.networks.image_attention import LinearAttention, SelfAttention
from dalle2_core.networks.unet_blocks import CrossEmbed, NearestUpsample, PixelShuffleUpsample, WeightStandardizedConv2d
from tests.tiny_unet import condition_for, unet

TEXT = {"cond_on_text_encodings": True, "text_embed_dim": 10}


def modules(net, kind):
    return [it for it in net.modules() if isinstance(it, kind)]


# Each option, and what must be true of a network that has it and false of one that has not.
OPTIONS = {
    "dim": ({"dim": 16}, lambda net: net.to_out.in_channels == 16),
    "dim_mults": (
        {"dim_mults": (1, 2, 4)},
        lambda net: len(net.downs) == 3 and net.mid_block1.block1.norm.num_channels == 32,
    ),
    "init_dim": ({"init_dim": 12}, lambda net: sum(it.out_channels for it in net.init_conv.convs) == 12),
    "cond_dim": ({"cond_dim": 10}, lambda net: net.condition.norm_cond.normalized_shape == (10,)),
    "channels": ({"channels": 4}, lambda net: net.init_conv.convs[0].in_channels == 4),
    "channels_out": ({"channels_out": 6}, lambda net: net.to_out.out_channels == 6),
    "num_image_tokens": ({"num_image_tokens": 3}, lambda net: net.condition.null_image_embed.shape[1] == 3),
    "num_time_tokens": ({"num_time_tokens": 5}, lambda net: net.condition.to_time_tokens.out_features == 5 * 8),
    "no image embedding": ({"cond_on_image_embeds": False}, lambda net: net.condition.image_to_tokens is None),
    "add_image_embeds_to_time": (
        {"add_image_embeds_to_time": False},
        lambda net: net.condition.to_image_hiddens is None,
    ),
    "text": (TEXT, lambda net: net.condition.text_to_cond is not None),
    "self_attn": ({"self_attn": True}, lambda net: len(modules(net, SelfAttention)) == 5),
    "self_attn per resolution": ({"self_attn": (False, True)}, lambda net: len(modules(net, SelfAttention)) == 3),
    "sparse_attn": ({"sparse_attn": True}, lambda net: len(modules(net, LinearAttention)) == 4),
    "sparse and full attention": (
        {"sparse_attn": True, "self_attn": (False, True)},
        lambda net: (len(modules(net, LinearAttention)), len(modules(net, SelfAttention))) == (2, 3),
    ),
    "attend_at_middle": ({"attend_at_middle": False}, lambda net: net.mid_attn is None),
    "attn_heads": ({"attn_heads": 3}, lambda net: net.mid_attn.to_q.out_features == 12),
    "attn_dim_head": ({"attn_dim_head": 6}, lambda net: net.mid_attn.to_kv.out_features == 12),
    "cosine_sim_self_attn": ({"cosine_sim_self_attn": True}, lambda net: net.mid_attn.cosine_sim),
    "cosine_sim_cross_attn": ({"cosine_sim_cross_attn": True}, lambda net: net.mid_block1.cross_attn.cosine_sim),
    "lowres_cond": (
        {"lowres_cond": True},
        lambda net: net.init_conv.convs[0].in_channels == 6 and net.to_out.in_channels == 11,
    ),
    "lowres_noise_cond": (
        {"lowres_cond": True, "lowres_noise_cond": True},
        lambda net: net.condition.to_lowres_noise_cond is not None,
    ),
    "self_cond": ({"self_cond": True}, lambda net: net.init_conv.convs[0].in_channels == 6),
    "init_cross_embed": (
        {"init_cross_embed": False},
        lambda net: getattr(net.init_conv, "kernel_size", None) == (7, 7),
    ),
    "init_conv_kernel_size": (
        {"init_cross_embed": False, "init_conv_kernel_size": 3},
        lambda net: getattr(net.init_conv, "kernel_size", None) == (3, 3),
    ),
    "init_cross_embed_kernel_sizes": (
        {"init_cross_embed_kernel_sizes": (3, 7)},
        lambda net: [it.kernel_size[0] for it in net.init_conv.convs] == [3, 7],
    ),
    "cross_embed_downsample": (
        {"cross_embed_downsample": True},
        lambda net: isinstance(net.downs[0].after, CrossEmbed),
    ),
    "cross_embed_downsample_kernel_sizes": (
        {"cross_embed_downsample": True, "cross_embed_downsample_kernel_sizes": (2, 6)},
        lambda net: [it.kernel_size[0] for it in getattr(net.downs[0].after, "convs", [])] == [2, 6],
    ),
    "resnet_groups": ({"resnet_groups": 4}, lambda net: net.mid_block1.block1.norm.num_groups == 4),
    "resnet_groups per resolution": ({"resnet_groups": (2, 4)}, lambda net: net.mid_block1.block1.norm.num_groups == 4),
    "resnet_weight_standardization": (
        {"resnet_weight_standardization": True},
        lambda net: isinstance(net.mid_block1.block1.project, WeightStandardizedConv2d),
    ),
    "num_resnet_blocks": (
        {"num_resnet_blocks": 2},
        lambda net: [len(it.blocks) for it in (*net.downs, *net.ups)] == [2, 2, 3, 3],
    ),
    "num_resnet_blocks per resolution": (
        {"num_resnet_blocks": (1, 2)},
        lambda net: [len(it.blocks) for it in (*net.downs, *net.ups)] == [1, 2, 3, 2],
    ),
    "num_resnet_blocks of none": (
        {"num_resnet_blocks": 0},
        lambda net: [len(it.blocks) for it in (*net.downs, *net.ups)] == [0, 0, 1, 1],
    ),
    "patch_size": ({"patch_size": 2}, lambda net: sizes_of_blocks(net) == [4, 2]),
    "memory_efficient": ({"memory_efficient": True}, lambda net: sizes_of_blocks(net) == [4, 2]),
    "scale_skip_connection": ({"scale_skip_connection": True}, lambda net: bridge_gain(net) == pytest.approx(2**-0.5)),
    "pixel_shuffle_upsample": (
        {"pixel_shuffle_upsample": False},
        lambda net: isinstance(net.ups[0].upsample, NearestUpsample),
    ),
    "combine_upsample_fmaps": ({"combine_upsample_fmaps": True}, lambda net: net.upsample_combiner is not None),
    "final_conv_kernel_size": ({"final_conv_kernel_size": 3}, lambda net: net.to_out.kernel_size == (3, 3)),
    "checkpoint_during_training": (
        {"checkpoint_during_training": True},
        lambda net: times_a_block_runs(net) == 2,
    ),
}
EVERYTHING = {
    **TEXT, "lowres_cond": True, "lowres_noise_cond": True, "self_cond": True, "self_attn": (False, True),
    "sparse_attn": True, "memory_efficient": True, "init_dim": 12, "combine_upsample_fmaps": True, "channels_out": 6,
    "resnet_weight_standardization": True, "cosine_sim_cross_attn": True, "num_resnet_blocks": (2, 1),
}  # fmt: skip
VARIANTS = {name: keywords for name, (keywords, _) in OPTIONS.items()} | {"everything": EVERYTHING}
with_each_option = pytest.mark.parametrize("keywords", VARIANTS.values(), ids=VARIANTS)


def inputs(net, rows=3, seed=0):
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, net.config.channels, 8, 8, generator=draw)
    return x, torch.tensor([3, 50, 999][:rows]), condition_for(net, rows)


def sizes_of_blocks(net):
    sizes = []
    handles = [
        down.init_block.register_forward_hook(lambda m, a, out: sizes.append(out.shape[-1])) for down in net.downs
    ]
    net(*inputs(net))
    for handle in handles:
        handle.remove()
    return sizes


def bridge_gain(net):
    """What a bridge is multiplied by, from what comes out of the way down and goes into the way up."""
    seen = {}
    handles = [
        net.downs[-1].blocks[-1].register_forward_hook(lambda m, a, out: seen.update(bridge=out)),
        net.ups[0].blocks[-1].register_forward_pre_hook(lambda m, args: seen.update(joined=args[0])),
    ]
    net(*inputs(net))
    for handle in handles:
        handle.remove()
    width = seen["bridge"].shape[1]
    return float((seen["joined"][:, -width:] / seen["bridge"]).detach().median())


def times_a_block_runs(net):
    """In a forward and a backward pass."""
    calls = []
    net.train().mid_block1.register_forward_pre_hook(lambda *it: calls.append(1))
    net(*inputs(net)).sum().backward()
    return len(calls)


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_does_what_it_says(name):
    keywords, holds = OPTIONS[name]
    assert holds(unet(**keywords))
    assert not holds(unet())


@with_each_option
def test_shape_rows_apart_and_inputs_untouched(keywords):
    net = unet(**keywords).eval()
    x, t, condition = inputs(net)
    before = x.clone()
    earlier = 0.5 * x if net.config.self_cond else None
    with torch.no_grad():
        out = net(x, t, condition, earlier)
        alone = [
            net(x[i : i + 1], t[i : i + 1], condition.part(i, i + 1), None if earlier is None else earlier[i : i + 1])
            for i in range(3)
        ]
    assert out.shape == (3, net.config.output_channels, 8, 8)
    assert torch.equal(x, before)
    torch.testing.assert_close(out, torch.cat(alone), atol=1e-4, rtol=1e-4)


@with_each_option
def test_every_input_and_every_weight_matters(keywords):
    net = unet(**keywords)
    x, t, condition = inputs(net)
    told = [it for it in (x, condition.image_embed, condition.text_tokens, condition.lowres) if it is not None]
    for tensor in told:
        tensor.requires_grad_()
    # The first row without its image, so that what stands for it is used as well.
    keep = torch.tensor([False, True, True])
    condition = DecoderCondition(
        condition.image_embed, condition.text_tokens, condition.text_mask,
        keep if condition.image_embed is not None else None, None, condition.lowres, condition.lowres_noise,
    )  # fmt: skip
    net(x, t, condition, x * 0.5).square().sum().backward()
    assert [name for name, it in net.named_parameters() if it.grad is None or not bool(it.grad.any())] == []
    for tensor in told:
        assert bool(tensor.grad.any())
    if condition.image_embed is not None:
        assert condition.image_embed.grad.flatten(1).any(dim=1).tolist() == keep.tolist()


@with_each_option
def test_it_trains(keywords):
    net = unet(**keywords)
    x, t, condition = inputs(net)
    target = torch.randn(3, net.config.output_channels, 8, 8, generator=torch.Generator().manual_seed(5))
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        loss = (net(x, t, condition) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


def test_a_row_never_sees_another_rows_embedding():
    """Also where the embedding is as wide as a condition's token, and four rows could be taken for four tokens."""
    net = unet(image_embed_dim=8, cond_dim=8, num_image_tokens=4)
    x = torch.randn(4, 3, 8, 8)
    embed = torch.randn(4, 8, requires_grad=True)
    net(x, torch.zeros(4), DecoderCondition(embed))[0].sum().backward()
    assert embed.grad.any(dim=1).tolist() == [True, False, False, False]


def test_dropped_conditions_are_forgotten_each_by_itself():
    net = unet(**TEXT).eval()
    x, t, condition = inputs(net)
    other = DecoderCondition(-condition.image_embed, -condition.text_tokens, condition.text_mask)

    def differs(one, two):
        return not torch.allclose(net(x, t, one), net(x, t, two), atol=1e-5)

    nothing = condition.unconditional()
    assert not differs(nothing, other.unconditional())
    assert differs(condition, nothing)
    assert differs(condition.without_text(), nothing)
    assert differs(condition.without_text(), condition)
    mixed = DecoderCondition(condition.image_embed, other.text_tokens, condition.text_mask)
    assert differs(mixed, condition)
    assert not differs(mixed.without_text(), condition.without_text())


def test_padding_of_text_changes_nothing_whatever_it_holds():
    net = unet(**TEXT).eval()
    x, t, condition = inputs(net)
    out = net(x, t, condition)
    tokens = condition.text_tokens.masked_fill(~condition.text_mask[:, :, None], float("nan"))
    longer = torch.cat((tokens, torch.full((3, 60, 10), float("nan"))), dim=1)
    mask = torch.cat((condition.text_mask, torch.zeros(3, 60, dtype=torch.bool)), dim=1)
    padded = DecoderCondition(condition.image_embed, longer, mask)
    torch.testing.assert_close(net(x, t, padded), out, atol=1e-5, rtol=1e-5)


def test_checkpointing_gives_the_same_gradients():
    gradients = []
    for checkpointed in (False, True):
        net = unet(checkpoint_during_training=checkpointed).train()
        net(*inputs(net)).square().sum().backward()
        gradients.append([it.grad for it in net.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_bfloat16_gives_nearly_the_same_gradients():
    gradients = []
    for enabled in (False, True):
        net = unet(self_attn=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            out = net(*inputs(net))
        out.float().square().mean().backward()
        gradients.append(torch.cat([it.grad.flatten() for it in net.parameters() if it.grad is not None]))
    assert float(torch.cosine_similarity(*gradients, dim=0)) > 0.99


def test_weights_are_kept_channels_last_also_when_loaded():
    net = unet()
    weight = net.mid_block1.block1.project.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    other = unet(seed=1)
    other.load_state_dict({name: it.contiguous() for name, it in net.state_dict().items()})
    assert other.mid_block1.block1.project.weight.is_contiguous(memory_format=torch.channels_last)
    assert isinstance(net.ups[0].upsample, PixelShuffleUpsample)


def test_fitting_keeps_what_need_not_change():
    net = unet()
    assert net.fitted(channels=3) is net
    wider = net.fitted(channels_out=6, lowres_cond=True)
    assert (wider.config.output_channels, wider.config.lowres_cond) == (6, True)
    assert torch.equal(wider.mid_block1.block1.project.weight, net.mid_block1.block1.project.weight)


@pytest.mark.parametrize(
    ("keywords", "text"),
    [
        ({"dim": 9}, "a width of 9 channels does not divide into resnet_groups=2"),
        ({"init_dim": 5}, "width of 5"),
        ({"dim_mults": ()}, "dim_mults is empty"),
        ({"self_attn": (True,)}, "self_attn has 1 values for 2 resolutions"),
        ({"num_resnet_blocks": (1, 1, 1)}, "num_resnet_blocks has 3 values"),
        ({"num_resnet_blocks": -1}, "num_resnet_blocks 0 or more"),
        ({"patch_size": 0}, "patch_size is 0"),
        ({"init_conv_kernel_size": 4}, "must be odd"),
        ({"cross_embed_downsample_kernel_sizes": (3,)}, "must be even"),
        ({"lowres_noise_cond": True}, "needs lowres_cond"),
        ({"cond_on_text_encodings": True}, "needs text_embed_dim"),
        ({"cond_on_image_embeds": True, "image_embed_dim": None}, "needs image_embed_dim"),
        ({"channels": 0}, "channels is 0"),
    ],
)
def test_impossible_networks_are_refused(keywords, text):
    with pytest.raises(ConfigError, match=text):
        unet(**keywords)


def test_unknown_keyword_names_the_near_one():
    with pytest.raises(TypeError, match=r"Unet has no keyword 'dim_mult'; did you mean dim_mults"):
        Unet(8, dim_mult=(1, 2))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda x, t, c: (x[:, :2], t, c), r"takes \[b, 3, h, w\]"),
        (lambda x, t, c: (x[:, :, :7], t, c), "must be multiples of 2"),
        (lambda x, t, c: (x, t[:1], c), r"it must be \[3\]"),
        (lambda x, t, c: (x, t, DecoderCondition()), "conditioned on image_embed, and was given none"),
        (
            lambda x, t, c: (x, t, DecoderCondition(c.image_embed[:, :4])),
            r"image_embed is \(3, 4\); this U-Net takes \[3, 6\]",
        ),
        (lambda x, t, c: (x, t, DecoderCondition(c.image_embed[:1])), r"image_embed is \(1, 6\)"),
        (
            lambda x, t, c: (x, t, DecoderCondition(c.image_embed, torch.zeros(3, 2, 4))),
            "not conditioned on text_tokens",
        ),
        (lambda x, t, c: (x, t, DecoderCondition(c.image_embed, lowres=x)), "lowres_cond is False"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(change, text):
    net = unet()
    with pytest.raises(ShapeError, match=text):
        net(*change(*inputs(net)))


def test_texts_beyond_the_longest_are_refused():
    net = unet(**TEXT, max_text_len=4)
    with pytest.raises(ShapeError, match=r"texts of 5 tokens; .* max_text_len \(4\)"):
        net(*inputs(net))
