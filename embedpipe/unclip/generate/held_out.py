"""Pictures made of held-out captions beside the true ones and the nearest in training: are they of what they say?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from embedpipe.errors import InputError, RunMismatch
from embedpipe.images.sheet import SheetCell
from embedpipe.load import EmbeddingDataset, rows_of_split
from embedpipe.load.images.source import Images, source_images
from embedpipe.load.split import TRAIN, VALID

from ..evaluate.held_out_rows import trained_on
from ..evaluate.priors import PRIOR_RUN, refuse_another_encoder, sample_rows
from ..runs.record import read_run_record
from ..runs.split import SplitConfig
from .models import Models, decoder_facts

_ROWS_AT_ONCE = 65_536


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Rows of a data set that neither prior nor decoder was trained on, and those that they were.

    rows, captions, text [n, d], image [n, d]: of n held-out rows; embeddings float32. train: row numbers.
    """

    dataset: EmbeddingDataset
    rows: np.ndarray
    captions: list[str]
    text: Tensor
    image: Tensor
    train: np.ndarray


@dataclass(frozen=True, slots=True)
class CaptionScores:
    """How pictures go with captions, by the encoder.

    own, others: mean cosine with their own captions, and with all the others. nearer: how often a picture is nearer to
    its own caption than to another one, 0.5 for a guess.
    """

    own: float
    others: float
    nearer: float


@dataclass(frozen=True, slots=True)
class HeldOutComparison:
    """made, true: of the pictures that were made, and of the true ones, over `captions` captions.

    nearest_training: mean cosine of a made picture with the training picture nearest to it.
    """

    captions: int
    made: CaptionScores
    true: CaptionScores
    nearest_training: float


def open_held_out(models: Models, emb: str, most: int) -> HeldOut:
    """At most `most` held-out rows of the data set `emb`, split as the prior's run was; the same ones each time.

    Raises RunMismatch where `emb` is of another encoder, or the decoder was trained on another split.
    """
    if models.prior is None:
        raise InputError("pictures of held-out captions need a prior", "Give its run with `prior`")
    facts = read_run_record(models.prior, PRIOR_RUN, "train-prior")
    dataset = EmbeddingDataset(emb)
    refuse_another_encoder(models.prior, facts, dataset, models.trust_old_card)
    _refuse_another_split(models, facts["split"])
    names = SplitConfig.of(facts["split"]).names(dataset, models.prior)
    held = rows_of_split(names, VALID, emb)
    seen = trained_on(models.prior, facts, dataset)[held]
    if seen.any():
        raise RunMismatch(
            f"{models.prior}: was trained on {int(seen.sum()):,} of the {len(held):,} held-out rows of {emb}",
            "Give the data set that it was trained on",
        )
    rows = sample_rows(held, most)
    if len(rows) < 2:
        raise InputError(f"{emb}: one held-out row; two or more are needed to compare captions")
    return HeldOut(
        dataset=dataset,
        rows=rows,
        captions=[str(row["caption"]) for row in dataset.rows(rows.tolist(), ("caption",))],
        text=_floats(dataset.require("text")[rows]),
        image=_floats(dataset.require("image")[rows]),
        train=rows_of_split(names, TRAIN, emb),
    )


def compare_held_out(held: HeldOut, embeds: Tensor, text: Sequence[int]) -> tuple[HeldOutComparison, np.ndarray]:
    """How pictures made of the captions compare, and for each caption the training row nearest to its first picture.

    embeds: [n, d], the encoder's, of the pictures; text: the caption's number, for each.
    """
    embeds, of_caption = F.normalize(embeds.float(), dim=-1), torch.tensor(text)
    first = torch.stack([embeds[of_caption == number][0] for number in range(len(held.rows))])
    nearest, likeness = _nearest(held, first)
    own_row = torch.arange(len(held.rows))
    return (
        HeldOutComparison(
            captions=len(held.rows),
            made=caption_scores(embeds, held.text, of_caption),
            true=caption_scores(held.image, held.text, own_row),
            nearest_training=float(likeness.mean()),
        ),
        nearest,
    )


def caption_scores(images: Tensor, texts: Tensor, own: Tensor) -> CaptionScores:
    """images [n, d] and captions [b, d], normalised; own: [n], which caption is an image's. b is 2 or more."""
    likeness = images @ texts.T
    right = likeness.gather(1, own[:, None])
    other = torch.ones_like(likeness, dtype=torch.bool).scatter(1, own[:, None], False)
    # A tie is half a win: captions that are the same must not count for or against.
    wins = (right > likeness).double() + 0.5 * (right == likeness).double()
    return CaptionScores(float(right.mean()), float(likeness[other].mean()), float(wins[other].mean()))


def cells_of(
    held: HeldOut, made: Sequence[bytes], text: Sequence[int], nearest: np.ndarray, images: Images
) -> tuple[list[SheetCell], int]:
    """The rows of a sheet: the true picture, those made, the nearest in training; and how many columns it has.

    images: where the image shards are now. A picture that is not to be had leaves a grey field.
    """
    rows = [*held.rows.tolist(), *nearest.tolist()]
    places = [(str(it["src_shard"]), str(it["key"])) for it in held.dataset.rows(rows, ("src_shard", "key"))]
    stored = source_images(held.dataset, places, images)
    cells = []
    for number, caption in enumerate(held.captions):
        mine = [picture for picture, row in zip(made, text, strict=True) if row == number]
        cells.append(SheetCell(stored.get(places[number]), f"true: {caption}"))
        cells += [SheetCell(picture, "made") for picture in mine]
        cells.append(SheetCell(stored.get(places[len(held.rows) + number]), "nearest in training"))
    return cells, len(cells) // len(held.captions)


def _refuse_another_split(models: Models, split: dict[str, object]) -> None:
    """What the prior's run held out the decoder may have seen, where it was split in another way."""
    facts = decoder_facts(models.decoder) or {}
    found = facts.get("split", split)
    if found != split:
        raise RunMismatch(
            f"{models.decoder}: trained on another split ({found}) than {models.prior} ({split}): "
            "what one held out, the other may have seen",
            "Give runs of the same split",
        )


def _nearest(held: HeldOut, images: Tensor) -> tuple[np.ndarray, Tensor]:
    """For each image [n, d] the training row with the largest cosine, and that cosine."""
    column = held.dataset.require("image")
    best, rows = torch.full((len(images),), -2.0), np.zeros(len(images), np.int64)
    for start in range(0, len(held.train), _ROWS_AT_ONCE):
        some = held.train[start : start + _ROWS_AT_ONCE]
        likeness, place = (images @ _floats(column[some]).T).max(dim=1)
        better = likeness > best
        rows[better.numpy()] = some[place[better].numpy()]
        best = torch.where(better, likeness, best)
    return rows, best


def _floats(rows: np.ndarray) -> Tensor:
    return F.normalize(torch.from_numpy(np.asarray(rows, np.float32)), dim=-1)
