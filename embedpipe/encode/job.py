"""The encode job: plan the input, find missing shards, dispatch them to workers, which commit them one by one."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .. import files, manifest
from ..accounts import Accounts
from ..clip_model.encoder_card import BEFORE_ACTIVATION, EncoderCard
from ..clip_model.spec import ModelOptions
from ..clip_model.trusted import trust_card
from ..consent import remember_source
from ..errors import DiskFull, EmbedpipeError, ModelError, OptionError, RunMismatch, did_you_mean
from ..execute import (
    Allocation,
    Cluster,
    Executor,
    FailedTask,
    InlineExecutor,
    Outcome,
    RayExecutor,
    ResourceRequest,
    Task,
    open_places,
)
from ..folder_kind import require_pictures
from ..images.rules import colour
from ..lock import Part, claimed, exclusive, planning
from ..manifest import RunCard
from ..plural import plural
from ..progress import CutCaptions, Listener, Progress, RejectLimit, TaskReport, add_counts, silent
from ..read import LocalPaths, Reader, SampleRules, open_reader, refuse_without_effect
from ..read.delimited import DialectOptions
from ..read.names import FIRST_READING, READING
from ..read.path_table import folder_of_tables
from ..read.sample import DEFAULT_CAPTION_KEY, DEFAULT_MAX_SAMPLE_BYTES
from ..shard_plan import PlanChange
from ..store import FORMATS
from ..store.cleanup import sweep_dataset_temporaries, sweep_leftovers
from ..taken_down import refuse_interrupted
from . import load_encoder
from .base import Encoder, EncoderConfig
from .batching import BatchingConfig
from .crashed_run import noted, with_care
from .disk_space import with_need
from .overwrite import discard_output
from .planning import plan_input, refuse_other_background, refuse_other_options, run_card
from .precision import choose_precision, refuse_unknown_precision
from .refusals import refuse_own_input
from .reject_limit import RejectLimitListener
from .resume import CommittedTotals, scan_committed
from .unchanged import same_by_name
from .worker import EncodeWork

# Absent from the run card where they are these, so that outputs older than the options can be resumed.
_DEFAULTS_OF_PATHS = {"local_root": None, "file_column": None, "quoting": "auto", "delimiter": None, "encoding": None}


@dataclass(frozen=True, slots=True)
class EncodeConfig:
    """The options of `encode`.

    executor: a name in EXECUTORS or auto; cluster: which one, for ray. gpus: how many CUDA devices to use; None uses
    all. workers_per_gpu: worker processes on each; None is two where a GPU has 8 cores and 32 GiB, else one. workers:
    worker processes on the CPU where gpus is 0. threads_per_worker: None divides the cores evenly. part: the shards to
    encode, if other processes encode the rest. input: a name in READERS or auto. caption_key: the .json field with the
    caption, or the column of a table; None: the .txt, or else the field `caption`. image_column and key_column: of a
    table; image_member and caption_member: of a tar; reading: the version of the rules for names, None for that of the
    output, or the newest; max_sample_bytes; see `SampleRules`.
    samples_per_shard: for a folder of loose images, and a table of local paths. local_root: `data` is such a table, and
    its paths, in the column `file_column` or one of a usual name, must not lead out of this folder; quoting, delimiter
    and encoding are its dialect, as in `FetchConfig`. format: a name in FORMATS. overwrite: remove the output of an
    earlier run, and start over. trust_old_card: continue an output of version 0.1, with the model built as version 0.1
    built it. max_rejects: stop early once the limit cannot be met.
    """

    encoder: EncoderConfig
    stage: BatchingConfig = field(default_factory=BatchingConfig)
    input: str = "auto"
    caption_key: str | None = None
    samples_per_shard: int = 10_000
    format: str = "npy"
    executor: str = "auto"
    gpus: int | None = None
    workers: int = 1
    threads_per_worker: int | None = None
    image_column: str | None = None
    key_column: str | None = None
    overwrite: bool = False
    trust_old_card: bool = False
    max_rejects: RejectLimit | None = None
    cluster: Cluster = field(default_factory=Cluster)
    part: Part | None = None
    image_member: str | None = None
    caption_member: str | None = None
    reading: int | None = None
    max_sample_bytes: int = DEFAULT_MAX_SAMPLE_BYTES
    workers_per_gpu: int | None = None
    local_root: str | None = None
    file_column: str | None = None
    quoting: str = "auto"
    delimiter: str | None = None
    encoding: str | None = None

    def demand(self) -> ResourceRequest:
        """The workers and devices that the run requests."""
        part = self.part or Part(0, 1)
        beside = (part.neighbours, part.neighbour, part.shared_gpus, part.shared_cores)
        return ResourceRequest(self.gpus, self.workers, self.threads_per_worker, *beside, self.workers_per_gpu)

    def holds(self, number: int) -> bool:
        """Whether the shard of that number belongs to this run."""
        return self.part is None or self.part.holds(number)

    def shaping(self) -> dict[str, Any]:
        """The options that determine the output; a run can only be resumed with the same ones."""
        return {
            "input": self.input,
            "caption_key": self._caption_key(),
            "images": self.stage.images,
            "texts": self.stage.texts,
            "max_pixels": self.stage.max_pixels,
            "format": self.format,
            "image_column": self.image_column,
            "key_column": self.key_column,
            # Absent rather than the default, so that outputs older than these options can be resumed.
            **({"reading": self._reading()} if self._reading() != FIRST_READING else {}),
            **({"image_member": self.image_member} if self.image_member is not None else {}),
            **({"caption_member": self.caption_member} if self.caption_member is not None else {}),
            **({"text_tokens": True} if self.stage.text_tokens else {}),
            **({"reject_cut_captions": True} if self.stage.reject_cut_captions else {}),
            **({"max_sample_bytes": most} if (most := self.max_sample_bytes) != DEFAULT_MAX_SAMPLE_BYTES else {}),
            **({name: value for name, value in self._of_paths().items() if value != _DEFAULTS_OF_PATHS[name]}),
        }

    def _of_paths(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _DEFAULTS_OF_PATHS}

    def reader(self, data: str) -> Reader:
        """The reader of the input `data`."""
        rules = SampleRules(
            caption_key=self._caption_key(),
            need_image=self.stage.images,
            need_caption=self.stage.texts,
            image_column=self.image_column,
            key_column=self.key_column,
            image_member=self.image_member,
            caption_member=self.caption_member,
            reading=self._reading(),
            max_sample_bytes=self.max_sample_bytes,
        )
        paths = None
        if self.local_root is not None:
            dialect = DialectOptions(self.quoting, self.delimiter, self.encoding)
            paths = LocalPaths(self.local_root, self.file_column, dialect)
        elif given := [name for name, value in self._of_paths().items() if value != _DEFAULTS_OF_PATHS[name]]:
            raise OptionError(f"`{given[0]}` is for a table of local paths", "Give `local_root='DIR'` with it")
        reader = open_reader(data, rules, self.input, self.samples_per_shard, paths)
        refuse_without_effect(reader, rules)
        return reader

    def going_on(self, data: str, out: str) -> EncodeConfig:
        """With the rules under which `out` was begun, if it is there, and the root as seen from the table's folder."""
        if self.local_root is not None and files.is_local(data) and files.is_local(self.local_root):
            root, home = (files.absolute(place) for place in (self.local_root, folder_of_tables(data)))
            return dataclasses.replace(self, local_root=os.path.relpath(root, home))._begun(out)
        return self._begun(out)

    def _begun(self, out: str) -> EncodeConfig:
        before = None if self.overwrite else manifest.read_run(out)
        if before is None or before.format != manifest.EMBEDDINGS:
            return self
        return dataclasses.replace(self, reading=before.options.get("reading", FIRST_READING))

    def _reading(self) -> int:
        return READING if self.reading is None else self.reading

    def _caption_key(self) -> str | None:
        # Under the first rules the field was named whether or not anyone had asked for it.
        return self.caption_key or (DEFAULT_CAPTION_KEY if self._reading() == FIRST_READING else None)


@dataclass(frozen=True, slots=True)
class EncodeReport:
    """The result of a run of `encode`, for its part of the shards.

    planned: shards in the plan. already: of these, committed before. rows, rejected, rejects (by class), cut (captions
    longer than the model's context_length): in the whole output, including earlier runs. report: what this run added,
    at samples_per_s (including rejects, wall-clock); time_share: how its workers spent their time, summing to 1.
    vanished: input shards that no longer exist (their embeddings are kept). redone: committed shards with missing or
    truncated files, which were encoded again. failed_tasks: shards that could not be encoded, and why. listing: the
    files of DATA, if it is a folder.
    """

    planned: int
    already: int
    rows: int
    rejected: int
    rejects: dict[str, int]
    cut: CutCaptions
    context_length: int
    redone: tuple[str, ...]
    report: TaskReport
    vanished: tuple[str, ...]
    failed_tasks: tuple[FailedTask, ...]
    seconds: float
    samples_per_s: float
    time_share: dict[str, float]
    listing: Accounts | None


def encode(data: str, out: str, config: EncodeConfig, listen: Listener = silent) -> EncodeReport:
    """Encode the image shards or folder `data` to the embedding data set `out`; a repeated run resumes.

    Raises InputError (nothing to read), ModelError, RunMismatch (the output was made with other settings), OutputBusy,
    DiskFull, TooManyRejects. Committed shards stay intact in every case.
    """
    begun = time.perf_counter()
    _refuse_contradictions(config)
    refuse_own_input(data, out)
    require_pictures(data)
    config = config.going_on(data, out)
    reader = config.reader(data)
    if (finished := _finished(out, config, reader, begun)) is not None:
        return finished
    with (
        exclusive(out) if config.part is None else claimed(out, config.part),
        open_places(config.executor, config.demand(), config.cluster) as (executor, places),
    ):
        refuse_interrupted(out)
        found = manifest.read_run(out)
        change = plan_input(out, found, config.shaping(), reader, config.overwrite)
        before = None if config.overwrite else found
        _require_trust(out, before, config, _uncommitted(out, change, config))
        refuse_other_background(out, before, config.encoder.background)
        config = _settled(out, config, before, places.devices[0])
        listen(Progress(doing=f"loading {config.encoder.model}"))
        encoder, facts = _look_at_encoder(config, executor, places)
        run, change = _begin(data, out, (found, change), facts, config, reader)
        _remember(run)
        committed = scan_committed(out, run, change.vanished, config.holds)
        todo = _still_to_do(run, committed, change.vanished, config)
        _require_trust(out, before, config, [task.number for task in todo])  # some may have turned out damaged
        sweep_dataset_temporaries(out, config.holds if config.part is not None else None)
        if before is not None:
            sweep_leftovers(out, run.shard_digits, [task.number for task in todo])
        work = EncodeWork(reader, config.encoder, config.stage, out, run, places.devices, places.threads)
        if encoder is not None:
            work.adopt(encoder)
        del encoder
        watch = RejectLimitListener(listen, out, config.max_rejects, committed)
        try:
            if config.part is None:
                manifest.write_run(out, manifest.with_pending(out, run))
            else:
                _note_pending(out, config, bool(committed.redone))
            workers = len(places.devices)
            loading = f"{plural(workers, 'worker')} loading {config.encoder.model}" if workers > 1 else ""
            watch(Progress(planned=len(todo), doing=loading))
            with noted(out, config.part) as was_killed:
                outcome = executor.run(work, with_care(todo, workers) if was_killed else todo, watch)
            # Leftovers of killed workers, replaced or not.
            sweep_dataset_temporaries(out, config.holds if config.part is not None else None)
            sweep_leftovers(out, run.shard_digits, [aside.task.number for aside in outcome.failed_tasks])
            _note_pending(out, config, True)
        except DiskFull as problem:
            raise with_need(problem, out, run, todo, watch.rows_seen, len(places.devices)) from problem
        except KeyboardInterrupt:
            # The workers are gone: what they were writing is not left lying about until the next run.
            with contextlib.suppress(OSError, EmbedpipeError):
                sweep_dataset_temporaries(out, config.holds if config.part is not None else None)
            raise
    planned = sum(map(config.holds, range(len(run.plan))))
    return _report(run, planned, change, committed, outcome, time.perf_counter() - begun)


def _finished(out: str, config: EncodeConfig, reader: Reader, begun: float) -> EncodeReport | None:
    """The report of a run that finds nothing to do, without loading the model; None if there may be something."""
    found = None if config.overwrite or config.part is not None else manifest.read_run(out)
    if found is None or found.encoder is None or len(manifest.committed_numbers(out)) < len(found.plan):
        return None
    if not same_by_name(out, found.encoder, config.encoder):
        return None
    with exclusive(out):
        refuse_interrupted(out)
        change = plan_input(out, found, config.shaping(), reader, overwrite=False)
        refuse_other_background(out, found, config.encoder.background)
        committed = scan_committed(out, found, change.vanished, config.holds, retract=False)
        if change.shards != found.plan or _still_to_do(found, committed, change.vanished, config):
            return None
        _remember(found)
        sweep_dataset_temporaries(out, None)
        sweep_leftovers(out, found.shard_digits, [])
        with noted(out, None):  # takes away the note of a run that was killed when all was committed
            pass
        run = manifest.with_pending(out, dataclasses.replace(found, listing=change.listing))
        if run != found:
            manifest.write_run(out, run)
    nothing = Outcome(TaskReport(), ())
    return _report(run, len(run.plan), change, committed, nothing, time.perf_counter() - begun)


def plan_encode(data: str, out: str, config: EncodeConfig) -> tuple[PlanChange, list[int]]:
    """What `encode` would do: the grown plan and the numbers still to encode."""
    _refuse_contradictions(config)
    refuse_own_input(data, out)
    require_pictures(data)
    config = config.going_on(data, out)
    found = manifest.read_run(out)
    change = plan_input(out, found, config.shaping(), config.reader(data), config.overwrite)
    left = _uncommitted(out, change, config)
    before = None if config.overwrite else found
    _require_trust(out, before, config, left)
    refuse_other_background(out, before, config.encoder.background)
    return change, left


def _uncommitted(out: str, change: PlanChange, config: EncodeConfig) -> list[int]:
    left_out = set(change.vanished)
    if not config.overwrite:
        left_out.update(manifest.committed_numbers(out))
    return [number for number in range(len(change.shards)) if config.holds(number) and number not in left_out]


def _look_at_encoder(
    config: EncodeConfig, executor: Executor, places: Allocation
) -> tuple[Encoder | None, tuple[EncoderCard, int | None]]:
    """The encoder, if this process is the one that encodes, and its facts, which depend on the device."""
    if isinstance(executor, RayExecutor):
        return None, executor.call(_facts_of, config.encoder, places.devices[0], config.stage)
    if isinstance(executor, InlineExecutor):
        encoder = load_encoder(config.encoder, places.devices[0])
        return encoder, _facts(encoder, config.stage)
    return None, _facts_without_gpu(config.encoder, places.devices[0], config.stage)


def _facts_without_gpu(config: EncoderConfig, device: str, stage: BatchingConfig) -> tuple[EncoderCard, int | None]:
    """The facts of an encoder on `device`, found on the CPU: the memory of GPUs belongs to the workers."""
    if not device.startswith("cuda"):
        return _facts_of(config, device, stage)
    precision = choose_precision(config.precision, device, convolutional=False)
    # A CPU computes no fp16. Nothing but the card's word for it depends on that.
    here = "bf16" if precision == "fp16" else precision
    card, width = _facts_of(dataclasses.replace(config, precision=here), "cpu", stage)
    return dataclasses.replace(card, precision=precision) if card.precision == here else card, width


def _facts_of(config: EncoderConfig, device: str, stage: BatchingConfig) -> tuple[EncoderCard, int | None]:
    return _facts(load_encoder(config, device), stage)


def _facts(encoder: Encoder, stage: BatchingConfig) -> tuple[EncoderCard, int | None]:
    """The encoder's card, and the width of its token states if requested.

    Raises ModelError if truncated captions are to be rejected but cannot be detected.
    """
    if stage.reject_cut_captions and not encoder.counts_cut_tokens:
        raise ModelError(
            f"{encoder.card.model}: its tokenizer does not tell how many tokens of a caption it cuts off",
            "Drop `reject_cut_captions`",
        )
    return encoder.card, encoder.text_states(["a"]).tokens.width if stage.text_tokens else None


def _begin(
    data: str,
    out: str,
    seen: tuple[RunCard | None, PlanChange],
    facts: tuple[EncoderCard, int | None],
    config: EncodeConfig,
    reader: Reader,
) -> tuple[RunCard, PlanChange]:
    """The new run card, and its change of the plan.

    seen: the previous run card, and the change of its plan. If several processes start parts of one output, one writes
    it and the others use that; a run of the whole output writes it once the committed shards are known.
    """
    found, change = seen
    before = None if config.overwrite else found
    source = files.absolute(data)
    run = dataclasses.replace(run_card(out, before, change, facts, config.shaping(), reader), source=source)
    if config.part is None:
        if found is not None and config.overwrite:
            discard_output(out, found)  # not earlier: a wrong model name must not delete a data set
        return run, change
    with planning(out):
        now = manifest.read_run(out)
        if now is None and manifest.begin_run(out, manifest.with_pending(out, run)):
            return run, change
        now = now or manifest.read_run(out)
        assert now is not None
        if now.plan != run.plan and (found is None or now.plan != found.plan):  # another part made another plan
            change = plan_input(out, now, config.shaping(), reader, overwrite=False)
        refuse_other_options(out, now, config.shaping())
        run = dataclasses.replace(run_card(out, now, change, facts, config.shaping(), reader), source=source)
        if run.plan != now.plan:
            _refuse_growing_unlocked(out, change)
            manifest.write_run(out, manifest.with_pending(out, run))
    return run, change


def _remember(run: RunCard) -> None:
    """Input and model are this user's own: what is made of this output may open them without asking."""
    remember_source(run.source, run.plan)
    if run.encoder is not None:
        trust_card(run.encoder)


def _refuse_growing_unlocked(out: str, change: PlanChange) -> None:
    # Two parts appending to the plan independently would give one number to two input shards.
    if not files.is_local(out):
        raise RunMismatch(
            f"{out}: {change.added} input shards are new and {len(change.changed)} changed, and on an object store "
            "parts cannot agree on their numbers",
            "Run it once without `part` to make the plan; it can be stopped as soon as it encodes",
        )


def _note_pending(out: str, config: EncodeConfig, changed: bool) -> None:
    """Update the list of shards that may lack a manifest. Parts on an object store leave that to a run of the whole."""
    if changed and (config.part is None or files.is_local(out)):
        with planning(out) if config.part is not None else contextlib.nullcontext():
            manifest.settle(out)


def _refuse_contradictions(config: EncodeConfig) -> None:
    refuse_unknown_precision(config.encoder.precision)
    if config.encoder.background is not None:
        colour(config.encoder.background)  # which refuses what is none
    if config.format not in FORMATS:
        raise OptionError(f"no storage format {config.format!r}", did_you_mean(config.format, FORMATS))
    if not config.stage.images and not config.stage.texts:
        raise OptionError(
            "nothing to encode: both images and texts were turned off", "Drop `images=False` or `texts=False`"
        )
    if config.stage.text_tokens and not config.stage.texts:
        raise OptionError("no text tokens without texts: texts were turned off", "Drop `text_tokens` or `texts=False`")
    if config.stage.reject_cut_captions and not config.stage.texts:
        raise OptionError(
            "no caption is cut without texts: texts were turned off", "Drop `reject_cut_captions` or `texts=False`"
        )
    for name, needed in (("caption_key", "texts"), ("caption_member", "texts"), ("image_member", "images")):
        if getattr(config, name) is not None and not getattr(config.stage, needed):
            raise OptionError(f"`{name}` has no effect: {needed} were turned off", f"Drop `{name}`")
    if config.caption_key is not None and config.caption_member is not None:
        raise OptionError("`caption_key` and `caption_member` both say where captions are", "Give one of them")
    if config.part is not None and config.overwrite:
        raise OptionError(f"part {config.part} cannot begin the whole output again", "Drop `part` or `overwrite`")


def _settled(out: str, config: EncodeConfig, before: RunCard | None, device: str) -> EncodeConfig:
    """`config` completed for the device, with the precision of an earlier run if none was requested, and its rules of
    decoding.

    An output of version 0.1 continues with the model built as version 0.1 did.
    """
    encoder, stage = config.encoder, config.stage
    if before is not None and before.dated:
        encoder = dataclasses.replace(encoder, as_version_0_1=True)
    if before is not None and before.encoder is not None:
        encoder = dataclasses.replace(encoder, image_rules=before.encoder.rules)
    if encoder.precision == "auto" and before is not None and before.encoder is not None:
        encoder = dataclasses.replace(encoder, precision=before.encoder.precision)
    stage = dataclasses.replace(stage, pin_memory=device.startswith("cuda"))
    return dataclasses.replace(config, encoder=encoder, stage=stage)


def _require_trust(out: str, before: RunCard | None, config: EncodeConfig, left: Sequence[int]) -> None:
    """Raise RunMismatch if shards would be added to an output of version 0.1, unless that is trusted and possible."""
    bare = config.encoder.options == ModelOptions()
    if not left or before is None or not before.dated or (config.trust_old_card and bare):
        return
    trust = "give `trust_old_card=True` to go on with the model as version 0.1 built it"
    raise RunMismatch(
        f"{out}: {BEFORE_ACTIVATION}",
        f"Encode into another folder, or {trust}" + ", without options of activation and preprocessing" * (not bare),
    )


def _still_to_do(run: RunCard, committed: CommittedTotals, vanished: Sequence[int], config: EncodeConfig) -> list[Task]:
    gone = set(vanished)
    return [
        Task(number, shard.name, shard)
        for number, shard in enumerate(run.plan)
        if config.holds(number) and number not in committed.numbers and number not in gone
    ]


def _report(
    run: RunCard, planned: int, change: PlanChange, committed: CommittedTotals, outcome: Outcome, seconds: float
) -> EncodeReport:
    assert run.encoder is not None
    done = outcome.report
    spent = sum(done.spent_s.values())
    return EncodeReport(
        planned=planned,
        already=len(committed.numbers),
        rows=done.rows + committed.rows,
        rejected=done.rejected + committed.rejected,
        rejects=add_counts(done.rejects, committed.rejects),
        cut=done.cut + committed.cut,
        context_length=run.encoder.context_length,
        redone=tuple(committed.redone),
        report=done,
        vanished=tuple(run.plan[number].name for number in change.vanished),
        failed_tasks=outcome.failed_tasks,
        seconds=seconds,
        samples_per_s=(done.rows + done.rejected) / max(seconds, 1e-9),
        time_share={name: share / spent for name, share in done.spent_s.items()} if spent else {},
        listing=change.listing,
    )
