"""A small embedding data set, written through the store as `encode` writes one, from arrays a test makes up."""

import dataclasses

import numpy as np

from embedpipe import manifest
from embedpipe.clip_model.encoder_card import EncoderCard, ImageRules, PreprocessSpec, TextPreprocessSpec, TowerCard
from embedpipe.columns import EXTRA, FIXED
from embedpipe.manifest import EMBEDDINGS, RunCard, ShardManifest
from embedpipe.ragged import RaggedRows
from embedpipe.store import open_format
from embedpipe.types import EmbeddingShard, Reject, SourceShard


def card(dim, weights="0" * 64, activation="gelu"):
    """activation: None for a card as version 0.1 wrote them."""
    spec = PreprocessSpec((32, 32), (0.5,) * 3, (0.5,) * 3, "bicubic", "shortest", 0)
    made_up = EncoderCard("made-up", "random", weights, dim, "float16", True, "fp32", "exact", spec, "None-0", 8)
    if activation is None:
        return made_up
    return dataclasses.replace(
        made_up,
        image_tower=TowerCard(activation, "tok"),
        text_tower=TowerCard(activation, "argmax"),
        text_preprocess=TextPreprocessSpec("lower"),
        image_rules=ImageRules("ignored", "ignored", "ignored"),
    )


def normalised(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def write_dataset(
    folder,
    image,
    text,
    shards=2,
    columns=None,
    weights="0" * 64,
    similarity=None,
    format="npy",
    key=None,
    tokens=None,
    rejects=(),
    names=None,
    sha256=None,
):
    """Write float arrays [n, d] (normalised here) as a committed data set; returns the folder as a string.

    columns: passed-through ones, name → values (strings) or (type, values). tokens: a list of n arrays [length, w].
    rejects: numbers of shards that end with a reject. names: of the input shards. sha256: of each row's image.
    """
    kinds = {name: values[0] if isinstance(values, tuple) else "string" for name, values in (columns or {}).items()}
    columns = {name: values[1] if isinstance(values, tuple) else values for name, values in (columns or {}).items()}
    image, text = normalised(image), normalised(text)
    similarity = np.einsum("nd,nd->n", image, text) if similarity is None else similarity
    made_by = card(image.shape[1], weights)
    plan = tuple(SourceShard(name, 1, "0") for name in names or [f"{i:05d}.tar" for i in range(shards)])
    options = {"images": True, "texts": True, "format": format, **({"text_tokens": True} if tokens else {})}
    width = tokens[0].shape[1] if tokens else None
    run = RunCard(EMBEDDINGS, options, plan, kinds, "", made_by, token_width=width, pending=())
    manifest.write_run(str(folder), run)
    for number, rows in enumerate(np.array_split(np.arange(len(image)), len(plan))):
        n = len(rows)
        metadata = {name: [None] * n for name in (*FIXED, *columns, EXTRA)}
        metadata["key"] = metadata["image_path"] = [key[row] if key else f"{row:06d}" for row in rows]
        metadata["caption"] = [f"caption {row}" for row in rows]
        metadata["src_shard"], metadata["src_index"] = [plan[number].name] * n, list(range(n))
        metadata["similarity"] = [float(similarity[row]) for row in rows]
        if sha256 is not None:
            metadata["sha256"] = [sha256[row] for row in rows]
        metadata |= {name: [values[row] for row in rows] for name, values in columns.items()}
        bad = (Reject("bad", n, "decode", "image_undecodable", "no picture"),) if number in rejects else ()
        states = None
        if tokens:
            lengths = np.array([len(tokens[row]) for row in rows], np.int32)
            states = RaggedRows.packed(np.concatenate([tokens[row] for row in rows]).astype("float16"), lengths)
        half = [array[rows].astype("float16") for array in (image, text)]
        shard = EmbeddingShard(number, *half, metadata, bad, states)
        written = open_format(format).write(str(folder), shard, plan[number].name, kinds, 5)
        entry = ShardManifest(
            number=number,
            source=plan[number],
            source_sha256=f"{number}",
            rows_in=n + len(bad),
            rows_out=n,
            rows_rejected=len(bad),
            rejects={"image_undecodable": 1} if bad else {},
            files=written,
            dim=image.shape[1],
            dtype="float16",
            fingerprint=made_by.fingerprint(),
            tokens=states.total if states else None,
            token_width=width,
            timing_s={"model": 1.25},
        )
        manifest.commit(str(folder), entry, 5)
    return str(folder)
