"""Load embedding data sets: in full, by row, or as training batches."""

from ..store.foreign.base import Foreign
from .columns import EmbeddingColumn, RaggedColumn
from .dataset import EmbeddingDataset
from .loader import EmbeddingLoader
from .metadata import MetadataColumn, MetadataColumns
from .norms import RawColumn
from .split import hash_split, rows_of_split, splits

__all__ = [
    "EmbeddingColumn",
    "EmbeddingDataset",
    "EmbeddingLoader",
    "Foreign",
    "MetadataColumn",
    "MetadataColumns",
    "RaggedColumn",
    "RawColumn",
    "hash_split",
    "rows_of_split",
    "splits",
]
