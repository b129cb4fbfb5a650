"""Converted priors give what DALLE2-pytorch's own code gave.

The archive was written by its releases, see `benchmarks/peers/setup.sh prior-fixtures`.
"""

import pytest
import torch

from dalle2_core.convert import ConvertConfig, convert_prior
from dalle2_core.diffusion.denoiser import Denoiser
from dalle2_core.diffusion.parameterization import PARAMETERIZATIONS
from dalle2_core.priors.registry import load_prior
from dalle2_core.types import TextCondition

NOW = [f"1.15.6-{name}" for name in ("default", "text", "embeds", "no-rotary", "normformer", "self-cond", "bare")]
OLD = [
    f"{version}-{name}" for version in ("0.23.1", "1.1.0", "1.4.3", "1.10.5", "1.10.8") for name in ("default", "text")
]
MASKED = [f"{version}-text" for version in ("0.16.0", "0.16.1", "0.16.2", "0.16.10")]
# What no weight says.
TOLD = {"1.15.6-self-cond": {"self_cond": True, "predicts": "v"}}


def condition(inputs, keep=None):
    return TextCondition(inputs["text"], inputs.get("tokens"), inputs.get("mask"), keep)


@torch.no_grad()
@pytest.mark.parametrize("name", [*NOW, *OLD, *MASKED])
def test_output_is_the_peers(peer_priors, name, tmp_path):
    converted = convert_prior(peer_priors / f"{name}.pt", ConvertConfig(**TOLD.get(name, {})))
    converted.prior.save(tmp_path)
    prior = load_prior(tmp_path).eval()
    stored = torch.load(peer_priors / f"{name}.io", weights_only=True)
    inputs, outputs = stored["inputs"], stored["outputs"]
    self_cond = inputs["self_cond"] if prior.net.config.self_cond else None
    kept = prior.net(inputs["image"], inputs["time"], condition(inputs), self_cond)
    # Of the largest number: without norm and projection at the end, outputs are as large as 17.
    close = {"atol": 1e-5 * max(1.0, float(outputs["kept"].abs().max())), "rtol": 0}
    torch.testing.assert_close(kept, outputs["kept"], **close)
    assert float(outputs["kept"].std()) > 0.3
    if "dropped" in outputs:
        keep = torch.zeros(len(inputs["text"]), dtype=torch.bool)
        dropped = prior.net(inputs["image"], inputs["time"], condition(inputs, keep), self_cond)
        torch.testing.assert_close(dropped, outputs["dropped"], **close)


@torch.no_grad()
def test_another_eras_reading_is_far_off(peer_priors):
    """So the agreement above is no accident, and a wrong version is not harmless."""
    stored = torch.load(peer_priors / "1.1.0-default.io", weights_only=True)
    inputs = stored["inputs"]
    wrong = convert_prior(peer_priors / "1.1.0-default.pt", ConvertConfig(version="1.4.3")).prior
    out = wrong.net(inputs["image"], inputs["time"], condition(inputs))
    assert float((out - stored["outputs"]["kept"]).abs().max()) > 0.3


@torch.no_grad()
def test_averages_are_preferred_and_the_last_weights_can_be_had(peer_priors):
    stored = torch.load(peer_priors / "1.15.6-trainer.io", weights_only=True)
    inputs = stored["inputs"]
    for weights, key in (("ema", "kept"), ("model", "last")):
        converted = convert_prior(peer_priors / "1.15.6-trainer.pt", ConvertConfig(weights=weights))
        assert converted.weights == weights
        out = converted.prior.net(inputs["image"], inputs["time"], condition(inputs))
        torch.testing.assert_close(out, stored["outputs"][key], atol=1e-5, rtol=0)
    assert float((stored["outputs"]["kept"] - stored["outputs"]["last"]).abs().max()) > 1e-3


@torch.no_grad()
def test_the_diffusion_is_the_peers_too(peer_priors):
    """Its v, its schedule and its scale: the estimate of x0 from its own buffers."""
    content = torch.load(peer_priors / "1.15.6-no-rotary.pt", weights_only=False)["model"]
    prior = convert_prior(peer_priors / "1.15.6-no-rotary.pt", ConvertConfig(predicts="v")).prior
    assert prior.config.beta_schedule == "linear"
    assert prior.config.timesteps == 60
    assert float(prior.image_scaling.scale[0]) == 4.0
    assert float(prior.text_scaling.scale[0]) == 1.0
    stored = torch.load(peer_priors / "1.15.6-no-rotary.io", weights_only=True)
    inputs, out, t = stored["inputs"], stored["outputs"]["kept"], stored["inputs"]["time"]
    denoiser = Denoiser(prior.net, prior.schedule, PARAMETERIZATIONS["v"])
    expected = (
        content["noise_scheduler.sqrt_alphas_cumprod"][t][:, None] * inputs["image"]
        - content["noise_scheduler.sqrt_one_minus_alphas_cumprod"][t][:, None] * out
    )
    torch.testing.assert_close(denoiser(inputs["image"], t, condition(inputs)).x0, expected, atol=1e-5, rtol=0)
