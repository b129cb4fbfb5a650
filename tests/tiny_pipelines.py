"""Pipelines of diffusers with random weights and a few thousand parameters, saved as diffusers saves them."""

import json
from pathlib import Path

import torch

# transformers puts a function of its own in the place of torch.linspace while it loads a model. torch looks up what
# makes tensors at the first use of a device as a context, and keeps that: it must be its own.
with torch.device("cpu"):
    torch.zeros(1)

TOWER = {"hidden_size": 32, "num_hidden_layers": 2, "patch_size": 8, "projection_dim": 16}


def kandinsky(folder, width=16, fills_in=False, seed=0):
    """A decoder of Kandinsky 2.2 for embeddings of that width: pictures of 16 px. Returns diffusers' pipeline."""
    import diffusers

    torch.manual_seed(seed)
    unet = diffusers.UNet2DConditionModel(
        in_channels=9 if fills_in else 4, out_channels=8, addition_embed_type="image",
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn", block_out_channels=(8, 16), layers_per_block=1,
        encoder_hid_dim=width, encoder_hid_dim_type="image_proj", cross_attention_dim=width, attention_head_dim=4,
        resnet_time_scale_shift="scale_shift", class_embed_type=None, norm_num_groups=4, sample_size=8,
    )  # fmt: skip
    movq = diffusers.VQModel(
        block_out_channels=[32, 32], down_block_types=["DownEncoderBlock2D", "AttnDownEncoderBlock2D"],
        up_block_types=["AttnUpDecoderBlock2D", "UpDecoderBlock2D"], in_channels=3, out_channels=3, layers_per_block=1,
        latent_channels=4, norm_num_groups=8, norm_type="spatial", num_vq_embeddings=12, vq_embed_dim=4,
    )  # fmt: skip
    scheduler = diffusers.DDPMScheduler(
        num_train_timesteps=100, beta_schedule="linear", beta_start=0.00085, beta_end=0.012, clip_sample=False,
        variance_type="learned_range", prediction_type="epsilon", thresholding=False,
    )  # fmt: skip
    kind = diffusers.KandinskyV22InpaintPipeline if fills_in else diffusers.KandinskyV22Pipeline
    return _saved(kind(unet=unet.eval(), movq=movq.eval(), scheduler=scheduler), folder)


def stable_unclip(folder, width=16, seed=0):
    """A Stable unCLIP: pictures of 16 px, of embeddings and texts. Returns diffusers' pipeline."""
    import diffusers
    import transformers
    from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer

    torch.manual_seed(seed)
    vision = transformers.CLIPVisionConfig(
        hidden_size=32, projection_dim=width, num_hidden_layers=2, num_attention_heads=2, image_size=32,
        intermediate_size=37, patch_size=8,
    )  # fmt: skip
    words = _words(Path(folder) / "tokenizer")
    text = transformers.CLIPTextConfig(
        bos_token_id=0, eos_token_id=1, pad_token_id=1, hidden_size=16, projection_dim=16, intermediate_size=37,
        num_attention_heads=2, num_hidden_layers=1, vocab_size=len(words), max_position_embeddings=77,
    )  # fmt: skip
    unet = diffusers.UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), block_out_channels=(8, 16), attention_head_dim=(2, 4),
        class_embed_type="projection", projection_class_embeddings_input_dim=2 * width, cross_attention_dim=16,
        layers_per_block=1, upcast_attention=True, use_linear_projection=True, norm_num_groups=4,
    )  # fmt: skip
    scheduler = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    normalizer = StableUnCLIPImageNormalizer(embedding_dim=width)
    with torch.no_grad():
        normalizer.mean.copy_(0.1 * torch.randn(1, width))
        normalizer.std.copy_(torch.rand(1, width) + 0.5)
    pipeline = diffusers.StableUnCLIPImg2ImgPipeline(
        feature_extractor=transformers.CLIPImageProcessor(crop_size=32, size=32),
        image_encoder=transformers.CLIPVisionModelWithProjection(vision).eval(),
        image_normalizer=normalizer.eval(),
        image_noising_scheduler=diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        tokenizer=transformers.CLIPTokenizer.from_pretrained(Path(folder) / "tokenizer", model_max_length=77),
        text_encoder=transformers.CLIPTextModel(text).eval(),
        unet=unet.eval(),
        scheduler=diffusers.DDIMScheduler(**scheduler, prediction_type="v_prediction", set_alpha_to_one=False),
        vae=diffusers.AutoencoderKL(block_out_channels=(4, 8), norm_num_groups=4, latent_channels=4,
                                    down_block_types=("DownEncoderBlock2D",) * 2,
                                    up_block_types=("UpDecoderBlock2D",) * 2).eval(),
    )  # fmt: skip
    return _saved(pipeline, folder)


def base_model(folder, xl=False, seed=0):
    """A Stable Diffusion of 16 px, or XL. Returns diffusers' pipeline."""
    import diffusers
    import transformers

    torch.manual_seed(seed)
    words = _words(Path(folder) / "tokenizer")
    sizes = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1, "hidden_size": 16, "projection_dim": 16,
             "intermediate_size": 37, "num_attention_heads": 2, "num_hidden_layers": 2, "vocab_size": len(words),
             "max_position_embeddings": 77}  # fmt: skip
    of_xl = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8, "cross_attention_dim": 32,
             "projection_class_embeddings_input_dim": 6 * 8 + 16} if xl else {"cross_attention_dim": 16}  # fmt: skip
    unet = diffusers.UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), block_out_channels=(8, 16), attention_head_dim=(2, 4),
        layers_per_block=1, use_linear_projection=True, norm_num_groups=4, **of_xl,
    )  # fmt: skip
    tokenizer = transformers.CLIPTokenizer.from_pretrained(Path(folder) / "tokenizer", model_max_length=77)
    parts = {
        "unet": unet.eval(),
        "tokenizer": tokenizer,
        "text_encoder": transformers.CLIPTextModel(transformers.CLIPTextConfig(**sizes)).eval(),
        "scheduler": diffusers.DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012,
                                             clip_sample=False, set_alpha_to_one=False, steps_offset=1),
        "vae": diffusers.AutoencoderKL(block_out_channels=(4, 8), norm_num_groups=4, latent_channels=4,
                                       down_block_types=("DownEncoderBlock2D",) * 2,
                                       up_block_types=("UpDecoderBlock2D",) * 2).eval(),
    }  # fmt: skip
    if xl:
        second = transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**sizes)).eval()
        parts |= {"tokenizer_2": tokenizer, "text_encoder_2": second}
        return _saved(diffusers.StableDiffusionXLPipeline(**parts, add_watermarker=False), folder)
    parts |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return _saved(diffusers.StableDiffusionPipeline(**parts), folder)


def ip_adapter(path, unet, width=16, seed=1):
    """An IP-Adapter of random weights for that network, as the published files are laid out."""
    from diffusers.models.attention_processor import IPAdapterAttnProcessor
    from diffusers.models.embeddings import ImageProjection
    from safetensors.torch import save_file

    torch.manual_seed(seed)
    config, tensors = unet.config, {}
    cross, places = config.cross_attention_dim, config.block_out_channels
    projection = ImageProjection(image_embed_dim=width, cross_attention_dim=cross, num_image_text_embeds=4)
    for theirs, ours in {"image_embeds": "proj", "norm": "norm"}.items():
        for name, it in getattr(projection, theirs).named_parameters():
            tensors[f"image_proj.{ours}.{name}"] = it.detach().clone()
    number = 1
    for name in unet.attn_processors:
        if name.endswith("attn1.processor"):
            continue
        block, _, rest = name.partition(".")
        widths = {"mid_block": places[-1:], "up_blocks": places[::-1], "down_blocks": places}[block]
        hidden = widths[0 if block == "mid_block" else int(rest[0])]
        processor = IPAdapterAttnProcessor(hidden_size=hidden, cross_attention_dim=cross)
        for kind in ("to_k_ip", "to_v_ip"):
            tensors[f"ip_adapter.{number}.{kind}.weight"] = getattr(processor, kind)[0].weight.detach().clone()
        number += 2
    save_file(tensors, path)
    return path


def _saved(pipeline, folder):
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(folder)
    return pipeline


def _words(folder):
    """A tokenizer of single letters, as CLIP's files describe one."""
    letters = [chr(number) for number in range(33, 127)]  # which stand for themselves in its table of bytes
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return words
