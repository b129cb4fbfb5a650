"""Checkpoints: a folder each, there whole or not at all, with a checksum of every byte.

    checkpoints/step-000001000/
      model.safetensors  ema.safetensors  optimizer.safetensors
      state.json          step, samples, tallies; what the run is; sha256 of the files and of itself

A folder is written under a temporary name and renamed when all of it is on the disk. Of a sharded run every process
writes its rows, as model-00001-of-00008.safetensors; either kind is read by any number of processes, sharded or not.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from torch import nn

from dalle2_core.errors import AnotherRun, CheckpointError
from dalle2_core.files import read_json, sha256, sync, write_json
from dalle2_core.training.distributed import Processes
from dalle2_core.training.sharded_tensors import StoredTensors, write_stored
from dalle2_core.training.state import TrainState, load_weights

_TENSOR_FILE = re.compile(r"(model|ema|optimizer)(-\d{5}-of-\d{5})?\.safetensors")
FORMAT_VERSION = 1
SHARDED_FORMAT_VERSION = 2
T = TypeVar("T")
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """The checkpoints of one run.

    identity: plain JSON values that shape the numbers; a checkpoint with another identity is refused.
    keep: how many of the newest stay; the best one always stays besides. on_saved: called when one was saved.
    grown: flat names of the identity that may differ, see `Run`; a larger number of steps always may.
    """

    folder: Path
    identity: Mapping[str, Any]
    keep: int = 2
    on_saved: Callable[[], None] | None = None
    grown: frozenset[str] = frozenset()

    def save(self, state: TrainState, together: Processes) -> None:
        """Commit `state`, then prune. Every process calls it where the state is sharded, else the first may alone.

        Raises CheckpointError if it cannot be written; older ones stay whole.
        """
        if state.sharded:
            write_checkpoint(self.folder / step_name(state.step), state, self.identity, together)
        elif together.is_first:
            write_checkpoint(self.folder / step_name(state.step), state, self.identity)
        if together.is_first:
            self._prune(state)
            if self.on_saved is not None:
                self.on_saved()

    def sweep(self) -> None:
        """Remove what a run left that was killed while it saved or pruned."""
        for leftover in self.folder.glob(".step-*"):
            shutil.rmtree(leftover, ignore_errors=True)

    def resume(self, state: TrainState, together: Processes) -> dict[str, tuple[Any, Any]]:
        """Load the newest whole checkpoint into `state`, in every process; if there is none, leave it as it is.

        Returns what of the identity has changed since, and may: by flat name, what it was and is.

        Each process looks at the checksums of its share of the files. A corrupt checkpoint is passed over with a
        warning. Raises CheckpointError if all are corrupt, if the run was another, or if not all processes see it.
        """
        corrupt = []
        steps = self.steps()
        _refuse_apart(steps, together)
        for step in reversed(steps):
            folder = self.folder / step_name(step)
            said = None
            try:
                content, tensors = read_checkpoint(folder, together.rank, together.world)
            except CheckpointError as problem:
                said = str(problem)
            problems = [it for it in together.gather(said) if it is not None]
            if problems:
                corrupt.append(folder)
                if together.is_first:
                    logger.warning("%s; the one before it is used", problems[0])
                continue
            changes = identity_changes(content["identity"], self.identity)
            allowed = {key for key, it in changes.items() if may_change(key, *it, self.grown)}
            refuse_another(folder, _without(content["identity"], allowed), _without(self.identity, allowed))
            state.load(tensors, content["numbers"])
            return changes
        if corrupt:
            raise CheckpointError(f"{self.folder}: every checkpoint is corrupt; delete the folder to start again")
        return {}

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, in order."""
        return steps_named(path.name for path in self.folder.glob("step-*"))

    def _prune(self, state: TrainState) -> None:
        best = None if state.best is None else state.best.step
        for step in self.steps()[: -self.keep]:
            if step != best:
                shutil.rmtree(_set_aside(self.folder / step_name(step)))


def write_checkpoint(
    final: Path, state: TrainState, identity: Mapping[str, Any], together: Processes | None = None
) -> None:
    """Write `state` as the folder `final`, whole. Raises CheckpointError if the disk refuses.

    together: of a sharded state, all of whose processes call it; None for one that this process holds whole.
    """
    temporary = final.with_name(f".{final.name}.tmp")
    rank, world = (0, 1) if together is None else (together.rank, together.world)

    def begin() -> None:
        if rank == 0:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)

    def write() -> dict[str, str]:
        paths = [write_stored(temporary, part, it, rank, world) for part, it in state.tensors().items()]
        return {path.name: sha256(path) for path in paths if path is not None}

    def commit() -> None:
        if rank == 0:
            _commit(temporary, final, state, identity, digests)

    try:
        _by_all(together, begin)
        digests = {name: digest for some in _by_all(together, write) for name, digest in some.items()}
        _by_all(together, commit)
    except OSError as problem:
        raise CheckpointError(
            f"{final}: could not be written ({problem.strerror or problem}); earlier checkpoints are "
            "intact. Make room or correct the permissions, then run the same command again"
        ) from problem
    finally:
        if rank == 0:
            shutil.rmtree(temporary, ignore_errors=True)


def _by_all(together: Processes | None, do: Callable[[], T]) -> list[T]:
    """What `do` gives in each process, when all are done; an OSError of one is raised in all."""
    if together is None:
        return [do()]
    mine: tuple[T | None, str | None]
    try:
        mine = do(), None
    except OSError as problem:
        mine = None, problem.strerror or str(problem)
    found = together.gather(mine)
    for _, said in found:
        if said is not None:
            raise OSError(said)
    return [value for value, _ in found]


def _commit(
    temporary: Path, final: Path, state: TrainState, identity: Mapping[str, Any], digests: Mapping[str, str]
) -> None:
    """Say what the files of `temporary` are, and make it `final`."""
    content = {
        "format_version": SHARDED_FORMAT_VERSION if state.sharded else FORMAT_VERSION,
        "identity": dict(identity),
        "numbers": state.numbers(),
        "sha256": dict(digests),
    }
    write_json(temporary / "state.json", content | {"checksum": _checksum(content)})
    if _holds(final, digests):
        # Saved again after an evaluation: the numbers alone are new.
        (temporary / "state.json").replace(final / "state.json")
    else:
        # What is there is corrupt (the run resumed before it and came here again), or to be overwritten.
        doomed = _set_aside(final)
        temporary.rename(final)
        shutil.rmtree(doomed, ignore_errors=True)
    sync(final.parent)


def read_checkpoint(folder: Path, rank: int = 0, world: int = 1) -> tuple[dict[str, Any], dict[str, StoredTensors]]:
    """Content of state.json, and the tensors by part. Raises CheckpointError if a byte is not what was written.

    rank, world: the files whose checksums are looked at here are every `world`th, from number `rank` on.
    """
    content = read_json(folder / "state.json")
    if not isinstance(content, dict) or content.pop("checksum", None) != _checksum(content):
        raise CheckpointError(f"{folder / 'state.json'}: corrupt (its checksum differs)")
    if content["format_version"] not in (FORMAT_VERSION, SHARDED_FORMAT_VERSION):
        raise CheckpointError(
            f"{folder}: format {content['format_version']}; this version reads up to {SHARDED_FORMAT_VERSION}"
        )
    parts: dict[str, list[Path]] = {}
    for number, (name, digest) in enumerate(sorted(content["sha256"].items())):
        path = folder / name
        if not path.is_file() or (number % world == rank and sha256(path) != digest):
            raise CheckpointError(f"{path}: missing or corrupt (its checksum differs)")
        parts.setdefault(path.stem.partition("-")[0], []).append(path)
    return content, {part: StoredTensors(paths) for part, paths in parts.items()}


def refuse_to_replace(path: Path, holds: Callable[[Path], bool], what: str) -> None:
    """Raise CheckpointError unless `path` is free, an empty folder, or a folder all of whose entries `holds` knows."""
    if not path.exists() and not path.is_symlink():
        return
    foreign = [it.name for it in sorted(path.iterdir()) if not holds(it)] if path.is_dir() else [path.name]
    if foreign:
        more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        raise CheckpointError(
            f"{path}: not only {what}: it holds {foreign[0]}{more}, which saving would delete. Give another path"
        )


def is_checkpoint_file(path: Path) -> bool:
    """Whether a file of this name belongs to a checkpoint: state.json, or tensors of one part."""
    return path.is_file() and (path.name == "state.json" or _TENSOR_FILE.fullmatch(path.name) is not None)


def require_folder(path: Path, what: str) -> None:
    """Raise CheckpointError, saying what lies at `path`, unless it is a folder with a `what`'s files."""
    if path.is_file():
        raise CheckpointError(
            f"{path}: a file, and {what} is a folder. `dalle2_core.convert` reads weights of DALLE2-pytorch"
        )
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such folder")


def load_trained(model: nn.Module, folder: Path, which: Literal["best", "latest"] = "best") -> int:
    """Load a run's weights (their moving average where there is one) into `model`; returns their step.

    folder: the run's `checkpoints` folder. "best" is the latest where nothing was evaluated.
    Raises CheckpointError if there is no whole checkpoint or the model is another.
    """
    steps = Checkpoints(folder, {}).steps()
    if not steps:
        raise CheckpointError(f"{folder}: no checkpoint; has the training saved one yet?")
    content, tensors = read_checkpoint(folder / step_name(steps[-1]))
    best = content["numbers"]["best"]
    if which == "best" and best is not None and best["step"] != steps[-1]:
        content, tensors = read_checkpoint(folder / step_name(best["step"]))
    load_weights(model, tensors.get("ema", tensors["model"]))
    return int(content["numbers"]["step"])


def newest_weights(folder: Path) -> StoredTensors | None:
    """The weights in the newest of a run's checkpoints that can be read, no checksum looked at; None where none can."""
    for step in reversed(Checkpoints(folder, {}).steps()):
        paths = sorted((folder / step_name(step)).glob("model*.safetensors"))
        try:
            return StoredTensors(paths) if paths else None
        except CheckpointError:
            continue
    return None


def refuse_another(folder: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any], *words: str) -> None:
    """Raise AnotherRun that names what differs between a checkpoint's identity and this one's. words: as it takes."""
    apart = identity_changes(theirs, ours).keys()
    if apart:
        there, here = ({key: it for key, it in _flat(some).items() if key in apart} for some in (theirs, ours))
        raise AnotherRun(folder, there, here, *words)


def _without(identity: Mapping[str, Any], names: Container[str]) -> dict[str, Any]:
    return {key: it for key, it in _flat(identity).items() if key not in names}


def identity_changes(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What differs between two identities, by flat name: what it was and is; None for what one of them lacks."""
    old, new = _flat(theirs), _flat(json.loads(json.dumps(dict(ours))))
    apart = [key for key in {**old, **new} if key not in old or key not in new or old[key] != new[key]]
    return {key: (old.get(key), new.get(key)) for key in apart}


def may_change(key: str, before: Any, now: Any, grown: frozenset[str] = frozenset()) -> bool:
    """Whether a run may go on although this differs: it becomes longer, or its data grew (see `Run.grown`)."""
    longer = key == "train.steps" and isinstance(before, int) and isinstance(now, int) and now > before
    return longer or key in grown


def _refuse_apart(steps: list[int], together: Processes) -> None:
    """Raise CheckpointError unless all processes see the same checkpoints."""
    newest = [found[-1] if found else 0 for found in together.gather(steps)]
    if len(set(newest)) > 1:
        raise CheckpointError(
            f"the processes found checkpoints of different steps ({', '.join(map(str, newest))}); "
            "the output must be one folder that all of them see"
        )


def steps_named(names: Iterable[str]) -> list[int]:
    """The steps of which there is a checkpoint, in order, by the names in a run's `checkpoints` folder."""
    return sorted(int(name.removeprefix("step-")) for name in names if name.startswith("step-"))


def step_name(step: int) -> str:
    """What the checkpoint of a step is called."""
    return f"step-{step:09d}"


def _holds(folder: Path, digests: Mapping[str, str]) -> bool:
    """Whether a checkpoint's tensor files are there and are these."""
    return all((folder / name).is_file() and sha256(folder / name) == it for name, it in digests.items())


def _set_aside(folder: Path) -> Path:
    """Rename a checkpoint, so that no half of it is ever seen under its name; where it is then, to be deleted."""
    doomed = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    if folder.exists():
        folder.rename(doomed)
    return doomed


def _checksum(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping):
            flat |= _flat(item, f"{prefix}{key}.")
        else:
            flat[prefix + key] = item
    return flat
