"""Where the rows of a fetch come from: url tables, loose images, tables of local paths, or image folders."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa

from ... import files
from ...errors import InputError, OptionError
from ...manifest import RunCard
from ...read.image_folder import CAPTION_COLUMNS, PATH_COLUMNS, accounts_of_files, first_of, metadata_tables, path_below
from ...read.local_paths import path_column
from ...read.tables import table
from ...read.tables.table_file import TableFile
from ..config import FetchConfig
from . import image_folder

TABLE, IMAGES, LOCAL, IMAGE_FOLDER = "table", "images", "local paths", "imagefolder"


@dataclass(frozen=True, slots=True)
class Source:
    """One source. root: the folder that local paths must not lead out of, or empty."""

    kind: str
    location: str
    root: str = ""

    def tables(self) -> list[TableFile]:
        """The files of its table. Raises InputError."""
        if self.kind != IMAGE_FOLDER:
            return table.locate_tables(self.location)
        names = metadata_tables(self.location)
        return [
            TableFile(files.join(self.location, name), name, posixpath.splitext(name)[1].removeprefix("."))
            for name in names
        ]

    def with_known_columns(self, config: FetchConfig, previous: RunCard | None) -> FetchConfig:
        """`config` with the columns of the run so far, where the source chose them."""
        if previous is None or not self.root:
            return config
        return replace(
            config,
            url_col=config.file_col or previous.options["url_col"],
            caption_col=config.caption_col or previous.options["caption_col"],
        )

    def with_columns(self, config: FetchConfig, names: Sequence[Sequence[str]]) -> FetchConfig:
        """`config` with the columns for a new run, from those of its tables. Raises InputError."""
        if not self.root:
            return config
        known = [name for name in names[0] if all(name in others for others in names)]
        asked, caption = config.file_col, config.caption_col
        if self.kind == IMAGE_FOLDER:
            asked = asked or first_of(known, PATH_COLUMNS)
            caption = caption or first_of(known, CAPTION_COLUMNS)
        return replace(config, url_col=path_column(known, asked, config.url_col, self.location), caption_col=caption)

    def recorded_in(self, run: RunCard, tables: Iterable[TableFile], column: str) -> RunCard:
        """The run card with the kind of source, and what became of the files of an image folder."""
        run = replace(run, options={**run.options, "source": self.kind})
        if self.kind != IMAGE_FOLDER:
            return run
        schema = pa.schema([(column, pa.string())])
        named = {
            path_below(file.name, value)
            for file in tables
            if not file.name.startswith("retry:")
            for batch in table.batches(file, schema)
            for value in batch.column(column).cast(pa.string()).to_pylist()
            if value
        }
        return replace(run, listing=accounts_of_files(self.location, named))


def source_of(location: str, config: FetchConfig, before: str | None) -> Source:
    """What `location` is. before: the kind of source of the run so far. Raises InputError if it is ambiguous."""
    if config.local_root is not None and config.source != IMAGES:
        return Source(LOCAL, location, _checked_root(config.local_root, location))
    if config.source == "auto" and before != IMAGES and files.is_folder(location) and metadata_tables(location):
        return Source(IMAGE_FOLDER, location, _checked_root(location, location))
    if config.file_col is not None:
        raise OptionError("`file_col` is the column of local paths", "Give `local_root='DIR'` with it")
    images = config.source == IMAGES or (config.source == "auto" and image_folder.holds_images(location))
    return Source(IMAGES if images else TABLE, location)


def _checked_root(root: str, location: str) -> str:
    for place in (root, location):
        if not files.is_local(place):
            raise InputError(f"{place}: local paths are read on this machine only", "Copy table and images here")
    if not files.is_folder(root):
        raise InputError(f"{root}: no such folder", "Give `local_root` a folder that exists")
    return str(Path(files.local_path(root)).absolute())
