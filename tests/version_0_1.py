"""What version 0.1 wrote, before cards recorded the activation: a data set, its index, a score head and a prior's run.

`version_0_1.tar.xz` was made by `python -m tests.version_0_1 FOLDER` with the code of version 0.1 and open_clip 3.3.
The model's weights are not in it: they are whole numbers over a power of two, drawn by NumPy's legacy generator, whose
stream is frozen, so that they come out the same everywhere.
"""

import contextlib
import json
import sys
import tarfile
from pathlib import Path

import numpy as np
import open_clip
import torch
from open_clip.factory import _MODEL_CONFIGS
from open_clip.pretrained import _PRETRAINED
from safetensors.torch import save_file

from tests import tiny_clip

ARCHIVE = Path(__file__).parent / "oracles" / "version_0_1.tar.xz"
MODEL = "embedpipe-tests-tiny"
# Deep enough for QuickGELU and GELU to differ in what is stored.
CONFIG = {
    **tiny_clip.VIT,
    "vision_cfg": {**tiny_clip.VIT["vision_cfg"], "layers": 3},
    "text_cfg": {**tiny_clip.VIT["text_cfg"], "layers": 3},
}
OPENAI = {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}
TAGS = {
    "openai": {**OPENAI, "interpolation": "bicubic", "resize_mode": "shortest", "quick_gelu": True},
    "gelu": {**OPENAI, "interpolation": "bicubic", "resize_mode": "shortest"},
    "squashed": {"mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bilinear", "resize_mode": "squash"},
}


def weights(seed=0):
    """The state dict of the tiny model, the same on every machine."""
    random = np.random.RandomState(seed)
    _MODEL_CONFIGS[MODEL] = CONFIG
    try:
        model = open_clip.create_model(MODEL, pretrained=None)
    finally:
        del _MODEL_CONFIGS[MODEL]
    drawn = {}
    for name, value in sorted(model.state_dict().items()):
        whole = random.randint(-512, 513, size=tuple(value.shape))
        around = 1.0 if "ln" in name and name.endswith("weight") else 0.0
        drawn[name] = torch.from_numpy(np.asarray(whole / 4096 + around, np.float32))
    return drawn


@contextlib.contextmanager
def registered(folder):
    """While the block runs, open_clip knows the model and its tags, whose weights lie in `folder` instead of a hub."""
    file = Path(folder) / "tiny.safetensors"
    if not file.exists():
        save_file(weights(), file)
    tags = {name: {"url": "", "hf_hub": "", **tag, "file": str(file)} for name, tag in TAGS.items()}
    _MODEL_CONFIGS[MODEL] = CONFIG
    _MODEL_CONFIGS[f"{MODEL}-quickgelu"] = {**CONFIG, "quick_gelu": True}
    _PRETRAINED[MODEL] = tags
    _PRETRAINED[f"{MODEL}-quickgelu"] = {"openai": tags["openai"]}
    try:
        yield str(file)
    finally:
        for name in (MODEL, f"{MODEL}-quickgelu"):
            del _MODEL_CONFIGS[name], _PRETRAINED[name]


def unpack(folder):
    """The archive's content in `folder`."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return Path(folder)


def make(folder):
    """Write what the archive holds. Run by version 0.1 only."""
    from embedpipe_cli import main

    from embedpipe import IndexConfig, build_index, encode
    from embedpipe.encode.base import EncoderConfig
    from embedpipe.encode.batching import BatchingConfig
    from embedpipe.encode.job import EncodeConfig
    from tests import shards

    folder = Path(folder)
    (folder / "shards").mkdir(parents=True)
    for number in range(2):
        (folder / "shards" / f"{number:05d}.tar").write_bytes(shards.tar_bytes(shards.samples(6, 6 * number)))
    with registered(folder):
        config = EncodeConfig(
            EncoderConfig(MODEL, "openai", precision="fp32"), BatchingConfig(batch_size=8), gpus=0, threads_per_worker=1
        )
        encode(str(folder / "shards"), str(folder / "emb"), config)
    build_index(str(folder / "emb"), IndexConfig())
    head = {"weight": torch.arange(16.0)[None] / 16, "bias": torch.zeros(1)}
    save_file(head, folder / "head.safetensors")
    (folder / "head.json").write_text(json.dumps({"model": MODEL, "pretrained": "openai"}))
    sys.argv = ["embedpipe", "train-prior", str(folder / "emb"), str(folder / "prior"), "--prior", "ridge"]
    sys.argv += ["--valid-share", "0.3", "--device", "cpu"]
    code = main._run()
    assert not code, code
    (folder / "tiny.safetensors").unlink()
    with tarfile.open(ARCHIVE, "w:xz") as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and path.name != ".lock":
                archive.add(path, path.relative_to(folder))


if __name__ == "__main__":
    make(sys.argv[1])
