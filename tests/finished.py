"""Finished outputs of the commands, as small as they can be, and the lines that should be answered about them at once.

`make` runs the real commands in this process; its paths are relative to the folder, so that `LINES` can be typed there.
"""

import contextlib
from collections.abc import Collection
from pathlib import Path

from tests import shards, tiny_clip
from tests.commands import run

_PRIOR = "--set train.batch_size=8 --set network.dim=16 --set network.depth=1 --valid-share 0.3 --device cpu"
_VAE = (
    "--steps 2 --set train.batch_size=4 --set vae.image_size=16 --set vae.dim=8 --set vae.resnet_groups=4 "
    "--set vae.vq_codebook_size=16 --set vae.use_vgg_and_gan=false --valid-share 0.3 --device cpu"
)
_STAGE = "".join(
    f" --set stages.1.{name}={value}"
    for name, value in {
        "network.dim_mults": "[1,2]",
        "network.attn_heads": 2,
        "network.attn_dim_head": 4,
        "network.init_cross_embed_kernel_sizes": "[3,5]",
        "stage.sample_timesteps": 2,
    }.items()
)
_DECODER = (
    "--sizes 8 --dims 8 --timesteps 10 --steps 2 --batch-size 4 --valid-share 0.3 --device cpu --score-rows 2" + _STAGE
)
_CLIP = (
    "--preset vit-tiny --steps 2 --set train.batch_size=4 --set clip.model.vision_cfg.layers=1 "
    "--set clip.model.text_cfg.layers=1 --valid-share 0.3"
)

# What makes each output; run again, the same line finds nothing to do.
FINISHED = {
    "fetch": "fetch photos shards --processes 1 --samples-per-shard 8",
    "encode": "encode shards emb --model model --gpus 0 --precision fp32",
    "index": "index emb --type flat",
    "merge": "merge emb emb-too merged",
    "dedup": "dedup emb deduplicated --threshold 0.99",
    "filter": "filter emb filtered --min-similarity -1 --examples 0",
    "export": "export emb exported --to parquet",
    "train-prior": f"train-prior emb prior --steps 2 {_PRIOR}",
    "train-vae": f"train-vae shards vae {_VAE}",
    "train-decoder": f"train-decoder shards emb decoder {_DECODER}",
    "train-clip": f"train-clip shards clip {_CLIP}",
    "sample-prior": "sample-prior emb predicted --prior prior --gpus 0 --batch-size 8 --steps 2",
}


def make(root: Path, without: Collection[str] = ()) -> Path:
    """Make all of them below `root`, but those of the commands `without`. Returns `root`."""
    shards.write_files(root / "photos", shards.samples(16, metadata=False))
    shards.write_files(root / "more", shards.samples(4, first=16, metadata=False))
    (root / "keys.txt").write_text("00000\n")
    tiny_clip.write(root / "model")
    made = [line for command, line in FINISHED.items() if command not in without]
    with contextlib.chdir(root):
        for line in ("encode more emb-too --model model --gpus 0 --precision fp32", *made):
            outcome = run(*line.split())
            assert outcome.exception is None, (line, outcome.exception)
    return root


# command → situation → the line to type in the folder of `make`, and its exit code.
# `option`: no such option. `value`: one that cannot be meant. `missing`: no such input. `kind`: an input of another
# kind. `plan`: --dry-run. `finished`: the line that made an output, again.
_OTHERS = {
    "demo": {},
    "fetch": {
        "value": ("fetch photos new --resize-mode crop", 2),
        "missing": ("fetch gone.csv new", 1),
        "kind": ("fetch emb new", 1),
        "plan": ("fetch photos new", 0),
    },
    "encode": {
        "value": ("encode shards new --model model --precision fp12 --gpus 0", 2),
        "missing": ("encode gone new --model model", 1),
        "kind": ("encode prior new --model model --gpus 0", 1),
        "plan": ("encode shards new --model model --gpus 0", 0),
    },
    "info": {"missing": ("info gone", 1), "plain": ("info emb", 0)},
    "verify": {"missing": ("verify gone", 1), "kind": ("verify photos", 1), "plain": ("verify emb", 0)},
    "merge": {
        "value": ("merge emb merged", 2),
        "missing": ("merge emb gone new", 1),
        "kind": ("merge emb prior new", 1),
        "plan": ("merge emb emb-too new", 0),
    },
    "index": {
        "value": ("index emb-too --type tree", 2),
        "missing": ("index gone", 1),
        "kind": ("index prior", 1),
        "plan": ("index emb-too", 0),
    },
    "search": {
        "value": ("search emb soup --key 000", 2),
        "missing": ("search gone soup", 1),
        "kind": ("search prior soup", 1),
        "key": ("search emb --key 000000", 0),
        "key, exact": ("search emb-too --key 00016 --exact", 0),
    },
    "dedup": {
        "value": ("dedup emb new --keep best", 2),
        "missing": ("dedup gone new", 1),
        "kind": ("dedup prior new", 1),
        "plan": ("dedup emb new", 0),
    },
    "filter": {
        "value": ("filter emb new", 2),
        "missing": ("filter gone new --where width>1", 1),
        "kind": ("filter prior new --where width>1", 1),
        "plan": ("filter emb new --where caption_length>1", 0),
        "where": ("filter emb new-filtered --where caption_length>1", 0),
    },
    "takedown": {
        "value": ("takedown emb", 2),
        "missing": ("takedown gone --keys gone.txt", 1),
        "kind": ("takedown prior --keys keys.txt", 1),
        "plan": ("takedown emb --keys keys.txt", 0),
    },
    "export": {
        "value": ("export emb new --to nowhere", 2),
        "missing": ("export gone new --to hf", 1),
        "kind": ("export prior new --to hf", 1),
        "plan": ("export emb new --to hf", 0),
    },
    "train-clip": {
        "value": ("train-clip shards new --preset nothing", 2),
        "setting": ("train-clip shards new --set train.steps=0", 2),
        "missing": ("train-clip gone new", 1),
        "kind": ("train-clip prior new --preset vit-tiny", 1),
        "plan": (f"train-clip shards new {_CLIP}", 0),
    },
    "train-prior": {
        "value": ("train-prior emb new --prior nothing", 2),
        "setting": ("train-prior emb new --set nothing=1", 2),
        "missing": ("train-prior gone new", 1),
        "kind": ("train-prior shards new", 1),
        "plan": (f"train-prior emb new --steps 2 {_PRIOR}", 0),
    },
    "train-vae": {
        "value": ("train-vae shards new --preset nothing", 2),
        "setting": ("train-vae shards new --set vae.image_size=18", 2),
        "missing": ("train-vae gone new", 1),
        "kind": ("train-vae prior new", 1),
        "plan": (f"train-vae shards new {_VAE}", 0),
    },
    "train-decoder": {
        "value": ("train-decoder shards emb new --preset nothing", 2),
        "setting": ("train-decoder shards emb new --sizes 16,8", 2),
        "missing": ("train-decoder shards gone new", 1),
        "kind": ("train-decoder shards prior new", 1),
        "plan": (f"train-decoder shards emb new {_DECODER}", 0),
    },
    "evaluate": {
        "value": ("evaluate prior emb --split nothing", 1),
        "missing": ("evaluate gone emb", 1),
        "kind": ("evaluate emb emb", 1),
    },
    "sample-prior": {
        "value": ("sample-prior emb new --prior prior --gpus 99", 1),
        "missing": ("sample-prior emb new --prior gone", 1),
        "kind": ("sample-prior emb new --prior decoder", 1),
        "plan": ("sample-prior emb new --prior prior --gpus 0", 0),
    },
    "generate": {
        "value": ("generate soup --decoder decoder --prior prior --out soup.jpg", 2),
        "missing": ("generate soup --decoder gone --prior prior", 1),
        "kind": ("generate soup --decoder prior --prior prior", 1),
        "plan": ("generate soup --decoder decoder --prior prior", 0),
    },
    "convert": {"missing": ("convert gone.pth new", 1), "kind": ("convert photos/00000.jpg new", 1)},
    "models": {
        "value": ("models ViT-B-33", 1),
        "plain": ("models", 0),
        "name": ("models ViT-L-14", 0),
    },
    "doctor": {"plain": ("doctor", 0)},
}


def lines() -> dict[tuple[str, str], tuple[str, int]]:
    """(command, situation) → (line, exit code), for all commands, `--help` and options that are not there with them."""
    found = {}
    for command, others in _OTHERS.items():
        found[command, "help"] = (f"{command} --help", 0)
        found[command, "option"] = (f"{command} --nothing", 2)
        for situation, (line, code) in others.items():
            found[command, situation] = (f"{line} --dry-run" if situation == "plan" else line, code)
        if command in FINISHED:
            found[command, "finished"] = (FINISHED[command], 0)
    return found
