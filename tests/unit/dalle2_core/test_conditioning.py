"""What a decoder is told: rows stay together, and what is absent stays absent."""

from dataclasses import fields

import pytest
import torch

from dalle2_core import DecoderBatch, DecoderCondition
from dalle2_core.errors import ShapeError

META = torch.device("meta")


def batch(**changes):
    whole = {
        "images": torch.rand(4, 3, 2, 2),
        "image_embed": torch.randn(4, 5),
        "text_tokens": torch.randn(4, 6, 7),
        "text_mask": torch.ones(4, 6, dtype=torch.bool),
    }
    return DecoderBatch(**{**whole, **changes})


def condition(rows=3, seed=0, **changes):
    draw = torch.Generator().manual_seed(seed)
    whole = {
        "image_embed": torch.randn(rows, 5, generator=draw),
        "text_tokens": torch.randn(rows, 6, 7, generator=draw),
        "text_mask": torch.rand(rows, 6, generator=draw) < 0.5,
        "image_keep": torch.rand(rows, generator=draw) < 0.5,
        "text_keep": torch.rand(rows, generator=draw) < 0.5,
        "lowres": torch.randn(rows, 3, 2, 2, generator=draw),
        "lowres_noise": torch.arange(rows),
    }
    return DecoderCondition(**{**whole, **changes})


def tensors(value):
    return {item.name: getattr(value, item.name) for item in fields(value)}


def test_a_part_has_the_same_rows_of_everything():
    for whole in (batch(), condition(4)):
        part = whole.part(1, 3)
        for name, tensor in tensors(whole).items():
            assert getattr(part, name) is False if name == "encoded" else torch.equal(getattr(part, name), tensor[1:3])
    assert len(batch()) == 4
    assert len(batch().part(1, 3)) == 2
    assert batch(encoded=True).part(0, 1).encoded
    bare = batch(image_embed=None, text_tokens=None, text_mask=None).part(0, 2)
    assert (bare.image_embed, bare.text_tokens, bare.text_mask) == (None, None, None)
    assert tensors(DecoderCondition().part(0, 1)) == dict.fromkeys(tensors(DecoderCondition()))


def test_everything_moves():
    for whole in (batch(), condition()):
        moved = {name: it.device for name, it in tensors(whole.to(META)).items() if name != "encoded"}
        assert set(moved.values()) == {META}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"images": torch.rand(3, 2, 2)}, r"images \(3, 2, 2\) must be \[b, c, h, w\]"),
        ({"images": torch.zeros(4, 3, 2, 2, dtype=torch.int64)}, "images are torch.int64; give uint8, or floats"),
        ({"images": torch.zeros(4, 3, 2, 2, dtype=torch.bool)}, "images are torch.bool"),
        ({"text_tokens": None}, "text_mask is given without text_tokens"),
        ({"image_embed": torch.randn(3, 5)}, "4 images and 3 rows of image_embed do not pair up"),
        ({"text_tokens": torch.randn(5, 6, 7)}, "4 images and 5 rows of text_tokens do not pair up"),
        ({"text_mask": torch.ones(1, 6) > 0}, "4 images and 1 rows of text_mask do not pair up"),
    ],
)
def test_what_does_not_go_together_is_refused(changes, says):
    with pytest.raises(ShapeError, match=says):
        batch(**changes)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16, torch.bfloat16])
def test_images_are_bytes_or_floats_with_or_without_the_rest(dtype):
    images = torch.zeros(4, 3, 2, 2, dtype=dtype)
    assert batch(images=images).images is images
    for absent in (("image_embed",), ("text_mask",), ("text_tokens", "text_mask")):
        assert all(getattr(batch(images=images, **dict.fromkeys(absent)), name) is None for name in absent)


def test_tokens_of_zeros_count_as_padding_where_no_mask_says_otherwise():
    tokens = torch.randn(2, 3, 4)
    tokens[0, 1:] = 0
    tokens[1, 2, 1:] = 0  # one number is left
    embed, mask = torch.randn(2, 5), torch.zeros(2, 3, dtype=torch.bool)
    assert DecoderCondition.of(embed, tokens, None).text_mask.tolist() == [[True, False, False], [True] * 3]
    given = DecoderCondition.of(embed, tokens, mask)
    assert given.text_mask is mask
    assert given.image_embed is embed
    assert given.text_tokens is tokens
    assert DecoderCondition.of(embed, None, None).text_mask is None


def test_dropping_says_so_of_what_is_there_and_keeps_the_smaller_image():
    whole = condition()
    for dropped, image in ((whole.without_text(), whole.image_keep), (whole.unconditional(), torch.zeros(3) > 1)):
        assert torch.equal(dropped.image_keep, image)
        assert dropped.text_keep.tolist() == [False] * 3
        for name in ("image_embed", "text_tokens", "text_mask", "lowres", "lowres_noise"):
            assert getattr(dropped, name) is getattr(whole, name)
    assert tensors(DecoderCondition().unconditional()) == tensors(DecoderCondition())
    moved = whole.to(META).unconditional()
    assert {moved.image_keep.device, moved.text_keep.device} == {META}


def test_joined_rows_come_one_behind_the_other():
    one, other = condition(2, 0), condition(3, 1)
    for name, tensor in tensors(one.joined(other)).items():
        assert torch.equal(tensor, torch.cat((getattr(one, name), getattr(other, name))))
    bare = DecoderCondition(lowres=torch.randn(2, 3, 2, 2))
    assert [name for name, it in tensors(bare.joined(bare)).items() if it is not None] == ["lowres"]


def test_joined_with_something_masked_what_is_not_counts_as_kept():
    one = condition(2, text_mask=None, image_keep=None, text_keep=None)
    other = condition(3, 1)
    joined = one.joined(other)
    assert joined.text_mask[:2].tolist() == [[True] * 6] * 2
    assert joined.image_keep[:2].tolist() == joined.text_keep[:2].tolist() == [True, True]
    assert joined.text_mask.dtype == joined.image_keep.dtype == joined.text_keep.dtype == torch.bool
    for name in ("text_mask", "image_keep", "text_keep"):
        assert torch.equal(getattr(joined, name)[2:], getattr(other, name))
    meta = one.to(META).joined(other.to(META))
    assert {it.device for it in tensors(meta).values()} == {META}
