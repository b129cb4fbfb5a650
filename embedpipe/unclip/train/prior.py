"""`train-prior`: embeddings on disk (`embedpipe`) become batches for a prior (`dalle2_core`)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from dalle2_core.presets.prior import PriorRecipe, prior_preset, prior_recipe
from dalle2_core.priors.base import Prior
from dalle2_core.priors.registry import PRIORS
from dalle2_core.training import Comparison, Processes, Run, TrainState, load_trained, train
from dalle2_core.types import PriorBatch, Trainable
from embedpipe import files
from embedpipe.errors import OptionError, RunMismatch
from embedpipe.load import EmbeddingLoader
from embedpipe.load.identity import row_marks
from embedpipe.load.split import TRAIN, VALID
from embedpipe.progress import Listener, silent

from ..calls import call_of
from ..data.prior_batches import PriorRows, open_rows
from ..data.row_policy import RowPolicy
from ..evaluate.priors import MOST_ROWS_TO_FIT, PRIOR_RUN, evaluate_priors, sample_rows, watch
from ..runs.extend import Extension, extension, history_of, say
from ..runs.folder import run_folder
from ..runs.record import RUN_FILE, read_run_record, write_run_record
from ..runs.resume import refuse_finished, refusing_another
from ..runs.split import SplitConfig
from ..runs.trained_rows import write_trained_rows
from .nonfinite import report_rows
from .plan import NOT_FINITE, TrainingPlan, refuse_few, rows_by_split, rows_per_split, steps_left
from .prior_start import PriorStart, build, learn_empty_text, refuse_another_width, save, started
from .settings import Values, given_names, recipe_of, train_settings
from .view import OnStep, TrainingView, join_training

_MOST_ROWS_TO_WATCH = 1000


@dataclass(frozen=True, slots=True)
class PriorJob:
    """What to train, on what, where to. emb: embeddings; out: the prior's folder; policy: of unusable rows."""

    emb: str
    out: str
    recipe: PriorRecipe
    split: SplitConfig = field(default_factory=SplitConfig)
    policy: RowPolicy = field(default_factory=RowPolicy)
    device: str | None = None
    view: TrainingView = field(default_factory=TrainingView)
    start: PriorStart | None = None

    @property
    def is_trained(self) -> bool:
        """Whether this prior takes steps, and is not in closed form."""
        return hasattr(PRIORS[self.recipe.prior], "loss")


@dataclass(frozen=True, slots=True)
class PriorOutcome:
    """What train-prior did. best_step: the checkpoint that was kept; metrics: its evaluation on held-out rows.

    steps and best_step are 0 for a prior in closed form. dropped: rows left out because they were not finite.
    parameters: of the whole prior; adapters: of the adapters that alone were trained, 0 without.
    """

    out: str
    prior: str
    steps: int
    best_step: int
    train_rows: int
    valid_rows: int
    dropped: int
    parameters: int
    metrics: dict[str, float]
    adapters: int = 0


def prior_job(
    emb: str,
    out: str,
    *,
    prior: str | None = None,
    preset: str | PriorRecipe = "tiny",
    config: str | Path | Values | None = None,
    settings: Values | None = None,
    steps: int | None = None,
    seed: int | None = None,
    parallel: str | None = None,
    loggers: Sequence[str] = (),
    split_column: str | None = None,
    valid_share: float = 0.05,
    normalise: bool = False,
    drop_nonfinite: bool = False,
    device: str | None = None,
    start: str | None = None,
    lora: int | None = None,
    on_step: OnStep | None = None,
    listen: Listener = silent,
    view: TrainingView | None = None,
) -> PriorJob:
    """emb: a data set. out: the prior's folder. prior: diffusion, autoregressive, contrastive, unclip, ridge or mean.

    preset: tiny, base, laion-l14, paper, kandinsky-2-2, karlo, or a recipe. config, settings: values to put into it,
    see `resolve_config`: {"optim.lr": 1e-4, "train.batch_size": 64}. steps, seed, parallel, loggers: short for those of
    `train`. split_column, valid_share: see `SplitConfig`. normalise, drop_nonfinite: see `RowPolicy`. device: None for
    the first GPU, or the CPU. start: begin with the weights of a trained prior, a run's folder or `diffusers:FOLDER`
    (Karlo, Kandinsky 2), which keeps its size and its scaling of embeddings; a setting that it cannot go on with is
    refused. lora: train adapters of that rank in place of its weights, short for {"lora.rank": …}. on_step, listen: see
    `TrainingView.of`; view: in their place.
    """
    short = train_settings(settings, loggers, steps=steps, seed=seed, parallel=parallel)
    named = {"prior": prior, "lora.rank": lora}
    recipe = recipe_of(preset, prior_preset, config, short | {key: it for key, it in named.items() if it is not None})
    begun = None
    if recipe.lora.rank and start is None:
        raise OptionError("adapters are trained of a prior that is trained already", "Name it with `start`")
    if start is not None:
        recipe, begun = started(recipe, prior, PriorStart(start), given_names(config, settings))
    return PriorJob(
        emb,
        out,
        recipe,
        SplitConfig(split_column, valid_share).continued([out]),
        RowPolicy(normalise, drop_nonfinite),
        device,
        view or TrainingView.of(on_step, listen),
        begun,
    )


def plan_prior(job: PriorJob) -> TrainingPlan:
    """What `train_prior` would do: the data are looked at, nothing is built or fitted. Raises as `train_prior` does."""
    seen, rows, dropped = _open(job)
    found = _extension(job, job.out, _facts(job, seen, rows), seen, rows)
    runs = {job.out: steps_left(job.out, job.recipe.train)} if job.is_trained else {}
    extended = {job.out: found.said} if found.said else {}
    return TrainingPlan(rows_per_split(rows), {NOT_FINITE: dropped}, runs, job.recipe, extended=extended)


def run_prior(job: PriorJob) -> PriorOutcome | None:
    """Train a prior on embeddings into a folder, any fsspec url; run again, it goes on.

    Under torchrun every process calls it; all but the first return None.

    Raises DatasetError (no rows, one side missing, rows that are not finite or not of norm 1), InputError (fewer rows
    than a batch, token states that do not fit), RunMismatch, CheckpointError (`out` holds another run, the disk is
    full), NonFiniteLoss (its rows are named in a file in `out`).
    """
    together, device, view = join_training(job.device, job.view)
    recipe = job.recipe
    seen, rows, dropped = _open(job, device, together.is_first)
    watched = list(seen.batches(sample_rows(rows[VALID], _MOST_ROWS_TO_WATCH)))

    with run_folder(job.out, together) as place:
        torch.manual_seed(recipe.train.seed)
        prior = build(job.start, recipe, seen.dataset.card.dim, functools.partial(_to_fit, seen, rows[TRAIN]))
        learn_empty_text(prior, place.folder, seen.dataset, together)
        prior.to(device)
        facts = _facts(job, seen, rows)
        found = _extension(job, place.folder, facts, seen, rows) if together.is_first else Extension()
        found = together.gather(found)[0]
        history = []
        if together.is_first:
            say(job.out, found)
            history = history_of(place.folder, found, _describes, facts)
            write_trained_rows(place.folder, row_marks(seen.dataset, rows[TRAIN]), bool(found.grown))
        steps = best_step = 0
        if isinstance(prior, Trainable):
            run = Run(Path(place.folder), _describes(facts), place.commit, found.grown)
            judge = functools.partial(watch, batches=watched, seed=recipe.train.seed, device=device)
            with view.steps(recipe.prior, recipe.train) as on_step:
                state = _learn(prior, seen, rows[TRAIN], run, recipe, judge, on_step, together)
            steps, history = state.step, state.history
            if together.is_first:
                best_step = load_trained(prior, run.checkpoints, "best")
        if not together.is_first:
            return None
        prior.eval()
        save(prior, job.start, recipe, place.folder)
        write_run_record(place.folder, PRIOR_RUN, facts | {"best_step": best_step, "history": history})
        write_trained_rows(place.folder, row_marks(seen.dataset, rows[TRAIN]))
        metrics = watch(prior, watched, recipe.train.seed, device)
    trained = [weight.numel() for weight in prior.parameters() if weight.requires_grad]
    adapters = sum(trained) if recipe.lora.rank else 0
    return PriorOutcome(
        out=job.out,
        prior=recipe.prior,
        steps=steps,
        best_step=best_step,
        train_rows=len(rows[TRAIN]),
        valid_rows=len(rows[VALID]),
        dropped=dropped,
        parameters=sum(weight.numel() for weight in (*prior.parameters(), *_fitted(prior))) - adapters,
        metrics=metrics,
        adapters=adapters,
    )


def run_all_priors(job: PriorJob) -> Comparison | None:
    """Train every kind of prior, each into OUT/NAME, and compare them on held-out rows. Otherwise as `train_prior`."""
    jobs = _of_each_kind(job)
    finished = [run_prior(one) for one in jobs]
    if None in finished:
        return None
    return evaluate_priors([one.out for one in jobs], job.emb, VALID, job.device)


def plan_all_priors(job: PriorJob) -> dict[str, TrainingPlan]:
    """What `train_all_priors` would do, by the prior's name. Raises as it does."""
    return {one.recipe.prior: plan_prior(one) for one in _of_each_kind(job)}


def _of_each_kind(job: PriorJob) -> list[PriorJob]:
    outs = {name: files.join(job.out, name) for name in PRIORS}
    split = job.split.continued(outs.values())
    return [
        dataclasses.replace(job, out=out, split=split, recipe=dataclasses.replace(job.recipe, prior=name))
        for name, out in outs.items()
    ]


train_prior = call_of("train_prior", prior_job, run_prior)
plan_train_prior = call_of("plan_train_prior", prior_job, plan_prior)
train_all_priors = call_of("train_all_priors", prior_job, run_all_priors)
plan_train_all_priors = call_of("plan_train_all_priors", prior_job, plan_all_priors)


def _to_fit(seen: PriorRows, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    return seen.pairs(sample_rows(rows, MOST_ROWS_TO_FIT))


def _open(
    job: PriorJob, device: str | None = None, speaks: bool = True
) -> tuple[PriorRows, dict[str, np.ndarray], int]:
    """The data, the rows of each split, and how many were left out. device, speaks: see `open_rows`."""
    seen = open_rows(job.emb, job.recipe, job.policy, device, speaks)
    if job.start is not None:
        prior = job.start.load()
        refuse_another_width(prior, job.start, job.emb, seen.dataset.card.dim)
        seen = seen.for_raw(prior.raw)
    else:
        seen = seen.for_raw(job.recipe.raw)
    rows, dropped = rows_by_split(seen.dataset, job.split, job.policy, ("text", "image"))
    refuse_few(job.emb, rows_per_split(rows), job.recipe.train.batch_size if job.is_trained else None, held_out=2)
    return seen, rows, dropped


def _facts(job: PriorJob, seen: PriorRows, rows: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """What the run's run.json says of it, as plain JSON values."""
    card = seen.dataset.card
    return {
        "recipe": dataclasses.asdict(job.recipe),
        "split": job.split.facts(),
        "rows": dataclasses.asdict(job.policy),
        "data": job.emb,
        "encoder": dataclasses.asdict(card),
        "fingerprint": card.fingerprint(),
        "train_rows": len(rows[TRAIN]),
        "valid_rows": len(rows[VALID]),
        **({} if job.start is None else {"start": job.start.facts()}),
    }


def _learn(
    prior: Prior,
    seen: PriorRows,
    rows: np.ndarray,
    run: Run,
    recipe: PriorRecipe,
    judge: Callable[[Any], dict[str, float]],
    on_step: OnStep | None,
    together: Processes,
) -> TrainState:
    """Train on some rows of the data."""
    loader = functools.partial(
        EmbeddingLoader,
        seen.dataset,
        rows,
        recipe.train.batch_size,
        recipe.train.seed,
        text_tokens=recipe.text_tokens and seen.dataset.text_tokens is not None,
    )
    mine = loader(rank=together.rank, world=together.world)

    def rows_of_step(step: int) -> np.ndarray:
        found = next(loader().batches(step)).rows
        assert found is not None
        return found

    with refusing_another(str(run.folder)), report_rows(str(run.folder), seen.dataset, rows_of_step, together):
        return train(
            cast("Trainable[PriorBatch]", prior),
            lambda step: map(seen.prior_batch, mine.batches(step)),
            run,
            recipe.train,
            recipe.optim,
            evaluate=judge,
            on_step=on_step,
            processes=together,
        )


def _extension(
    job: PriorJob, folder: str, facts: dict[str, Any], seen: PriorRows, rows: Mapping[str, np.ndarray]
) -> Extension:
    """How the run in `folder`, that of the job or its working copy, is extended. Raises RunMismatch for another."""
    is_finished = files.exists(files.join(folder, RUN_FILE))
    record = read_run_record(folder, PRIOR_RUN, "train-prior") if is_finished else {}
    if record.get("converted") or record.get("merged"):
        raise RunMismatch(
            f"{job.out}: holds a converted prior", "Give another output folder, and begin with it: `start`"
        )
    if not is_finished and not job.is_trained and files.exists(files.join(folder, "checkpoints")):
        raise RunMismatch(f"{job.out}: holds a training of another prior", "Give another output folder")
    recipe = job.recipe
    found = extension(
        folder,
        _describes(facts),
        recipe.train if job.is_trained else None,
        recipe.optim,
        lambda: row_marks(seen.dataset, rows[TRAIN]),
        of_record=_describes,
    )
    refuse_finished(folder, PRIOR_RUN, "train-prior", _describes, facts, grown=found.grown)
    return found


def _fitted(prior: Prior) -> list[torch.Tensor]:
    """What a prior in closed form has instead of parameters."""
    return [] if isinstance(prior, Trainable) else [it for it in prior.buffers() if it is not None]


def _describes(facts: dict[str, Any]) -> dict[str, Any]:
    """What must stay the same for a run to be continued, besides the training settings."""
    recipe, usual = facts["recipe"], dataclasses.asdict(prior_recipe())
    # Absent rather than said: runs begun before there was a setting go on without it.
    shaping = {
        name: value
        for name, value in recipe.items()
        if name in ("network", "diffusion") or (name not in ("train", "optim") and value != usual[name])
    }
    rows = {"rows": facts["rows"]} if facts["rows"] != dataclasses.asdict(RowPolicy()) else {}
    start = {"start": facts["start"]["sha256"]} if "start" in facts else {}
    return shaping | rows | start | {name: facts[name] for name in ("split", "fingerprint", "train_rows")}
