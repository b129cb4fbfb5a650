"""What is to go: read from a file of urls or keys, and looked up by digests."""

from __future__ import annotations

from dataclasses import dataclass, field

import pyarrow as pa

from .. import files
from ..errors import EmptyInput, InputError, did_you_mean
from ..parquet_tables import read_table
from ..taken_down import TakenRow, key_digest, url_digest
from .config import TakedownConfig


@dataclass(slots=True)
class TakedownRequest:
    """The entries of the file by digest, as they were given. by_url: urls, else keys (`any_shard`: without one).

    met: digests that some row had, or once had.
    """

    by_url: bool
    entries: dict[str, str]
    any_shard: bool = False
    met: set[str] = field(default_factory=set)

    def names(self, source: str, key: str | None, url: str | None) -> str | None:
        """The digest of the entry that names a row; None if none does."""
        if self.by_url:
            digest = url_digest(url) if url else ""
        else:
            digest = key_digest("" if self.any_shard else source, key or "")
        return digest if digest in self.entries else None

    def named_once(self, row: TakenRow) -> bool:
        """Whether an entry names a row that went earlier."""
        digest = row.url_sha256 if self.by_url else row.key_sha256
        return digest in self.entries

    def not_found(self) -> tuple[str, ...]:
        """The entries that named nothing, in the order of the file."""
        return tuple(given for digest, given in self.entries.items() if digest not in self.met)


def read_request(config: TakedownConfig) -> TakedownRequest:
    """The request in the file. Raises InputError if it cannot be read, EmptyInput."""
    if config.urls is not None:
        (urls,) = _columns(config.urls, ("url",), 1)
        found = TakedownRequest(True, {url_digest(url): url for url in urls if url and url.strip()})
    else:
        location = str(config.keys)
        keys, *sources = _columns(location, ("key", "src_shard"), 1)
        if sources:
            pairs = [(source, key) for source, key in zip(sources[0], keys, strict=True) if key]
            found = TakedownRequest(False, {key_digest(source or "", key): f"{source} {key}" for source, key in pairs})
        else:
            found = TakedownRequest(False, {key_digest("", key): key for key in keys if key}, any_shard=True)
    if not found.entries:
        raise EmptyInput(f"{config.urls or config.keys}: names nothing")
    return found


def _columns(location: str, names: tuple[str, ...], needed: int) -> list[list[str | None]]:
    """The columns of those names, the first `needed` of which must be there; of a text file its lines."""
    if not location.endswith(".parquet"):
        try:
            lines = files.read_bytes(location).decode("utf-8-sig").splitlines()
        except UnicodeDecodeError as problem:
            raise InputError(
                f"{location}: neither parquet nor text in UTF-8", f"Give one {names[0]} a line, or a .parquet file"
            ) from problem
        return [[line.strip() for line in lines if line.strip()]]
    try:
        table = read_table(location)
    except (OSError, pa.ArrowException) as problem:
        raise InputError(f"{location}: cannot be read: {problem}", "Give a whole parquet file") from problem
    for name in names[:needed]:
        if name not in table.column_names:
            raise InputError(f"{location}: no column {name}", did_you_mean(name, table.column_names))
    return [table[name].cast(pa.string()).to_pylist() for name in names if name in table.column_names]
