"""Are a decoder's pictures what was asked for? Held-out captions of the demo, by a judge that saw true pictures.

    python -m benchmarks.decoder_judge demo-out
    python -m benchmarks.decoder_judge demo-out --decoder other-decoder --guidance 2.5 --sheet sheet.png

The judge knows nothing of the encoder that conditions the decoder: a small convolutional network, trained on the true
pictures of the training split to tell groups (a face, a flag, a plant …) that words of the captions name. A colour
is right if the colour that most coloured pixels have is that of the true picture. Embeddings come from the prior, from
ridge regression, from the caption's own embedding (the paper's ablation), and from the true picture, as the best case.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

import embedpipe
from benchmarks import measure, report
from dalle2_core import load_decoder
from embedpipe.load import EmbeddingDataset
from embedpipe.load.webdataset import webdataset_pipeline

GROUPS = {
    "flag": "flag",
    "heart": "heart hearts",
    "clock": "clock o'clock stopwatch watch",
    "face": "face",
    "person": "man woman person men women people boy girl child baby adult family couple worker cook police officer",
    "hand": "hand hands finger fist thumbs palm palms",
    "animal": "cat dog monkey horse cow pig rabbit bear bird fish frog tiger mouse rat sheep goat elephant whale snake "
    "turtle chicken duck owl bee bug spider dragon lion wolf fox penguin camel ox octopus crab shrimp snail butterfly",
    "plant": "tree leaf leaves flower blossom cactus herb seedling rose tulip hibiscus sunflower shamrock clover",
    "food": "rice bread cake pie pizza hamburger apple pear lemon banana grapes melon tomato potato carrot soup pasta "
    "cheese egg meat ice fruit strawberry cherries pineapple mango peach sandwich taco cookie candy chocolate",
    "building": "house building castle church mosque temple office hospital bank hotel school factory stadium",
    "vehicle": "car bus train truck taxi ambulance bicycle tram locomotive airplane ship boat motorcycle tractor",
    "button": "button keycap input sign",
    "shape": "circle square diamond",
}
SIZE = 32
MAIN_COLOUR = 0.5  # a picture of which less has one colour, as most flags, has no colour of its own
COLOURS = {
    "red": (0.86, 0.18, 0.27),
    "orange": (0.96, 0.56, 0.05),
    "yellow": (1.0, 0.8, 0.3),
    "green": (0.36, 0.62, 0.22),
    "blue": (0.23, 0.53, 0.76),
    "light blue": (0.6, 0.82, 0.95),
    "purple": (0.58, 0.38, 0.75),
    "brown": (0.6, 0.4, 0.25),
    "grey": (0.6, 0.62, 0.65),
    "black": (0.1, 0.1, 0.1),
}


def group_of(caption: str) -> str | None:
    """The one group that words of a caption name; None for none or several. Faces of animals are animals."""
    words = set(re.findall(r"[a-z']+", caption.lower()))
    found = {name for name, known in GROUPS.items() if words & set(known.split())}
    if "flag" in found:
        return "flag"
    if found == {"face", "animal"}:
        return "animal"
    return found.pop() if len(found) == 1 else None


def colour_of(image: np.ndarray) -> tuple[str, float]:
    """The commonest named colour among the pixels of [h, w, 3] in [0, 1] that are not nearly white, and its share."""
    pixels = image.reshape(-1, 3)
    coloured = pixels[pixels.min(axis=1) < 0.85]
    if len(coloured) == 0:
        return "white", 1.0
    away = ((coloured[:, None] - np.array(list(COLOURS.values()))) ** 2).sum(-1)
    counts = np.bincount(away.argmin(1), minlength=len(COLOURS))
    if counts[:-1].sum() > len(coloured) // 10:
        counts[-1] = 0  # outlines are black whatever they surround
    return list(COLOURS)[int(counts.argmax())], float(counts.max() / counts.sum())


def network(groups: int) -> nn.Module:
    """The judge: [b, 3, SIZE, SIZE] → logits of the groups."""
    layers: list[nn.Module] = []
    for wide, wider in ((3, 32), (32, 64), (64, 96)):
        layers += [nn.Conv2d(wide, wider, 3, padding=1), nn.BatchNorm2d(wider), nn.SiLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.3), nn.Linear(96 * (SIZE // 8) ** 2, groups))


def trained_judge(images: Tensor, labels: Tensor, groups: int, steps: int = 600) -> nn.Module:
    """A network that tells groups, from true pictures: shifted, mirrored, blurred and noised, as made ones may be."""
    torch.manual_seed(0)
    judge = network(groups)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=2e-3, weight_decay=0.05)
    weight = 1.0 / torch.bincount(labels, minlength=groups).clamp(min=1).float().sqrt()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * (1 - step / steps)
        rows = torch.randint(len(images), (64,))
        seen = torch.roll(images[rows], tuple(torch.randint(-3, 4, (2,)).tolist()), dims=(2, 3))
        seen = seen.flip(3) if step % 2 else seen
        seen = F.avg_pool2d(seen, 3, 1, 1) if step % 3 == 0 else seen
        seen = (seen + 0.1 * torch.rand(()) * torch.randn_like(seen)).clamp(0, 1)
        F.cross_entropy(judge(seen), labels[rows], weight).backward()
        optimizer.step()
        optimizer.zero_grad()
    return judge.eval()


def true_pictures(dataset: EmbeddingDataset, size: int) -> Tensor:
    """The pictures of all rows, [rows, 3, size, size] in [0, 1]."""
    pictures = torch.empty(len(dataset), 3, size, size)
    for sample in webdataset_pipeline(dataset, decode="pil"):
        picture = next(it for it in sample.values() if isinstance(it, Image.Image))
        small = picture.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
        pictures[int(sample["row"])] = torch.from_numpy(np.asarray(small) / np.float32(255)).permute(2, 0, 1)
    return pictures


def embeddings(demo: Path, dataset: EmbeddingDataset, rows: np.ndarray, prior: str) -> dict[str, Tensor]:
    """Image embeddings of those rows, by where they come from."""
    emb = str(demo / "emb")
    with tempfile.TemporaryDirectory() as folder:
        embedpipe.train_prior(emb, f"{folder}/ridge", prior="ridge", split_column="split")
        predicted = {}
        for name, model in (("the prior", prior), ("ridge", f"{folder}/ridge")):
            embedpipe.sample_prior(model, emb, f"{folder}/{name}", gpus=0)
            predicted[name] = EmbeddingDataset(f"{folder}/{name}").image
        sides = predicted | {"the caption": dataset.text, "the true picture": dataset.image}
        return {name: torch.from_numpy(np.array(it[rows], np.float32)) for name, it in sides.items() if it is not None}


def shares(judge: nn.Module, made: Tensor, wanted: Tensor, true: Tensor) -> tuple[float, float]:
    """Of pictures [n, 3, h, w]: how many are of the wanted group, and of the true picture's colour where it has one."""
    with torch.no_grad():
        right = judge(F.interpolate(made, (SIZE, SIZE), mode="area")).argmax(1) == wanted
    pairs = zip(made.permute(0, 2, 3, 1).numpy(), true.permute(0, 2, 3, 1).numpy(), strict=True)
    found = [(colour_of(one)[0], *colour_of(other)) for one, other in pairs]
    colours = [one == other for one, other, share in found if share >= MAIN_COLOUR]
    return float(right.float().mean()), float(np.mean(colours))


def sheet(rows: Mapping[str, Tensor], place: Path) -> None:
    """Pictures of each source in a row, true ones first."""
    lines = [torch.cat([F.pad(it, (1, 1, 1, 1), value=1.0) for it in pictures], dim=2) for pictures in rows.values()]
    pixels = (torch.cat(lines, dim=1).clamp(0, 1) * 255).byte().permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(place)


def held_out(captions: Sequence[str], splits: Sequence[str], count: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to judge, and rows to train the judge on: those whose caption names one group."""
    known = np.array([group_of(caption) is not None for caption in captions])
    split = np.array(splits)
    valid = np.flatnonzero(known & (split == "valid"))
    return np.sort(np.random.default_rng(0).permutation(valid)[:count]), np.flatnonzero(known & (split == "train"))


def main() -> None:
    """Make the pictures, judge them, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demo", type=Path, help="what `embedpipe demo` wrote")
    parser.add_argument("--decoder", help="its own by default")
    parser.add_argument("--prior", help="its own by default")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--sheet", type=Path, help="the first pictures, as a .png")
    parser.add_argument("--results", type=Path, default=report.RESULTS)
    options = parser.parse_args()
    started = report.start("benchmarks.decoder_judge", measure.use_cores(None))
    dataset = EmbeddingDataset(str(options.demo / "emb"))
    captions, splits = list(dataset.metadata["caption"]), list(dataset.metadata["split"])
    rows, training = held_out(captions, splits, options.rows)
    names = list(GROUPS)
    labels = torch.tensor([names.index(group_of(caption) or names[0]) for caption in captions])
    decoder = load_decoder(options.decoder or str(options.demo / "decoder"))
    side = decoder.stage(len(decoder.stages)).config.image_size
    true = true_pictures(dataset, side)
    small = F.interpolate(true, (SIZE, SIZE), mode="area")
    judge = trained_judge(small[training], labels[training], len(names))
    table = [("true pictures", *shares(judge, true[rows], labels[rows], true[rows]))]
    pictures = {"true": true[rows]}
    for name, given in embeddings(options.demo, dataset, rows, options.prior or str(options.demo / "prior")).items():
        draws = torch.Generator().manual_seed(0)
        made = decoder.sample(image_embed=given, cond_scale=options.guidance, generator=draws).float()
        pictures[name] = made
        table.append((f"made from {name}", *shares(judge, made, labels[rows], true[rows])))
    if options.sheet is not None:
        sheet({name: it[:16] for name, it in pictures.items()}, options.sheet)
    report.write(
        "decoder_judge",
        f"pictures of {len(rows)} held-out captions of known concepts: is it the group, and the colour, asked for?",
        [report.table(("", "group right", "colour right"), [(a, f"{b:.2f}", f"{c:.2f}") for a, b, c in table])],
        started,
        not_measured=["people's judgement"],
        folder=options.results,
    )


if __name__ == "__main__":
    main()
