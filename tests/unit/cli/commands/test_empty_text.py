"""Priors of diffusers learn the empty text and are guided away from it, as the data set's own text tower embeds it."""

import numpy as np
import pytest
import torch

from dalle2_core.priors.registry import load_prior
from dalle2_core.rng import PerSampleRNG, derived_seed
from embedpipe import EmbeddingDataset
from tests import shards, tiny_clip
from tests.commands import result_of, run

diffusers = pytest.importorskip("diffusers")
WIDTH = 32
WORDS = ["--device", "cpu", "--valid-share", "0.3", "--set", "train.batch_size=8", "--set", "train.save_every=2",
         "--set", "train.evaluate_every=4", "--set", "optim.schedule=constant"]  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory, encode_config):
    """A data set with token states, the model that made it (which a test may move away), and a prior of diffusers."""
    from embedpipe.encode.job import encode

    root = tmp_path_factory.mktemp("empty")
    model = tiny_clip.write(root / "model", {**tiny_clip.VIT, "embed_dim": WIDTH})
    encode(shards.write_shards(root / "shards"), str(root / "emb"), encode_config(model, stage={"text_tokens": True}))
    states = EmbeddingDataset(str(root / "emb")).require_text_tokens()
    assert states.width == WIDTH
    torch.manual_seed(0)
    sizes = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 1, "embedding_dim": WIDTH}
    theirs = diffusers.PriorTransformer(**sizes)
    torch.nn.init.constant_(theirs.clip_std, 2.0)
    theirs.save_pretrained(root / "theirs" / "prior")
    diffusers.UnCLIPScheduler(clip_sample_range=10.0, prediction_type="sample").save_pretrained(
        root / "theirs" / "scheduler"
    )
    result_of("convert", root / "theirs", root / "prior", "--for", root / "emb")
    return root


@pytest.fixture(scope="module")
def encoder(made):
    from embedpipe.encode import EncoderConfig, load_encoder

    return load_encoder(EncoderConfig(str(made / "model"), precision="fp32"))


def train(made, out, steps, *more):
    words = [*WORDS, "--from", made / "prior", "--steps", steps, *more]
    return run("train-prior", made / "emb", out, *words)


def test_fine_tuning_learns_the_empty_text_and_resumes_where_the_encoder_is_gone(made, tmp_path, encoder):
    assert train(made, tmp_path / "whole", 4).exit_code == 0
    assert train(made, tmp_path / "part", 2).exit_code == 0
    (made / "model").rename(made / "away")
    try:
        assert train(made, tmp_path / "part", 4).exit_code == 0
        without = train(made, tmp_path / "without", 2)
    finally:
        (made / "away").rename(made / "model")
    one, other = (load_prior(tmp_path / name).state_dict() for name in ("whole", "part"))
    assert one.keys() == other.keys()
    assert all(torch.equal(it, other[name]) for name, it in one.items())
    found = encoder.texts([""])
    torch.testing.assert_close(one["null_text_embed"], torch.from_numpy(found.rows * found.norms[:, None]))
    states = encoder.text_states([""]).tokens.padded()[0]
    torch.testing.assert_close(one["null_text_tokens"], torch.from_numpy(states.astype(np.float32)))
    assert without.exit_code == 0
    assert load_prior(tmp_path / "without").null_text_embed is None


def test_a_share_of_texts_is_dropped_for_it(made, tmp_path):
    for name, share in (("usual", 0.1), ("often", 0.9), ("never", 0.0)):
        assert train(made, tmp_path / name, 4, "--set", f"unclip.cond_drop_prob={share}").exit_code == 0
    weights = [load_prior(tmp_path / name).net.proj_in.weight for name in ("usual", "often", "never")]
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert load_prior(tmp_path / "never").null_text_embed is None


def test_guidance_of_the_other_commands_leads_away_from_it(made, tmp_path, encoder):
    words = ["sample-prior", made / "emb", tmp_path / "guided", "--prior", made / "prior", "--gpus", 0]
    result_of(*words, "--cond-scale", 4, "--steps", 3)
    prior = load_prior(made / "prior").eval()
    from embedpipe.unclip.data.empty_text import empty_text_of

    prior.set_null_text(empty_text_of(prior, encoder))
    dataset, predicted = EmbeddingDataset(str(made / "emb")), EmbeddingDataset(str(tmp_path / "guided"))
    first = dataset.manifests[0]
    rows = np.arange(first.rows_out)
    states, mask = dataset.require_text_tokens().batch(rows)
    expected = prior.sample(
        torch.from_numpy(dataset.text.raw()[rows]), cond_scale=4.0, steps=3, normalize=False,
        text_encodings=torch.from_numpy(states.astype(np.float32)), text_mask=torch.from_numpy(mask),
        generator=PerSampleRNG(derived_seed(0, "sample", first.source.name), 0, len(rows), torch.device("cpu")),
    )  # fmt: skip
    found = torch.from_numpy(predicted.image.raw()[rows])
    torch.testing.assert_close(found, expected, atol=2e-2, rtol=2e-2)  # stored as float16
    scores = {
        scale: result_of("evaluate", made / "prior", made / "emb", "--valid-share", "0.3", "--device", "cpu",
                         "--cond-scale", scale)["rows"] for scale in (1, 4)
    }  # fmt: skip
    assert scores[1] != scores[4]
