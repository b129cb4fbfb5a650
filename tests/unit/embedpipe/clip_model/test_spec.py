"""What is computed for a model and a tag or a file is what open_clip's own tables say, for every one of them."""

import itertools
import math
import re
import subprocess
import sys
import types

import open_clip
import pytest
from open_clip.factory import _MODEL_CONFIGS
from open_clip.pretrained import _PRETRAINED, get_pretrained_cfg

from embedpipe.clip_model import open_clip_tables
from embedpipe.clip_model.spec import BARE_PREPROCESS, ModelOptions, resolve_spec
from embedpipe.errors import ModelError
from embedpipe.plural import in_full
from tests import version_0_1

PAIRS = [(model, tag) for model, tags in _PRETRAINED.items() for tag in tags]
SHOWN_BY_TORCH = """
import sys
from embedpipe.clip_model import open_clip_tables as tables
from embedpipe.clip_model.spec import resolve_spec
spec = resolve_spec("ViT-B-32", "openai")
assert spec.quick_gelu
print(len(tables.model_configs()), sum(map(len, tables.pretrained_tags().values())))
print(sorted({"torch", "open_clip", "transformers", "safetensors"} & set(sys.modules)))
"""


def test_the_tables_are_read_without_torch_and_are_open_clips_own():
    done = subprocess.run([sys.executable, "-c", SHOWN_BY_TORCH], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"{len(_MODEL_CONFIGS)} {len(PAIRS)}", "[]"]
    assert open_clip_tables._table_of_tags.__wrapped__() == _PRETRAINED
    read = open_clip_tables._config_files.__wrapped__()
    assert read == _MODEL_CONFIGS
    assert list(read) == open_clip.list_models()


def test_the_tables_of_an_open_clip_of_another_make_come_from_its_modules(monkeypatch, tmp_path):
    monkeypatch.setattr(open_clip_tables, "_folder", lambda: tmp_path)
    (tmp_path / "constants.py").write_text("")
    (tmp_path / "pretrained.py").write_text("from .elsewhere import _PRETRAINED\n_PRETRAINED.update({})\n")
    assert open_clip_tables._table_of_tags.__wrapped__() is _PRETRAINED
    assert open_clip_tables._config_files.__wrapped__() is _MODEL_CONFIGS


@pytest.mark.parametrize(
    "odd",
    ["from typing import Nonesuch", "_PRETRAINED = dict([(1, 2, 3)])", "_PRETRAINED = {} | 1", "\0", "raise EOFError"],
)
def test_tables_that_cannot_be_run_are_asked_of_the_modules(odd, monkeypatch, tmp_path):
    monkeypatch.setattr(open_clip_tables, "_folder", lambda: tmp_path)
    (tmp_path / "constants.py").write_text("")
    (tmp_path / "pretrained.py").write_text(odd)
    (tmp_path / "model_configs").mkdir()
    (tmp_path / "model_configs" / "a.json").write_text(odd)
    assert open_clip_tables._table_of_tags.__wrapped__() is _PRETRAINED
    assert open_clip_tables._config_files.__wrapped__() is _MODEL_CONFIGS


@pytest.mark.parametrize("other", [types.ModuleType("another"), None])
@pytest.mark.parametrize("table", ["factory", "pretrained"])
def test_an_open_clip_without_such_tables_is_one_line_that_says_which_works(table, other, monkeypatch, embedpipe):
    """None in sys.modules is how Python says that a module is not to be had."""
    monkeypatch.setitem(sys.modules, f"open_clip.{table}", other)
    refused = embedpipe("models", "ViT-B-32", "openai")
    assert refused.exit_code == 1
    assert re.fullmatch(
        r"error: open_clip_torch 3\.[0-9.]+: its tables of models cannot be read: .*\. "
        r'Install a version that is known to work: pip install "open_clip_torch==3\.3\.\*"\n',
        refused.stderr,
    )


@pytest.mark.parametrize(("model", "tag"), PAIRS)
def test_every_tag_is_resolved_as_open_clips_table_says(model, tag):
    said, config = get_pretrained_cfg(model, tag), open_clip.get_model_config(model)
    spec = resolve_spec(model, tag)
    # A tag that does not say it was trained as the model's configuration is.
    assert spec.quick_gelu == said.get("quick_gelu", config.get("quick_gelu", False))
    assert spec.preprocess == {name: said[name] for name in BARE_PREPROCESS}
    size = config["vision_cfg"]["image_size"]
    assert spec.size == (tuple(size) if isinstance(size, list) else (size, size))
    assert spec.dim == config["embed_dim"]
    assert spec.context_length == config["text_cfg"].get("context_length", 77)
    native = not config["vision_cfg"].get("timm_model_name") and isinstance(config["vision_cfg"]["layers"], int)
    if native and spec.quick_gelu:
        assert spec.image_tower.activation == "quick_gelu"
    if not config["text_cfg"].get("hf_model_name"):
        tanh = (config["text_cfg"].get("act_kwargs") or {}).get("approximate") == "tanh"
        assert spec.text_tower.activation == ("quick_gelu" if spec.quick_gelu else "gelu_tanh" if tanh else "gelu")


def test_tags_of_both_kinds_are_among_them():
    kinds = {resolve_spec(model, tag).quick_gelu for model, tag in PAIRS if model == "ViT-B-32"}
    assert kinds == {True, False}
    assert resolve_spec("ViT-B/32", "OpenAI") == resolve_spec("ViT-B-32", "openai")
    assert resolve_spec("ViT-L-14", "openai").quick_gelu
    assert resolve_spec("ViT-B-32", "laion2b-s34b-b79k").text_tower.activation == "gelu"
    assert resolve_spec("ViT-B-16-SigLIP2", "webli").text_tower.activation == "gelu_tanh"
    assert resolve_spec("RN50", "openai").image_tower.activation == "relu"


@pytest.fixture
def checkpoint(tmp_path):
    """A file; what is in it does not matter before it is loaded."""
    path = tmp_path / "weights.pt"
    path.write_bytes(b"weights")
    return str(path)


def test_a_file_takes_what_all_tags_of_its_model_agree_on(checkpoint):
    spec = resolve_spec("MobileCLIP-S1", checkpoint)
    assert spec.preprocess == {
        "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "interpolation": "bilinear", "resize_mode": "shortest"
    }  # fmt: skip
    assert (
        resolve_spec("ViT-B-16-SigLIP2", checkpoint).preprocess == resolve_spec("ViT-B-16-SigLIP2", "webli").preprocess
    )
    assert resolve_spec("ViT-B-32-quickgelu", checkpoint).quick_gelu  # all tags under that name are
    assert not resolve_spec("ViT-S-32", checkpoint).quick_gelu  # it has no tags: what open_clip trains with
    assert resolve_spec("ViT-S-32", checkpoint).preprocess == BARE_PREPROCESS


def test_every_model_with_a_file_is_resolved_or_says_what_it_needs(checkpoint):
    asked = []
    for model in open_clip.list_models():
        said = {(spec.quick_gelu, *map(str, spec.preprocess.values())) for spec in _of_tags(model)}
        if len(said) < 2:
            resolve_spec(model, checkpoint)
            continue
        asked.append(model)
        with pytest.raises(ModelError, match="do not agree.*`like_tag`"):
            resolve_spec(model, checkpoint)
        for tag in _PRETRAINED[model]:
            assert resolve_spec(model, checkpoint, ModelOptions(like_tag=tag)) == resolve_spec(model, tag)
    assert {"ViT-B-32", "ViT-L-14", "RN50"} & set(asked) == {"ViT-B-32", "ViT-L-14"}  # RN50: all are QuickGELU
    assert resolve_spec("RN50", checkpoint).quick_gelu


def _of_tags(model):
    return [resolve_spec(model, tag) for tag in _PRETRAINED.get(model, {})]


def test_a_file_whose_tags_do_not_agree_must_be_told(checkpoint):
    with pytest.raises(ModelError, match=r"activation: .*QuickGELU \(openai, .*GELU \(laion2b.*Give `quick_gelu`"):
        resolve_spec("ViT-B-32", checkpoint)
    assert resolve_spec("ViT-B-32", checkpoint, ModelOptions(quick_gelu=False)) == resolve_spec(
        "ViT-B-32", "laion2b_s34b_b79k"
    )
    with pytest.raises(
        ModelError, match=r"agree: mean: .*0.5,0.5,0.5 \(laion2b_s32b_b82k\); std: .*Give `mean`, `std`"
    ):
        resolve_spec("ViT-L-14", checkpoint, ModelOptions(quick_gelu=True))
    told = ModelOptions(quick_gelu=False, mean=(0.1, 0.2, 0.3), std=(1.0, 1.0, 1.0))
    spec = resolve_spec("ViT-L-14", checkpoint, told)
    assert (spec.quick_gelu, spec.preprocess["mean"]) == (False, (0.1, 0.2, 0.3))
    assert resolve_spec("ViT-B-32", checkpoint, ModelOptions(like_tag="openai")) == resolve_spec("ViT-B-32", "openai")


@pytest.mark.parametrize(
    ("model", "pretrained", "options", "said"),
    [
        ("ViT-B-32", "openai", {"quick_gelu": False}, "its tag says activation QuickGELU, and GELU was asked for"),
        ("ViT-B-32", "openai", {"mean": (0.5,) * 3}, "its tag says mean 0.48145466.*0.5,0.5,0.5 was asked for"),
        ("ViT-B-32", "openai", {"resize_mode": "squash"}, "its tag says resize mode shortest, and squash"),
        (
            "ViT-B-32",
            "openai",
            {"like_tag": "laion2b_s34b_b79k"},
            "`like_tag` is for checkpoint files.*Drop `like_tag`",
        ),
        (
            "ViT-B-32-quickgelu",
            "laion2b_s34b_b79k",
            {},
            "trained with GELU.*`model='ViT-B-32'` and `pretrained='laion2b",
        ),
        ("ViT-B-32-quickgelu", "FILE", {"quick_gelu": False}, "always uses QuickGELU.*Give `model='ViT-B-32'`"),
        ("ViT-B-32-quickgelu", "FILE", {"like_tag": "laion2b_s34b_b79k"}, "always uses QuickGELU"),
        ("ViT-B-32", "FILE", {"like_tag": "openia"}, "no tag 'openia' for `like_tag`.*openai"),
        ("ViT-B-32", "FILE", {"like_tag": "openai", "quick_gelu": False}, "the tag openai says.*Drop one of them"),
        ("MobileCLIP-S1", "FILE", {"interpolation": "cubic"}, "interpolation 'cubic'.*Known: bicubic"),
        ("ViT-B-16-SigLIP-i18n-256", "opnai", {}, "no pretrained tag or checkpoint file"),
        ("nllb-clip-base", "FILE", {"quick_gelu": None}, None),
    ],
)
def test_what_contradicts_is_an_error(model, pretrained, options, said, checkpoint):
    pretrained = checkpoint if pretrained == "FILE" else pretrained
    if said is None:
        resolve_spec(model, pretrained, ModelOptions(**options))
        return
    with pytest.raises(ModelError, match=said):
        resolve_spec(model, pretrained, ModelOptions(**options))


def test_quickgelu_is_refused_where_it_would_change_nothing(checkpoint):
    other = [
        name
        for name, config in _MODEL_CONFIGS.items()
        if config["vision_cfg"].get("timm_model_name") and config["text_cfg"].get("hf_model_name")
    ]
    assert other
    with pytest.raises(ModelError, match="timm and transformers, which set the activation"):
        resolve_spec(other[0], checkpoint, ModelOptions(quick_gelu=True))


def test_random_weights_are_the_bare_models(tmp_path):
    assert not resolve_spec("ViT-B-32", "random").quick_gelu
    assert resolve_spec("ViT-B-32-quickgelu", "random").quick_gelu
    assert resolve_spec("ViT-B-32", "random", ModelOptions(quick_gelu=True)).quick_gelu
    with version_0_1.registered(tmp_path):
        assert resolve_spec(version_0_1.MODEL, "random").preprocess == BARE_PREPROCESS


@pytest.mark.parametrize(
    ("options", "said"), [({"std": (0.5, 0.0, 0.5)}, "above 0"), ({"mean": (0.5, math.nan, 0.5)}, "finite")]
)
def test_preprocessing_that_gives_no_numbers_is_refused(options, said):
    with pytest.raises(ModelError, match=said):
        ModelOptions(**options)


@pytest.mark.parametrize("tag", ["openai", "laion2b_s32b_b82k"])
def test_what_is_shown_can_be_typed_again(tag, checkpoint):
    """Rounded, it would be another model."""
    by_tag = resolve_spec("ViT-L-14", tag)
    mean, std = (tuple(map(float, in_full(by_tag.preprocess[name]).split(","))) for name in ("mean", "std"))
    said = ModelOptions(quick_gelu=by_tag.quick_gelu, mean=mean, std=std)
    assert resolve_spec("ViT-L-14", tag, said) == by_tag
    assert resolve_spec("ViT-L-14", checkpoint, said) == by_tag


def test_images_are_resized_in_the_ways_that_open_clip_knows():
    for interpolation, resize_mode in itertools.product(open_clip_tables.INTERPOLATIONS, open_clip_tables.RESIZE_MODES):
        open_clip.image_transform(32, is_train=False, interpolation=interpolation, resize_mode=resize_mode)
    for unknown in ({"interpolation": "nearest"}, {"resize_mode": "border"}):
        with pytest.raises(AssertionError):
            open_clip.image_transform(32, is_train=False, **unknown)
