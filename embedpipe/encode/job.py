"""The encode job: plan the input, find what is missing, hand shards to workers, which commit them one by one."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from .. import files, manifest
from ..columns import guess
from ..errors import DiskFull, EmptyInput, InputError, RunMismatch
from ..execute import Outcome, SetAside, Task, open_executor
from ..lock import exclusive
from ..manifest import EMBEDDINGS, RunCard, ShardManifest
from ..plan import PlanChange, grow
from ..progress import Listener, Progress, RejectLimit, TaskReport, add_counts, silent
from ..read import Reader, SampleRules, open_reader
from ..store import open_format
from ..store.leftovers import sweep_leftovers, sweep_temporaries
from ..types import Sample, SourceShard
from ..wording import counted
from . import load_encoder
from .base import Encoder, EncoderConfig
from .discard import discard
from .pictures import StageConfig
from .space import with_need
from .watch import Watch
from .work import EncodeWork

_SAMPLES_TO_GUESS_COLUMNS_FROM = 256
_OTHER_RUN = "Give the same as before, another output folder, or --overwrite to begin again"


@dataclass(frozen=True, slots=True)
class EncodeConfig:
    """Everything `encode` can be told.

    gpus: how many CUDA devices to use, one worker each; None takes all there are. workers: worker processes on the CPU
    where gpus is 0. threads_per_worker: None shares the cores out evenly. input: a name in READERS or auto.
    caption_key: the .json field that holds the caption where there is no .txt, or the column of a table. image_column
    and key_column: of a table, see `SampleRules`. samples_per_shard: how a folder of loose images is cut. format: a
    name in FORMATS. overwrite: remove what an earlier run wrote to the output, and begin again. max_rejects: stop early
    when there is no hope to stay below it.
    """

    encoder: EncoderConfig
    stage: StageConfig = field(default_factory=StageConfig)
    input: str = "auto"
    caption_key: str = "caption"
    samples_per_shard: int = 10_000
    format: str = "npy"
    executor: str = "auto"
    gpus: int | None = None
    workers: int = 1
    threads_per_worker: int | None = None
    image_column: str | None = None
    key_column: str | None = None
    overwrite: bool = False
    max_rejects: RejectLimit | None = None

    def shaping(self) -> dict[str, Any]:
        """The options that decide what the output holds; a run can only be continued under the same."""
        return {
            "input": self.input,
            "caption_key": self.caption_key,
            "images": self.stage.images,
            "texts": self.stage.texts,
            "max_pixels": self.stage.max_pixels,
            "format": self.format,
            "image_column": self.image_column,
            "key_column": self.key_column,
            # Absent rather than false: outputs begun before there was this option go on without it.
            **({"text_tokens": True} if self.stage.text_tokens else {}),
        }

    def reader(self, data: str) -> Reader:
        """The reader of the input `data`."""
        rules = SampleRules(self.caption_key, self.stage.images, self.stage.texts, self.image_column, self.key_column)
        return open_reader(data, rules, self.input, self.samples_per_shard)


@dataclass(frozen=True, slots=True)
class EncodeReport:
    """What a run of `encode` did.

    planned: shards in the plan. already: of these, committed before. rows, rejected, rejects (by class): in the whole
    output, also from earlier runs. report: what this run added, at samples_per_s (rejects counted) by the clock;
    time_share: where its workers spent their time, adding up to 1. vanished: input shards that are no longer there
    (embeddings made of them are kept). redone: committed shards whose files were missing or cut and which were encoded
    again. set_aside: shards that could not be encoded, and why.
    """

    planned: int
    already: int
    rows: int
    rejected: int
    rejects: dict[str, int]
    redone: tuple[str, ...]
    report: TaskReport
    vanished: tuple[str, ...]
    set_aside: tuple[SetAside, ...]
    seconds: float
    samples_per_s: float
    time_share: dict[str, float]


def encode(data: str, out: str, config: EncodeConfig, listen: Listener = silent) -> EncodeReport:
    """Encode the image shards or folder `data` into the embedding data set `out`; run again, it goes on.

    Raises InputError (nothing to read), ModelError, RunMismatch (the output was made in another way), OutputBusy,
    DiskFull, TooManyRejects. What was committed before stays whole under all of them.
    """
    begun = time.perf_counter()
    open_format(config.format)
    _refuse_contradictions(config)
    reader = config.reader(data)
    with exclusive(out):
        found = manifest.read_run(out)
        change = _plan(out, found, config, reader)
        devices = _devices(config)
        before = None if config.overwrite else found
        config = _settled(config, before, devices[0])
        listen(Progress(doing=f"loading {config.encoder.model}"))
        # On a worker's device also where this process only asks for the card: the precision depends on the device.
        encoder = load_encoder(config.encoder, devices[0])
        run = _run_card(out, before, change, encoder, config, reader)
        run = dataclasses.replace(run, source=files.absolute(data))
        if found is not None and config.overwrite:
            discard(out, found)  # not earlier: a wrong model name must not cost a data set
        committed, redone = _committed(out, run, change.vanished)
        todo = _still_to_do(run, committed, change.vanished)
        _sweep(out, run, before, todo)
        threads = _threads(config, len(devices))
        work = EncodeWork(reader, config.encoder, config.stage, out, run, tuple(devices), threads)
        if len(devices) == 1:
            work.adopt(encoder)
        del encoder
        watch = Watch(listen, out, config.max_rejects, committed.values())
        try:
            manifest.write_run(out, manifest.with_pending(out, run))
            loading = f"{counted(len(devices), 'worker')} loading {config.encoder.model}" if len(devices) > 1 else ""
            watch(Progress(planned=len(todo), doing=loading))
            outcome = open_executor(config.executor, len(devices)).run(work, todo, watch)
            # What workers left that were killed and replaced, or not.
            sweep_temporaries(out)
            sweep_leftovers(out, run.shard_digits, [aside.task.number for aside in outcome.set_aside])
            manifest.settle(out)
        except DiskFull as problem:
            raise with_need(problem, out, run, todo, watch.rows_seen, len(devices)) from problem
    return _report(run, change, committed, redone, outcome, time.perf_counter() - begun)


def _refuse_contradictions(config: EncodeConfig) -> None:
    if not config.stage.images and not config.stage.texts:
        raise InputError("nothing to encode: both images and texts were turned off", "Drop --no-image or --no-text")
    if config.stage.text_tokens and not config.stage.texts:
        raise InputError("no text tokens without texts: texts were turned off", "Drop --text-tokens or --no-text")


def _settled(config: EncodeConfig, before: RunCard | None, device: str) -> EncodeConfig:
    """`config` with what follows from the device, and the precision of an earlier run where none was asked for."""
    encoder, stage = config.encoder, config.stage
    if encoder.precision == "auto" and before is not None and before.encoder is not None:
        encoder = dataclasses.replace(encoder, precision=before.encoder.precision)
    stage = dataclasses.replace(stage, pin_memory=device.startswith("cuda"))
    return dataclasses.replace(config, encoder=encoder, stage=stage)


def _still_to_do(run: RunCard, committed: Mapping[int, ShardManifest], vanished: Sequence[int]) -> list[Task]:
    return [
        Task(number, shard.name, shard)
        for number, shard in enumerate(run.plan)
        if number not in committed and number not in vanished
    ]


def _sweep(out: str, run: RunCard, before: RunCard | None, todo: Sequence[Task]) -> None:
    """Remove what a killed run left behind."""
    sweep_temporaries(out)
    if before is not None:
        sweep_leftovers(out, run.shard_digits, [task.number for task in todo])


def _report(
    run: RunCard,
    change: PlanChange,
    committed: Mapping[int, ShardManifest],
    redone: tuple[str, ...],
    outcome: Outcome,
    seconds: float,
) -> EncodeReport:
    done = outcome.report
    rejects = done.rejects
    for entry in committed.values():
        rejects = add_counts(rejects, entry.rejects)
    spent = sum(done.spent_s.values())
    return EncodeReport(
        planned=len(run.plan),
        already=len(committed),
        rows=done.rows + sum(entry.rows_out for entry in committed.values()),
        rejected=done.rejected + sum(entry.rows_rejected for entry in committed.values()),
        rejects=rejects,
        redone=redone,
        report=done,
        vanished=tuple(run.plan[number].name for number in change.vanished),
        set_aside=outcome.set_aside,
        seconds=seconds,
        samples_per_s=(done.rows + done.rejected) / max(seconds, 1e-9),
        time_share={name: share / spent for name, share in done.spent_s.items()} if spent else {},
    )


def plan_encode(data: str, out: str, config: EncodeConfig) -> tuple[PlanChange, list[int]]:
    """What `encode` would do, without doing it: the grown plan and the numbers still to encode."""
    change = _plan(out, manifest.read_run(out), config, config.reader(data))
    done = set(manifest.committed_numbers(out)) if not config.overwrite else set()
    return change, [n for n in range(len(change.shards)) if n not in done and n not in change.vanished]


def _plan(out: str, before: RunCard | None, config: EncodeConfig, reader: Reader) -> PlanChange:
    """The plan as it is now. Raises RunMismatch for other options or a changed input shard."""
    if before is None:
        if manifest.committed_numbers(out):
            raise RunMismatch(f"{out}: has manifests but no embedpipe.json", "Give another output folder")
        return grow((), reader.shards(()))
    if before.format != EMBEDDINGS:
        raise RunMismatch(f"{out}: holds {before.format}, not {EMBEDDINGS}", "Give another output folder")
    if config.overwrite:
        return grow((), reader.shards(()))
    if made_by := before.options.get("selection", {}).get("made_by"):
        raise RunMismatch(f"{out}: was made by `embedpipe {made_by}` out of another data set", _OTHER_RUN)
    if before.merged:
        parts = ", ".join(part.path for part in before.merged)
        raise RunMismatch(
            f"{out}: was put together by `embedpipe merge`", f"Encode into one of {parts}, and merge again"
        )
    manifest.refuse_difference(out, before.options, config.shaping(), "set of options", _OTHER_RUN)
    change = grow(before.plan, reader.shards(before.plan))
    committed = set(manifest.committed_numbers(out))
    renewed = list(change.shards)
    now = {shard.name: shard for shard in reader.shards(before.plan)} if change.changed else {}
    for number in change.changed:
        planned, present = before.plan[number], now[before.plan[number].name]
        if number in committed:
            _refuse_other_contents(out, number, before.shard_digits, planned, present, reader)
        renewed[number] = present
    return dataclasses.replace(change, shards=tuple(renewed))


def _refuse_other_contents(
    out: str, number: int, digits: int, planned: SourceShard, present: SourceShard, reader: Reader
) -> None:
    """A touched or copied input shard is fine as long as its bytes are those that were encoded."""
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


def _run_card(
    out: str, before: RunCard | None, change: PlanChange, encoder: Encoder, config: EncodeConfig, reader: Reader
) -> RunCard:
    if before is not None and before.encoder is not None:
        manifest.refuse_difference(out, before.encoder.facts(), encoder.card.facts(), "encoder", _OTHER_RUN)
        return dataclasses.replace(before, plan=change.shards)
    return RunCard(
        format=EMBEDDINGS,
        options=config.shaping(),
        plan=change.shards,
        columns=_guess_columns(change.shards, reader, open_format(config.format).own_columns),
        encoder=encoder.card,
        token_width=encoder.text_states(["a"]).tokens.width if config.stage.text_tokens else None,
        shard_digits=max(5, len(str(10 * len(change.shards)))),
        versions=_versions(),
    )


def _guess_columns(shards: Sequence[SourceShard], reader: Reader, taken: Sequence[str]) -> dict[str, str]:
    """Column types from the first samples there are. A field whose name is `taken` is left to the column `extra`.

    Raises EmptyInput when no shard holds a single one, or what is wrong with the first shard when none can be read.
    """
    unreadable: list[InputError] = []
    for shard in shards:
        arrivals = (arrival for arrival in reader.read(shard, hashlib.sha256()) if isinstance(arrival, Sample))
        try:
            rows = [sample.metadata for sample in itertools.islice(arrivals, _SAMPLES_TO_GUESS_COLUMNS_FROM)]
        except InputError as problem:  # the shard will be set aside; the others may do
            unreadable.append(problem)
            continue
        if rows:
            return {name: kind for name, kind in guess(rows).items() if name not in taken}
    if unreadable and len(unreadable) == len(shards):
        raise unreadable[0]
    raise EmptyInput(
        f"no usable sample in {counted(len(shards), 'shard')}",
        "A sample needs an image and a caption (.txt, or a field of .json named by --caption-key); "
        "--no-text and --no-image ask for less",
    )


def _versions() -> dict[str, str]:
    packages = ("embedpipe", "torch", "open_clip_torch", "pillow", "numpy", "pyarrow")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def _committed(out: str, run: RunCard, vanished: Sequence[int]) -> tuple[dict[int, ShardManifest], tuple[str, ...]]:
    """Manifests of shards that need not be encoded, and names of those whose files are not what their manifests say.

    Sizes are compared here; checksums are `embedpipe verify`'s, since a restart should not read the whole data set.
    """
    committed: dict[int, ShardManifest] = {}
    bad = []
    assert run.encoder is not None
    for number in manifest.committed_numbers(out):
        entry = manifest.read_manifest(out, number, run.shard_digits)
        if entry.fingerprint != run.encoder.fingerprint():
            raise RunMismatch(
                f"{out}: shard {number} was made by another encoder than embedpipe.json says", "Run `embedpipe verify`"
            )
        # What is damaged and cannot be made again is better than nothing; `embedpipe verify` tells of it.
        if number in vanished or manifest.files_are_there(out, entry):
            committed[number] = entry
        else:
            manifest.retract(out, number, run.shard_digits)
            bad.append(entry.source.name)
    return committed, tuple(bad)


def _devices(config: EncodeConfig) -> list[str]:
    """One device per worker. Raises InputError when more GPUs are asked for than there are."""
    import torch

    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    wanted = there if config.gpus is None else config.gpus
    if wanted > there:
        raise InputError(f"{wanted} GPUs asked for, {there} found", "Give --gpus 0 --workers N to encode on the CPU")
    return [f"cuda:{i}" for i in range(wanted)] if wanted else ["cpu"] * config.workers


def _threads(config: EncodeConfig, workers: int) -> int:
    """Threads for each worker's arithmetic, so that workers do not fight for cores."""
    return config.threads_per_worker or max(1, len(os.sched_getaffinity(0)) // workers)
