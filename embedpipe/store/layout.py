"""Where the files of a shard lie inside an embedding data set (clip-retrieval's names, constant zero padding)."""

from __future__ import annotations

from ..manifest import shard_name

METADATA = "metadata"
ERRORS = "errors"
MODALITIES = ("image", "text")


def embeddings(modality: str, number: int, digits: int, suffix: str = "npy") -> str:
    """`img_emb/img_emb_00000.npy` or `text_emb/text_emb_00000.npy`."""
    stem = {"image": "img_emb", "text": "text_emb"}[modality]
    return f"{stem}/{stem}_{shard_name(number, digits)}.{suffix}"


def metadata(number: int, digits: int) -> str:
    """`metadata/metadata_00000.parquet`."""
    return f"{METADATA}/{METADATA}_{shard_name(number, digits)}.parquet"


def errors(number: int, digits: int) -> str:
    """`errors/errors_00000.parquet`."""
    return f"{ERRORS}/{ERRORS}_{shard_name(number, digits)}.parquet"


FOLDERS = ("img_emb", "text_emb", METADATA, ERRORS, "manifest")
