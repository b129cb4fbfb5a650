"""docs/python.md, run from top to bottom on small data."""

import re
import shutil
from pathlib import Path

import pytest

import embedpipe
from tests import shards

PAGE = Path(__file__).resolve().parents[2] / "docs" / "python.md"
STAGE = {
    "network.dim_mults": [1, 2],
    "network.attn_heads": 2,
    "network.attn_dim_head": 4,
    "network.init_cross_embed_kernel_sizes": [3, 5],
    "stage.sample_timesteps": 2,
}
CLIP = {
    "train.batch_size": 8,
    "clip.model.embed_dim": 16,
    "clip.model.vision_cfg.image_size": 32,
    "clip.model.vision_cfg.patch_size": 16,
    "clip.model.vision_cfg.width": 32,
    "clip.model.vision_cfg.layers": 1,
    "clip.model.text_cfg.width": 32,
    "clip.model.text_cfg.heads": 2,
}
VAE = {
    "train.batch_size": 8,
    "vae.image_size": 16,
    "vae.dim": 8,
    "vae.resnet_groups": 4,
    "vae.vq_codebook_size": 16,
}
# What makes it a matter of seconds: the page's words, and those that are run.
SMALLER = {
    "samples_per_shard=1000": "samples_per_shard=10",
    'preset="base", steps=20_000,': "steps=3,",
    'preset="base",\n    steps=20_000,': "steps=3,",
    '"train.batch_size": 64,': '"train.batch_size": 8,',
    "steps=5000": f'preset="vit-tiny", steps=2, valid_share=0.2, settings={CLIP!r}',
    '"vae", preset="base", steps=50_000': f'"vae", steps=2, valid_share=0.2, settings={VAE!r}',
    '"decoder", preset="base", steps=50_000': (
        '"decoder", sizes=[8, 16], dims=[8], timesteps=[20], batch_size=6, steps=2, valid_share=0.2, settings='
        f"{ {f'stages.{number}.{name}': value for number in (1, 2) for name, value in STAGE.items()}!r}"
    ),
    "steps=25": "steps=2",
    "SamplingConfig(steps=16)": "SamplingConfig(steps=2)",
}


@pytest.mark.slow
def test_the_page_runs(tiny_model, peer_priors, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shards.write_files(tmp_path / "photos", shards.samples(40))
    (tmp_path / "photo.jpg").write_bytes(shards.jpeg(3))
    shutil.copy(peer_priors / "1.1.0-default.pt", tmp_path / "latest.pth")
    page = PAGE.read_text()
    for said, smaller in {**SMALLER, '"ViT-B-32", "openai"': f"{tiny_model!r}, precision='fp32'"}.items():
        assert said in page, said
        page = page.replace(said, smaller)
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    cells = {"__name__": "notebook"}
    for number, block in enumerate(blocks):
        exec(compile(block, f"docs/python.md, block {number}", "exec"), cells)
    assert len(cells["losses"]) == 3
    assert cells["fetched"].succeeded == cells["encoded"].rows == cells["predicted"].rows == 40
    assert [Path("search.png").exists(), Path("made.json").exists(), Path("emb.html").exists()] == [True] * 3
    assert cells["plan"].runs["prior"].left == 0, "it was trained"
    assert len(cells["made"].pil()) == 8
    assert cells["decoder"].complete


def test_the_page_names_every_call():
    page = PAGE.read_text()
    jobs = ("fetch encode info verify merge index search dedup filter export train_clip train_prior train_vae "
            "train_decoder evaluate sample_prior generate convert")  # fmt: skip
    assert [name for name in jobs.split() if f"embedpipe.{name}(" not in page] == []
    assert set(re.findall(r"embedpipe\.(\w+)\(", page)) <= set(embedpipe.__all__)
