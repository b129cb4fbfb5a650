"""A small embedding data set, written through the store as `encode` writes one, from arrays a test makes up."""

import numpy as np

from embedpipe import manifest
from embedpipe.card import EncoderCard, PreprocessSpec
from embedpipe.columns import EXTRA, FIXED
from embedpipe.manifest import EMBEDDINGS, RunCard, ShardManifest
from embedpipe.store import open_format
from embedpipe.types import EmbeddingShard, SourceShard


def card(dim, weights="0" * 64):
    spec = PreprocessSpec((32, 32), (0.5,) * 3, (0.5,) * 3, "bicubic", "shortest", 0)
    return EncoderCard("made-up", "random", weights, dim, "float16", True, "fp32", "exact", spec, "None-0", 8)


def normalised(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def write_dataset(
    folder, image, text, shards=2, columns=None, weights="0" * 64, similarity=None, format="npy", key=None
):
    """Write float arrays [n, d] (normalised here) as a committed data set; returns the folder as a string."""
    columns = columns or {}
    image, text = normalised(image), normalised(text)
    made_by = card(image.shape[1], weights)
    plan = tuple(SourceShard(f"{i:05d}.tar", 1, "0") for i in range(shards))
    kinds = dict.fromkeys(columns, "string")
    run = RunCard(EMBEDDINGS, {"images": True, "texts": True, "format": format}, plan, kinds, "", made_by)
    manifest.write_run(str(folder), run)
    for number, rows in enumerate(np.array_split(np.arange(len(image)), shards)):
        n = len(rows)
        metadata = {name: [None] * n for name in (*FIXED, *columns, EXTRA)}
        metadata["key"] = metadata["image_path"] = [key[row] if key else f"{row:06d}" for row in rows]
        metadata["caption"] = [f"caption {row}" for row in rows]
        metadata["src_shard"], metadata["src_index"] = [plan[number].name] * n, list(range(n))
        if similarity is not None:
            metadata["similarity"] = [float(similarity[row]) for row in rows]
        metadata |= {name: [values[row] for row in rows] for name, values in columns.items()}
        shard = EmbeddingShard(number, image[rows].astype("float16"), text[rows].astype("float16"), metadata, ())
        written = open_format(format).write(str(folder), shard, plan[number].name, kinds, 5)
        entry = ShardManifest(
            number, plan[number], "", n, n, 0, {}, written, image.shape[1], "float16", made_by.fingerprint()
        )
        manifest.commit(str(folder), entry, 5)
    return str(folder)
