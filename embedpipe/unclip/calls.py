"""One description of a job, several things to do with it: `train_prior` runs the job that `plan_train_prior` plans."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import ParamSpec, TypeVar

_P = ParamSpec("_P")
_Job = TypeVar("_Job")
_Result = TypeVar("_Result")


def call_of(name: str, describe: Callable[_P, _Job], perform: Callable[[_Job], _Result]) -> Callable[_P, _Result]:
    """A function called `name` that takes what `describe` takes and returns `perform` of the job it describes."""

    @functools.wraps(describe)
    def call(*args: _P.args, **keywords: _P.kwargs) -> _Result:
        return perform(describe(*args, **keywords))

    call.__name__ = call.__qualname__ = name
    call.__doc__ = f"{inspect.cleandoc(perform.__doc__ or '')}\n\n{inspect.cleandoc(describe.__doc__ or '')}"
    returns = inspect.signature(perform).return_annotation
    call.__signature__ = inspect.signature(describe).replace(return_annotation=returns)  # type: ignore[attr-defined]
    return call
