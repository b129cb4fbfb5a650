"""The scripts of DALLE2-pytorch's README, and the one of a popular article on it, with the import line changed.

Calls and keywords are as there; sizes are small, and `.cuda()` is left out. What needs a download, an autoencoder or a
decoder's trainer is tested elsewhere.
"""

import pytest
import torch

from dalle2_core import (
    CLIP,
    DALLE2,
    Decoder,
    DiffusionPrior,
    DiffusionPriorNetwork,
    DiffusionPriorTrainer,
    Unet,
)

TOKENS = 49408
SMALL_UNET = {
    "resnet_groups": 2,
    "attn_heads": 2,
    "attn_dim_head": 4,
    "num_resnet_blocks": 1,
    "init_cross_embed_kernel_sizes": (3, 5),
}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def make_clip(**more):
    return CLIP(
        dim_text=24,
        dim_image=16,
        dim_latent=24,
        num_text_tokens=TOKENS,
        text_enc_depth=1,
        text_seq_len=12,
        text_heads=2,
        visual_enc_depth=1,
        visual_image_size=32,
        visual_patch_size=8,
        visual_heads=2,
        **more,
    )


def mock_data(rows=4, size=32):
    return torch.randint(0, TOKENS, (rows, 12)), torch.randn(rows, 3, size, size)


def make_prior(**more):
    prior_network = DiffusionPriorNetwork(dim=24, depth=1, dim_head=8, heads=2)
    return DiffusionPrior(net=prior_network, timesteps=4, cond_drop_prob=0.2, **more)


def unet(**more):
    return Unet(
        **{"dim": 8, "image_embed_dim": 24, "cond_dim": 8, "channels": 3, "dim_mults": (1, 2), **SMALL_UNET, **more}
    )


def assert_has_gradients(module):
    assert any(it.grad is not None and bool(it.grad.abs().sum() > 0) for it in module.parameters())


def test_clip_with_all_its_objectives():
    clip = make_clip(
        use_all_token_embeds=True,
        decoupled_contrastive_learning=True,
        extra_latent_projection=True,
        use_visual_ssl=True,
        visual_ssl_type="simclr",
        use_mlm=False,
        text_ssl_loss_weight=0.05,
        image_ssl_loss_weight=0.05,
    )
    text, images = mock_data()
    loss = clip(text, images, return_loss=True)
    loss.backward()
    assert all(it.grad is not None for it in clip.parameters())


def test_decoder_takes_its_size_from_clip():
    clip = make_clip()
    decoder = Decoder(unet=unet(), clip=clip, timesteps=4, image_cond_drop_prob=0.1, text_cond_drop_prob=0.5)
    _, images = mock_data()
    loss = decoder(images)
    loss.backward()
    assert_has_gradients(decoder.stages[0])
    assert not any(it.grad is not None for it in clip.parameters())


def test_prior_with_clip():
    diffusion_prior = make_prior(clip=make_clip())
    text, images = mock_data()
    loss = diffusion_prior(text, images)
    loss.backward()
    assert_has_gradients(diffusion_prior)


def test_cascade():
    decoder = Decoder(
        clip=make_clip(),
        unet=(unet(), unet(dim_mults=(1, 2, 4))),
        image_sizes=(32, 64),
        timesteps=4,
        image_cond_drop_prob=0.1,
        text_cond_drop_prob=0.5,
    )
    _, images = mock_data(size=64)
    loss = decoder(images, unet_number=1)
    loss.backward()
    loss = decoder(images, unet_number=2)
    loss.backward()
    for stage in decoder.stages:
        assert_has_gradients(stage)


def test_the_whole_way_from_text_to_image():
    clip = make_clip()
    text, images = mock_data()
    loss = clip(text, images, return_loss=True)
    loss.backward()

    diffusion_prior = make_prior(clip=clip)
    loss = diffusion_prior(text, images)
    loss.backward()

    told = unet(text_embed_dim=24, cond_on_text_encodings=True)
    decoder = Decoder(
        unet=(told, unet(dim_mults=(1, 2, 4))),
        image_sizes=(16, 32),
        clip=clip,
        timesteps=4,
        sample_timesteps=(2, 3),
        image_cond_drop_prob=0.1,
        text_cond_drop_prob=0.5,
    )
    for unet_number in (1, 2):
        loss = decoder(images, text=text, unet_number=unet_number)
        loss.backward()

    dalle2 = DALLE2(prior=diffusion_prior, decoder=decoder)
    images = dalle2(["cute puppy chasing after a squirrel"], cond_scale=2.0)
    assert images.shape == (1, 3, 32, 32)
    images = dalle2(
        ["a duck in a yellow raincoat", "a bowl of soup"], cond_scale=2.0, prior_cond_scale=1.5, return_pil_images=True
    )
    assert [it.size for it in images] == [(32, 32), (32, 32)]


def test_prior_on_embeddings_computed_before():
    diffusion_prior = make_prior(clip=make_clip(), condition_on_text_encodings=False)
    text, images = mock_data()
    clip_image_embeds = diffusion_prior.clip.embed_image(images).image_embed
    clip_text_embeds = diffusion_prior.clip.embed_text(text).text_embed
    loss = diffusion_prior(text_embed=clip_text_embeds, image_embed=clip_image_embeds)
    loss.backward()
    assert_has_gradients(diffusion_prior)


def test_prior_without_clip():
    diffusion_prior = make_prior(image_embed_dim=24, condition_on_text_encodings=False)
    loss = diffusion_prior(text_embed=torch.randn(4, 24), image_embed=torch.randn(4, 24))
    loss.backward()
    assert_has_gradients(diffusion_prior)


def test_inpainting():
    decoder = Decoder(
        clip=make_clip(),
        unet=(unet(dim_mults=(1, 1, 1, 1)),),
        image_sizes=(32,),
        timesteps=4,
        image_cond_drop_prob=0.1,
        text_cond_drop_prob=0.5,
    )
    _, images = mock_data()
    loss = decoder(images, unet_number=1)
    loss.backward()
    mock_image_embed = torch.randn(1, 24)
    inpaint_image = torch.randn(1, 3, 32, 32)
    inpaint_mask = torch.ones(1, 32, 32).bool()
    inpainted_images = decoder.sample(
        image_embed=mock_image_embed, inpaint_image=inpaint_image, inpaint_mask=inpaint_mask
    )
    assert inpainted_images.shape == (1, 3, 32, 32)
    assert torch.equal(inpainted_images, inpaint_image)  # all of it was to be kept


def test_an_image_embedding_may_come_first():
    decoder = Decoder(unet=unet(), image_sizes=(16,), timesteps=4)
    mock_image_embed = torch.randn(2, 24)
    torch.manual_seed(1)
    images = decoder.sample(mock_image_embed)
    torch.manual_seed(1)
    assert torch.equal(images, decoder.sample(image_embed=mock_image_embed))


def test_prior_trainer():
    diffusion_prior_trainer = DiffusionPriorTrainer(
        make_prior(clip=make_clip()), lr=3e-4, wd=1e-2, ema_beta=0.99, ema_update_after_step=1000, ema_update_every=10
    )
    text, images = mock_data(rows=8)
    diffusion_prior_trainer(text, images, max_batch_size=4)
    diffusion_prior_trainer.update()
    assert diffusion_prior_trainer.sample(text, max_batch_size=4).shape == (8, 24)


def test_unconditional():
    decoder = Decoder(
        unet=(unet(image_embed_dim=None), unet(image_embed_dim=None)),
        image_sizes=(16, 32),
        timesteps=4,
        unconditional=True,
    )
    _, images = mock_data(rows=1)
    for unet_number in (1, 2):
        decoder(images, unet_number=unet_number).backward()
    assert decoder.sample(batch_size=3, max_batch_size=2).shape == (3, 3, 32, 32)


def test_stages_take_turns_on_a_gpu():
    """Where there is none, they stay."""
    decoder = Decoder(clip=make_clip(), unet=(unet(), unet()), image_sizes=(16, 32), timesteps=4)
    _, images = mock_data(rows=1)
    for number in (1, 2):
        with decoder.one_unet_in_gpu(number):
            loss = decoder(images, unet_number=number)
            loss.backward()
    for stage in decoder.stages:
        assert_has_gradients(stage)
        assert stage.device == torch.device("cpu")


def test_the_article():
    """A decoder without a CLIP of its own takes the prior's."""
    diffusion_prior = make_prior(clip=make_clip())
    decoder = Decoder(unet=unet(), image_sizes=(32,), timesteps=4, image_cond_drop_prob=0.1, text_cond_drop_prob=0.5)
    dalle2 = DALLE2(prior=diffusion_prior, decoder=decoder)
    images = dalle2(["a butterfly trying to escape a tornado"], cond_scale=2.0)
    assert images.shape == (1, 3, 32, 32)
    assert dalle2("a single string is a batch of one").shape == (1, 3, 32, 32)
