"""`embedpipe models`: what there is and what a tag means, told in a moment; the options that a file needs."""

import json
import subprocess
import sys

import pytest
from open_clip.pretrained import _PRETRAINED

from embedpipe.load import EmbeddingDataset
from tests import shards, version_0_1


def test_names_are_found_by_a_part(embedpipe):
    assert json.loads(embedpipe("models", "SigLIP2-256", "--json").stdout)["ViT-B-32-SigLIP2-256"] == ["webli"]
    assert "ViT-L-14-336" in embedpipe("models", "L-14").stdout
    assert "no model with 'ViT-Z' in its name" in embedpipe("models", "ViT-Z").stderr


def test_a_model_says_what_each_of_its_tags_means(embedpipe):
    found = json.loads(embedpipe("models", "ViT-L-14", "--json").stdout)
    assert (found["image_size"], found["dim"], found["context_length"]) == ([224, 224], 768, 77)
    assert list(found["tags"]) == list(_PRETRAINED["ViT-L-14"])
    assert found["tags"]["openai"]["activation"] == "quick_gelu"
    assert found["tags"]["laion2b_s32b_b82k"]["mean"] == [0.5, 0.5, 0.5]
    assert "licence" not in found["tags"]["openai"], "open_clip's tables do not say it"
    assert found["needs_extra"] is None
    shown = embedpipe("models", "ViT-L/14").stdout
    assert "ViT-L-14: images of 224×224, embeddings of 768 values" in shown
    assert "see also ViT-L-14-quickgelu" in shown
    assert "all tags: interpolation bicubic, resize mode shortest" in shown, "what they share is said once"
    assert "openai" in shown
    one = embedpipe("models", "ViT-L-14", "laion2b_s32b_b82k").stdout
    assert "laion2b_s32b_b82k: activation gelu, mean 0.5,0.5,0.5, std 0.5,0.5,0.5, interpolation bicubic" in one


def test_one_tag_and_a_tag_that_is_not_there(embedpipe):
    found = json.loads(embedpipe("models", "ViT-B-16-SigLIP2", "webli", "--json").stdout)
    assert (found["needs_extra"], found["captions"]) == ("hf", "canonicalize")
    assert found["tags"]["webli"]["text_activation"] == "gelu_tanh"
    assert found["tags"]["webli"]["resize_mode"] == "squash"
    assert list(json.loads(embedpipe("models", "ViT-B-32", "OpenAI", "--json").stdout)["tags"]) == ["openai"]
    missing = embedpipe("models", "ViT-B-32", "opnai")
    assert (missing.exit_code, "no pretrained tag 'opnai'. Did you mean openai" in missing.stderr) == (1, True)
    assert "no model 'ViT-Z'" in embedpipe("models", "ViT-Z", "openai").stderr
    assert "it has no tags" in embedpipe("models", "ViT-S-32").stdout


def test_nothing_heavy_is_loaded_for_it():
    code = (
        "import sys; from embedpipe_cli import main\n"
        "sys.argv = ['embedpipe', 'models', 'ViT-B-32', '--json']; main._run()\n"
        "print(sorted({'torch', 'open_clip', 'numpy', 'pyarrow'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert "openai" in json.loads(done.stdout)["tags"]


@pytest.mark.parametrize(
    ("pretrained", "options", "said"),
    [
        ("openai", ("--gelu",), "its tag says activation QuickGELU, and GELU was asked for"),
        ("FILE", (), "Give --quickgelu or --gelu, or --like-tag"),
        ("openai", ("--mean", "0.5,0.5,0.5"), "its tag says mean"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_loaded(pretrained, options, said, tmp_path, embedpipe):
    (tmp_path / "FILE").write_bytes(b"weights")
    source = shards.write_shards(tmp_path / "shards")
    weights = str(tmp_path / "FILE") if pretrained == "FILE" else pretrained
    refused = embedpipe("encode", source, tmp_path / "out", "--model", "ViT-B-32", "--pretrained", weights, *options)
    assert refused.exit_code == 1
    assert said in refused.stderr
    assert not (tmp_path / "out").exists()


def test_three_numbers_are_three_numbers(tmp_path, embedpipe):
    refused = embedpipe("encode", tmp_path, tmp_path / "out", "--model", "ViT-B-32", "--mean", "0.5,0.5")
    assert (refused.exit_code, "write three numbers with commas between" in refused.stderr) == (2, True)


def test_a_file_is_encoded_as_it_is_said(tmp_path, embedpipe):
    source = shards.write_shards(tmp_path / "shards")
    with version_0_1.registered(tmp_path) as file:
        said = ("--quickgelu", "--mean", "0.1,0.2,0.3", "--std", "1,1,1", "--interpolation", "bilinear")
        more = ("--resize-mode", "longest", "--gpus", "0", "--precision", "fp32")
        model = ("--model", version_0_1.MODEL, "--pretrained", file)
        done = embedpipe("encode", source, tmp_path / "out", *model, *said, *more)
        assert done.exit_code == 0, done.stderr
        card = EmbeddingDataset(str(tmp_path / "out")).card
        assert card.image_tower.activation == "quick_gelu"
        assert card.preprocess.mean == (0.1, 0.2, 0.3)
        assert (card.preprocess.interpolation, card.preprocess.resize_mode) == ("bilinear", "longest")
        # A search says nothing of it again: the card does.
        found = embedpipe("search", tmp_path / "out", "a cat", "-k", "2", "--json")
        assert (found.exit_code, len(json.loads(found.stdout))) == (0, 2), found.stderr
