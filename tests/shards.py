"""Builders of input: real pictures, webdataset tars and loose folders, whole or with any kind of damage."""

import gzip
import hashlib
import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from embedpipe.verify import VerifyConfig

DEEP = VerifyConfig(deep=True)
WORDS = ("cat", "dog", "red bicycle", "blue boat", "tree", "old house", "cup of tea", "river", "lamp", "horse")


def pixels(seed, height=40, width=48, mode="RGB"):
    """A picture of smooth colours and some noise, a function of its arguments."""
    rng = np.random.default_rng((seed, height, width))
    y, x = np.mgrid[0:height, 0:width]
    planes = [
        127 + 100 * np.sin((x * rng.uniform(0.02, 0.3)) + (y * rng.uniform(0.02, 0.3)) + rng.uniform(0, 6))
        for _ in range(4)
    ]
    array = np.clip(np.stack(planes, -1) + rng.normal(0, 6, (height, width, 4)), 0, 255).astype(np.uint8)
    image = Image.fromarray(array, "RGBA") if mode == "RGBA" else Image.fromarray(array[..., :3].copy())
    if mode == "I;16":
        return Image.fromarray(array[..., 0].astype(np.uint16) * 257)
    if mode == "P+transparency":
        palette = image.quantize(32)
        palette.info["transparency"] = 3
        return palette
    if mode == "LA":
        return Image.merge("LA", (Image.fromarray(array[..., 0].copy()), Image.fromarray(array[..., 3].copy())))
    return image if image.mode == mode else image.convert(mode)


def encoded(image, format="JPEG", **options):
    """The bytes of a picture."""
    stream = io.BytesIO()
    if "transparency" in image.info:
        options.setdefault("transparency", image.info["transparency"])
    image.save(stream, format, **options)
    return stream.getvalue()


def jpeg(seed=0, height=40, width=48):
    """A real JPEG."""
    return encoded(pixels(seed, height, width), "JPEG", quality=85)


def png(seed=0, height=40, width=48, mode="RGB"):
    """A real PNG."""
    return encoded(pixels(seed, height, width, mode), "PNG")


def caption(seed):
    """A caption; some repeat."""
    return f"a {WORDS[seed % len(WORDS)]} and a {WORDS[(seed // 3) % len(WORDS)]}"


def sample(number, key=None, metadata=True, picture=None):
    """The members of one sample, in webdataset's order."""
    key = key if key is not None else f"{number:05d}"
    members = [(f"{key}.jpg", jpeg(number) if picture is None else picture)]
    if metadata:
        members.append((f"{key}.json", json.dumps({"number": number, "label": f"l{number % 3}"}).encode()))
    members.append((f"{key}.txt", caption(number).encode()))
    return members


def samples(count, first=0, metadata=True):
    """Members of `count` samples, numbered from `first`."""
    return [member for i in range(first, first + count) for member in sample(i, metadata=metadata)]


def tar_bytes(members):
    """A tar of (name, bytes) or ready (TarInfo, bytes | None) pairs, with fixed times and owners."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, data in members:
            entry = name
            if not isinstance(name, tarfile.TarInfo):
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data) if data is not None else None)
    return stream.getvalue()


def write_tar(path, members, compress=False):
    """Write a tar of `members`. Returns str(path)."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = tar_bytes(members)
    path.write_bytes(gzip.compress(data, mtime=0) if compress else data)
    return str(path)


def write_shards(folder, shards=3, per_shard=7):
    """A folder of whole tars, `00000.tar` …, each with its own samples. Returns str(folder)."""
    for i in range(shards):
        write_tar(Path(folder) / f"{i:05d}.tar", samples(per_shard, first=i * per_shard))
    return str(folder)


def special(name, kind, target=""):
    """A TarInfo that is no plain file: kind is one of tarfile's types."""
    entry = tarfile.TarInfo(name)
    entry.type = kind
    entry.linkname = target
    return entry, None


def write_files(folder, members):
    """Write (path, bytes) pairs as loose files. Returns str(folder)."""
    for name, data in members:
        path = Path(folder) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return str(folder)


class Digest:
    """Stands in for hashlib where nobody looks at the hash."""

    def update(self, data):
        """Take some bytes."""


def read(reader, shard=None):
    """(samples, rejects) of one shard, the only one if none is given."""
    from embedpipe.types import Sample

    if shard is None:
        (shard,) = reader.shards(())
    found = list(reader.read(shard, Digest()))
    return [x for x in found if isinstance(x, Sample)], [x for x in found if not isinstance(x, Sample)]


def tree(folder, without=()):
    """Relative path → bytes of all files below a folder but the locks.

    `timing_s`, and the checksum over it, are taken out of manifests.
    """
    without = {".lock", ".lock-plan", *without}
    found = {}
    for path in sorted(Path(folder).rglob("*")):
        relative = path.relative_to(folder).as_posix()
        if path.is_file() and relative not in without:
            data = path.read_bytes()
            if relative.startswith("manifest/"):
                document = json.loads(data)
                del document["timing_s"], document["self_sha256"]
                data = json.dumps(document, sort_keys=True).encode()
            found[relative] = data
    return found


def table(count, first=0, **columns):
    """An Arrow table with the samples that `samples` gives; `columns` replaces columns or adds some."""
    import pyarrow as pa

    numbers = range(first, first + count)
    made = {
        "key": [f"{i:05d}" for i in numbers],
        "image": [jpeg(i) for i in numbers],
        "caption": [caption(i) for i in numbers],
        "number": list(numbers),
        "label": [f"l{i % 3}" for i in numbers],
    }
    return pa.table({name: values for name, values in {**made, **columns}.items() if values is not None})


def write_path_table(path, count, first=0, image=True, caption_there=True):
    """Write the samples that `samples` gives as a jsonl that names image files beside it. Returns str(path)."""
    write_files(Path(path).parent, [(f"{i:05d}.jpg", jpeg(i)) for i in range(first, first + count)] if image else [])
    rows = []
    for i in range(first, first + count):
        told = {"file": f"{i:05d}.jpg", "caption": caption(i) if caption_there else None}
        rows.append({**told, "number": i, "label": f"l{i % 3}"})
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return str(path)


def write_table(path, table, **options):
    """Write an Arrow table as parquet. Returns str(path)."""
    import pyarrow.parquet as pq

    Path(path).parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, **options)
    return str(path)


def edit(path, change=None, **values):
    """Change a manifest or an embedpipe.json so that its checksum fits again: only its meaning is other."""
    from embedpipe.checksummed_json import SEAL, dump

    document = {k: v for k, v in json.loads(Path(path).read_text()).items() if k != SEAL}
    document.update(values)
    if change is not None:
        change(document)
    Path(path).write_bytes(dump(document))


def forget(folder, *numbers):
    """Let shards not be made yet: no manifest, and nobody waits for one."""
    for number in numbers:
        (Path(folder) / "manifest" / f"{number:05d}.json").unlink()

    def add(document):
        document["pending"] = sorted({*(document["pending"] or ()), *numbers})

    edit(Path(folder) / "embedpipe.json", add)


def record_anew(folder, number, path):
    """Let the manifest say of a file what it is now: only its meaning is wrong."""
    data = Path(path).read_bytes()

    def change(document):
        for record in document["files"]:
            if record["path"].endswith(Path(path).name):
                record["bytes"], record["sha256"] = len(data), hashlib.sha256(data).hexdigest()
                record["ends_sha256"] = hashlib.sha256(data[: 1 << 16] + data[-(1 << 16) :]).hexdigest()

    edit(Path(folder) / "manifest" / f"{number:05d}.json", change)
