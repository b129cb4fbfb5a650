"""A CLIP of one's own: its losses beside plain loops over pairs, its tokens, and what it saves."""

import open_clip
import pytest
import torch
from torch.nn import functional as F

from dalle2_core import CLIP
from dalle2_core.clip.objectives import ClipObjective, Sides, VisualSsl, contrast, image_to_text, text_to_image
from dalle2_core.errors import CheckpointError, ConfigError, ShapeError

SIZES = {"dim_text": 8, "dim_image": 12, "dim_latent": 6, "num_text_tokens": 49408, "text_enc_depth": 1,
         "text_seq_len": 10, "text_heads": 2, "visual_enc_depth": 1, "visual_image_size": 16, "visual_patch_size": 8,
         "visual_heads": 3}  # fmt: skip
TEXTS = ["a red bicycle", "soup", "two cats on a mat, and a third one behind them, asleep"]


def make(seed=0, **more):
    torch.manual_seed(seed)
    return CLIP(**{**SIZES, **more})


def images(rows=3):
    return torch.rand(rows, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def sides(rows=4, length=5, patches=3, width=6):
    draw = torch.Generator().manual_seed(2)
    text, image, tokens, parts = (
        F.normalize(torch.randn(*shape, width, generator=draw), dim=-1)
        for shape in ((rows,), (rows,), (rows, length), (rows, patches))
    )
    mask = torch.arange(length) < torch.tensor([[5], [1], [3], [4]])
    return Sides(text, image, tokens, mask, parts)


def test_the_plain_loss_is_open_clips():
    clip = make()
    tokens = clip.tokenizer(TEXTS)
    text, image = clip.embed_text(tokens).text_embed, clip.embed_image(images()).image_embed
    expected = open_clip.ClipLoss()(image, text, clip.model.logit_scale.exp())
    torch.testing.assert_close(clip(tokens, images(), return_loss=True), expected)
    torch.testing.assert_close(clip(tokens, images(), return_loss=False), (text * image).sum(dim=1))
    as_bytes = (images() * 255).round().to(torch.uint8)
    torch.testing.assert_close(clip(tokens, as_bytes), clip(tokens, as_bytes / 255))


def test_every_token_and_patch_by_loops():
    given = sides()
    for t in range(4):
        for i in range(4):
            real = given.tokens[t][given.mask[t]]
            cosines = real @ given.patches[i].T
            torch.testing.assert_close(text_to_image(given)[t, i], cosines.max(dim=1).values.mean())
            torch.testing.assert_close(image_to_text(given)[i, t], cosines.max(dim=0).values.mean())


@pytest.mark.parametrize("every_token", [False, True])
def test_decoupled_leaves_the_right_pair_out_of_the_denominator(every_token):
    given, scale = sides(), torch.tensor(7.0)
    objective = ClipObjective(decoupled_contrastive_learning=True, use_all_token_embeds=every_token)
    forth = text_to_image(given) if every_token else given.text @ given.image.T
    back = image_to_text(given) if every_token else given.image @ given.text.T
    loss = 0
    for likeness in (forth, back):
        for row in range(4):
            wrong = [float(scale * likeness[row, other]) for other in range(4) if other != row]
            loss += (torch.tensor(wrong).exp().sum().log() - scale * likeness[row, row]) / 8
    torch.testing.assert_close(contrast(given, given, scale, objective), loss)


def test_extra_projections_serve_the_way_back_alone():
    clip = make(extra_latent_projection=True)
    tokens = clip.tokenizer(TEXTS)
    before = clip(tokens, images())
    with torch.no_grad():
        clip.extra_projections["text"].copy_(clip.model.text_projection)
        clip.extra_projections["image"].copy_(clip.model.visual.proj)
    plain = make()
    plain.model.load_state_dict(clip.model.state_dict())
    torch.testing.assert_close(clip(tokens, images()), plain(tokens, images()))
    assert not torch.allclose(before, plain(tokens, images()))
    torch.testing.assert_close(clip.embed_text(tokens).text_embed, plain.embed_text(tokens).text_embed)


@pytest.mark.parametrize("kind", ["simclr", "simsiam"])
def test_two_views_of_an_image_should_be_alike(kind):
    torch.manual_seed(0)
    ssl = VisualSsl(12, kind)
    features = torch.randn(5, 12)
    same, mixed = ssl(features, features), ssl(features, features.roll(1, dims=0))
    assert same < mixed
    if kind == "simclr":
        both = F.normalize(ssl.project(torch.cat((features, features.roll(1, dims=0)))), dim=-1)
        expected = 0
        for row in range(10):
            others = torch.stack([both[row] @ both[it] / 0.1 for it in range(10) if it != row])
            expected += (others.logsumexp(0) - both[row] @ both[(row + 5) % 10] / 0.1) / 10
        torch.testing.assert_close(mixed, expected)


def test_every_objective_is_learnt():
    """A step down the gradient lowers the loss of the same batch."""
    for more in (
        {},
        {"use_all_token_embeds": True},
        {"decoupled_contrastive_learning": True, "extra_latent_projection": True},
        {"use_visual_ssl": True, "image_ssl_loss_weight": 1.0, "visual_ssl_type": "simsiam"},
    ):
        clip = make(**more)
        tokens, optimizer = clip.tokenizer(TEXTS), torch.optim.Adam(clip.parameters(), 1e-2)
        losses = []
        for _ in range(12):
            torch.manual_seed(1)  # the same views
            loss = clip(tokens, images(), return_loss=True)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        assert losses[-1] < losses[0], more


def test_strings_get_start_and_end_tokens():
    clip = make()
    tokens = clip.tokenizer(TEXTS)
    assert tokens.shape == (3, 10)
    assert tokens[:, 0].tolist() == [49406] * 3
    for row in tokens.tolist():
        end = row.index(49407)
        assert not any(row[end + 1 :])
    assert tokens[2, 9] == 49407  # cut, and yet ended
    assert clip.embed_text(tokens).text_mask.sum(dim=1).tolist() == [row.index(49407) + 1 for row in tokens.tolist()]


@pytest.mark.parametrize("more", [{}, {"extra_latent_projection": True, "use_visual_ssl": True}])
def test_what_is_saved_is_loaded_here_and_by_open_clip(tmp_path, more):
    clip = make(**more)
    clip.save(tmp_path / "clip")
    loaded = CLIP.load(tmp_path / "clip")
    assert loaded.state_dict().keys() == clip.state_dict().keys()
    assert all(torch.equal(it, clip.state_dict()[name]) for name, it in loaded.state_dict().items())
    assert (loaded.sizes, loaded.objective) == (clip.sizes, clip.objective)
    theirs = open_clip.create_model(f"local-dir:{tmp_path / 'clip'}").eval()
    tokens = clip.tokenizer(TEXTS).long()
    with torch.no_grad():
        expected = F.normalize(theirs.encode_text(tokens), dim=-1)
    torch.testing.assert_close(loaded.embed_text(tokens).text_embed, expected)
    (tmp_path / "clip" / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        CLIP.load(tmp_path / "clip")


def test_mistakes_are_named():
    with pytest.raises(TypeError, match="CLIP has no keyword 'use_visual_sl'; did you mean use_visual_ssl"):
        CLIP(use_visual_sl=True)
    with pytest.raises(ConfigError, match="dim_text is 8; it must be a multiple of text_heads, 3"):
        make(text_heads=3)
    with pytest.raises(ConfigError, match="visual_enc_depth is 0; it must be 1 or more"):
        make(visual_enc_depth=0)
    with pytest.raises(ConfigError, match="use_mlm needs a text tower that looks both ways"):
        make(use_mlm=True)
    with pytest.raises(ConfigError, match="no visual_ssl_type 'simclear'; did you mean simclr"):
        make(visual_ssl_type="simclear")
    with pytest.raises(ShapeError, match="3 texts and 2 images are no pairs"):
        make()(make().tokenizer(TEXTS), images(2))
