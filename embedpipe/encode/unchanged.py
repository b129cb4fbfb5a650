"""Whether an encoder is the one that an output was made with, as far as names and times tell without loading it."""

from __future__ import annotations

from pathlib import Path

from .. import files, manifest
from ..clip_model.encoder_card import EncoderCard
from .base import EncoderConfig


def same_by_name(out: str, card: EncoderCard, asked: EncoderConfig) -> bool:
    """Whether `asked` names the encoder of `card`, and no file of it is newer than the record of `out`.

    False where that cannot be told: a run then loads the encoder, and compares weights.
    """
    usual = EncoderConfig(asked.model)
    return (
        files.is_local(out)
        and (asked.encoder, asked.seed, asked.options) == (usual.encoder, usual.seed, usual.options)
        and asked.precision in ("auto", card.precision)
        and (asked.dtype, asked.decode) == (card.dtype, card.decode)
        and all(
            _is(name, recorded, Path(files.local_path(files.join(out, manifest.RUN_FILE))))
            for name, recorded in ((asked.model, card.model), (asked.pretrained, card.pretrained))
        )
    )


def _is(name: str, recorded: str, record: Path) -> bool:
    path = Path(name.removeprefix("local-dir:"))
    if not name or not path.exists():
        return name == recorded
    written = record.stat().st_mtime_ns
    parts = [it for it in path.iterdir() if it.is_file()] if path.is_dir() else [path]
    return str(path.resolve()) == recorded and all(it.stat().st_mtime_ns < written for it in parts)
