"""Embeddings to compare: what a tool wrote, read back without embedpipe; and what open_clip makes, called directly."""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

_PEER_PACKAGES = ("clip_retrieval", "all-clip", "open_clip_torch", "torch", "torchvision", "pillow", "numpy")


@dataclass(frozen=True, slots=True)
class Embeddings:
    """keys, and one row of each array for each of them."""

    keys: tuple[str, ...]
    image: np.ndarray
    text: np.ndarray


def read(folder: Path) -> Embeddings:
    """All rows of an output folder of ours or clip-retrieval's, files paired by the number in their names."""
    keys: list[str] = []
    image, text = [], []
    for path in sorted((folder / "metadata").glob("metadata_*.parquet")):
        number = path.stem.removeprefix("metadata_")
        keys += pq.read_table(path, columns=["image_path"])["image_path"].to_pylist()
        image.append(np.load(folder / "img_emb" / f"img_emb_{number}.npy"))
        text.append(np.load(folder / "text_emb" / f"text_emb_{number}.npy"))
    return Embeddings(tuple(keys), np.concatenate(image), np.concatenate(text))


def distances(made: Embeddings, reference: Embeddings, side: str) -> str:
    """`largest (median)` of 1 − cos over the keys of `reference`, in float64. Raises KeyError for a missing key."""
    place = {key: row for row, key in enumerate(made.keys)}
    rows = getattr(made, side)[[place[key] for key in reference.keys]]
    apart = _one_minus_cos(rows, getattr(reference, side))
    return f"{apart.max():.1e} ({np.median(apart):.1e})"


def between_rows(made: Embeddings) -> str:
    """How far apart different samples are: without it, a small 1 − cos says little."""
    neighbours = [_one_minus_cos(side[:-1], side[1:]) for side in (made.image, made.text)]
    return " (images) and ".join(f"{np.median(apart):.1e}" for apart in neighbours) + " (texts)"


def _one_minus_cos(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return 1 - np.einsum("nd,nd->n", a, b) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def direct_rows(data: Path, model: str, weights: Path, count: int) -> tuple[Embeddings, list[int]]:
    """The first `count` samples through open_clip's own transform, tokenizer and towers; and the captions' tokens."""
    import open_clip
    import torch
    from PIL import Image

    network, _, transform = open_clip.create_model_and_transforms(model, pretrained=str(weights))
    network.eval()
    tokenizer = open_clip.get_tokenizer(model)
    chosen = samples(data, count)
    images, texts, lengths = [], [], []
    with torch.inference_mode():
        for start in range(0, len(chosen), 32):
            part = chosen[start : start + 32]
            pixels = torch.stack([transform(Image.open(io.BytesIO(jpeg))) for _, jpeg, _ in part])
            tokens = tokenizer([caption for _, _, caption in part])
            lengths += (tokens.argmax(-1) + 1).tolist()  # the end token has the largest number
            images.append(network.encode_image(pixels, normalize=True).numpy())
            texts.append(network.encode_text(tokens, normalize=True).numpy())
    keys = tuple(key for key, _, _ in chosen)
    return Embeddings(keys, np.concatenate(images), np.concatenate(texts)), lengths


def samples(data: Path, count: int) -> list[tuple[str, bytes, str]]:
    """(key, JPEG, caption) of the first `count` samples of a folder of tars."""
    found: dict[str, dict[str, bytes]] = {}
    for path in sorted(data.glob("*.tar")):
        with tarfile.open(path) as archive:
            for member in archive:
                key, _, suffix = member.name.partition(".")
                if key not in found and len(found) == count:
                    return [(key, kept["jpg"], kept["txt"].decode()) for key, kept in found.items()]
                found.setdefault(key, {})[suffix] = archive.extractfile(member).read()
    return [(key, kept["jpg"], kept["txt"].decode()) for key, kept in found.items()]


def card(folder: Path) -> str:
    """The precision and decoder that an output of ours was made with."""
    encoder = json.loads((folder / "embedpipe.json").read_text())["encoder"]
    return f"precision {encoder['precision']}, decode {encoder['decode']}, stored as {encoder['dtype']}"


def random_weights(model: str, folder: Path) -> Path:
    """A file in `folder` with the weights of an open_clip model as they are drawn after seed 0; made once."""
    path = folder / f"random-{model}.pt"
    if path.exists():
        return path
    import open_clip
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    network = open_clip.create_model(model, pretrained=None)
    torch.save(network.state_dict(), path.with_suffix(".part"))
    return path.with_suffix(".part").rename(path)


def peer_versions(folder: Path, packages: tuple[str, ...] = _PEER_PACKAGES) -> str:
    """What a peer's environment was made of, as its setup wrote it down."""
    lines = (folder / "installed.txt").read_text().splitlines()
    versions = dict(line.split("==", 1) for line in lines if "==" in line)
    return ", ".join(f"{name} {versions.get(name, '(not installed)')}" for name in packages)
