"""Loading a model: what was built is held against what the tables say, and what open_clip warns of is heard."""

import importlib.util
import json
import logging
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import open_clip
import pytest
import torch
from huggingface_hub import constants

from embedpipe.clip_model.spec import ModelOptions
from embedpipe.encode import EncoderConfig, load_encoder, loading
from embedpipe.encode.model_checks import activations, cleaning
from embedpipe.errors import MissingExtra, ModelError
from tests import tiny_clip, version_0_1
from tests.version_0_1 import MODEL


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """The checkpoint of the tiny model, which open_clip knows by name while the tests run."""
    with version_0_1.registered(tmp_path_factory.mktemp("tiny")) as file:
        yield file


def load(pretrained="openai", model=MODEL, **options):
    return load_encoder(EncoderConfig(model, pretrained, precision="fp32", options=ModelOptions(**options)))


def cosines(one, other):
    texts = ["a red bicycle", "an old house beside a river", "cat"]
    return (torch.from_numpy(one.texts(texts).rows) * torch.from_numpy(other.texts(texts).rows)).sum(1)


def test_a_tag_is_computed_with_its_own_activation_under_both_names(file):
    bare, named, gelu = load(), load(model=f"{MODEL}-quickgelu"), load("gelu")
    assert (1 - cosines(bare, named)).max() < 1e-6
    assert (1 - cosines(bare, gelu)).max() > 1e-5
    assert bare.card.fingerprint() == named.card.fingerprint() != gelu.card.fingerprint()


@pytest.mark.parametrize(
    ("options", "like"),
    [({"like_tag": "openai"}, "openai"), ({"like_tag": "gelu"}, "gelu"), ({"like_tag": "squashed"}, "squashed")],
)
def test_a_file_is_computed_as_the_tag_that_it_is_like(options, like, file):
    assert load(file, **options).card.fingerprint() == load(like).card.fingerprint()


def test_a_file_is_computed_as_it_is_said(file):
    said = {"quick_gelu": True, "mean": (0.1, 0.2, 0.3), "std": (1.0, 1.0, 1.0)}
    card = load(file, **said, interpolation="bilinear", resize_mode="longest").card
    assert (card.image_tower.activation, card.text_tower.activation) == ("quick_gelu", "quick_gelu")
    assert (card.preprocess.mean, card.preprocess.interpolation) == ((0.1, 0.2, 0.3), "bilinear")
    with pytest.raises(
        ModelError, match="do not agree.*Give `mean`, `std`, `interpolation`, `resize_mode`, or `like_tag`"
    ):
        load(file, quick_gelu=True)


def test_a_folder_says_it_itself_and_is_not_contradicted(tmp_path):
    folder = tiny_clip.write(tmp_path / "quick", {**tiny_clip.VIT, "quick_gelu": True}, preprocess={"mean": [0.1] * 3})
    card = load("", folder).card
    assert (card.image_tower.activation, card.preprocess.mean) == ("quick_gelu", (0.1, 0.1, 0.1))
    assert load("", folder, quick_gelu=True, mean=(0.1,) * 3).card.fingerprint() == card.fingerprint()
    with pytest.raises(ModelError, match="its own configuration says activation QuickGELU, and GELU was asked for"):
        load("", folder, quick_gelu=False)
    with pytest.raises(ModelError, match="its own configuration says mean 0.1,0.1,0.1"):
        load("", folder, mean=(0.5,) * 3)
    with pytest.raises(ModelError, match="brings its own configuration, not a tag's"):
        load("", folder, like_tag="openai")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"force_quick_gelu": False}, "activation of the image tower gelu, not quick_gelu"),
        ({"force_preprocess_cfg": {"mean": (0.5, 0.5, 0.5)}}, "preprocessing .*0.5.*, not .*0.48"),
    ],
)
def test_an_open_clip_that_builds_something_else_is_an_error(wrong, said, file, monkeypatch):
    create = open_clip.create_model
    monkeypatch.setattr(open_clip, "create_model", lambda *names, **how: create(*names, **{**how, **wrong}))
    with pytest.raises(ModelError, match=f"built another model than its tables say: {said}"):
        load()


def test_another_tokenizer_is_an_error(file, monkeypatch):
    monkeypatch.setattr(
        open_clip, "get_tokenizer", lambda name: open_clip.SimpleTokenizer(context_length=16, clean="whitespace")
    )
    with pytest.raises(ModelError, match="cleaning of captions whitespace, not lower"):
        load()


def test_captions_are_cleaned_as_the_folder_says_now(tmp_path):
    """Tokenizers are kept for the next model that is loaded with the same options."""
    for clean in ("lower", "whitespace", "lower"):
        text = {**tiny_clip.VIT["text_cfg"], "tokenizer_kwargs": {"clean": clean}}
        folder = tiny_clip.write(tmp_path / "tiny", {**tiny_clip.VIT, "text_cfg": text})
        assert load("", folder).card.text_preprocess.clean == clean


def test_what_open_clip_warns_of_is_heard(file, monkeypatch, caplog):
    create = open_clip.create_model

    def warning(*names, **how):
        warnings.warn("something new", UserWarning, stacklevel=1)
        logging.warning("something logged")
        return create(*names, **how)

    monkeypatch.setattr(open_clip, "create_model", warning)
    with pytest.warns(UserWarning, match="something new"):
        load()
    assert "something logged" in caplog.text


@pytest.mark.parametrize("pretrained", ["openai", "gelu", "random"])
def test_nothing_is_said_where_all_is_well(pretrained, file, caplog):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(pretrained)
    assert not caplog.records


def test_a_missing_tokenizer_package_names_the_extra(monkeypatch, tmp_path):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "transformers" else find(name, *more)
    )
    for model, pretrained in (("ViT-B-16-SigLIP2", "webli"), ("xlm-roberta-base-ViT-B-32", "laion5b_s13b_b90k")):
        with pytest.raises(
            MissingExtra, match=rf'{model}.*transformers is not installed. pip install "embedpipe\[hf\]"'
        ):
            load(pretrained, model)
    folder = tiny_clip.write(tmp_path / "tiny")
    config = json.loads((tmp_path / "tiny" / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = "somewhere/else"
    (tmp_path / "tiny" / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(MissingExtra, match="embedpipe"):
        load("", folder)


def test_activations_have_one_name_in_all_libraries():
    timm = pytest.importorskip("timm")
    tower = torch.nn.Sequential(
        torch.nn.GELU(approximate="tanh"), torch.nn.ReLU(), timm.layers.GELU(), torch.nn.Sigmoid()
    )
    assert activations(tower) == "gelu+gelu_tanh+relu"
    assert activations(torch.nn.Sequential(timm.layers.QuickGELU())) == "quick_gelu"
    assert activations(torch.nn.Linear(1, 1)) == "none"


def test_cleaning_is_told_by_what_it_does():
    for clean in ("lower", "whitespace", "canonicalize"):
        assert cleaning(open_clip.SimpleTokenizer(clean=clean)) == clean


@pytest.mark.parametrize("pretrained", ["random", "openai"])
def test_a_model_of_the_hub_brings_its_own_weights(pretrained):
    """Said before the hub is asked for anything: the file would be ignored."""
    with pytest.raises(ModelError, match="hf-hub:org/repo: brings its own weights.*Drop `pretrained`"):
        load(pretrained, "hf-hub:org/repo")


def test_two_loaded_at_once_leave_the_process_as_it_was(tiny_model, monkeypatch):
    """What is forbidden and silenced meanwhile is the process's: put back in the wrong order, it would stay."""
    build, begun, both, ended = loading._built, threading.Event(), threading.Event(), threading.Event()

    def built(*arguments):
        if begun.is_set():
            both.set()
            ended.wait(1)  # the first one to begin is the first to end
        begun.set()
        both.wait(1)
        return build(*arguments)

    def load_one(number):
        if number:
            begun.wait(5)
        load_encoder(config)
        ended.set()

    monkeypatch.setattr(loading, "_built", built)
    level, filters = logging.getLogger("huggingface_hub").level, list(warnings.filters)
    offline = constants.HF_HUB_OFFLINE
    config = EncoderConfig(str(tiny_model), precision="fp32")
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(load_one, range(2)))
    assert offline == constants.HF_HUB_OFFLINE
    assert (logging.getLogger("huggingface_hub").level, warnings.filters) == (level, filters)
