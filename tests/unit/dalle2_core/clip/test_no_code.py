"""A model folder cannot have its own Python run when dalle2_core loads it."""

import json
import shutil

import pytest

from dalle2_core.clip.trainable import load_open_clip
from dalle2_core.errors import ConfigError


@pytest.mark.parametrize("option", ["trust_remote_code", "cache_dir", "proxies", "vocab_file"])
def test_options_that_a_tokenizer_must_not_have_are_refused(tiny_model, tmp_path, option):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    assert load_open_clip(f"local-dir:{folder}", None).image_size == 32
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"] |= {"hf_tokenizer_name": "x", "tokenizer_kwargs": {option: True}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=f"tokenizer_kwargs.{option} is no option"):
        load_open_clip(f"local-dir:{folder}", None)
