"""A real open_clip model so small that it encodes hundreds of pictures a second: a folder like those of train-clip."""

import json
import warnings
from pathlib import Path

import open_clip
import torch
from open_clip.factory import _MODEL_CONFIGS
from safetensors.torch import save_file

VIT = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
CUSTOM_TEXT = {**VIT, "custom_text": True, "init_logit_bias": -10}
RESNET = {
    **VIT,
    "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None, "head_width": 16},
}
COCA = {
    "embed_dim": 16,
    "multimodal_cfg": {
        "width": 32,
        "context_length": 16,
        "vocab_size": 49408,
        "layers": 1,
        "heads": 2,
        "n_queries": 8,
        "attn_pooler_heads": 2,
        "mlp_ratio": 2,
        "dim_head": 16,
    },
    "vision_cfg": {
        "image_size": 32,
        "layers": 1,
        "width": 32,
        "patch_size": 16,
        "head_width": 16,
        "attentional_pool": True,
        "attn_pooler_heads": 2,
        "attn_pooler_queries": 8,
        "output_tokens": True,
    },
    "text_cfg": {
        "context_length": 15,
        "vocab_size": 49408,
        "layers": 1,
        "heads": 2,
        "width": 32,
        "embed_cls": True,
        "output_tokens": True,
    },
    "custom_text": True,
}
CONFIGS = {"vit": VIT, "custom_text": CUSTOM_TEXT, "resnet": RESNET, "coca": COCA}


def write(folder, config=VIT, seed=0, preprocess=None):
    """Write `folder`/open_clip_config.json and open_clip_model.safetensors, weights drawn from `seed`. Returns str."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    name = "embedpipe-tiny"
    _MODEL_CONFIGS[name] = config
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(seed)
            model = open_clip.create_model(name, pretrained=None)
    finally:
        del _MODEL_CONFIGS[name]
    save_file(
        {key: value.contiguous().clone() for key, value in model.state_dict().items()},
        folder / "open_clip_model.safetensors",
    )
    content = {"model_cfg": config, "preprocess_cfg": preprocess or {}}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    return str(folder)
