"""What a model's configuration may say, and what is refused wherever it stands."""

import json

import pytest

from embedpipe.clip_model import open_clip_tables
from embedpipe.clip_model.foreign_config import check_config, check_folder
from embedpipe.errors import ModelError


def config(text=None, vision=None, **more):
    return {"model_cfg": {"embed_dim": 16, "text_cfg": text or {}, "vision_cfg": vision or {}, **more}}


REFUSED = {
    "trust_remote_code": config({"tokenizer_kwargs": {"trust_remote_code": True}}),
    "trust_remote_code as a word": config({"tokenizer_kwargs": {"trust_remote_code": "yes"}}),
    "deep": config(multimodal_cfg={"a": [{"b": {"trust_remote_code": 1}}]}),
    "beside the model": {**config(), "preprocess_cfg": {"trust_remote_code": True}},
    "auto_map": config({"auto_map": {"AutoTokenizer": ["evil.Evil", None]}}),
    "code_revision": config({"code_revision": "main"}),
    "use_auth_token": config({"use_auth_token": True}),
    "kernel": config({"attn_implementation": "attacker/kernel"}),
    "cache_dir": config({"tokenizer_kwargs": {"cache_dir": "/home/me/.ssh"}}),
    "proxies": config({"tokenizer_kwargs": {"proxies": {"https": "evil"}}}),
    "vocab_file": config({"tokenizer_kwargs": {"vocab_file": "/etc/passwd"}}),
    "bpe_path": config({"tokenizer_kwargs": {"bpe_path": "/etc/passwd"}}),
    "token": config({"tokenizer_kwargs": {"token": True}}),
    "subfolder": config({"tokenizer_kwargs": {"subfolder": "../.."}}),
    "unknown option": config({"tokenizer_kwargs": {"brand_new": 1}}),
    "option that is an object": config({"tokenizer_kwargs": {"pad_token": {"trust_remote_code": 0}}}),
    "text model elsewhere": config({"hf_model_name": "/etc"}),
    "text model in the working folder": config({"hf_model_name": "./model"}),
    "text model at home": config({"hf_model_name": "~/model"}),
    "image model elsewhere": config(vision={"timm_model_name": "local-dir:/etc"}),
    "text_cfg that is none": {"model_cfg": {"text_cfg": "x"}},
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name, tmp_path):
    (tmp_path / "open_clip_config.json").write_text(json.dumps(REFUSED[name]))
    with pytest.raises(ModelError, match="open_clip_config.json: [a-z_]+(_cfg|[a-z_.])+"):
        check_folder(tmp_path)
    with pytest.raises(ModelError):
        check_config(REFUSED[name], "it", "hf-hub:org/name")


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json", "whatever.json"])
@pytest.mark.parametrize(
    ("content", "refused"),
    [
        ({"trust_remote_code": True}, True),
        ({"text_config": {"trust_remote_code": True}}, True),
        ({"_attn_implementation": "attacker/kernel"}, True),
        ({"_attn_implementation": "sdpa", "trust_remote_code": False}, False),
        ({"auto_map": {"AutoConfig": "evil.Config"}}, False),
        ([], False),
        ("x", False),
    ],
)
def test_files_of_transformers_are_read_too(tmp_path, file, content, refused):
    """`auto_map` is in many of them; nothing loads what it names, see test_no_code."""
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config()))
    (tmp_path / file).write_text(json.dumps(content))
    if refused:
        with pytest.raises(ModelError, match=file):
            check_folder(tmp_path)
    else:
        assert check_folder(tmp_path) == []


def test_what_a_hub_would_be_asked_for():
    text = {"hf_model_name": "roberta-base", "hf_tokenizer_name": "someone/repo"}
    vision = {"timm_model_name": "hf-hub:timm/vit"}
    assert check_config(config(text, vision), "it", "/folder") == ["hf-hub:roberta-base", "hf-hub:timm/vit"]
    there = check_config(config(text, vision), "it", "hf-hub:someone/repo")
    assert there == ["hf-hub:roberta-base", "hf-hub:timm/vit"], "itself is no other"
    assert "hf-hub:someone/repo" in check_config(config(text), "it", "hf-hub:else/where")


def test_all_of_open_clips_own_configurations_pass():
    for name, model in open_clip_tables.model_configs().items():
        check_config({"model_cfg": model}, name, "/folder")


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b"\xff"])
def test_a_file_that_is_no_json_is_one_line(tmp_path, content):
    (tmp_path / "open_clip_config.json").write_bytes(content)
    with pytest.raises(ModelError, match="cannot be read"):
        check_folder(tmp_path)
