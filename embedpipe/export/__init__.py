"""Export embedding data sets to other programs' layouts. EXPORTS maps a name to its exporter."""

from __future__ import annotations

from dataclasses import dataclass

from ..callable_package import callable_as
from ..errors import OptionError, did_you_mean
from .aligned import Aligned
from .base import ExportConfig, Exporter, ExporterMaker
from .clip_retrieval import ClipRetrieval
from .datacomp import DataComp
from .hf import HuggingFace
from .lance import Lance
from .parquet import Parquet


@dataclass(frozen=True, slots=True)
class Export:
    """A layout: its readers, its exporter, and the options (fields of ExportConfig) it takes besides the common ones.

    dtype: the customary dtype; None: that of the data set. written_locally: the names of the outputs if its library
    cannot write to fsspec file systems; they are written locally, then uploaded.
    """

    readers: str
    make: ExporterMaker
    takes: tuple[str, ...] = ()
    dtype: str | None = None
    written_locally: tuple[str, ...] = ()


EXPORTS = {
    "hf": Export("datasets.load_dataset, the Hugging Face hub", HuggingFace, ("text_tokens", "splits")),
    "parquet": Export("Spark, DuckDB, pandas, embedding-reader (parquet)", Parquet, ("text_tokens",)),
    "datacomp": Export("DataComp's filters and resharder", DataComp, ("model_name",), dtype="float16"),
    "lance": Export("lance, lancedb", Lance, written_locally=("embeddings.lance",)),
    "clip-retrieval": Export("clip-retrieval, autofaiss, embedding-reader (npy, parquet_npy)", ClipRetrieval),
    "aligned": Export("DALLE2-pytorch's decoder loader", Aligned, ("index_width",)),
}

__all__ = ["EXPORTS", "Export", "ExportConfig", "Exporter", "open_export"]


def open_export(config: ExportConfig) -> Export:
    """The layout that `config` names. Raises InputError for an unknown layout, or an option that it does not take."""
    if config.to not in EXPORTS:
        raise OptionError(f"no layout {config.to!r} to export to", did_you_mean(config.to, EXPORTS))
    found = EXPORTS[config.to]
    for name in ("text_tokens", "splits", "index_width", "model_name"):
        if getattr(config, name) not in (None, False) and name not in found.takes:
            takers = [other for other, entry in EXPORTS.items() if name in entry.takes]
            raise OptionError(f"`{name}` means nothing to `to={config.to!r}`", f"It is for {' and '.join(takers)}")
    return found


callable_as(__name__, ".job:export")
