"""Reading embedding data sets: whole, by row, or as training batches."""

from .columns import EmbeddingColumn, RaggedColumn
from .dataset import EmbeddingDataset
from .loader import EmbeddingLoader
from .split import hash_split, rows_of, splits

__all__ = ["EmbeddingColumn", "EmbeddingDataset", "EmbeddingLoader", "RaggedColumn", "hash_split", "rows_of", "splits"]
