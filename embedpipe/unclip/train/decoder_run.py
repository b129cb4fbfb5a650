"""The run folder of a decoder's stage: what made it, and whether it may be continued or stand beside another."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from dalle2_core.decoder.decoder import stage_folder
from dalle2_core.decoder.loading import VAE, finish_decoder
from dalle2_core.decoder.stage import DecoderStage
from dalle2_core.decoder.stage_config import without_later
from dalle2_core.files import sha256
from embedpipe import files
from embedpipe.clip_model.encoder_card import EncoderCard
from embedpipe.errors import RunMismatch
from embedpipe.load.identity import row_marks
from embedpipe.load.images.source import sources_of
from embedpipe.load.split import TRAIN, VALID
from embedpipe.mirror import local_copy

from ..data.decoder_batches import DecoderRows
from ..data.row_policy import RowPolicy
from ..runs.extend import Extension, extension
from ..runs.record import RUN_FILE, json_object, made_for, read_run_record
from ..runs.resume import NameOf, newest_checkpoint, option_of, refuse_finished
from .decoder_config import DecoderJob

STAGE_RUN = "decoder-stage"
_MADE_BY = "train-decoder"
# What a run is known by, as a recipe's groups are called.
_GROUPS = {"network": "network", "diffusion": "stage", "train": "train", "optim": "optim"}


def stage_of(out: str, number: int) -> str:
    """Where in a decoder's output, any fsspec url, the run of a stage is."""
    return files.join(out, str(stage_folder(Path(), number)))


def usual_preset(out: str) -> str:
    """The preset where none is named: `quick`, or `tiny` where a stage in `out` was begun with it when it was usual."""
    for folder in (stage_of(out, number) for number in (1, 2)):
        newest = newest_checkpoint(folder)
        found = (newest or {}).get("identity") or json_object(files.join(folder, RUN_FILE)) or {}
        network = found.get("network")
        if isinstance(network, dict) and network.get("patch_size", 1) == 1:
            return "tiny"
    return "quick"


def stage_is_finished(out: str, stages: int) -> bool:
    """`finish_decoder` for an output that may be in an object store."""
    if files.is_local(out):
        return finish_decoder(files.local_path(out), stages)
    if not all(files.exists(files.join(stage_of(out, number), "config.json")) for number in range(1, stages + 1)):
        return False
    copy = local_copy(out)  # some stages may have been trained elsewhere
    if not finish_decoder(copy, stages):
        return False
    files.upload(files.join(copy, "config.json"), files.join(out, "config.json"))
    return True


def run_record(
    job: DecoderJob, number: int, stage: DecoderStage, seen: DecoderRows, rows: dict[str, np.ndarray]
) -> dict[str, Any]:
    """What a stage's run.json says of it, as plain JSON values."""
    vae = job.vaes[number - 1] if number <= len(job.vaes) else None
    card = seen.dataset.card
    return {
        "stage": number,
        "stages": len(job.recipe.stages),
        "recipe": dataclasses.asdict(job.recipe.part(number)),
        "network": dataclasses.asdict(stage.unet.config),
        "diffusion": dataclasses.asdict(stage.config),
        "split": job.split.facts(),
        "rows": dataclasses.asdict(job.source.rows),
        "data": job.images[0] if len(job.images) == 1 else list(job.images or sources_of(seen.dataset)),
        "embeddings": job.emb,
        "encoder": dataclasses.asdict(card),
        "fingerprint": card.fingerprint(),
        "vae": None if vae is None else _autoencoder_sha256(Path(vae)),
        "join": dataclasses.asdict(seen.join.counts),
        "train_rows": len(rows[TRAIN]),
        "valid_rows": len(rows[VALID]),
        # The order in which images lie decides the order of training.
        "order_sha256": hashlib.sha256(b"".join(it.rows.tobytes() for it in seen.join.shards)).hexdigest(),
    }


def _autoencoder_files(folder: Path) -> list[Path]:
    """What an autoencoder's folder keeps of it, config.json last: weights lie under names of their makers."""
    return [*sorted(folder.glob("*.safetensors")), folder / "config.json"]


def _autoencoder_sha256(folder: Path) -> str:
    return hashlib.sha256("".join(map(sha256, _autoencoder_files(folder))).encode()).hexdigest()


def identity_of(facts: dict[str, Any]) -> dict[str, Any]:
    """What must stay the same for a stage's run to be continued, besides the training settings."""
    names = ("stage", "network", "diffusion", "split", "rows", "fingerprint", "vae", "train_rows", "order_sha256")
    kept = {name: facts[name] for name in names if name != "rows" or facts[name] != dataclasses.asdict(RowPolicy())}
    return kept | {name: without_later(kept[name]) for name in ("network", "diffusion")}


def stage_extension(
    job: DecoderJob, folder: str, facts: dict[str, Any], seen: DecoderRows, rows: dict[str, np.ndarray]
) -> Extension:
    """How the run in `folder`, a stage's or its working copy, is extended. Raises RunMismatch where it is another."""
    recipe, names = job.recipe.part(facts["stage"]), option_names(facts["stage"])
    marks = functools.partial(row_marks, seen.dataset, rows[TRAIN])
    found = extension(folder, identity_of(facts), recipe.train, recipe.optim, marks, names)
    refuse_finished(folder, STAGE_RUN, _MADE_BY, identity_of, facts, names, found.grown)
    return found


def option_names(number: int) -> NameOf:
    """What a user calls the settings of stage `number`."""

    def name_of(key: str) -> str:
        group, dot, name = key.partition(".")
        return f"stages.{number}.{_GROUPS[group]}.{name}" if dot and group in _GROUPS else option_of(key)

    return name_of


def refuse_neighbours(job: DecoderJob, number: int, card: EncoderCard) -> None:
    """Raise RunMismatch if a finished stage beside this one does not fit it: of another encoder, or of another size."""
    for other in range(1, len(job.recipe.stages) + 1):
        folder = stage_of(job.out, other)
        if other == number or not files.exists(files.join(folder, RUN_FILE)):
            continue
        found = read_run_record(folder, STAGE_RUN, _MADE_BY)
        if not made_for(folder, found, job.emb, card, job.trust_old_card):
            raise RunMismatch(
                f"{folder}: trained on embeddings of another encoder than {job.emb} holds",
                "Give embeddings of the same encoder, or another output folder",
            )
        size, wanted = found["diffusion"]["image_size"], job.recipe.part(other).stage.image_size
        if size != wanted:
            raise RunMismatch(
                f"{folder}: makes images of {size} pixels, but the recipe's stage {other} makes {wanted}",
                "Give the sizes that it was trained for, or another output folder",
            )


def keep_autoencoder(source: Path, folder: Path) -> None:
    """A copy beside the stage's weights, so that its folder is all that the stage needs."""
    inside = folder / VAE
    inside.mkdir(parents=True, exist_ok=True)
    for path in _autoencoder_files(source):
        with files.writing(str(inside / path.name)) as stream, path.open("rb") as original:
            shutil.copyfileobj(original, stream)
