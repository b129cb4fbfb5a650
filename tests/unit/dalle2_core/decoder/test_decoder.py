"""The decoder as its users see it."""

import copy
import json

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dalle2_core import Decoder, DecoderBatch, DecoderStage, StageConfig
from dalle2_core.errors import CheckpointError, ConfigError, ShapeError
from dalle2_core.rng import PerSampleRNG
from dalle2_core.types import EmbeddedImage, EmbeddedText
from tests.tiny_unet import unet

TEXT = {"cond_on_text_encodings": True, "text_embed_dim": 10}


def cascade(*networks, sizes=(8, 16), **keywords):
    networks = networks or (unet(), unet(seed=1))
    return Decoder(networks, image_sizes=sizes, **{"timesteps": 20, "sample_timesteps": 3, **keywords})


def single(network=None, **keywords):
    return Decoder(network or unet(), image_size=8, **{"timesteps": 20, "sample_timesteps": 3, **keywords})


def alive(decoder):
    """With last convolutions that are not zero: a decoder may have made them anew."""
    torch.manual_seed(3)
    for stage in decoder.cascade:
        nn.init.normal_(stage.unet.to_out.weight, std=0.2)
    return decoder


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def embeds(rows=3, width=6, seed=0):
    return F.normalize(torch.randn(rows, width, generator=seeded(seed)), dim=-1)


def pictures(rows=3, size=16, channels=3, seed=0):
    return torch.rand(rows, channels, size, size, generator=seeded(seed))


@pytest.mark.parametrize("objective", [{}, {"predict_v": True}, {"predict_x_start": True}], ids=str)
@pytest.mark.parametrize("learned", [True, False])
def test_loss_is_a_finite_function_of_the_generator_and_leaves_inputs_alone(objective, learned):
    decoder = alive(cascade(learned_variance=learned, **objective))
    images, embed = pictures(), embeds()
    before = images.clone(), embed.clone()
    for number in (1, 2):
        first, again, other = (
            decoder(images, image_embed=embed, unet_number=number, generator=seeded(it)) for it in (1, 1, 2)
        )
        assert bool(torch.isfinite(first))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
    assert torch.equal(images, before[0])
    assert torch.equal(embed, before[1])


def test_a_stage_is_trained_as_the_decoder_would():
    decoder = cascade()
    batch = DecoderBatch(pictures(), embeds())
    for number, stage in enumerate(decoder.cascade, 1):
        by_hand = stage.loss(batch, seeded()).loss
        assert torch.equal(
            by_hand, decoder(batch.images, image_embed=batch.image_embed, unet_number=number, generator=seeded())
        )
        by_hand.backward()
        assert [name for name, it in stage.named_parameters() if it.grad is None] == []
    assert stage.loss(batch, seeded()).metrics == {}
    assert set(decoder.stage(1).loss(batch, seeded()).metrics) == {"simple", "bound_bits"}


def test_an_untrained_loss_of_each_objective_is_its_targets_mean_square():
    images = pictures(rows=64)
    data = (F.interpolate(images, 8, mode="bicubic", antialias=True).clamp(0, 1) * 2 - 1).square().mean().item()
    for keywords, expected in (({}, 1.0), ({"predict_x_start": True}, data)):
        decoder = single(learned_variance=False, **keywords)
        nn.init.zeros_(decoder.stage(1).unet.to_out.weight)
        assert decoder(images, image_embed=embeds(64), generator=seeded()).item() == pytest.approx(expected, rel=0.05)


def test_bytes_are_the_same_pictures_as_floats():
    decoder = single()
    images = torch.randint(256, (3, 3, 8, 8), generator=seeded(), dtype=torch.uint8)
    losses = [decoder(it, image_embed=embeds(), generator=seeded()) for it in (images, images.float() / 255)]
    assert torch.equal(*losses)


def test_a_stage_learns_from_antialiased_pictures():
    """Stripes one pixel wide, made half as large, are grey; the nearest pixel would be black or white."""
    stage = single().stage(1)
    stripes = torch.zeros(1, 3, 16, 16)
    stripes[..., ::2] = 1.0
    x0, _ = stage.training_pair(DecoderBatch(stripes, embeds(1)), seeded())
    torch.testing.assert_close(x0[..., 1:-1], torch.zeros(1, 3, 8, 6), atol=0.02, rtol=0)


def test_an_upsampler_sees_the_smaller_picture_spoilt_and_only_in_training():
    stage = cascade(learned_variance=False).stage(2)
    images = pictures(rows=40)
    _, condition = stage.training_pair(DecoderBatch(images, embeds(40)), seeded())
    clean = (
        F.interpolate(
            F.interpolate(images, 8, mode="bicubic", antialias=True).clamp(0, 1), 16, mode="bicubic", antialias=True
        ).clamp(0, 1)
        * 2
        - 1
    )
    same = (condition.lowres - clean).abs().flatten(1).amax(1) < 1e-5
    assert 8 < int(same.sum()) < 32  # blurred with probability 1/2, each row by itself
    small = F.interpolate(images, 8, mode="bicubic", antialias=True).clamp(0, 1)
    told = stage.condition_for(condition, small, None)
    torch.testing.assert_close(told.lowres, clean)


@pytest.mark.parametrize("degradation", ["blur", "bsr", "none"])
def test_degradations_change_what_they_should(degradation):
    keywords = {"use_blur_for_lowres_cond": degradation == "blur", "use_bsr_for_lowres_cond": degradation == "bsr"}
    stage = cascade(blur_prob=1.0, **keywords).stage(2)
    assert stage.config.lowres.degradation == degradation
    batch = DecoderBatch(pictures(), embeds())
    spoilt = stage.training_pair(batch, seeded())[1].lowres
    plain = cascade(use_blur_for_lowres_cond=False).stage(2).training_pair(batch, seeded())[1].lowres
    assert bool((spoilt == plain).all()) == (degradation == "none")
    assert float((spoilt - plain).abs().mean()) < 0.4


def test_the_papers_degradations_are_the_default_of_three_stages():
    decoder = cascade(unet(), unet(), unet(), sizes=(8, 16, 32))
    assert [it.config.lowres and it.config.lowres.degradation for it in decoder.cascade] == [None, "blur", "bsr"]
    assert [it.config.beta_schedule for it in decoder.cascade] == ["cosine", "cosine", "linear"]
    assert [it.config.learned_variance for it in decoder.cascade] == [True, False, False]
    assert [it.unet.config.sees_image_embed for it in decoder.cascade] == [True, False, False]


def test_noise_of_the_smaller_picture_is_told():
    decoder = alive(cascade(use_noise_for_lowres_cond=True, lowres_noise_sample_level=0.5))
    stage = decoder.stage(2)
    _, condition = stage.training_pair(DecoderBatch(pictures(rows=50), embeds(50)), seeded())
    assert condition.lowres_noise.unique().numel() > 30
    noisy, clean = condition.lowres_noise > 900, condition.lowres_noise < 100
    assert condition.lowres[noisy].std() > 1.5 * condition.lowres[clean].std()
    told = stage.condition_for(condition, pictures(50, 8), seeded())
    assert told.lowres_noise.tolist() == [500] * 50
    assert decoder.sample(image_embed=embeds(), generator=seeded()).shape == (3, 3, 16, 16)


def test_crops_of_picture_and_smaller_picture_agree():
    stage = cascade(random_crop_sizes=(None, 8), use_blur_for_lowres_cond=False).stage(2)
    ramp = torch.linspace(0, 1, 16).expand(20, 3, 16, 16).contiguous()
    x0, condition = stage.training_pair(DecoderBatch(ramp, embeds(20)), seeded())
    assert x0.shape == condition.lowres.shape == (20, 3, 8, 8)
    assert x0[:, 0, 0, 0].unique().numel() > 3
    assert float((x0 - condition.lowres).abs().mean()) < 0.05


def test_conditions_are_dropped_each_by_itself_as_often_as_they_should():
    stage = single(unet(**TEXT), image_cond_drop_prob=0.2, text_cond_drop_prob=0.6).stage(1)
    batch = DecoderBatch(pictures(2000, 8), embeds(2000), torch.randn(2000, 3, 10))
    _, condition = stage.training_pair(batch, seeded())
    image, text = ~condition.image_keep, ~condition.text_keep
    assert image.float().mean() == pytest.approx(0.2, abs=0.04)
    assert text.float().mean() == pytest.approx(0.6, abs=0.04)
    assert (image & text).float().mean() == pytest.approx(0.12, abs=0.04)


def test_sampling_is_a_function_of_the_seed_alone_however_it_is_cut():
    decoder = alive(cascade(unet(**TEXT), unet(seed=1), sampler=("ddpm", "ddim")))
    told = {"image_embed": embeds(5), "text_encodings": torch.randn(5, 3, 10, generator=seeded())}
    one, again, other = (decoder.sample(**told, cond_scale=2.0, generator=seeded(it)) for it in (1, 1, 2))
    assert one.shape == (5, 3, 16, 16)
    assert 0 <= float(one.min()) < float(one.max()) <= 1
    assert torch.equal(one, again)
    assert not torch.allclose(one, other, atol=1e-2)
    cut = decoder.sample(**told, cond_scale=2.0, generator=seeded(1), max_batch_size=2)
    torch.testing.assert_close(cut, one, atol=1e-4, rtol=0)


def test_sampling_keeps_the_mode_and_the_global_generator():
    decoder = alive(single()).train()
    torch.manual_seed(0)
    before = torch.get_rng_state()
    decoder.sample(image_embed=embeds(), generator=seeded())
    assert torch.equal(torch.get_rng_state(), before)
    assert decoder.training
    assert decoder.stage(1).unet.training


def test_stages_can_be_run_one_by_one():
    decoder = alive(cascade())
    whole = decoder.sample(image_embed=embeds(), generator=seeded())
    small = decoder.sample(image_embed=embeds(), generator=seeded(), stop_at_unet_number=1)
    assert small.shape == (3, 3, 8, 8)
    large = decoder.sample(small, generator=seeded(), start_at_unet_number=2)
    torch.testing.assert_close(large, whole)


def test_settings_of_a_call_reach_their_stage():
    decoder = alive(cascade())
    calls = []
    decoder.sample(image_embed=embeds(), steps=[2, 5], sampler=["ddpm", None], on_step=lambda *it: calls.append(it))
    assert calls == [(1, 1, 2), (1, 2, 2), *((2, done, 5) for done in range(1, 6))]
    plain, stirred = (decoder.sample(image_embed=embeds(), eta=it, generator=seeded()) for it in (0.0, 1.0))
    assert not torch.allclose(plain, stirred, atol=1e-3)


def test_guidance_moves_the_sample_and_needs_dropped_conditions():
    decoder = alive(single(unet(**TEXT), learned_variance=False))
    told = {"image_embed": embeds(), "text_encodings": torch.randn(3, 4, 10, generator=seeded())}
    plain, same, moved, text_moved = (
        decoder.sample(**told, generator=seeded(), **it)
        for it in ({}, {"cond_scale": 1.000001}, {"cond_scale": 3.0}, {"text_cond_scale": 3.0})
    )
    torch.testing.assert_close(plain, same, atol=1e-3, rtol=0)
    assert not torch.allclose(plain, moved, atol=1e-3)
    assert not torch.allclose(plain, text_moved, atol=1e-3)
    assert not torch.allclose(moved, text_moved, atol=1e-3)
    with pytest.raises(
        ConfigError, match=r"cond_scale 2.0 needs a stage of 8 pixels trained with image_cond_drop_prob"
    ):
        single(image_cond_drop_prob=0.0).sample(image_embed=embeds(), cond_scale=2.0)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", None])
def test_inpainting_keeps_what_is_known_at_full_size(sampler):
    decoder = alive(cascade())
    images, mask = pictures(), torch.rand(3, 16, 16, generator=seeded()) > 0.4
    calls = []
    hidden = torch.where(mask[:, None], images, float("nan"))
    out = decoder.sample(
        image_embed=embeds(), inpaint_image=hidden, inpaint_mask=mask, sampler=sampler, inpaint_resample_times=2,
        generator=seeded(), on_step=lambda *it: calls.append(it), max_batch_size=2,
    )  # fmt: skip
    known = mask[:, None].expand_as(out)
    assert float((out - images)[known].abs().max()) <= 1 / 255
    assert not torch.allclose(out[~known], images[~known], atol=0.05)
    assert bool(torch.isfinite(out).all())
    # The last step of each stage is not taken twice: what is clean stays clean.
    assert len(calls) == 2 * 2 * (3 * 2 - 1)


class BlockAutoencoder(nn.Module):
    """Latents are the means of 2 x 2 pixels, scaled and moved; exact for images of such blocks."""

    latent_channels, downsampling = 3, 2

    def __init__(self):
        super().__init__()
        self.latent_mean, self.latent_std = torch.tensor([5.0, 6.0, 7.0]), torch.tensor([2.0, 2.0, 3.0])
        self.weight = nn.Parameter(torch.ones(1))

    def encode(self, pixels):
        statistics = (it.view(1, 3, 1, 1) for it in (self.latent_std, self.latent_mean))
        std, mean = statistics
        return F.avg_pool2d(pixels, 2) * self.weight * std + mean

    def decode(self, latents):
        pixels = (latents - self.latent_mean.view(1, 3, 1, 1)) / self.latent_std.view(1, 3, 1, 1)
        return F.interpolate(pixels, scale_factor=2, mode="nearest")


def test_encoded_images_train_a_latent_stage_as_the_images_do():
    decoder = alive(cascade(unet(), unet(seed=1), sizes=(8, 16), vae=(BlockAutoencoder(),)))
    stage, images, embed = decoder.stage(1), pictures(4), embeds(4)
    kept = DecoderBatch(stage.encoded(images), embed, encoded=True)
    assert kept.images.shape == (4, 3, 4, 4)
    losses = [
        stage.loss(batch.part(1, 3).to(torch.device("cpu")), PerSampleRNG(0, 1, 2, torch.device("cpu"))).loss
        for batch in (DecoderBatch(images, embed), kept)
    ]
    assert torch.equal(*losses)
    with pytest.raises(ShapeError, match="encoded images"):
        stage.loss(DecoderBatch(images, embed, encoded=True), None)


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        (lambda: single().stage(1), "works in pixels"),
        (lambda: single(vae=(BlockAutoencoder(),), random_crop_sizes=(4,)).stage(1), "random crops"),
    ],
)
def test_what_cannot_be_encoded_beforehand_says_why(stage, words):
    with pytest.raises(ConfigError, match=words):
        stage().encoded(pictures(2, 8))
    with pytest.raises(ConfigError, match=words):
        stage().loss(DecoderBatch(pictures(2, 8), embeds(2), encoded=True), None)


def test_a_stage_can_work_in_scaled_latents(tmp_path):
    vae = BlockAutoencoder()
    decoder = alive(cascade(unet(), unet(seed=1), sizes=(8, 16), vae=(vae,), predict_x_start_for_latent_diffusion=True))
    first = decoder.stage(1)
    assert (first.size, first.config.predicts, decoder.stage(2).config.predicts) == (4, "x0", "noise")
    images = pictures(4, 8)
    x0, _ = first.training_pair(DecoderBatch(images, embeds(4)), seeded())
    torch.testing.assert_close(x0, F.avg_pool2d(images, 2) * 2 - 1, atol=1e-5, rtol=0)
    assert not any(it.requires_grad for it in vae.parameters())
    assert not any("vae" in name or "autoencoder" in name for name in decoder.state_dict())
    out = decoder.sample(image_embed=embeds(), generator=seeded())
    assert out.shape == (3, 3, 16, 16)
    mask = torch.zeros(3, 16, 16, dtype=torch.bool)
    mask[:, :8] = True
    filled = decoder.sample(image_embed=embeds(), inpaint_image=pictures(), inpaint_mask=mask, generator=seeded())
    assert float((filled - pictures())[:, :, :8].abs().max()) <= 1 / 255
    decoder.double()
    assert vae.weight.dtype == torch.float64  # it moves with its stage
    copied = copy.deepcopy(decoder.stage(1))
    assert copied.vae is copied.space.autoencoder is vae, "a copy, such as an average, shares it"
    assert copied.unet.to_out.weight is not decoder.stage(1).unet.to_out.weight
    decoder.float().save(tmp_path)
    with pytest.raises(ConfigError, match="works in latents; give its autoencoder"):
        Decoder.load(tmp_path)
    again = Decoder.load(tmp_path, vae=vae)
    torch.testing.assert_close(again.sample(image_embed=embeds(), generator=seeded()), out)


def test_save_and_load_give_the_same_samples(tmp_path):
    decoder = alive(cascade(unet(**TEXT), unet(seed=1), random_crop_sizes=(None, 8), blur_sigma=(0.4, 0.8)))
    told = {"image_embed": embeds(), "text_encodings": torch.randn(3, 3, 10, generator=seeded())}
    decoder.save(tmp_path / "decoder")
    again = Decoder.load(tmp_path / "decoder")
    assert [it.config for it in again.cascade] == [it.config for it in decoder.cascade]
    assert [it.unet.config for it in again.cascade] == [it.unet.config for it in decoder.cascade]
    torch.testing.assert_close(again.sample(**told, generator=seeded()), decoder.sample(**told, generator=seeded()))


def test_a_stage_trained_apart_plugs_in(tmp_path):
    decoder = alive(cascade())
    other = DecoderStage(unet(seed=9, lowres_cond=True, cond_on_image_embeds=False), decoder.stage(2).config)
    other.save(tmp_path / "alone")
    mixed = Decoder.from_stages([decoder.stage(1), DecoderStage.load(tmp_path / "alone")])
    out = mixed.sample(image_embed=embeds(), generator=seeded())
    assert out.shape == (3, 3, 16, 16)
    assert not torch.allclose(out, decoder.sample(image_embed=embeds(), generator=seeded()), atol=1e-3)


def test_what_is_no_decoder_is_not_loaded(tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        Decoder.load(tmp_path)
    decoder = cascade()
    decoder.save(tmp_path)
    path = tmp_path / "stage-2" / "config.json"
    content = json.loads(path.read_text())
    for change, text in (
        ({"kind": "prior"}, "not a decoder stage's config"),
        ({"format_version": 99}, "decoder-stage format 99"),
        ({"network": {**content["network"], "dim": 16}}, "do not belong together"),
        ({"stage": {**content["stage"], "predict": "v"}}, "no keyword 'predict'; did you mean predicts"),
    ):
        path.write_text(json.dumps(content | change))
        with pytest.raises(CheckpointError, match=text):
            Decoder.load(tmp_path)


class WordClip(nn.Module):
    """Embeds an image as its mean colour, a text as its own numbers."""

    def embed_image(self, image):
        return EmbeddedImage(F.normalize(F.pad(image.mean(dim=(2, 3)), (0, 3)), dim=-1))

    def embed_text(self, text):
        tokens = text[:, :, None].float().expand(-1, -1, 10)
        return EmbeddedText(F.normalize(tokens.mean(1)[:, :6], dim=-1), tokens, text != 0)


def test_raw_images_and_texts_go_through_clip():
    decoder = alive(single(unet(**TEXT), clip=WordClip()))
    text = torch.tensor([[1, 2, 0], [3, 0, 0], [4, 5, 6]])
    images = pictures(3, 8)
    embedded = WordClip().embed_text(text)
    one = decoder(images, text=text, generator=seeded())
    other = decoder(
        images, image_embed=WordClip().embed_image(images).image_embed,
        text_encodings=embedded.text_encodings, text_mask=embedded.text_mask,
        generator=seeded(),
    )  # fmt: skip
    assert torch.equal(one, other)
    assert decoder.sample(image_embed=embeds(), text=text).shape == (3, 3, 8, 8)
    with pytest.raises(ConfigError, match="to embed images the decoder needs `clip`"):
        single()(images)
    with pytest.raises(ConfigError, match="to embed texts the decoder needs `clip`"):
        single(unet(**TEXT)).sample(image_embed=embeds(), text=text)


def test_a_single_stage_may_take_its_size_from_clip():
    clip = WordClip()
    clip.image_size = 8
    assert Decoder(unet(), clip=clip, timesteps=4).stage(1).config.image_size == 8


def test_guidance_costs_nothing_where_nothing_is_told():
    decoder, rows = cascade(), []
    for stage in decoder.cascade:
        stage.unet.register_forward_pre_hook(lambda net, args: rows.append(len(args[0])))
    decoder.sample(image_embed=embeds(), cond_scale=2.0, text_cond_scale=3.0, steps=1)
    assert rows == [6, 3]  # the first stage is told the image; the second only the smaller one


def test_an_unconditional_decoder_is_told_nothing():
    decoder = alive(single(unconditional=True))
    assert bool(torch.isfinite(decoder(pictures(3, 8), generator=seeded())))
    assert decoder.sample(batch_size=4).shape == (4, 3, 8, 8)
    with pytest.raises(ShapeError, match="no stage of this decoder is conditioned on image_embed"):
        decoder.sample(image_embed=embeds())


def test_weights_move_once_for_a_stage_and_come_home_whatever_happens(monkeypatch):
    decoder = alive(cascade())
    moves = []
    monkeypatch.setattr(DecoderStage, "to", lambda stage, device: moves.append((stage.config.image_size, str(device))))
    decoder.sample(image_embed=embeds(), max_batch_size=1)
    decoder.sample(image_embed=embeds(), max_batch_size=1, device="cpu")
    assert moves == []
    decoder.sample(image_embed=embeds(), max_batch_size=1, device="cpu:1")
    assert moves == [(8, "cpu:1"), (8, "cpu"), (16, "cpu:1"), (16, "cpu")]
    moves.clear()
    with pytest.raises(ZeroDivisionError):
        decoder.sample(image_embed=embeds(), device="cpu:1", on_step=lambda *it: 1 / 0)
    assert moves == [(8, "cpu:1"), (8, "cpu")]


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Decoder((unet(), unet()), image_sizes=(16, 8)), "image_sizes .16, 8. do not grow; order them"),
        (lambda: Decoder((unet(), unet()), image_sizes=(8,)), "2 U-Nets and 1 image sizes"),
        (lambda: Decoder(unet()), "give image_size for one U-Net, or image_sizes"),
        (lambda: Decoder(unet(), image_size=8, image_sizes=(8,)), "and not both"),
        (lambda: Decoder(unet(), image_size=9), "image_size is 9; it must be a multiple of 2"),
        (lambda: cascade(random_crop_sizes=(None, 5)), "random_crop_size is 5; it must be a multiple of 2"),
        (lambda: single(predict_v=True, predict_x_start=True), "exclude each other"),
        (lambda: cascade(timesteps=(20, 20, 20)), "timesteps has 3 values for 2 stages"),
        (lambda: cascade(use_noise_for_lowres_cond=(True, True)), "the first stage has no smaller image"),
        (lambda: single(beta_schedule="cosin"), "did you mean cosine"),
        (lambda: single(sample_timesteps=21), "choose 1 to timesteps"),
        (lambda: single(unet(image_embed_dim=None)), "has no image_embed_dim"),
        (lambda: single(vae=(BlockAutoencoder(), BlockAutoencoder())), "2 autoencoders for 1 stages"),
        (lambda: single(vae=object()), "lacks latent_channels"),
        (lambda: Decoder.from_stages([]), "needs one stage or more"),
        (lambda: Decoder.from_stages([cascade().stage(2)]), "the first stage starts from an image of 8 pixels"),
        (
            lambda: Decoder.from_stages([cascade().stage(1), cascade(sizes=(16, 32)).stage(2)]),
            "stage 2 starts from one of 16 pixels, and stage 1 makes one of 8",
        ),
        (
            lambda: Decoder.from_stages([cascade().stage(1), cascade(channels=1).stage(2)]),
            "stage 1 makes images of 3 channels, stage 2 of 1",
        ),
        (
            lambda: Decoder.from_stages(
                [cascade().stage(1), cascade(unet(), unet(image_embed_dim=4, cond_on_image_embeds=True)).stage(2)]
            ),
            r"take image embeddings of widths \[6, 4\]",
        ),
        (lambda: DecoderStage(unet(), StageConfig(8, learned_variance=True)), "must give 6"),
        (lambda: DecoderStage(unet(lowres_cond=True), StageConfig(8)), "is the first and has no smaller image"),
        (
            lambda: DecoderStage(unet(channels=4), StageConfig(8), BlockAutoencoder()),
            "has 4 channels, the autoencoder's",
        ),
    ],
)
def test_decoders_that_cannot_be_are_refused(make, text):
    with pytest.raises(ConfigError, match=text):
        make()


def test_unknown_keyword_names_the_near_one():
    with pytest.raises(TypeError, match=r"Decoder has no keyword 'timestep'; did you mean timesteps"):
        single(timestep=3)


@pytest.fixture(scope="module")
def idle():
    """A cascade that never gets to work."""
    return cascade()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({}, "conditioned on image_embed, and was given none"),
        ({"image_embed": embeds(width=5)}, r"image_embed is \(3, 5\)"),
        ({"image_embed": embeds() * float("nan")}, "image_embed holds NaN"),
        (
            {"image_embed": embeds(), "text_encodings": torch.zeros(3, 2, 4)},
            "conditioned on text_encodings; leave it out",
        ),
        ({"image_embed": embeds(), "inpaint_image": pictures()}, "both inpaint_image and inpaint_mask"),
        (
            {"image_embed": embeds(), "inpaint_image": pictures(), "inpaint_mask": torch.ones(3, 8, 8).bool()},
            "is of another size than inpaint_image",
        ),
        (
            {"image_embed": embeds(), "inpaint_image": pictures(), "inpaint_mask": torch.full((3, 16, 16), 0.5)},
            "inpaint_mask is torch.float32; give bool",
        ),
        (
            {"image_embed": embeds(), "inpaint_image": pictures() / 0, "inpaint_mask": torch.ones(3, 16, 16).bool()},
            "NaN or infinity where the mask says it is known",
        ),
        ({"image_embed": embeds(), "start_at_unet_number": 2}, "needs image, what the stage before"),
        ({"image_embed": embeds(), "image": pictures()}, "leave it out"),
        ({"image_embed": embeds(), "start_at_unet_number": 3}, "must rise within 1 to 2"),
        ({"image_embed": embeds(), "stop_at_unet_number": 0}, "must rise within"),
        ({"image_embed": embeds(), "steps": 21}, "choose 1 to 20"),
        ({"image_embed": embeds(), "steps": [3, 21]}, "choose 1 to 20"),
        ({"image_embed": embeds(), "steps": [3]}, "steps has 1 values for 2 stages"),
        ({"image_embed": embeds(), "sampler": "ddmp"}, "no sampler 'ddmp'; did you mean"),
        ({"image_embed": embeds(), "eta": 2.0}, "eta is 2.0"),
        ({"image_embed": embeds(), "noise": torch.zeros(3, 3, 4, 4)}, r"noise is \(3, 3, 4, 4\); the stage's is"),
        ({"image_embed": embeds(), "max_batch_size": 0}, "max_batch_size is 0"),
    ],
)
def test_bad_requests_are_refused_before_the_first_step(idle, arguments, text):
    calls = []
    with pytest.raises((ShapeError, ConfigError), match=text):
        idle.sample(**arguments, on_step=lambda *it: calls.append(it))
    assert calls == []


@pytest.mark.parametrize(
    ("images", "embed", "text"),
    [
        (pictures(3, 4), embeds(), "smaller than the stage's 8"),
        (pictures()[:, :, :9], embeds(), "are not square"),
        (pictures(channels=4), embeds(), r"must be \[b, 3, h, w\]"),
        (pictures() / 0, embeds(), "images hold NaN"),
        (pictures().long(), embeds(), "give uint8, or floats"),
        (pictures(), embeds(2), "3 images and 2 rows of image_embed"),
        (pictures(), embeds() / 0, "image_embed holds NaN"),
    ],
)
def test_bad_batches_are_refused(images, embed, text):
    with pytest.raises(ShapeError, match=text):
        cascade()(images, image_embed=embed, unet_number=1)


def test_the_stage_to_train_must_be_said_and_be_there():
    with pytest.raises(ConfigError, match="unet_number, 1 to 2"):
        cascade()(pictures(), image_embed=embeds())
    with pytest.raises(ConfigError, match="there is no stage 3"):
        cascade()(pictures(), image_embed=embeds(), unet_number=3)


def test_self_conditioning_is_trained_half_of_the_time_and_used():
    decoder = alive(single(unet(self_cond=True)))
    stage, seen = decoder.stage(1), []
    stage.unet.register_forward_pre_hook(lambda net, args: seen.append(args[3] if len(args) > 3 else None))
    batch = DecoderBatch(pictures(3, 8), embeds())
    for seed in range(30):
        stage.loss(batch, seeded(seed))
    trained_with = sum(it is not None for it in seen)
    assert 8 <= trained_with <= 22
    assert len(seen) == 30 + trained_with  # the first estimate costs one more call, without gradients
    seen.clear()
    decoder.sample(image_embed=embeds())
    assert [it is not None for it in seen] == [False, True, True]
