"""Checkpoints: a folder each, there whole or not at all, with a checksum of every byte.

    checkpoints/step-000001000/
      model.safetensors  ema.safetensors  optimizer.safetensors
      state.json          step, samples, tallies; what the run is; sha256 of the files and of itself

A folder is written under a temporary name and renamed when all of it is on the disk.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from dalle2_core.errors import AnotherRun, CheckpointError
from dalle2_core.files import read_json, read_tensors, sha256, sync, write_json, write_tensors
from dalle2_core.training.state import TrainState, load_weights

FORMAT_VERSION = 1
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """The checkpoints of one run.

    identity: plain JSON values that shape the numbers; a checkpoint with another identity is refused.
    keep: how many of the newest stay; the best one always stays besides. on_saved: called when one was saved.
    """

    folder: Path
    identity: Mapping[str, Any]
    keep: int = 2
    on_saved: Callable[[], None] | None = None

    def save(self, state: TrainState) -> None:
        """Commit `state`, then prune. Raises CheckpointError if it cannot be written; older ones stay whole."""
        write_checkpoint(self.folder / _name(state.step), state, self.identity)
        self._prune(state)
        if self.on_saved is not None:
            self.on_saved()

    def sweep(self) -> None:
        """Remove what a run left that was killed while it saved or pruned."""
        for leftover in self.folder.glob(".step-*"):
            shutil.rmtree(leftover, ignore_errors=True)

    def resume(self, state: TrainState) -> bool:
        """Load the newest whole checkpoint into `state`; False if there is none.

        A corrupt one is passed over with a warning. Raises CheckpointError if all are corrupt or if the run
        was another.
        """
        corrupt = []
        for step in reversed(self.steps()):
            folder = self.folder / _name(step)
            try:
                content, tensors = read_checkpoint(folder)
            except CheckpointError as problem:
                corrupt.append(folder)
                logger.warning("%s; the one before it is used", problem)
                continue
            self._refuse_another(folder, content["identity"])
            state.load(tensors, content["numbers"])
            return True
        if corrupt:
            raise CheckpointError(f"{self.folder}: every checkpoint is corrupt; delete the folder to start again")
        return False

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, in order."""
        return steps_named(path.name for path in self.folder.glob("step-*"))

    def _refuse_another(self, folder: Path, theirs: Mapping[str, Any]) -> None:
        old, new = _flat(theirs), _flat(json.loads(json.dumps(dict(self.identity))))
        apart = {key for key in old.keys() | new.keys() if key not in old or key not in new or old[key] != new[key]}
        if apart:
            theirs, ours = ({key: it for key, it in some.items() if key in apart} for some in (old, new))
            raise AnotherRun(folder, theirs, ours)

    def _prune(self, state: TrainState) -> None:
        best = None if state.best is None else state.best.step
        for step in self.steps()[: -self.keep]:
            if step != best:
                shutil.rmtree(_set_aside(self.folder / _name(step)))


def write_checkpoint(final: Path, state: TrainState, identity: Mapping[str, Any]) -> None:
    """Write `state` as the folder `final`, whole. Raises CheckpointError if the disk refuses."""
    temporary = final.with_name(f".{final.name}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        digests = {}
        for part, tensors in state.tensors().items():
            path = temporary / f"{part}.safetensors"
            write_tensors(path, tensors)
            digests[path.name] = sha256(path)
        content = {
            "format_version": FORMAT_VERSION,
            "identity": dict(identity),
            "numbers": state.numbers(),
            "sha256": digests,
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
    except OSError as problem:
        raise CheckpointError(
            f"{final}: could not be written ({problem.strerror or problem}); earlier checkpoints are "
            "intact. Make room or correct the permissions, then run the same command again"
        ) from problem
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def read_checkpoint(folder: Path) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    """Content of state.json, and the tensors by part. Raises CheckpointError if a byte is not what was written."""
    content = read_json(folder / "state.json")
    if not isinstance(content, dict) or content.pop("checksum", None) != _checksum(content):
        raise CheckpointError(f"{folder / 'state.json'}: corrupt (its checksum differs)")
    if content["format_version"] != FORMAT_VERSION:
        raise CheckpointError(f"{folder}: format {content['format_version']}; this version reads {FORMAT_VERSION}")
    tensors = {}
    for name, digest in content["sha256"].items():
        path = folder / name
        if not path.is_file() or sha256(path) != digest:
            raise CheckpointError(f"{path}: missing or corrupt (its checksum differs)")
        tensors[path.stem] = read_tensors(path)
    return content, tensors


def load_trained(model: nn.Module, folder: Path, which: Literal["best", "latest"] = "best") -> int:
    """Load a run's weights (their moving average where there is one) into `model`; returns their step.

    folder: the run's `checkpoints` folder. "best" is the latest where nothing was evaluated.
    Raises CheckpointError if there is no whole checkpoint or the model is another.
    """
    steps = Checkpoints(folder, {}).steps()
    if not steps:
        raise CheckpointError(f"{folder}: no checkpoint; has the training saved one yet?")
    content, tensors = read_checkpoint(folder / _name(steps[-1]))
    best = content["numbers"]["best"]
    if which == "best" and best is not None and best["step"] != steps[-1]:
        content, tensors = read_checkpoint(folder / _name(best["step"]))
    load_weights(model, tensors.get("ema", tensors["model"]))
    return int(content["numbers"]["step"])


def steps_named(names: Iterable[str]) -> list[int]:
    """The steps of which there is a checkpoint, in order, by the names in a run's `checkpoints` folder."""
    return sorted(int(name.removeprefix("step-")) for name in names if name.startswith("step-"))


def _name(step: int) -> str:
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
