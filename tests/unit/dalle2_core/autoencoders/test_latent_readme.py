"""The latent diffusion of DALLE2-pytorch's README, with the import line changed; only sizes are smaller."""

import pytest
import torch

from dalle2_core import CLIP, Decoder, Unet, VQGanVAE


def test_latent_diffusion():
    torch.manual_seed(0)
    clip = CLIP(
        dim_text=32,
        dim_image=32,
        dim_latent=32,
        num_text_tokens=100,
        text_enc_depth=1,
        text_seq_len=12,
        text_heads=2,
        visual_enc_depth=1,
        visual_image_size=32,
        visual_patch_size=16,
        visual_heads=2,
    )

    # first two unets are doing latent diffusion
    # vqgan-vae must be trained beforehand

    vae1 = VQGanVAE(dim=32, image_size=16, layers=3, layer_mults=(1, 2, 4))
    vae2 = VQGanVAE(dim=32, image_size=32, layers=3, layer_mults=(1, 2, 4))

    with pytest.warns(UserWarning, match="sparse_attn_window changes nothing"):
        unet1 = Unet(
            dim=16,
            image_embed_dim=32,
            cond_dim=16,
            channels=3,
            sparse_attn=True,
            sparse_attn_window=2,
            dim_mults=(1, 2),
        )
    unet2 = Unet(
        dim=16,
        image_embed_dim=32,
        channels=3,
        dim_mults=(1, 2),
        cond_on_image_embeds=True,
        cond_on_text_encodings=False,
    )
    unet3 = Unet(
        dim=8,
        image_embed_dim=32,
        channels=3,
        dim_mults=(1, 2),
        cond_on_image_embeds=True,
        cond_on_text_encodings=False,
        attend_at_middle=False,
    )

    decoder = Decoder(
        clip=clip,
        vae=(vae1, vae2),
        unet=(unet1, unet2, unet3),
        image_sizes=(16, 32, 64),
        timesteps=3,
        image_cond_drop_prob=0.1,
        text_cond_drop_prob=0.5,
    )
    images = torch.randn(1, 3, 64, 64)
    for unet_number in (1, 2, 3):
        loss = decoder(images, unet_number=unet_number)
        loss.backward()
        gradient = decoder.stage(unet_number).unet.to_out.weight.grad
        assert bool(gradient.abs().sum() > 0)
    assert not any(it.requires_grad for it in vae1.parameters())

    mock_image_embed = torch.randn(1, 32)
    images = decoder.sample(image_embed=mock_image_embed)
    assert images.shape == (1, 3, 64, 64)
    assert bool(torch.isfinite(images).all())
