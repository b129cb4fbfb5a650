"""Keywords of earlier versions go on working, with a warning."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import ParamSpec, TypeVar

_P = ParamSpec("_P")
_Result = TypeVar("_Result")


def renamed_keyword(**names: str) -> Callable[[Callable[_P, _Result]], Callable[_P, _Result]]:
    """Decorates a function some of whose keywords had another name: `renamed_keyword(old="new")`.

    The old keyword is passed on as the new one with a DeprecationWarning. Giving both is a TypeError.
    """

    def decorate(function: Callable[_P, _Result]) -> Callable[_P, _Result]:
        @functools.wraps(function)
        def call(*args: _P.args, **keywords: _P.kwargs) -> _Result:
            for old in names.keys() & keywords.keys():
                new = names[old]
                if new in keywords:
                    raise TypeError(f"{function.__name__}() got {old!r} and {new!r}, which are the same")
                warnings.warn(f"{function.__name__}({old}=) is called {new}= now", DeprecationWarning, stacklevel=2)
                keywords[new] = keywords.pop(old)
            return function(*args, **keywords)

        return call

    return decorate
