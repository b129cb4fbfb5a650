"""Makes a data set of JPEGs as the web has them: 0.3 to 1 megapixel, 30 to 150 KB, captions that say what is there.

Emoji drawings (from pip packages, the demo's) are pasted onto textures whose spectrum falls like that of photographs,
1/f: what decides the cost of decoding is the number of pixels and of coefficients, not what is to be seen. Each caption
names the drawings and the colour behind them. The same options and package versions give the same bytes.

    python -m benchmarks.photos build/benchmarks/photos --n 2000 --shards 4
"""

from __future__ import annotations

import argparse
import functools
import io
import json
import os
import tarfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from resvg_py import svg_to_bytes

from embedpipe.demo.concepts import STYLES, emoji_drawings, list_concepts

SMALLEST_BYTES, LARGEST_BYTES = 30_000, 150_000
_MEGAPIXELS = (0.3, 1.0)
_ASPECTS = (1 / 1, 4 / 3, 3 / 2, 16 / 9, 3 / 4, 2 / 3, 9 / 16)
_TEXTURES, _TEXTURE_PX = 4, 1344  # wider than the widest picture
_CONCEPTS, _DRAWING_PX = 300, 320
_MOST_DRAWINGS = 5
_TINTS = {
    "grey": (1.0, 1.0, 1.0),
    "red": (1.2, 0.8, 0.8),
    "green": (0.8, 1.15, 0.8),
    "blue": (0.8, 0.9, 1.25),
    "yellow": (1.2, 1.1, 0.7),
    "purple": (1.1, 0.8, 1.2),
}
_MARKER_NAME = "photos.json"
_FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class PhotoSet:
    """n pictures in `shards` tars, drawn from `seed`."""

    n: int = 2000
    shards: int = 4
    seed: int = 0


def make(folder: Path, photos: PhotoSet) -> Path:
    """Write the tars of `photos` into `folder` unless they are there already. Returns the folder."""
    marker = json.dumps({"format_version": _FORMAT_VERSION, **asdict(photos)})
    if (folder / _MARKER_NAME).is_file() and (folder / _MARKER_NAME).read_text() == marker:
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    for old in (*folder.glob("*.tar"), *folder.glob(_MARKER_NAME)):
        old.unlink()
    parts = np.array_split(np.arange(photos.n), photos.shards)
    with ProcessPoolExecutor(min(photos.shards, len(os.sched_getaffinity(0)))) as pool:
        work = [
            pool.submit(_write_shard, folder / f"{shard:05d}.tar", [int(number) for number in part], photos.seed)
            for shard, part in enumerate(parts)
        ]
        for shard in work:
            shard.result()
    (folder / _MARKER_NAME).write_text(marker)
    return folder


def describe(folder: Path) -> dict[str, str]:
    """What the JPEGs and captions of a folder of tars are like: smallest, 5 %, median, 95 %, largest."""
    sizes, megapixels, words, captions = [], [], [], []
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as archive:
            for member in archive:
                data = archive.extractfile(member).read()
                if member.name.endswith(".jpg"):
                    sizes.append(len(data) / 1000)
                    width, height = Image.open(io.BytesIO(data)).size
                    megapixels.append(width * height / 1e6)
                elif member.name.endswith(".txt"):
                    captions.append(data.decode())
                    words.append(len(captions[-1].split()))
    return {
        "pictures": f"{len(sizes):,}",
        "JPEG, KB": f"{_distribution(sizes, 0)}; mean {np.mean(sizes):.0f}",
        "picture, MP": f"{_distribution(megapixels, 2)}; mean {np.mean(megapixels):.2f}",
        "caption, words": f"{_distribution(words, 0)}; mean {np.mean(words):.1f}",
        "distinct captions": f"{len(set(captions)):,}",
    }


def _distribution(values: list[float], digits: int) -> str:
    return " · ".join(f"{value:.{digits}f}" for value in np.percentile(values, (0, 5, 50, 95, 100)))


def _write_shard(path: Path, numbers: list[int], seed: int) -> None:
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        for number in numbers:
            jpeg, caption, facts = picture(number, seed)
            key = f"{number:08d}"
            for suffix, data in (("jpg", jpeg), ("json", json.dumps(facts).encode()), ("txt", caption.encode())):
                entry = tarfile.TarInfo(f"{key}.{suffix}")
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))


def picture(number: int, seed: int = 0) -> tuple[bytes, str, dict[str, object]]:
    """One picture: JPEG bytes, caption, and what its .json says."""
    rng = np.random.default_rng((seed, number))
    pixels = rng.uniform(*_MEGAPIXELS) * 1e6
    aspect = rng.choice(_ASPECTS)
    width, height = round((pixels * aspect) ** 0.5), round((pixels / aspect) ** 0.5)
    colour = str(rng.choice(list(_TINTS)))
    image = _backdrop(rng, width, height, colour, seed)
    style = STYLES[rng.integers(len(STYLES))]
    phrases = []
    for concept in rng.choice(_CONCEPTS, rng.integers(1, _MOST_DRAWINGS + 1), replace=False):
        phrase, drawing = _drawing(style, int(concept))
        phrases.append(phrase)
        side = int(rng.uniform(0.15, 0.45) * min(width, height))
        small = drawing.resize((side, side), Image.Resampling.BILINEAR)
        image.paste(small, (int(rng.integers(width - side)), int(rng.integers(height - side))), small)
    listed = " and ".join([", ".join(phrases[:-1]), phrases[-1]] if len(phrases) > 1 else phrases)
    caption = f"{listed} on a {colour} background" if rng.random() < 0.6 else listed
    jpeg, quality = _jpeg(image, int(rng.integers(70, 93)))
    facts = {"key": f"{number:08d}", "width": width, "height": height, "quality": quality, "style": style}
    return jpeg, caption, facts


def _backdrop(rng: np.random.Generator, width: int, height: int, colour: str, seed: int) -> Image.Image:
    texture = _texture(int(rng.integers(_TEXTURES)), seed)
    top, left = rng.integers(_TEXTURE_PX - height), rng.integers(_TEXTURE_PX - width)
    crop = texture[top : top + height, left : left + width]
    contrast = rng.uniform(0.5, 1.0)
    gains = np.array(_TINTS[colour], np.float32)
    return Image.fromarray(np.clip((128 + contrast * crop) * gains, 0, 255).astype(np.uint8))


@functools.cache
def _texture(number: int, seed: int) -> np.ndarray:
    """float16 [px, px, 3] around 0: noise with the spectrum of photographs; colour varies less than brightness."""
    rng = np.random.default_rng((seed, 1_000_000 + number))
    down, across = np.fft.fftfreq(_TEXTURE_PX), np.fft.rfftfreq(_TEXTURE_PX)
    frequency = np.maximum(np.hypot(down[:, None], across[None, :]), 1 / _TEXTURE_PX)
    falloff = frequency ** -rng.uniform(1.2, 1.6)
    planes = []
    for _ in range(4):
        plane = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((_TEXTURE_PX, _TEXTURE_PX))) * falloff)
        planes.append(plane / plane.std())
    brightness, *colours = planes
    return np.stack([48 * brightness + 14 * plane for plane in colours], -1).astype(np.float16)


@functools.cache
def _drawing(style: str, concept: int) -> tuple[str, Image.Image]:
    """What is drawn, and the drawing with a transparent background."""
    shown = _concepts()[concept]
    svg = emoji_drawings(style)[shown.code].read_text(encoding="utf-8")
    png = svg_to_bytes(svg_string=svg, width=_DRAWING_PX, height=_DRAWING_PX, skip_system_fonts=True)
    return shown.phrase, Image.open(io.BytesIO(bytes(png))).convert("RGBA")


@functools.cache
def _concepts() -> list:
    return list_concepts()[:_CONCEPTS]


def _jpeg(image: Image.Image, quality: int) -> tuple[bytes, int]:
    """JPEG of a quality near `quality` that gives a size in the range."""
    step = 0
    while True:
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=quality, subsampling="4:2:0")
        size = stream.tell()
        wanted = (size < SMALLEST_BYTES) - (size > LARGEST_BYTES)
        # Only ever one way: a picture whose size jumps over the range keeps the last one.
        if wanted == 0 or (step and wanted != step) or not 15 <= quality + 5 * wanted <= 98:
            return stream.getvalue(), quality
        step = wanted
        quality += 5 * wanted


def main() -> None:
    """Make the set and say what it is like."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    usual = PhotoSet()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--n", type=int, default=usual.n)
    parser.add_argument("--shards", type=int, default=usual.shards)
    parser.add_argument("--seed", type=int, default=usual.seed)
    options = parser.parse_args()
    make(options.folder, PhotoSet(options.n, options.shards, options.seed))
    for name, value in describe(options.folder).items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    main()
