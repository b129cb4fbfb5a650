"""Plan an encode run: numbered input shards, minus those already committed to the output."""

from __future__ import annotations

import dataclasses
import hashlib
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from .. import manifest
from ..accounts import Accounts, Ledger
from ..clip_model.compatibility import same_encoder
from ..clip_model.encoder_card import EncoderCard, rules_in_words
from ..columns import MEASURED, guess
from ..errors import EmptyInput, InputError, RunMismatch
from ..images.rules import image_rules
from ..manifest import EMBEDDINGS, RunCard
from ..plural import plural
from ..read import Reader
from ..shard_plan import PlanChange, grow_plan
from ..store import open_format
from ..types import Reject, SourceShard
from .refusals import refuse_other_data, refuse_other_folder

_SAMPLES_TO_GUESS_COLUMNS_FROM = 256


def plan_input(
    out: str, before: RunCard | None, shaping: dict[str, Any], reader: Reader, overwrite: bool
) -> PlanChange:
    """The current plan. Raises RunMismatch for options other than `shaping`, or a changed input shard."""
    refuse_other_folder(out)
    if before is None:
        if manifest.committed_numbers(out):
            raise RunMismatch(f"{out}: has manifests but no embedpipe.json", "Give another output folder")
        return _grown((), reader)
    if overwrite:
        return _grown((), reader)
    refuse_other_options(out, before, shaping)
    survey = reader.survey(before.plan)
    change = grow_plan(before.plan, survey.shards, survey.accounts)
    refuse_other_data(out, change, len(before.plan))
    if not change.changed:
        return change
    committed = set(manifest.committed_numbers(out))
    renewed = list(change.shards)
    now = {shard.name: shard for shard in survey.shards}
    for number in change.changed:
        planned, present = before.plan[number], now[before.plan[number].name]
        if number in committed:
            _refuse_other_contents(out, number, before.shard_digits, planned, present, reader)
        renewed[number] = present
    return dataclasses.replace(change, shards=tuple(renewed))


def _grown(planned: Sequence[SourceShard], reader: Reader) -> PlanChange:
    survey = reader.survey(planned)
    return grow_plan(planned, survey.shards, survey.accounts)


def refuse_other_options(out: str, before: RunCard, shaping: dict[str, Any]) -> None:
    """Raise RunMismatch if `out` was made by another command, or with other options."""
    if made_by := before.options.get("selection", {}).get("made_by"):
        raise RunMismatch(f"{out}: was made by `embedpipe {made_by}` out of another data set", manifest.SAME_OR_ANEW)
    if before.merged:
        parts = ", ".join(part.path for part in before.merged)
        raise RunMismatch(
            f"{out}: was put together by `embedpipe merge`", f"Encode into one of {parts}, and merge again"
        )
    manifest.refuse_difference(out, before.options, shaping, "set of options", manifest.SAME_OR_ANEW)


def refuse_other_background(out: str, before: RunCard | None, background: str | None) -> None:
    """Raise RunMismatch if the images of an earlier run were composited over another colour, or over none."""
    if background is None:
        return
    now = image_rules(background)
    if before is not None and before.encoder is not None and before.encoder.rules.transparency != now.transparency:
        raise RunMismatch(
            f"{out}: its images were decoded with {rules_in_words(before.encoder.rules)}; `background` is "
            f"{now.transparency}",
            "Drop `background` to go on as before, or give another output folder",
        )


def _refuse_other_contents(
    out: str, number: int, digits: int, planned: SourceShard, present: SourceShard, reader: Reader
) -> None:
    """A touched or copied input shard is accepted if its bytes are unchanged."""
    if planned.bytes == present.bytes and planned.members == present.members:
        digest = hashlib.sha256()
        for _ in reader.read(present, digest):
            pass
        if digest.hexdigest() == manifest.read_manifest(out, number, digits).source_sha256:
            return
    raise RunMismatch(
        f"input shard {planned.name} changed since it was encoded (then {planned.bytes} bytes, now {present.bytes})",
        f"Encode into another folder, or remove {out}/manifest/{manifest.shard_name(number, digits)}.json to redo it",
    )


def run_card(
    out: str,
    before: RunCard | None,
    change: PlanChange,
    encoder: tuple[EncoderCard, int | None],
    shaping: dict[str, Any],
    reader: Reader,
) -> RunCard:
    """The new run card of the output. encoder: its card, and the width of token states, if any.

    Raises RunMismatch if `before` was made with another encoder, EmptyInput.
    """
    card, token_width = encoder
    if before is not None and before.encoder is not None:
        if not same_encoder((out, before.encoder), (out, card)):
            manifest.refuse_difference(out, before.encoder.facts(), card.facts(), "encoder", manifest.SAME_OR_ANEW)
        return dataclasses.replace(before, plan=change.shards, listing=change.listing)
    return RunCard(
        format=EMBEDDINGS,
        options=shaping,
        plan=change.shards,
        listing=change.listing,
        columns={
            **MEASURED,
            **_guess_columns(change.shards, reader, open_format(shaping["format"]).own_columns),
        },
        encoder=card,
        token_width=token_width,
        shard_digits=max(5, len(str(10 * len(change.shards)))),
        versions=_versions(),
    )


def _guess_columns(shards: Sequence[SourceShard], reader: Reader, taken: Sequence[str]) -> dict[str, str]:
    """Column types from the first samples. A field whose name is `taken` goes to the column `extra`.

    Raises EmptyInput if no shard contains a sample, or the error of the first shard if none can be read.
    """
    unreadable: list[InputError] = []
    rejects: Counter[str] = Counter()
    first: dict[str, Reject] = {}
    ledger = Ledger(reader.unit)
    for shard in shards:
        rows: list[dict[str, Any]] = []
        try:
            for arrival in reader.read(shard, hashlib.sha256(), ledger):
                if isinstance(arrival, Reject):
                    rejects[arrival.error_class] += 1
                    first.setdefault(arrival.error_class, arrival)
                else:
                    rows.append(arrival.metadata)
                if len(rows) == _SAMPLES_TO_GUESS_COLUMNS_FROM:
                    break
        except InputError as problem:  # the shard will fail later; others may be readable
            unreadable.append(problem)
            continue
        if rows:
            return {name: kind for name, kind in guess(rows).items() if name not in taken}
    if unreadable and len(unreadable) == len(shards):
        raise unreadable[0]
    raise _nothing_usable(len(shards), rejects, first, ledger.closed())


def _nothing_usable(shards: int, rejects: Counter[str], first: Mapping[str, Reject], accounts: Accounts) -> EmptyInput:
    """The error that says why: each class of rejects with its count and the first message."""
    reasons = [
        f"{count:,} {name} ({first[name].key or 'the shard'}: {first[name].message})"
        for name, count in rejects.most_common()
    ]
    reasons += [said] if (said := accounts.said()) else []
    return EmptyInput(
        f"no usable sample in {plural(shards, 'shard')}: {'; '.join(reasons) or 'nothing in it'}",
        "A sample needs an image and a caption (.txt, or a field of .json named by `caption_key`); "
        "`texts=False` or `images=False` asks for one of them alone",
    )


def _versions() -> dict[str, str]:
    packages = ("embedpipe", "torch", "open_clip_torch", "pillow", "numpy", "pyarrow")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}
