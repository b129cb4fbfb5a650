"""Whoever the umask lets read a folder can read all that the commands wrote into it."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests import shards

ROOT = Path(__file__).resolve().parents[2]
TRAINING = {"train.steps": 2, "train.batch_size": 8, "train.evaluate_every": 2, "train.save_every": 1}
CLIP = {
    "clip.model.embed_dim": 16,
    "clip.model.vision_cfg.image_size": 32,
    "clip.model.vision_cfg.patch_size": 16,
    "clip.model.vision_cfg.width": 32,
    "clip.model.vision_cfg.layers": 1,
    "clip.model.text_cfg.width": 32,
    "clip.model.text_cfg.heads": 2,
}
PRIOR = {"network.dim": 32, "network.depth": 1, "diffusion.timesteps": 20, "diffusion.sample_timesteps": 4}
VAE = {"vae.image_size": 16, "vae.dim": 8, "vae.resnet_groups": 4, "vae.vq_codebook_size": 16}
DECODER = {
    "stages.1.network.dim_mults": "[1,2]",
    "stages.1.network.attn_heads": 2,
    "stages.1.network.attn_dim_head": 4,
    "stages.1.stage.sample_timesteps": 2,
    "stages.1.train.save_every": 1,
}
# Sets the umask of its process, then runs commands, given as JSON, in it.
RUN = """
import json, os, sys
os.umask(int(sys.argv[1], 8))
from tests.commands import run
for words in json.loads(sys.argv[2]):
    outcome = run(*words)
    assert outcome.exception is None, (words, outcome.exception, outcome.output)
"""


def settings(values):
    return [word for name, value in values.items() for word in ("--set", f"{name}={value}")]


def story(source, out):
    """The commands that write: every kind of output, small."""
    emb, brief = f"{out}/emb", ["--valid-share", "0.2", "--device", "cpu"]
    return [
        ["fetch", f"{Path(out).parent}/photos", f"{out}/fetched", "--image-size", "32"],
        ["train-clip", source, f"{out}/clip", "--preset", "vit-tiny", *settings(TRAINING | CLIP), *brief],
        ["encode", source, emb, "--model", f"{out}/clip", "--gpus", "0", "--text-tokens"],
        ["encode", source, f"{out}/tables", "--model", f"{out}/clip", "--gpus", "0", "--format", "parquet"],
        ["index", emb],
        ["search", emb, "a circle", "--save", f"{out}/found/found.png"],
        ["info", emb, "--html", f"{out}/emb.html"],
        ["dedup", emb, f"{out}/dedup", "--materialise"],
        ["filter", emb, f"{out}/filtered", "--min-similarity", "-1", "--materialise"],
        *(["export", emb, f"{out}/as-{to}", "--to", to] for to in ("hf", "parquet", "lance", "clip-retrieval")),
        ["export", emb, f"{out}/images", "--images"],
        ["train-prior", emb, f"{out}/prior", *settings(TRAINING | PRIOR), *brief],
        ["sample-prior", emb, f"{out}/predicted", "--prior", f"{out}/prior", "--gpus", "0"],
        ["train-vae", source, f"{out}/vae", *settings(TRAINING | VAE), *brief],
        ["train-decoder", source, emb, f"{out}/decoder", "--sizes", "8", "--dims", "8", "--timesteps", "20", "--steps",
         "2", "--batch-size", "6", *settings(DECODER), *brief],
        ["generate", "a circle", "--prior", f"{out}/prior", "--decoder", f"{out}/decoder", "--n", "1", "-o",
         f"{out}/made/circle.png"],
    ]  # fmt: skip


# Nobody's: whoever writes the mode that most umasks leave does not get this one's, 0o662 and 0o763, by chance.
UMASK = 0o014


@pytest.mark.slow
def test_every_file_and_folder_has_the_mode_that_the_umask_leaves(tmp_path):
    source, out = shards.write_shards(tmp_path / "data", shards=2, per_shard=20), tmp_path / "out"
    (tmp_path / "photos").mkdir()
    for seed in range(3):
        (tmp_path / "photos" / f"{seed}.png").write_bytes(shards.png(seed))
    words = json.dumps(story(str(source), str(out)))
    done = subprocess.run(
        [sys.executable, "-c", RUN, oct(UMASK), words],
        cwd=ROOT, env={**os.environ, "EMBEDPIPE_CACHE": str(tmp_path / "cache")}, capture_output=True, text=True,
        timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    wrong, seen = {}, set()
    for path in (out, *out.rglob("*")):
        wanted = (0o777 if path.is_dir() else 0o666) & ~UMASK
        seen.add(path.suffix)
        if (mode := stat.S_IMODE(path.stat().st_mode)) != wanted:
            wrong[str(path.relative_to(out))] = f"{mode:o}, not {wanted:o}"
    assert wrong == {}
    assert {".safetensors", ".npy", ".parquet", ".json", ".faiss", ".png", ".tar", ".html", ".lance"} <= seen
