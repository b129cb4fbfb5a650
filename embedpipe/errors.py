"""The hierarchy of user-facing errors.

EmbedpipeError
├── InputError            an input is missing or cannot be read
│   ├── EmptyInput        it can be read, but contains nothing to do
│   └── OptionError       an option that is invalid for any input, or options that exclude each other
├── ModelError            no such model, or its weights do not load
│   └── UntrustedModel    only data names it, and this user never gave it
├── DatasetError          a data set is damaged or incomplete
├── StorageFailed         a remote file system did not respond, or not completely
├── RunMismatch           the output belongs to another model, other options or changed inputs
├── OutputBusy            another process is writing to the same output
├── OutputUnwritable      no permission, read-only
│   └── DiskFull
├── TooManyRejects        rejects exceed the limit so far that the run was stopped before its end
├── OutOfResources        this machine lacks open files, memory, processes, ports or a network
├── WorkerDied            a worker process ended without an answer
└── MissingExtra          an optional dependency is not installed

Each carries one line that says what is wrong and where, and (`remedy`) what to do next.
A sample that does not decode is not an error but data: see `types.Reject`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from .redact import redacted


class EmbedpipeError(Exception):
    """Base of all deliberate errors. `str()` is one line: the problem, its location, the remedy; without secrets."""

    def __init__(self, what: str, remedy: str = "") -> None:
        self.what = redacted(" ".join(what.split()))
        self.remedy = redacted(remedy)
        super().__init__(f"{self.what}. {self.remedy}" if remedy else self.what)

    def __reduce__(self) -> tuple[type[EmbedpipeError], tuple[str, str]]:
        # Errors are pickled between processes; the default would pass `str(self)` as `what` and lose the remedy.
        return type(self), (self.what, self.remedy)


class InputError(EmbedpipeError):
    """An input is missing or cannot be read."""


class EmptyInput(InputError):
    """The input can be read but is empty."""


class OptionError(InputError):
    """An option that is invalid for any input, or options that exclude each other: a usage error."""


class ModelError(EmbedpipeError):
    """An unknown model name, or weights that do not load."""


class UntrustedModel(ModelError):
    """A model that a data set, run or model folder names, and that this user neither gave before nor consents to."""


class DatasetError(EmbedpipeError):
    """A data set is damaged, truncated or missing."""


class StorageFailed(EmbedpipeError):
    """A remote file system did not respond, or not completely; this says nothing about the data there."""


class RunMismatch(EmbedpipeError):
    """A run would continue an output made with other settings or inputs."""


class OutputBusy(EmbedpipeError):
    """Another process is writing to this output."""


class OutputUnwritable(EmbedpipeError):
    """The output cannot be written."""


class DiskFull(OutputUnwritable):
    """No space left on the output's device."""


class TooManyRejects(EmbedpipeError):
    """More samples are rejected than the limit allows; the run was stopped before its end."""


class OutOfResources(EmbedpipeError):
    """This machine lacks open files, memory, processes, ports or a network; this says nothing about the data."""


class WorkerDied(EmbedpipeError):
    """A worker process ended without an answer."""


class MissingExtra(EmbedpipeError):
    """An optional dependency is not installed."""


def did_you_mean(name: str, known: Iterable[str], most: int = 3) -> str:
    """A remedy that lists the known names nearest to `name`, or all of them if none is near.

    >>> did_you_mean("ViT-B32", ["ViT-B-32", "RN50"])
    'Did you mean ViT-B-32?'
    """
    names = sorted(known)
    by_lower = {n.lower(): n for n in names}
    near = [by_lower[n] for n in difflib.get_close_matches(name.lower(), by_lower, n=most, cutoff=0.5)]
    if near:
        return f"Did you mean {' or '.join(near)}?"
    return f"Known: {', '.join(names)}" if len(names) <= 12 else f"Known: {', '.join(names[:12])} …"
