"""Reading embedding data sets: whole, by row, or as training batches."""

from .dataset import EmbeddingColumn, EmbeddingDataset
from .loader import EmbeddingLoader
from .split import hash_split, rows_of, splits

__all__ = ["EmbeddingColumn", "EmbeddingDataset", "EmbeddingLoader", "hash_split", "rows_of", "splits"]
