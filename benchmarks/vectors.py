"""Embeddings made up for benchmarks: many clusters of very unequal size, of few directions each, of unit length.

    python -m benchmarks.vectors FOLDER --rows 1000000

20,000 centres (themselves around 200 topics) with sizes falling as 1/rank^0.8; within a cluster rows vary along sixteen
of 4,096 shared directions, and a little along all. Nearest neighbours lie at cosines of about 0.8 to 0.95, as near as
those of CLIP's image rows, and are no copies of each other. A captioned side lies in another place, as captions do in
CLIP: each is its picture's row, blurred, behind one common offset.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from embedpipe import manifest
from embedpipe.clip_model.encoder_card import EncoderCard, PreprocessSpec
from embedpipe.columns import EXTRA, FIXED
from embedpipe.manifest import EMBEDDINGS, RunCard, ShardManifest
from embedpipe.store import open_format
from embedpipe.types import EmbeddingShard, SourceShard

_BLOCK = 4096
_TOPICS, _DIRECTIONS, _RANK = 200, 4096, 16
_SIZES_FALL_AS = 0.8
_CENTRE_SPREAD, _WITHIN, _NOISE = 0.9, 0.55, 0.35  # lengths, beside a topic's of 1
_GAP, _BLUR = 1.2, 0.9  # of captions


@dataclass(frozen=True, slots=True)
class VectorSet:
    """What is made: `rows` of `dim` values in `shards`, around `centres`; with captions' rows, too, if `text`."""

    rows: int
    dim: int = 512
    shards: int = 20
    centres: int = 20_000
    text: bool = False
    seed: int = 0


class Clusters:
    """The distribution that rows and queries are drawn from."""

    def __init__(self, spec: VectorSet) -> None:
        rng = np.random.default_rng(spec.seed)
        self.dim = spec.dim
        topics = _directions(rng, _TOPICS, spec.dim)
        own = _CENTRE_SPREAD * _directions(rng, spec.centres, spec.dim)
        self.centres = topics[rng.integers(0, _TOPICS, spec.centres)] + own
        self.pool = _directions(rng, _DIRECTIONS, spec.dim)
        self.along = rng.integers(0, _DIRECTIONS, (spec.centres, _RANK))
        weights = np.arange(1, spec.centres + 1, dtype=np.float64) ** -_SIZES_FALL_AS
        self.shares = rng.permutation(weights / weights.sum())
        self.gap = _GAP * _directions(rng, 1, spec.dim)

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """float32 [count, dim], of unit length."""
        return np.concatenate([self._block(rng, min(_BLOCK, count - done)) for done in range(0, count, _BLOCK)])

    def captions(self, rng: np.random.Generator, images: np.ndarray) -> np.ndarray:
        """float32 like `images`: what captions of these would be."""
        blur = rng.standard_normal(images.shape, np.float32) * np.float32(_BLUR / np.sqrt(self.dim))
        return _unit(images + self.gap + blur)

    def _block(self, rng: np.random.Generator, count: int) -> np.ndarray:
        which = rng.choice(len(self.shares), count, p=self.shares)
        weights = rng.standard_normal((count, 1, _RANK), np.float32) * np.float32(_WITHIN / np.sqrt(_RANK))
        within = (weights @ self.pool[self.along[which]])[:, 0]
        noise = rng.standard_normal((count, self.dim), np.float32) * np.float32(_NOISE / np.sqrt(self.dim))
        return _unit(self.centres[which] + within + noise)


def queries(spec: VectorSet, count: int) -> np.ndarray:
    """float32 [count, dim] of the same distribution, none of them a row."""
    return Clusters(spec).draw(np.random.default_rng((spec.seed, 1)), count)


def make(folder: Path, spec: VectorSet) -> Path:
    """Write the data set through embedpipe's own store; one that is there already is left as it is."""
    done = folder / "vectors.json"
    said = json.dumps(asdict(spec))
    if done.exists() and done.read_text() == said:
        return folder
    clusters = Clusters(spec)
    card = _card(spec.dim)
    plan = tuple(SourceShard(f"{number:05d}.tar", 1, "0") for number in range(spec.shards))
    options = {"images": True, "texts": spec.text, "format": "npy"}
    manifest.write_run(str(folder), RunCard(EMBEDDINGS, options, plan, encoder=card))
    for number, rows in _shards(spec):
        rng = np.random.default_rng((spec.seed, 2, number))
        image = clusters.draw(rng, len(rows))
        text = clusters.captions(rng, image).astype(np.float16) if spec.text else None
        metadata = _metadata(rows, plan[number].name)
        shard = EmbeddingShard(number, image.astype(np.float16), text, metadata, ())
        written = open_format("npy").write(str(folder), shard, plan[number].name, {}, 5)
        n = len(rows)
        entry = ShardManifest(number, plan[number], "", n, n, 0, {}, written, spec.dim, "float16", card.fingerprint())
        manifest.commit(str(folder), entry, 5)
    done.write_text(said)
    return folder


def _shards(spec: VectorSet) -> Iterator[tuple[int, range]]:
    bounds = [spec.rows * number // spec.shards for number in range(spec.shards + 1)]
    for number in range(spec.shards):
        yield number, range(bounds[number], bounds[number + 1])


def _metadata(rows: range, source: str) -> dict[str, list]:
    names = [f"{row:09d}" for row in rows]
    found: dict[str, list] = {name: [None] * len(rows) for name in (*FIXED, EXTRA)}
    found["key"] = found["image_path"] = names
    found["caption"] = [f"caption {name}" for name in names]
    return found | {"src_shard": [source] * len(rows), "src_index": list(range(len(rows)))}


def _card(dim: int) -> EncoderCard:
    spec = PreprocessSpec((224, 224), (0.5,) * 3, (0.5,) * 3, "bicubic", "shortest", 0)
    return EncoderCard("made-up", "", "0" * 64, dim, "float16", True, "fp32", "exact", spec, "none", 77)


def _directions(rng: np.random.Generator, count: int, dim: int) -> np.ndarray:
    return _unit(rng.standard_normal((count, dim), np.float32))


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def main() -> None:
    """Make a folder of vectors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--shards", type=int, default=20)
    parser.add_argument("--text", action="store_true", help="make captions' rows, too")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    make(options.folder, VectorSet(options.rows, options.dim, options.shards, text=options.text, seed=options.seed))


if __name__ == "__main__":
    main()
