"""Embedding data sets of clustered rows, shard by shard: what a shard holds depends on its number and version alone."""

import shutil
from pathlib import Path

import numpy as np

from embedpipe import manifest
from embedpipe.columns import EXTRA, FIXED
from embedpipe.manifest import EMBEDDINGS, RunCard, ShardManifest
from embedpipe.store import open_format
from embedpipe.types import EmbeddingShard, SourceShard
from tests.embeddings import card, normalised

DIM = 32


def rows(number, size, version=0, dim=DIM):
    """(image, text) of a shard: float16 [size, dim] of unit length, around 40 common centres."""
    centres = np.random.default_rng(7).normal(size=(40, dim))
    rng = np.random.default_rng((number, version))
    image = normalised(centres[rng.integers(0, 40, size)] + 0.6 * rng.normal(size=(size, dim)))
    text = normalised(image + 0.8 + 0.05 * rng.normal(size=(size, dim)))
    return image.astype(np.float16), text.astype(np.float16)


def write(folder, sizes, versions=None, fmt="npy", text=True, weights="0" * 64, dim=DIM):
    """Write the shards {number: rows}, and nothing else; keys are `<number>-<version>-<row>`. Returns the folder."""
    folder, versions = str(folder), versions or {}
    made_by = card(dim, weights)
    plan = tuple(SourceShard(f"{i:05d}.tar", 1, "0") for i in range(max(sizes) + 1))
    options = {"images": True, "texts": text, "format": fmt}
    if "://" not in folder:
        shutil.rmtree(Path(folder) / "manifest", ignore_errors=True)
    manifest.write_run(folder, RunCard(EMBEDDINGS, options, plan, {}, "", made_by))
    for number, size in sizes.items():
        version = versions.get(number, 0)
        image, captions = rows(number, size, version, dim)
        metadata = {name: [None] * size for name in (*FIXED, EXTRA)}
        metadata["key"] = metadata["image_path"] = [f"{number}-{version}-{row}" for row in range(size)]
        metadata["caption"] = [f"caption {key}" for key in metadata["key"]]
        metadata["src_shard"], metadata["src_index"] = [plan[number].name] * size, list(range(size))
        shard = EmbeddingShard(number, image, captions if text else None, metadata, ())
        written = open_format(fmt).write(folder, shard, plan[number].name, {}, 5)
        entry = ShardManifest(
            number, plan[number], "", size, size, 0, {}, written, dim, "float16", made_by.fingerprint()
        )
        manifest.commit(folder, entry, 5)
    return folder


def truth(dataset, queries, k, modality="image"):
    """Keys of the k best rows of each query, by numpy in float64: [[key, …], …]."""
    stored = dataset.require(modality).read().astype(np.float64)
    keys = np.array(dataset.keys())
    return [list(keys[np.argsort(-(stored @ query.astype(np.float64)), kind="stable")[:k]]) for query in queries]
