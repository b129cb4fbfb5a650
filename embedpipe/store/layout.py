"""File names of a shard in an embedding data set (clip-retrieval's names, constant zero padding)."""

from __future__ import annotations

from ..manifest import shard_name

TEXT_TOKENS = "text_tokens"
TABLE = "embeddings"
METADATA = "metadata"
ERRORS = "errors"
MODALITIES = ("image", "text")


def embeddings(modality: str, number: int, digits: int, suffix: str = "npy") -> str:
    """`img_emb/img_emb_00000.npy` or `text_emb/text_emb_00000.npy`."""
    stem = {"image": "img_emb", "text": "text_emb"}[modality]
    return f"{stem}/{stem}_{shard_name(number, digits)}.{suffix}"


def text_tokens(number: int, digits: int) -> tuple[str, str]:
    """`text_tokens/text_tokens_00000.npy` and `text_tokens/lengths_00000.npy`."""
    name = shard_name(number, digits)
    return f"{TEXT_TOKENS}/{TEXT_TOKENS}_{name}.npy", f"{TEXT_TOKENS}/lengths_{name}.npy"


def metadata_path(number: int, digits: int) -> str:
    """`embeddings/embeddings_00000.parquet`: a whole shard in the parquet format."""
    return f"{TABLE}/{TABLE}_{shard_name(number, digits)}.parquet"


def metadata(number: int, digits: int) -> str:
    """`metadata/metadata_00000.parquet`."""
    return f"{METADATA}/{METADATA}_{shard_name(number, digits)}.parquet"


def errors(number: int, digits: int) -> str:
    """`errors/errors_00000.parquet`."""
    return f"{ERRORS}/{ERRORS}_{shard_name(number, digits)}.parquet"


FOLDERS = ("img_emb", "text_emb", TEXT_TOKENS, TABLE, METADATA, ERRORS, "manifest")


def number_of(name: str) -> int | None:
    """The shard number of a file with this name (in one of FOLDERS); None if it has none."""
    digits = name.partition(".")[0].rpartition("_")[2]
    return int(digits) if digits.isdecimal() else None


def data_paths(number: int, digits: int) -> tuple[str, ...]:
    """Every file that the shard with that number may have, except for its manifest, in a fixed order."""
    return (
        *(embeddings(modality, number, digits) for modality in MODALITIES),
        *text_tokens(number, digits),
        metadata_path(number, digits),
        metadata(number, digits),
        errors(number, digits),
    )
