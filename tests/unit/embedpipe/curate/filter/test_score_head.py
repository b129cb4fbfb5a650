"""Score heads say what torch says, and are refused for another model, other widths, and files that are none."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from embedpipe.curate import FilterConfig, plan_filter
from embedpipe.curate.filter.score_head import PUBLISHED, open_head
from embedpipe.errors import InputError, RunMismatch
from embedpipe.load import EmbeddingDataset
from tests import embeddings

DIM = 768
CARD = dataclasses.replace(embeddings.card(DIM, "ab" * 32, "quick_gelu"), model="ViT-L-14", pretrained="openai")


def mlp():
    """The improved aesthetic predictor's shape."""
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(DIM, 1024), torch.nn.Dropout(0.2), torch.nn.Linear(1024, 128), torch.nn.Dropout(0.2),
        torch.nn.Linear(128, 64), torch.nn.Dropout(0.1), torch.nn.Linear(64, 16), torch.nn.Linear(16, 1),
    ).eval()  # fmt: skip


def rows(count=9):
    return embeddings.normalised(np.random.default_rng(0).normal(size=(count, DIM))).astype(np.float32)


def named(model, prefix="layers."):
    return {f"{prefix}{name}": value for name, value in model.state_dict().items()}


def test_both_published_shapes_score_as_torch_does(tmp_path):
    model, linear = mlp(), torch.nn.Linear(DIM, 1)
    torch.save(named(model), tmp_path / "sac+logos+ava1-l14-linearMSE.pth")
    torch.save(linear.state_dict(), tmp_path / "sa_0_4_vit_l_14_linear.pth")
    save_file(named(model), tmp_path / "mine.safetensors")
    torch.save({"state_dict": named(model), "epoch": 3}, tmp_path / "mine.ckpt")
    for name, network in (
        ("sac+logos+ava1-l14-linearMSE.pth", model),
        ("sa_0_4_vit_l_14_linear.pth", linear),
        ("mine.safetensors", model),
        ("mine.ckpt", model),
    ):
        head = open_head(str(tmp_path / name), CARD, "ViT-L-14/openai" if "mine" in name else None)
        with torch.no_grad():
            expected = network(torch.from_numpy(rows())).numpy()[:, 0]
        assert np.allclose(head.score(rows()), expected, atol=1e-5)


def test_a_card_beside_it_says_the_model_and_the_activation(tmp_path):
    first, second = torch.nn.Linear(DIM, 8), torch.nn.Linear(8, 1)
    network = torch.nn.Sequential(first, torch.nn.ReLU(), second)
    save_file(named(network, ""), tmp_path / "head.safetensors")
    (tmp_path / "head.json").write_text(
        json.dumps({"model": "ViT-L-14-quickgelu", "pretrained": "openai", "activation": "relu"})
    )
    head = open_head(str(tmp_path / "head.safetensors"), CARD)
    with torch.no_grad():
        assert np.allclose(head.score(rows()), network(torch.from_numpy(rows())).numpy()[:, 0], atol=1e-5)
    (tmp_path / "head.json").write_text(json.dumps({"weights_sha256": "ab" * 32, "quick_gelu": True}))
    open_head(str(tmp_path / "head.safetensors"), CARD)
    for text, message in (
        ("[]", "no JSON object"),
        ("{", "is not JSON"),
        (json.dumps({"model": "ViT-L-14", "pretrained": "openai", "activation": "gelu"}), "activation 'gelu'"),
    ):
        (tmp_path / "head.json").write_text(text)
        with pytest.raises(InputError, match=message):
            open_head(str(tmp_path / "head.safetensors"), CARD)


def test_a_head_for_another_model_is_refused(tmp_path):
    torch.save(torch.nn.Linear(DIM, 1).state_dict(), tmp_path / "h.pth")
    torch.save(torch.nn.Linear(512, 1).state_dict(), tmp_path / "sa_0_4_vit_b_32_linear.pth")
    path = str(tmp_path / "h.pth")
    with pytest.raises(RunMismatch, match="nothing says which model.*`head_model='ViT-L-14/openai'`"):
        open_head(path, CARD)
    with pytest.raises(
        RunMismatch, match="a head for ViT-L-14/laion2b_s32b_b82k; the embeddings are of ViT-L-14/openai"
    ):
        open_head(path, CARD, "ViT-L-14/laion2b_s32b_b82k")
    with pytest.raises(RunMismatch, match="a head for ViT-B-32/openai"):
        open_head(str(tmp_path / "sa_0_4_vit_b_32_linear.pth"), CARD)
    with pytest.raises(RunMismatch, match="of 512 values; these have 768"):
        open_head(str(tmp_path / "sa_0_4_vit_b_32_linear.pth"), CARD, "ViT-L-14/openai")
    with pytest.raises(RunMismatch):
        open_head(path, CARD, "ab" * 3)  # too short to say anything
    with pytest.raises(RunMismatch, match="whether this head is for embeddings computed with QuickGELU or GELU"):
        open_head(path, CARD, "AB" * 8)  # the same weights compute with either
    (tmp_path / "h.json").write_text(json.dumps({"quick_gelu": True}))
    assert open_head(path, CARD, "AB" * 8).layers
    gelu = dataclasses.replace(embeddings.card(DIM, "ab" * 32, "gelu"), model="ViT-L-14", pretrained="w.pt")
    with pytest.raises(RunMismatch, match="these were computed with GELU"):
        open_head(path, gelu, "AB" * 8)
    assert all(model.endswith("/openai") for model in PUBLISHED.values())


def test_files_that_are_no_head(tmp_path):
    (tmp_path / "torn.pth").write_bytes(b"PK\x03\x04 and no more")
    (tmp_path / "torn.safetensors").write_bytes(b"\xff" * 20)
    torch.save(torch.nn.Sequential(torch.nn.Linear(DIM, 4), torch.nn.Linear(5, 1)).state_dict(), tmp_path / "gap.pth")
    torch.save(torch.nn.Linear(DIM, 7).state_dict(), tmp_path / "classes.pth")
    torch.save(torch.nn.Conv2d(3, 1, 2).state_dict(), tmp_path / "conv.pth")
    torch.save({"code": print}, tmp_path / "code.pth")
    for name, message in (
        ("nowhere.pth", "no such file"),
        ("torn.pth", "no state dict that can be read"),
        ("torn.safetensors", "no state dict that can be read"),
        ("code.pth", r"a pickle that holds more than weights \(print\) and could run code"),
        ("gap.pth", "its layer 1 does not take"),
        ("classes.pth", "it gives 7 numbers, not one score"),
        ("conv.pth", r"has the parameter weight \[1, 3, 2, 2\]"),
    ):
        with pytest.raises(InputError, match=message):
            open_head(str(tmp_path / name), CARD, "ViT-L-14/openai")


def test_filter_scores_the_stored_embeddings(tmp_path):
    rng = np.random.default_rng(1)
    image = rng.normal(size=(30, 8))
    data = embeddings.write_dataset(tmp_path / "emb", image, rng.normal(size=(30, 8)), 3, weights="cd" * 32)
    linear = torch.nn.Linear(8, 1)
    torch.save(linear.state_dict(), tmp_path / "h.pth")
    with torch.no_grad():
        stored = embeddings.normalised(EmbeddingDataset(data).image.read())
        scores = linear(torch.from_numpy(stored).float()).numpy()[:, 0]
    least = float(np.median(scores))
    options = {"head": str(tmp_path / "h.pth"), "head_model": "cd" * 6}
    report = plan_filter(data, FilterConfig(**options, min_score=least, where=(f"score < {scores.max() - 1e-4}",)))
    assert report.kept == ((scores >= least) & (scores < scores.max() - 1e-4)).sum()
    assert plan_filter(data, FilterConfig(**options, top=0.2, by="score")).kept == 6
