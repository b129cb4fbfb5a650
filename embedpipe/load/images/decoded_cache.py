"""Decoded training images: resized to the model's input once, cached beside the run and memory-mapped.

cache/
  pixels.bin        uint8 [n, 3, h, w]
  samples.parquet   key, src_shard, caption, split, sha256: row i belongs to image i
  pictures.json     what the cache was made from; written last: a cache without it does not exist
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ... import files
from ...clip_model.encoder_card import OPEN_CLIP_RULES, ImageRules, PreprocessSpec
from ...errors import EmptyInput, InputError, did_you_mean
from ...images.guarded import guarded_decode
from ...images.open import DEFAULT_MAX_PIXELS
from ...images.rules import image_rules
from ...images.undecodable import Undecodable
from ...parquet_tables import read_table
from ...progress import Listener, Progress, silent
from ...read import Reader, SampleRules, open_reader
from ...read.sample import DEFAULT_CAPTION_KEY
from ...types import Reject, Sample, SourceShard
from ..identity import content_identity, marks_of
from ..split import CONTENT, KEY, hash_split

_FORMAT_VERSION = 1
_PIXELS, _SAMPLES, _MARKER = "pixels.bin", "samples.parquet", "pictures.json"


@dataclass(frozen=True, slots=True)
class PictureOptions:
    """How images become rows.

    preprocess: to the model's input. split_column: metadata field with each row's split; None for a hash that holds out
    `valid_share`: of the image, or of source shard and key (split_by, see `splits`). caption_key: the .json field with
    the caption; `caption`: only where there is no .txt. input: webdataset, folder or auto. max_pixels: larger images
    are rejected without decoding. need_caption: images without one are rejected; else captions are not read, and are
    empty. rules: of decoding.
    """

    preprocess: PreprocessSpec
    split_column: str | None = None
    valid_share: float = 0.05
    caption_key: str = DEFAULT_CAPTION_KEY
    input: str = "auto"
    max_pixels: int = DEFAULT_MAX_PIXELS
    need_caption: bool = True
    rules: ImageRules = field(default_factory=image_rules)
    split_by: str = CONTENT

    def shaping(self) -> dict[str, Any]:
        """Options that determine the rows, as plain values, without those that older caches do not name."""
        values = dataclasses.asdict(self)
        if self.split_by == KEY or self.split_column is not None:
            del values["split_by"]
        if self.need_caption:
            del values["need_caption"]
        if self.rules == OPEN_CLIP_RULES:
            del values["rules"]
        return values


@dataclass(frozen=True, slots=True)
class Pictures:
    """Row i of every field is the same sample.

    pixels: uint8 [n, 3, h, w], memory-mapped. splits: str [n]. rejects: counts by error class. fingerprint: hex sha256
    of the input's bytes and of the options: independent of the location. marks: uint64 [n], see `marks_of`; None from
    a cache of an earlier version.
    """

    pixels: np.ndarray
    captions: tuple[str, ...]
    splits: np.ndarray
    rejects: dict[str, int]
    fingerprint: str
    marks: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.captions)


@dataclass(frozen=True, slots=True)
class PictureCounts:
    """splits: images per split. rejects: samples without one, by error class. fingerprint, marks: as of `Pictures`.

    names: the split of each image, str [n].
    """

    splits: dict[str, int]
    rejects: dict[str, int]
    fingerprint: str
    names: np.ndarray
    marks: np.ndarray | None


def count_pictures(data: str, cache: str, options: PictureOptions, listener: Listener = silent) -> PictureCounts:
    """The number of images `open_pictures` would return: from a complete cache, else by reading every sample.

    None is decoded and nothing is cached: undecodable ones are still counted. Raises InputError, EmptyInput.
    """
    reader = _reader(data, options)
    shards = reader.shards(())
    marker = _read_marker(cache)
    if marker is not None and marker["identity"] == _identity(shards, options):
        found = _open(cache, marker, options)
        return _counts(found.splits.tolist(), found.rejects, found.fingerprint, found.marks)
    splits: list[str] = []
    rows: list[tuple[str, None, str, str]] = []
    digest = _digest(options)
    rejects: Counter[str] = Counter()
    listener(Progress(planned=len(shards)))
    for shard in shards:
        digest.update(f"\0{shard.name}\0".encode())
        for sample in reader.read(shard, digest):
            if isinstance(sample, Reject):
                rejects[sample.error_class] += 1
            else:
                splits.append(_split(sample, shard.name, options))
                rows.append((_sha256(sample), None, shard.name, sample.key))
            listener(Progress(rows=int(isinstance(sample, Sample)), rejected=int(isinstance(sample, Reject))))
        listener(Progress(tasks=1))
    if not splits:
        raise _nothing(data, options, rejects)
    return _counts(splits, dict(sorted(rejects.items())), digest.hexdigest(), marks_of(rows))


def _counts(names: list[str], rejects: dict[str, int], fingerprint: str, marks: np.ndarray | None) -> PictureCounts:
    return PictureCounts(dict(Counter(names)), rejects, fingerprint, np.array(names, dtype=object), marks)


def open_pictures(data: str, cache: str, options: PictureOptions, listener: Listener = silent) -> Pictures:
    """The decoded images of image shards or a folder, from the local folder `cache` if already decoded.

    They are decoded again if the input or the options have changed, or the cache is incomplete. Raises InputError,
    EmptyInput, DiskFull.
    """
    reader = _reader(data, options)
    shards = reader.shards(())
    identity = _identity(shards, options)
    marker = _read_marker(cache)
    if marker is None or marker["identity"] != identity:
        files.remove(files.join(cache, _MARKER))
        marker = {"identity": identity, **_decode_all(data, reader, shards, cache, options, listener)}
        files.write_bytes(files.join(cache, _MARKER), json.dumps(marker, indent=1).encode())
    return _open(cache, marker, options)


def pictures_are_decoded(data: str, cache: str, options: PictureOptions) -> bool:
    """Whether `open_pictures` would find them decoded: for processes that leave the decoding to another."""
    marker = _read_marker(cache)
    return marker is not None and marker["identity"] == _identity(_reader(data, options).shards(()), options)


def cached_rows(location: str, parts: Iterable[np.ndarray], shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Cache an expensive array: read from the .npy file `location`, or made from `parts` (rows in order) and stored.

    `location` must encode everything the numbers depend on. Returns it memory-mapped, of `shape` and `dtype`.
    """
    if not files.exists(location):
        with files.writing(location) as stream:
            header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(stream, header)
            rows = 0
            for part in parts:
                stream.write(np.ascontiguousarray(part, dtype=dtype).tobytes())
                rows += len(part)
            assert rows == shape[0], f"{rows} rows were made, {shape[0]} promised"
    array: np.ndarray = np.load(files.local_path(location), mmap_mode="r")
    assert array.shape == shape, f"{location} is {array.shape}, not {shape}"
    return array


def _reader(data: str, options: PictureOptions) -> Reader:
    named = None if options.caption_key == DEFAULT_CAPTION_KEY else options.caption_key
    rules = SampleRules(caption_key=named, need_caption=options.need_caption)
    return open_reader(data, rules, options.input)


def _identity(shards: list[SourceShard], options: PictureOptions) -> Any:
    """What must match for a cache to be used, as JSON returns it."""
    identity = {
        "format_version": _FORMAT_VERSION,
        "options": options.shaping(),
        "shards": [[shard.name, shard.bytes, shard.modified] for shard in shards],
    }
    return json.loads(json.dumps(identity))


def _read_marker(cache: str) -> dict[str, Any] | None:
    location = files.join(cache, _MARKER)
    if not files.exists(location):
        return None
    try:
        marker: dict[str, Any] = json.loads(files.read_bytes(location))
    except ValueError:
        return None
    for name, size in marker["bytes"].items():
        place = files.join(cache, name)
        if not files.exists(place) or files.stat(place).bytes != size:
            return None
    return marker


def _decode_all(
    data: str, reader: Reader, shards: list[SourceShard], cache: str, options: PictureOptions, listener: Listener
) -> dict[str, Any]:
    digest = _digest(options)
    listener(Progress(planned=len(shards)))
    writer = _Writer(options)
    with files.writing(files.join(cache, _PIXELS)) as stream:
        for shard in shards:
            digest.update(f"\0{shard.name}\0".encode())
            for sample in reader.read(shard, digest):
                kept = writer.take(sample, shard.name, stream)
                listener(Progress(rows=int(kept), rejected=int(not kept)))
            listener(Progress(tasks=1))
        if not writer.rows["key"]:
            raise _nothing(data, options, writer.rejects)
        pixels_bytes = stream.tell()
    table = io.BytesIO()
    pq.write_table(pa.table(writer.rows), table)
    samples_bytes = files.write_bytes(files.join(cache, _SAMPLES), table.getvalue()).bytes
    return {
        "bytes": {_PIXELS: pixels_bytes, _SAMPLES: samples_bytes},
        "rejects": dict(sorted(writer.rejects.items())),
        "fingerprint": digest.hexdigest(),
    }


def _digest(options: PictureOptions) -> hashlib._Hash:
    """Of all that shapes the rows; the shards' names and bytes are to follow."""
    return hashlib.sha256(json.dumps(options.shaping(), sort_keys=True).encode())


def _sha256(sample: Sample) -> str:
    return hashlib.sha256(sample.image or b"").hexdigest()


def _nothing(data: str, options: PictureOptions, rejects: Counter[str]) -> EmptyInput:
    why = ", ".join(f"{name} {count}" for name, count in rejects.most_common(3)) or "no samples"
    what = "picture with a caption" if options.need_caption else "picture"
    return EmptyInput(f"{data}: not one {what} ({why})", "Look at the input")


def _split(sample: Sample, shard: str, options: PictureOptions) -> str:
    """The split of a sample. Raises InputError if the metadata do not give it."""
    column = options.split_column
    if column is None:
        content = None if options.split_by == KEY else _sha256(sample)
        return hash_split(content_identity(content, None, shard, sample.key), options.valid_share)
    if column not in sample.metadata:
        known = did_you_mean(column, sample.metadata) if sample.metadata else "It has no metadata at all"
        raise InputError(f"{shard}: sample {sample.key} has no metadata field {column!r}", known)
    return str(sample.metadata[column])


class _Writer:
    """Writes samples as rows, and counts rejects."""

    def __init__(self, options: PictureOptions) -> None:
        self._options = options
        self.rows: dict[str, list[str]] = {"key": [], "src_shard": [], "caption": [], "split": [], "sha256": []}
        self.rejects: Counter[str] = Counter()

    def take(self, sample: Sample | Reject, shard: str, pixels: BinaryIO) -> bool:
        """Decode one sample and append its pixels; False if it was rejected."""
        if isinstance(sample, Reject):
            self.rejects[sample.error_class] += 1
            return False
        assert sample.image is not None
        decoded = guarded_decode(sample.image, self._options.preprocess, self._options.rules, self._options.max_pixels)
        if isinstance(decoded, Undecodable):
            self.rejects[decoded.error_class] += 1
            return False
        pixels.write(decoded.pixels.numpy().tobytes())
        values = (sample.key, shard, sample.caption or "", _split(sample, shard, self._options), _sha256(sample))
        for column, value in zip(self.rows.values(), values, strict=True):
            column.append(value)
        return True


def _open(cache: str, marker: dict[str, Any], options: PictureOptions) -> Pictures:
    table = read_table(files.join(cache, _SAMPLES))
    shape = (table.num_rows, 3, *options.preprocess.size)
    path = files.local_path(files.join(cache, _PIXELS))
    return Pictures(
        pixels=np.memmap(path, np.uint8, mode="r", shape=shape),
        captions=tuple(table["caption"].to_pylist()),
        splits=np.array(table["split"].to_pylist(), dtype=object),
        rejects=marker["rejects"],
        fingerprint=marker["fingerprint"],
        marks=_marks(table),
    )


def _marks(table: pa.Table) -> np.ndarray | None:
    if "sha256" not in table.column_names:
        return None
    sha256, shard, key = (table[name].to_pylist() for name in ("sha256", "src_shard", "key"))
    return marks_of((it, None, place, name) for it, place, name in zip(sha256, shard, key, strict=True))


def batched(rows: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """`rows` in pieces of at most `size` along the first axis."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
