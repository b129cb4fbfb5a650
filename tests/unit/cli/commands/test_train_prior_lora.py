"""train-prior --lora: adapters of a prior of diffusers, small on disk, exact to resume, merged by convert."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from dalle2_core.errors import CheckpointError, ConfigError
from dalle2_core.priors.lora import LoraConfig, adapt
from dalle2_core.priors.registry import load_prior
from dalle2_core.training.ema import make_ema
from embedpipe import EmbeddingDataset
from embedpipe.errors import OptionError, RunMismatch
from tests.commands import result_of, run
from tests.unit.cli.commands.test_train_prior_from import DIM, WORDS, written

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("peft")
LORA = ["--lora", 4, "--set", "lora.layers=all", "--set", "lora.alpha=8", "--set", "lora.dropout=0.1"]


@pytest.fixture(scope="module")
def emb(tmp_path_factory):
    return written(tmp_path_factory.mktemp("emb") / "emb")


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """A prior of diffusers of which all weights say something."""
    folder = tmp_path_factory.mktemp("theirs")
    torch.manual_seed(0)
    model = diffusers.PriorTransformer(
        num_attention_heads=4, attention_head_dim=16, num_layers=2, embedding_dim=DIM, num_embeddings=0,
        encoder_hid_proj_type=None,
    )  # fmt: skip
    torch.nn.init.constant_(model.clip_std, 2.5)
    model.save_pretrained(folder / "prior")
    diffusers.UnCLIPScheduler(clip_sample_range=10.0, prediction_type="sample").save_pretrained(folder / "scheduler")
    return folder


def train(emb, out, theirs, *more):
    return run("train-prior", emb, out, *WORDS, "--from", f"diffusers:{theirs}", *LORA, *more)


@pytest.fixture(scope="module")
def tuned(emb, theirs, tmp_path_factory):
    out = tmp_path_factory.mktemp("tuned") / "prior"
    result = train(emb, out, theirs)
    assert result.exit_code == 0, result.exception
    return out


def test_what_is_saved_is_small_and_the_weights_stay_as_they_were(theirs, tuned):
    whole = (theirs / "prior" / "diffusion_pytorch_model.safetensors").stat().st_size
    for file in (tuned / "model.safetensors", *tuned.glob("checkpoints/*/model.safetensors")):
        names = set(load_file(file))
        assert names
        assert {name for name in names if "lora_" not in name} == {"net.clip_mean", "net.clip_std"}
        assert file.stat().st_size < whole / 3
    base, prior = load_file(theirs / "prior" / "diffusion_pytorch_model.safetensors"), load_prior(tuned)
    same = {name for name, it in prior.net.state_dict().items() if torch.equal(it, base[name])}
    changed = base.keys() - same
    kinds = {".".join(name.split(".")[2:]) for name in changed}
    assert kinds == {f"{it}.weight" for it in ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0",
                                               "ff.net.0.proj", "ff.net.2")}  # fmt: skip


def test_run_again_it_goes_on_to_the_same_bits(emb, theirs, tuned, tmp_path):
    half = [word if word != "train.steps=40" else "train.steps=20" for word in WORDS]
    first = run("train-prior", emb, tmp_path / "prior", *half, "--from", f"diffusers:{theirs}", *LORA)
    assert first.exit_code == 0, first.exception
    assert train(emb, tmp_path / "prior", theirs).exit_code == 0
    one, other = (load_file(it / "model.safetensors") for it in (tuned, tmp_path / "prior"))
    assert one.keys() == other.keys()
    assert all(torch.equal(it, other[name]) for name, it in one.items())
    refused = train(emb, tmp_path / "prior", theirs, "--lora", 2)
    assert isinstance(refused.exception, RunMismatch)
    assert "lora.rank" in str(refused.exception)


def test_merged_it_is_what_peft_makes_of_it(theirs, tuned):
    """peft's own merging, on diffusers' own network."""
    from peft import LoraConfig as PeftConfig
    from peft import inject_adapter_in_model

    model = diffusers.PriorTransformer.from_pretrained(theirs / "prior")
    targets = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2"]
    inject_adapter_in_model(PeftConfig(r=4, lora_alpha=8, target_modules=targets), model)
    stored = {name.removeprefix("net."): it for name, it in load_file(tuned / "model.safetensors").items()}
    assert not model.load_state_dict(stored, strict=False).unexpected_keys
    for module in model.modules():
        if hasattr(module, "merge"):
            module.merge()
    whole = {name.replace(".base_layer", ""): it for name, it in model.state_dict().items() if "lora_" not in name}
    ours = load_prior(tuned).net.state_dict()
    assert ours.keys() == whole.keys()
    for name, it in ours.items():
        torch.testing.assert_close(it, whole[name], atol=1e-6, rtol=1e-6)


def test_convert_merges_it_for_good(emb, theirs, tuned, tmp_path):
    base = shutil.copytree(theirs, tmp_path / "base")
    assert train(emb, tmp_path / "prior", base).exit_code == 0
    assert run("convert", tmp_path / "prior", tmp_path / "merged").exit_code == 0
    assert run("convert", tmp_path / "prior", tmp_path / "back", "--to", "diffusers").exit_code == 0
    moved = shutil.move(tmp_path, tmp_path.with_name(tmp_path.name + "-moved"))
    adapted = load_prior(f"{moved}/prior")  # moved together, they find each other
    shutil.rmtree(f"{moved}/base")
    with pytest.raises(CheckpointError, match="holds adapters for the prior in .*, which is gone since"):
        load_prior(f"{moved}/prior")
    merged = load_prior(f"{moved}/merged")
    model = diffusers.PriorTransformer.from_pretrained(f"{moved}/back/prior").state_dict()
    for name, it in merged.net.state_dict().items():
        assert torch.equal(it, adapted.net.state_dict()[name])
        assert torch.equal(it, model[name])
    one, other = (result_of("evaluate", it, emb, "--device", "cpu")["rows"] for it in (tuned, f"{moved}/merged"))
    assert one == other
    refused = run("train-prior", emb, f"{moved}/merged", *WORDS)
    assert isinstance(refused.exception, RunMismatch)


def test_a_changed_base_is_refused(emb, theirs, tmp_path):
    base = shutil.copytree(theirs, tmp_path / "base")
    assert train(emb, tmp_path / "prior", base, "--steps", 10).exit_code == 0
    model = diffusers.PriorTransformer.from_pretrained(base / "prior")
    torch.nn.init.zeros_(model.proj_in.weight)
    model.save_pretrained(base / "prior")
    with pytest.raises(CheckpointError, match="which has changed since"):
        load_prior(tmp_path / "prior")


def test_the_other_commands_take_it_and_another_training_begins_with_it(emb, tuned, tmp_path):
    rows = {row["predictor"]: row for row in result_of("evaluate", tuned, emb, "--device", "cpu")["rows"]}
    assert rows["prior"]["cosine_image"] > rows["mean"]["cosine_image"]
    result_of("sample-prior", emb, tmp_path / "predicted", "--prior", tuned, "--gpus", 0)
    result_of("train-prior", emb, tmp_path / "next", *WORDS, "--steps", 10, "--from", tuned, "--lora", 2)
    assert load_prior(tmp_path / "next").raw
    facts = json.loads((tuned / "run.json").read_text())
    assert facts["recipe"]["lora"] == {"rank": 4, "alpha": 8.0, "dropout": 0.1, "layers": "all"}


def test_what_is_said_of_it(emb, theirs, tuned, tmp_path):
    whole = sum(it.numel() for it in load_file(theirs / "prior" / "diffusion_pytorch_model.safetensors").values())
    said = train(emb, tmp_path / "prior", theirs, "--steps", 2).output
    outcome = result_of("train-prior", emb, tmp_path / "prior", *WORDS, "--from", f"diffusers:{theirs}", *LORA,
                        "--steps", 2)  # fmt: skip
    stored = load_file(tmp_path / "prior" / "model.safetensors")
    assert outcome["adapters"] == sum(it.numel() for name, it in stored.items() if "lora_" in name)
    assert outcome["parameters"] == whole
    assert f"adapters of {outcome['adapters']:,} parameters for an unclip prior of {whole:,}" in said
    assert "of rank 4" in run("info", tuned).output


def test_what_does_not_change_is_not_held_twice(theirs):
    from dalle2_core.priors.diffusers_folder import read_diffusers_prior

    prior = read_diffusers_prior(theirs).prior
    adapt(prior, LoraConfig(rank=2))
    averaged = make_ema(prior, 0.9).module
    shared = {name for name, it in averaged.named_parameters() if it is prior.get_parameter(name)}
    assert shared == prior.unchanged
    assert sum(it.numel() for it in prior.parameters() if it.requires_grad) == 2 * 4 * 2 * (2 * 64)


def test_what_does_not_go_together_is_said(emb, theirs, tmp_path):
    refused = run("train-prior", emb, tmp_path / "out", *WORDS, "--lora", 4)
    assert isinstance(refused.exception, OptionError)
    assert "of a prior that is trained already" in str(refused.exception)
    small = ["--set", "network.dim=16", "--set", "network.depth=1", "--steps", 2]
    result_of("train-prior", emb, tmp_path / "ours", *WORDS, *small)
    refused = run("train-prior", emb, tmp_path / "out", *WORDS, "--lora", 4, "--from", tmp_path / "ours")
    assert "adapters are for unclip priors, not for diffusion" in str(refused.exception)
    with pytest.raises(ConfigError, match="lora.alpha is 0"):
        LoraConfig(rank=1, alpha=0)


@pytest.mark.slow
@pytest.mark.parametrize("how", [[], ["--lora", 16, "--set", "lora.layers=all"]], ids=["whole", "adapters"])
def test_few_rows_are_learnt_by_heart(theirs, tmp_path, how):
    """By the weights, and by adapters: the image of each text, of noise alone."""
    emb = written(tmp_path / "emb", rows=24)
    words = [*WORDS, "--steps", 400, "--set", "optim.lr=1e-2", "--set", "train.batch_size=16", "--set",
             "train.evaluate_every=400", "--set", "train.save_every=400", "--set", "train.ema_decay=0.9", "--set",
             "unclip.cond_drop_prob=0"]  # fmt: skip
    result_of("train-prior", emb, tmp_path / "prior", *words, "--from", f"diffusers:{theirs}", *how)
    lines = [json.loads(line) for line in (tmp_path / "prior" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line.get("kind") == "train"]
    data = EmbeddingDataset(emb)
    rows = [row for row in range(24) if row % 8]
    text, image = (torch.from_numpy(it.raw()[rows]) for it in (data.text, data.image))
    prior = load_prior(tmp_path / "prior").eval()
    found = prior.sample(text, generator=torch.Generator().manual_seed(0))
    cosines = torch.nn.functional.cosine_similarity(found, image)
    assert losses[-1] < 0.2 * losses[0], losses
    assert float(cosines.mean()) > 0.9
