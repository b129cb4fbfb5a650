"""Writes small priors with DALLE2-pytorch's own code, with inputs and its outputs: what `convert` is tested against.

Run by `benchmarks/peers/setup.sh prior-fixtures` with the peer's Python, once for each version. Imports nothing of
embedpipe. Weights are random multiples of 1/16, so that the archive stays small.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from dalle2_pytorch import DiffusionPrior, DiffusionPriorNetwork
from dalle2_pytorch.version import __version__
from packaging import version as packaging_version

DIM, TIMESTEPS, ROWS = 16, 12, 4
SMALL = {"dim": DIM, "depth": 2, "heads": 2, "dim_head": 8, "ff_mult": 2}
# name → (network, diffusion, width of the text in tokens or None)
NOW = {
    "default": ({"max_text_len": 5}, {}, None),
    "text": ({"max_text_len": 6}, {}, 4),
    "embeds": ({"max_text_len": 3, "num_time_embeds": 2, "num_image_embeds": 3, "num_text_embeds": 2}, {}, 3),
    "no-rotary": ({"max_text_len": 3, "rotary_emb": False}, {"beta_schedule": "linear", "timesteps": 60}, None),
    "normformer": ({"max_text_len": 4, "normformer": True, "norm_in": True, "num_timesteps": TIMESTEPS}, {}, 2),
    "self-cond": ({"max_text_len": 3, "self_cond": True}, {"predict_v": True}, None),
    "bare": ({"max_text_len": 3, "norm_out": False, "final_proj": False, "dim_head": 40}, {}, None),
}
OLD = {
    "default": ({"max_text_len": 5}, {}, None),
    "text": ({"max_text_len": 6, "normformer": True, "num_timesteps": TIMESTEPS, "num_time_embeds": 2}, {}, 4),
}
# There was no max_text_len yet.
MASKED = {"text": ({"num_text_embeds": 2}, {}, 4)}


def cases():
    """The configurations that this version has."""
    if __version__ == "1.15.6":
        return NOW
    return MASKED if is_masked() else OLD


def relaxation():
    """What the relative bias was multiplied by; weights must undo it, or the softmax would hide everything else."""
    then = packaging_version.parse(__version__)
    if not packaging_version.parse("0.16.1") <= then < packaging_version.parse("1.4.3"):
        return 1
    return 1024 if then < packaging_version.parse("0.23.3") else 128


def randomise(model):
    """Every weight random, gains around 1."""
    draw = torch.Generator().manual_seed(1)
    for name, weight in model.named_parameters():
        if not name.endswith("freqs"):
            step = torch.randint(-12, 13, weight.shape, generator=draw) / 16
            if name.endswith("relative_attention_bias.weight"):
                step = step / relaxation()
            if name.endswith("project_out.weight"):
                step = step / 4
            weight.data = 1 + step / 4 if name.endswith(".g") else step
    return model


def is_masked():
    """Before 0.23 the padding was hidden by a mask that the caller gave."""
    return packaging_version.parse(__version__) < packaging_version.parse("0.23")


def inputs(tokens):
    """Rows with texts of different lengths; the padding is zero, by which later versions know it."""
    draw = torch.Generator().manual_seed(2)
    made = {
        "image": torch.randn(ROWS, DIM, generator=draw),
        "time": torch.tensor([0, 3, 7, TIMESTEPS - 1]),
        "text": torch.nn.functional.normalize(torch.randn(ROWS, DIM, generator=draw), dim=-1),
        "self_cond": torch.randn(ROWS, DIM, generator=draw),
    }
    if tokens is not None:
        mask = torch.arange(tokens) < torch.tensor([tokens, 1, 2, 3])[:, None]
        made["tokens"] = torch.randn(ROWS, tokens, DIM, generator=draw) * (mask[:, :, None] | is_masked())
        made["mask"] = mask
    return made


@torch.no_grad()
def outputs(net, made, self_cond):
    """What the network gives: with the text, and without it where this version can drop it alone."""
    told = {"text_embed": made["text"]}
    if "tokens" in made:
        told["text_encodings"] = made["tokens"]
        if is_masked():
            told["mask"] = made["mask"].clone()  # it changes what it is given
    if self_cond:
        told["self_cond"] = made["self_cond"]
    given = {"kept": net(made["image"], made["time"], **told)}
    if hasattr(net, "null_text_embeds"):
        given["dropped"] = net(made["image"], made["time"], text_cond_drop_prob=1.0, **told)
    elif is_masked():
        given["dropped"] = net(made["image"], made["time"], cond_drop_prob=1.0, **told)
    return given


def trained_checkpoint(path):
    """What this version's own trainer saves after some steps, with averages apart from the weights."""
    from dalle2_pytorch.trainer import DiffusionPriorTrainer

    net = DiffusionPriorNetwork(**{**SMALL, "depth": 1, "dim": 8}, max_text_len=2)
    prior = DiffusionPrior(net=net, image_embed_dim=8, timesteps=TIMESTEPS, condition_on_text_encodings=False)
    trainer = DiffusionPriorTrainer(
        prior, lr=1e-2, wd=1e-2, use_ema=True, warmup_steps=2, ema_update_every=1, ema_update_after_step=1
    )
    for _ in range(5):
        rows = torch.randn(4, 8)
        trainer(text_embed=rows, image_embed=rows.clone())
        trainer.update()
    trainer.save(str(path))
    averaged = trainer.ema_diffusion_prior.ema_model.net.eval()
    made = {"image": torch.randn(4, 8), "time": torch.tensor([0, 3, 7, 11]), "text": torch.randn(4, 8)}
    with torch.no_grad():
        given = {
            "kept": averaged(made["image"], made["time"], text_embed=made["text"]),
            "last": prior.net.eval()(made["image"], made["time"], text_embed=made["text"]),
        }
    torch.save({"inputs": made, "outputs": given}, path.with_suffix(".io"))


def main() -> None:
    """Write VERSION-NAME.pt (the checkpoint) and .io (inputs and outputs) into the folder that is named."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, (network, diffusion, tokens) in cases().items():
        torch.manual_seed(0)
        net = DiffusionPriorNetwork(**{**SMALL, **network})
        options = {"timesteps": TIMESTEPS, "condition_on_text_encodings": tokens is not None, **diffusion}
        prior = randomise(DiffusionPrior(net=net, image_embed_dim=DIM, **options)).eval()
        path = folder / f"{__version__}-{name}.pt"
        # As the trackers save a model.
        torch.save({"version": packaging_version.parse(__version__), "model": prior.state_dict()}, path)
        made = inputs(tokens)
        given = outputs(prior.net, made, network.get("self_cond", False))
        torch.save({"inputs": made, "outputs": given}, path.with_suffix(".io"))
        print(path, {key: float(value.abs().max()) for key, value in given.items()})
    if __version__ == "1.15.6":
        trained_checkpoint(folder / f"{__version__}-trainer.pt")


if __name__ == "__main__":
    main()
