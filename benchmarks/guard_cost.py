"""What it costs that no sample may cost too much: decoding with limits and without, in one process.

    python -m benchmarks.guard_cost
    python -m benchmarks.guard_cost --n 100 --rounds 3

The photos are decoded as `encode` does (to 224 px) and made as `fetch` does (to 256 px): as they are, as progressive
JPEGs, and with every fiftieth a GIF, which is decoded in a child. Neither the model nor the network is in these times.
Then whole encodes of the photos with GIFs, in this process, with ViT-B-32. Times are of processors, those of children
included.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import shutil
import tarfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest import mock

import psutil
from PIL import Image

from benchmarks import measure, photos, report
from embedpipe.clip_model.encoder_card import PreprocessSpec
from embedpipe.encode.base import EncoderConfig
from embedpipe.encode.batching import BatchingConfig
from embedpipe.encode.job import EncodeConfig, encode
from embedpipe.fetch.download.guarded import GuardedPictures, MakerSettings, picture_maker
from embedpipe.fetch.download.image import PictureRules
from embedpipe.images import guarded
from embedpipe.images.decode import decode

SPEC = PreprocessSpec((224, 224), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "bicubic", "shortest", 0)
SETTINGS = MakerSettings(PictureRules(256, "keep_ratio", True, 0, 0.0, True, "jpg"), "opencv", 95, 10.0)
GIF_EVERY = 50


def pictures(folder: Path, n: int) -> list[bytes]:
    """The JPEGs of a data set made by `photos`."""
    found = []
    for path in sorted(photos.make(folder, photos.PhotoSet(n, 1)).glob("*.tar")):
        with tarfile.open(path) as archive:
            found += [archive.extractfile(member).read() for member in archive if member.name.endswith(".jpg")]
    return found


def kinds(jpegs: Sequence[bytes]) -> dict[str, list[bytes]]:
    """The sets that are compared, by what they hold."""
    progressive = [saved(data, "JPEG", quality=85, progressive=True) for data in jpegs]
    with_gifs = [saved(data, "GIF") if i % GIF_EVERY == 0 else data for i, data in enumerate(jpegs)]
    return {"JPEG": list(jpegs), "progressive JPEG": progressive, "JPEG, 2% GIF": with_gifs}


def saved(data: bytes, format: str, **options: object) -> bytes:
    """The same picture in another format."""
    stream = io.BytesIO()
    Image.open(io.BytesIO(data)).convert("RGB").save(stream, format, **options)
    return stream.getvalue()


def write_tar(place: Path, images: Sequence[bytes]) -> None:
    """A shard of `images`."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(place, "w") as archive:
        for i, data in enumerate(images):
            entry = tarfile.TarInfo(f"{i:05d}.jpg")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))


def children_s() -> float:
    """Processor seconds of this process's children so far."""
    return sum(it.cpu_times().user + it.cpu_times().system for it in psutil.Process().children(recursive=True))


PICTURES = GuardedPictures(SETTINGS)
SIDES = {
    "encode": (lambda data: decode(data, SPEC), lambda data: guarded.guarded_decode(data, SPEC)),
    "fetch": (lambda data: picture_maker(SETTINGS).make(data), PICTURES.make),
}


def compare(images: Sequence[bytes], sides: tuple[Callable[[bytes], object], ...], rounds: int) -> list[float]:
    """The ratio of each round: with limits over without, by turns for each image: both meet the same company."""
    ratios = []
    for number in range(rounds):
        taken, before = [0.0, 0.0], children_s()
        for place, data in enumerate(images):
            for side in (0, 1) if (number + place) % 2 == 0 else (1, 0):
                begun = time.process_time()
                sides[side](data)
                taken[side] += time.process_time() - begun
        taken[1] += children_s() - before
        ratios.append(taken[1] / taken[0])
    return ratios


def encode_ratio(source: Path, out: Path, without_first: bool) -> float:
    """Two encodes of `source`, the loading of the model included: the ratio of times, with limits over without."""
    model = EncoderConfig("ViT-B-32", "random", precision="fp32")
    config = EncodeConfig(model, BatchingConfig(texts=False), gpus=0, threads_per_worker=1)
    taken = {}
    for limits in (False, True) if without_first else (True, False):
        shutil.rmtree(out, ignore_errors=True)
        begun = time.process_time() + children_s()
        with contextlib.ExitStack() as patched:
            if not limits:
                patched.enter_context(mock.patch.object(guarded, "is_bounded", return_value=True))
            encode(str(source), str(out), config)
        taken[limits] = time.process_time() + children_s() - begun
    return taken[True] / taken[False]


def start_s(side: str) -> float:
    """Processor seconds from nothing to the first child, which each worker pays once."""
    for calls in (guarded._CALLS, PICTURES._calls):
        calls.close()
    stream = io.BytesIO()
    Image.new("RGB", (64, 64), (128, 128, 128)).save(stream, "GIF")
    begun = time.process_time()
    SIDES[side][1](stream.getvalue())
    return children_s() + time.process_time() - begun


def main() -> None:
    """Compare, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=200, help="photos")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--work", type=Path, default=Path("build/benchmarks"), help="for data")
    parser.add_argument("--results", type=Path, default=report.RESULTS)
    options = parser.parse_args()
    started = report.start("benchmarks.guard_cost", measure.use_cores(1))
    sets = kinds(pictures(options.work.resolve() / "guard", options.n))
    rows = []
    for side, work in SIDES.items():
        for kind, images in sets.items():
            compare(images[: 2 * GIF_EVERY], work, 1)  # libraries are loaded, and a child runs
            rows.append([side, kind, measure.spread(compare(images, work, options.rounds), 3)])
    source, out = options.work.resolve() / "guard-mixed" / "00000.tar", options.work.resolve() / "guard-encoded"
    write_tar(source, 4 * sets["JPEG, 2% GIF"])
    whole = [encode_ratio(source, out, number % 2 == 0) for number in range(options.rounds + 1)][1:]
    rows.append(["a whole encode", "JPEG, 2% GIF", measure.spread(whole, 3)])
    head = ("as", "images", "with limits over without")
    starting = [[side, measure.spread([start_s(side) for _ in range(3)])] for side in SIDES]
    report.write(
        "guard_cost",
        "processor time of decoding with limits on what a sample may cost, over decoding without",
        [report.table(head, rows), report.table(("as", "start of the first child, s, once for each worker"), starting)],
        started,
        not_measured=["whole fetches, in which the network takes the greater part"],
        folder=options.results,
    )


if __name__ == "__main__":
    main()
