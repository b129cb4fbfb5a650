"""Compare the images of near-duplicate candidates.

The image shards are read once, one after another; only images of rows in a pair are decoded, and stored as thumbnails
in a scratch file. Then the pairs are compared.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
from pathlib import Path

import numpy as np

from ...errors import InputError
from ...execute import in_order
from ...execute.threads import one_thread_each
from ...index.card import data_digest
from ...load import EmbeddingDataset
from ...progress import Listener, Progress
from ...read import Reader
from ...read.find_images import images_in
from .image_difference import SIDE, grey_thumbnail, image_differences
from .scratch_rows import ScratchRows, require_disk_space
from .workspace import Workspace

_FORMAT_VERSION = 1
_PAIRS_AT_ONCE = 256
_BATCHES_IN_GROUP = 128  # between saves: half a minute of one core
_THUMBNAIL = 3 * SIDE * SIDE
_STORED = _THUMBNAIL + 1  # the last one tells whether there is an image
_RESULT = ("difference",)


def picture_differences(
    dataset: EmbeddingDataset,
    close: np.ndarray,
    reader: Reader,
    out: Path,
    threads: int | None,
    listen: Listener,
) -> np.ndarray:
    """float32 [pairs]: difference between the images of each pair in `close` (CLOSE); NaN if one is unavailable.

    reader: of the image shards. Progress and results are stored in `out`/.pictures, for the next call. Uses memory for
    the thumbnails of a few shards, and a scratch file of 7 KB per row that is in a pair. An image that cannot be
    decoded, or differs from the encoded one, counts as unavailable. Raises DiskFull, OSError.
    """
    identity = {
        "format_version": _FORMAT_VERSION,
        "data": data_digest(dataset),
        "images": [[shard.name, shard.bytes, shard.modified] for shard in reader.shards(())],
        "pairs": hashlib.sha256(close.tobytes()).hexdigest(),
    }
    work = Workspace(out / ".pictures", identity)
    if not work.has("difference"):
        with one_thread_each():
            _compare_all(dataset, close, reader, work, threads, listen)
    work.clear(but=_RESULT)
    return work.read("difference")


def _compare_all(
    dataset: EmbeddingDataset, close: np.ndarray, reader: Reader, work: Workspace, threads: int | None, listen: Listener
) -> None:
    rows = np.union1d(close["row"], close["of"])
    groups = range(0, len(close), _PAIRS_AT_ONCE * _BATCHES_IN_GROUP)
    listen(Progress(planned=len(dataset.shards) + len(groups)))
    require_disk_space(work.path("thumbnails.bin"), len(rows) * _STORED, "holding thumbnails")
    with ScratchRows(work.path("thumbnails.bin"), _STORED, "uint8") as stored:
        _read_pictures(dataset, rows, reader, stored, work, threads, listen)
        parts = [np.empty(0, np.float32)]
        for number, start in enumerate(groups):
            group = close[start : start + _PAIRS_AT_ONCE * _BATCHES_IN_GROUP]
            places = np.searchsorted(rows, np.stack([group["row"], group["of"]]))
            parts.append(work.array(f"group-{number:06d}", functools.partial(_compare, stored, places, threads)))
            listen(Progress(tasks=1))
    work.keep("difference", np.concatenate(parts))


def _read_pictures(
    dataset: EmbeddingDataset,
    rows: np.ndarray,
    reader: Reader,
    stored: ScratchRows,
    work: Workspace,
    threads: int | None,
    listen: Listener,
) -> None:
    def one_shard(shard: int) -> tuple[int, np.ndarray] | None:
        if work.has(f"read-{shard:06d}"):
            return None
        start, stop = np.searchsorted(rows, (dataset.shards[shard].start, dataset.shards[shard].stop))
        return int(start), _thumbnails(dataset, shard, rows[start:stop], reader)

    for shard, read in in_order(one_shard, range(len(dataset.shards)), threads):
        if read is not None:
            start, pictures = read
            stored.write(pictures, np.arange(start, start + len(pictures)))
            stored.sync()
            work.keep(f"read-{shard:06d}", np.zeros(0))
        listen(Progress(tasks=1))


def _thumbnails(dataset: EmbeddingDataset, shard: int, rows: np.ndarray, reader: Reader) -> np.ndarray:
    """uint8 [rows, _STORED] of some rows of one shard."""
    made = np.zeros((len(rows), _STORED), np.uint8)
    if not len(rows):
        return made
    offsets = rows - dataset.shards[shard].start
    columns = dataset.metadata(shard, ("key", "sha256")).take(offsets).to_pylist()
    place = {row["key"]: i for i, row in enumerate(columns)}
    with contextlib.suppress(InputError):  # the image shard is gone
        for key, image in images_in(reader, dataset.shards[shard].manifest.source, place.keys()):
            if columns[place[key]]["sha256"] in (None, hashlib.sha256(image).hexdigest()):
                small = grey_thumbnail(image)
                if small is not None:
                    made[place[key], :-1], made[place[key], -1] = small.ravel(), 1
    return made


def _compare(stored: ScratchRows, places: np.ndarray, threads: int | None) -> np.ndarray:
    """float32 [pairs]: differences of pairs of thumbnails, given by their positions, int64 [2, pairs]."""

    def batch(start: int) -> np.ndarray:
        one, other = (
            np.concatenate([stored.read(place, place + 1) for place in side[start : start + _PAIRS_AT_ONCE].tolist()])
            for side in places
        )
        apart = image_differences(*(side[:, :-1].reshape(-1, 3, SIDE, SIDE) for side in (one, other)))
        apart[(one[:, -1] == 0) | (other[:, -1] == 0)] = np.nan
        return apart

    starts = range(0, places.shape[1], _PAIRS_AT_ONCE)
    return np.concatenate([found for _, found in in_order(batch, starts, threads)])
