"""Exports, read back by the programs they are for: each reader returns {key: (image, text, caption)}.

READERS names those of each layout; every one is held to the same numbers. Another one is another entry.
"""

import contextlib
import io
import os
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

os.environ["HF_HUB_OFFLINE"] = "1"


def hugging_face(out):
    """datasets.load_dataset, all splits together."""
    import datasets

    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as cache:
        found = datasets.load_dataset(out, cache_dir=cache)
        rows = [row for split in found.values() for row in split.with_format("arrow")[:].to_pylist()]
    return {row["key"]: (row["image_embedding"], row["text_embedding"], row["caption"]) for row in rows}


def _embedding_reader(**options):
    from embedding_reader import EmbeddingReader

    with contextlib.redirect_stderr(io.StringIO()):
        reader = EmbeddingReader(**options)
        batches = list(reader(batch_size=7, start=0, end=reader.count, show_progress=False))
    meta = pd.concat([meta for _, meta in batches])
    return np.concatenate([rows for rows, _ in batches]), meta["key"].tolist(), meta["caption"].tolist()


def parquet(out):
    """embedding-reader's parquet, once for each side."""
    options = {"embeddings_folder": out, "file_format": "parquet", "meta_columns": ["key", "caption"]}
    image, keys, captions = _embedding_reader(embedding_column="image_embedding", **options)
    text, again, _ = _embedding_reader(embedding_column="text_embedding", **options)
    assert again == keys
    return dict(zip(keys, zip(image, text, captions, strict=True), strict=True))


def datacomp(out):
    """pandas and numpy, file by file, as DataComp's baselines read them."""
    found = {}
    for path in sorted(p for p in Path(out).iterdir() if ".parquet" in p.name):
        table, arrays = pd.read_parquet(path), np.load(path.with_suffix(".npz"))
        (image,), (text,) = ([name for name in arrays.files if name.endswith(end)] for end in ("_img", "_txt"))
        rows = zip(table["key"], arrays[image], arrays[text], table["text"], strict=True)
        found |= {key: (image, text, caption) for key, image, text, caption in rows}
    return found


def lance(out):
    """lance.dataset."""
    import lance

    rows = lance.dataset(f"{out}/embeddings.lance").to_table().to_pylist()
    return {row["key"]: (row["image_embedding"], row["text_embedding"], row["caption"]) for row in rows}


def clip_retrieval(out):
    """embedding-reader's parquet_npy and npy."""
    options = {"file_format": "parquet_npy", "metadata_folder": f"{out}/metadata", "meta_columns": ["key", "caption"]}
    image, keys, captions = _embedding_reader(embeddings_folder=f"{out}/img_emb", **options)
    text, _, _ = _embedding_reader(embeddings_folder=f"{out}/text_emb", **options)
    return dict(zip(keys, zip(image, text, captions, strict=True), strict=True))


def aligned(out, width=6):
    """By the rule of DALLE2-pytorch's decoder loader; keys are made again from the rows that are not zero."""
    found = {}
    for path in sorted(Path(out, "img_emb").iterdir()):
        assert path.name == f"img_emb_{int(path.stem.split('_')[-1]):05d}.npy"
        image, text = np.load(path), np.load(str(path).replace("img_emb", "text_emb"))
        assert image.shape == text.shape
        for row in np.flatnonzero(image.any(axis=1)):
            found[f"{row:0{width}d}"] = (image[row], text[row], None)
    return found


READERS = {
    "hf": (hugging_face,),
    "parquet": (parquet,),
    "datacomp": (datacomp,),
    "lance": (lance,),
    "clip-retrieval": (clip_retrieval,),
    "aligned": (aligned,),
}
