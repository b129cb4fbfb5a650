"""Stored token states are open_clip's own, at full length: its final layer norm, listened to while it encodes text."""

import types

import numpy as np
import open_clip
import pytest
import torch

from embedpipe.encode import EncoderConfig, load_encoder
from embedpipe.encode.job import encode
from embedpipe.encode.text_tower import TextTower
from embedpipe.errors import ModelError
from embedpipe.load import EmbeddingDataset
from embedpipe.verify import verify
from tests import shards, tiny_clip
from tests.oracles.test_text_tower import CAPTIONS, TOWERS, build

MOST = 1e-4


class HuggingFaceLike:
    """Words as numbers, filled up with the id that `tokenizer.pad_token_id` says, ended by `end` where there is one."""

    def __init__(self, pad_id, end):
        self.tokenizer = types.SimpleNamespace(pad_token_id=pad_id)
        self.context_length = 24
        self._pad_id, self._end = pad_id, end

    def words(self, caption):
        kept = [3 + sum(word.encode()) % 900 for word in caption.split()][: 24 - len(self._end)]
        return kept + self._end

    def __call__(self, captions):
        rows = [self.words(caption) for caption in captions]
        return torch.tensor([row + [self._pad_id] * (24 - len(row)) for row in rows])


def clip_tokens(context_length):
    """CLIP's tokenizer, and how long a caption is by it: up to and with its end token."""
    tokenizer = open_clip.SimpleTokenizer(context_length=context_length)
    return tokenizer, lambda tokens: tokens.tolist().index(tokenizer.eot_token_id) + 1


def by_hand(model, tokens, length):
    """[length, w] of one caption, [1, context_length]."""
    tower = getattr(model, "text", model)
    if (
        getattr(tower, "cls_emb", None) is not None
    ):  # CoCa norms its appended token only; open_clip says how to norm all
        made = tower.forward_intermediates(
            tokens, indices=1, normalize_intermediates=True, intermediates_only=True, output_fmt="NLC"
        )
        return made["text_intermediates"][-1][0, :length].numpy()
    seen = []
    hook = tower.ln_final.register_forward_hook(lambda _module, _inputs, out: seen.append(out))
    model.encode_text(tokens)
    hook.remove()
    return seen[0][0, :length].numpy()


def check(model, tokenizer, length_of, captions, cuts):
    tower = TextTower(model, tokenizer, "cpu", batch_size=3)
    assert (tower.cuts, tower.has_states) == (cuts, True)
    embedded, _, states = tower.states(captions, "float32")
    assert torch.equal(embedded, tower.embed(captions)[0])
    assert len(states) == len(captions)
    for row, caption in enumerate(captions):
        tokens = tokenizer([caption])
        expected = by_hand(model, tokens, length_of(tokens[0]))
        assert states[row].shape == expected.shape, caption
        assert np.abs(states[row] - expected).max() <= MOST, caption
    return states


@pytest.mark.parametrize("name", TOWERS)
@torch.inference_mode()
def test_states_are_those_of_the_full_length(name):
    text_cfg, more, cuts = TOWERS[name]
    tokenizer, length_of = clip_tokens(24)
    captions = [*CAPTIONS, "!~", "!! !~ !"]
    assert any(0 in tokenizer([caption])[0, : length_of(tokenizer([caption])[0])] for caption in captions)
    states = check(build(text_cfg, more), tokenizer, length_of, captions, cuts)
    told_apart = {states[row][-1].tobytes() for row in range(len(captions))}
    assert len(told_apart) == len(set(captions)), "an oracle over equal states would prove nothing"


@torch.inference_mode()
def test_a_tower_that_looks_both_ways_and_pads_with_its_end_token():
    """SigLIP's: the end token cannot be told from padding, and is not kept."""
    tokenizer = HuggingFaceLike(pad_id=1, end=[])
    captions = ["a cat", "two dogs on a mat", "a " * 50, ""]
    lengths = {"a cat": 2, "two dogs on a mat": 5, "a " * 50: 24, "": 1}
    by_tokens = {tuple(tokenizer([caption])[0].tolist()): length for caption, length in lengths.items()}
    model = build(*TOWERS["siglip"][:2])
    states = check(model, tokenizer, lambda tokens: by_tokens[tuple(tokens.tolist())], captions, cuts=False)
    assert states.lengths.tolist() == [2, 5, 24, 1]


@torch.inference_mode()
def test_padding_that_is_not_zero_is_cut_away_by_its_own_id():
    """MetaCLIP's worldwide models: causal, read off at an end token of their own, filled up with ones."""
    text_cfg = {**TOWERS["clip"][0], "pool_type": "eos", "eos_id": 2}
    tokenizer = HuggingFaceLike(pad_id=1, end=[2])
    captions = ["a cat", "two dogs on a mat", ""]
    states = check(build(text_cfg, {}), tokenizer, lambda tokens: tokens.tolist().index(2) + 1, captions, cuts=True)
    assert states.lengths.tolist() == [3, 6, 1]


def captions(count):
    return ["a very long caption " * 20 if i % 9 == 0 else f"{shards.caption(i)} 猫 №{i % 4}!~" for i in range(count)]


def write_input(place, count):
    members = [(f"{i:03d}.jpg", shards.jpeg(i)) for i in range(count)]
    members += [(f"{i:03d}.txt", caption.encode()) for i, caption in enumerate(captions(count))]
    return shards.write_tar(place, sorted(members))


@pytest.mark.parametrize("architecture", ["vit", "custom_text", "coca"])
@pytest.mark.parametrize(("dtype", "most"), [("float32", MOST), ("float16", 4e-3)])
def test_every_stored_row_is_what_open_clip_gives(architecture, dtype, most, tmp_path, encode_config):
    folder = tiny_clip.write(tmp_path / "model", tiny_clip.CONFIGS[architecture])
    source, out = write_input(tmp_path / "in.tar", 20), str(tmp_path / "emb")
    encode(source, out, encode_config(folder, dtype=dtype, stage={"batch_size": 7, "text_tokens": True}))
    assert verify(out, shards.DEEP).whole
    dataset = EmbeddingDataset(out)
    assert (len(dataset.text_tokens), dataset.text_tokens.width) == (20, 32)
    model, _ = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    model.eval()
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    padded, mask = dataset.text_tokens[:]
    for row, caption in enumerate(captions(20)):
        tokens = tokenizer([caption])
        length = tokens[0].tolist().index(tokenizer.eot_token_id) + 1
        with torch.no_grad():
            expected = by_hand(model, tokens, length)
        found = dataset.text_tokens[row]
        assert (found.dtype, found.shape) == (np.dtype(dtype), expected.shape)
        assert np.abs(found - expected).max() <= most
        assert np.array_equal(padded[row][mask[row]], found)
        assert not padded[row][~mask[row]].any()


def test_a_tower_of_another_library_is_refused_by_name(tiny_model):
    encoder = load_encoder(EncoderConfig(tiny_model))
    del encoder._texts._model.ln_final
    with pytest.raises(ModelError, match="no hidden states of tokens.*`text_tokens`"):
        encoder.text_states(["a cat"])
