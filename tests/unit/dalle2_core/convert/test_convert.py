"""What `convert` refuses, and what it says it assumed."""

import json
import os
import pickle

import pytest
import torch

from dalle2_core.convert import ConvertConfig, convert_prior, save_converted
from dalle2_core.convert.unpickle import Inert, load_checkpoint, pickled_release
from dalle2_core.convert.versions import ERAS, era_of
from dalle2_core.errors import CheckpointError, ConfigError


class Trap:
    """Runs a command when it is unpickled by Python's own pickle."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.fixture
def changed(peer_priors, tmp_path):
    """Write a variant of a checkpoint; `change` gets its content."""

    def write(name, change):
        content = torch.load(peer_priors / f"{name}.pt", weights_only=False)
        torch.save(change(content) or content, tmp_path / "changed.pt")
        return tmp_path / "changed.pt"

    return write


@pytest.mark.parametrize("legacy", [False, True])
def test_a_trap_is_refused_and_does_not_run(tmp_path, legacy):
    path, proof = tmp_path / "trap.pt", tmp_path / "proof"
    torch.save({"model": {}, "step": Trap(f"touch {proof}")}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match=r"trap\.pt: .*system" if not legacy else r"trap\.pt: .*no plain"):
        convert_prior(path)
    assert not proof.exists()


def test_a_trap_dressed_as_an_allowed_object_does_not_run(tmp_path):
    """State that would run code in the real class is only kept."""
    path, proof = tmp_path / "trap.pt", tmp_path / "proof"
    with path.open("wb") as file:
        pickle.dump(Trap(f"touch {proof}"), file)
    with pytest.raises(CheckpointError):
        load_checkpoint(path)
    assert not proof.exists()


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "not a whole file"),
        (b"PK\x03\x04 torn", "not a whole file"),
        (b"words, no tensors", "is not loaded|whole"),
    ],
)
def test_what_is_no_checkpoint_is_said(tmp_path, content, text):
    path = tmp_path / "file.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=text):
        convert_prior(path)
    with pytest.raises(CheckpointError, match="no such file"):
        convert_prior(tmp_path / "none.pt")


def test_torn_files_are_said(peer_priors, tmp_path):
    whole = (peer_priors / "1.1.0-default.pt").read_bytes()
    (tmp_path / "torn.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"torn\.pt: not a whole file of torch\.save"):
        convert_prior(tmp_path / "torn.pt")


def test_a_state_dict_alone_can_be_read_and_what_is_assumed_is_said(peer_priors, changed):
    path = changed("1.15.6-normformer", lambda content: content["model"])
    converted = convert_prior(path)
    assert converted.version == "1.12.1"
    assert any(said.startswith("version: 1.12.1") for said in converted.assumed)
    assert any(said.startswith("predicts: x0") for said in converted.assumed)
    path = changed(
        "1.15.6-normformer",
        lambda content: {f"module.{k[4:]}": v for k, v in content["model"].items() if k.startswith("net.")},
    )
    assert any("noise schedule: cosine, 1000" in said for said in convert_prior(path).assumed)
    told = ConvertConfig(timesteps=50, beta_schedule="linear", predicts="noise", cond_drop_prob=0.1, version="1.15.6")
    converted = convert_prior(path, told)
    assert converted.assumed == ()
    config = converted.prior.config
    assert (config.timesteps, config.beta_schedule, config.predicts) == (50, "linear", "noise")
    assert config.cond_drop_prob == 0.1


def test_the_trainings_json_is_heard_and_the_caller_over_it(peer_priors, tmp_path):
    path = tmp_path / "config.json"
    net = {"dim": 16, "depth": 2, "self_cond": True}
    prior = {"net": net, "predict_x_start": False, "cond_drop_prob": 0.2, "sample_timesteps": 6, "image_embed_scale": 7}
    path.write_text(json.dumps({"prior": prior, "data": {}}))
    config = convert_prior(peer_priors / "1.15.6-self-cond.pt", ConvertConfig(training_config=path)).prior.config
    assert (config.predicts, config.cond_drop_prob, config.sample_timesteps) == ("noise", 0.2, 6)
    assert config.image_embed_scale == 7
    told = ConvertConfig(training_config=path, predicts="v", self_cond=False)
    converted = convert_prior(peer_priors / "1.15.6-self-cond.pt", told)
    assert converted.prior.config.predicts == "v"
    assert not converted.prior.net.config.self_cond
    path.write_text("[]")
    with pytest.raises(CheckpointError, match=r"no prior\.net in it"):
        convert_prior(peer_priors / "1.1.0-default.pt", ConvertConfig(training_config=path))


def test_old_weights_need_their_version(changed):
    path = changed("1.1.0-default", lambda content: content["model"])
    with pytest.raises(CheckpointError, match=r"does not say its version.*0\.23\.0, 0\.23\.3, 1\.4\.3.*1\.1\.0\)"):
        convert_prior(path)
    assert convert_prior(path, ConvertConfig(version="1.1.0")).version == "0.23.3"
    with pytest.raises(CheckpointError, match=r"version 1\.15\.6 does not have these weights.*0\.23\.0 on"):
        convert_prior(path, ConvertConfig(version="1.15.6"))
    with pytest.raises(CheckpointError, match=r"of version 0\.15\.4; 0\.16\.0 and later"):
        convert_prior(path, ConvertConfig(version="0.15.4"))
    with pytest.raises(ConfigError, match="give numbers, such as 1.1.0"):
        convert_prior(path, ConvertConfig(version="latest"))


def test_versions_that_never_dropped_text_cannot_be_guided(peer_priors):
    converted = convert_prior(peer_priors / "1.1.0-default.pt", ConvertConfig(cond_drop_prob=0.1))
    assert converted.prior.config.cond_drop_prob == 0
    assert any("never dropped text" in said for said in converted.assumed)
    with pytest.raises(ConfigError, match="needs a prior trained with cond_drop_prob above 0"):
        converted.prior.sample(torch.randn(2, 16), cond_scale=2.0)


def test_self_conditioning_of_other_layouts_is_refused(peer_priors):
    with pytest.raises(CheckpointError, match=r"before 1\.12\.1 replaced the learned query"):
        convert_prior(peer_priors / "1.10.8-default.pt", ConvertConfig(self_cond=True))


def test_weights_that_do_not_belong_are_named(changed):
    def added(content):
        content["model"]["net.mystery"] = torch.zeros(2)

    with pytest.raises(CheckpointError, match="has mystery; not a prior that this version knows"):
        convert_prior(changed("1.15.6-default", added))

    def outside(content):
        content["model"]["vae.weight"] = torch.zeros(2)

    with pytest.raises(CheckpointError, match=r"it has vae\.weight"):
        convert_prior(changed("1.15.6-default", outside))

    def missing(content):
        del content["model"]["net.causal_transformer.layers.1.0.to_kv.weight"]

    with pytest.raises(CheckpointError, match=r"lacks causal_transformer\.layers\.1\.0\.to_kv\.weight"):
        convert_prior(changed("1.15.6-default", missing))

    def sizeless(content):
        del content["model"]["net.causal_transformer.layers.0.0.null_kv"]

    with pytest.raises(CheckpointError, match="not a whole prior: .*null_kv.* is missing"):
        convert_prior(changed("1.15.6-default", sizeless))

    def misshapen(content):
        content["model"]["net.causal_transformer.layers.1.0.to_kv.weight"] = torch.zeros(3, 3)

    with pytest.raises(CheckpointError, match="weights do not fit each other"):
        convert_prior(changed("1.15.6-default", misshapen))

    def turned(content):
        content["model"]["net.causal_transformer.layers.0.0.rotary_emb.freqs"] += 1

    with pytest.raises(CheckpointError, match="other frequencies than the standard ones"):
        convert_prior(changed("1.15.6-default", turned))
    with pytest.raises(CheckpointError, match="a decoder's weights"):
        convert_prior(changed("1.15.6-default", lambda content: {"unets.0.to_out.weight": torch.zeros(1)}))
    with pytest.raises(CheckpointError, match="no weights in it; it has step"):
        convert_prior(changed("1.15.6-default", lambda content: {"step": 3}))


def test_an_unknown_schedule_is_refused(changed):
    def bent(content):
        content["model"]["noise_scheduler.alphas_cumprod"] *= 0.5

    with pytest.raises(CheckpointError, match="noise schedule of 12 timesteps is none of cosine"):
        convert_prior(changed("1.15.6-default", bent))


def test_what_contradicts_the_file_is_refused(peer_priors):
    with pytest.raises(CheckpointError, match="its timesteps is 12, not 1000"):
        convert_prior(peer_priors / "1.15.6-default.pt", ConvertConfig(timesteps=1000))
    with pytest.raises(ConfigError, match="no prediction target 'eps'"):
        ConvertConfig(predicts="eps")


def test_a_clip_in_the_file_is_left_out(peer_priors, changed):
    def with_clip(content):
        content["model"]["clip.clip.visual.proj"] = torch.zeros(2)

    out = convert_prior(changed("1.15.6-default", with_clip)).prior.state_dict()
    assert not any("clip" in name for name in out)


def test_saving_refuses_a_folder_that_holds_a_model(peer_priors, tmp_path):
    source = peer_priors / "1.15.6-default.pt"
    converted = convert_prior(source)
    save_converted(converted, source, tmp_path)
    said = json.loads((tmp_path / "conversion.json").read_text())
    assert said["dalle2_pytorch"] == "1.12.1"
    assert len(said["sha256"]) == 64
    with pytest.raises(CheckpointError, match="holds a model already"):
        save_converted(converted, source, tmp_path)


def test_the_era_of_a_version():
    assert era_of((0, 15, 4)) is None
    assert era_of((1, 1, 0)).first == (0, 23, 3)
    assert era_of((1, 4, 3)).first == (1, 4, 3)
    assert era_of((2,)).first == (1, 12, 1)
    assert list(ERAS) == sorted(ERAS, key=lambda era: era.first)


def test_versions_are_read_in_every_layout_of_packaging():
    assert pickled_release("1.15.6") == (1, 15, 6)
    assert pickled_release("latest") is None
    assert pickled_release(None) is None
    new = Inert()
    new.__setstate__((0, (1, 15, 6), None, None, None, None))
    assert pickled_release(new) == (1, 15, 6)
    # Up to packaging 25: a named tuple made from its fields, and a key of infinities.
    named = Inert(0, (1, 1, 0), None, None, None, None)
    old = Inert()
    old.__setstate__({"_version": named, "_key": (0, (1, 1), Inert(), Inert())})
    assert pickled_release(old) == (1, 1, 0)
