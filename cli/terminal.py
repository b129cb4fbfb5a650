"""The edge at which everything is printed: nothing of data acts on the terminal, and nothing fails to be printed."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator
from typing import Any

from embedpipe.redact import redacted
from embedpipe.visible import visible

# What we draw and write ourselves, where the encoding lacks it.
_PLAINER = str.maketrans({"█": "#", "▏": "|", "×": "x", "·": ".", "…": "...", "→": "->", "–": "-", "µ": "u"})


class _Edge(io.TextIOBase):
    """A stream whose characters are all printed: those that its encoding lacks are written as escapes.

    shown: hidden characters too, see `visible`; without it, for what rich draws, whose texts have been made visible.
    secret: secrets of urls stay; else they are left out, see `redacted`.
    """

    def __init__(self, stream: Any, shown: bool, secret: bool = False) -> None:
        self.stream = stream
        self._shown = shown
        self._secret = secret

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Of the stream."""
        return getattr(self.stream, "encoding", None) or "utf-8"

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        """How it treats characters that it lacks; none come to it."""
        return getattr(self.stream, "errors", None)

    def write(self, text: str) -> int:
        """Print `text`."""
        shown = visible(text, one_line=False) if self._shown else text
        shown = shown if self._secret else redacted(shown)
        try:
            shown.encode(self.encoding)
        except UnicodeEncodeError:
            plainer = shown.translate(_PLAINER)
            shown = plainer.encode(self.encoding, "backslashreplace").decode(self.encoding)
        self.stream.write(shown)
        return len(text)

    def flush(self) -> None:
        """See `TextIOBase`."""
        self.stream.flush()

    def isatty(self) -> bool:
        """See `TextIOBase`."""
        return bool(self.stream.isatty())

    def fileno(self) -> int:
        """See `TextIOBase`."""
        return int(self.stream.fileno())

    def writable(self) -> bool:
        """See `TextIOBase`."""
        return True


def drawn(stream: Any) -> Any:
    """`stream` for rich, which draws with control characters: it must be given visible texts."""
    return _Edge(stream.stream if isinstance(stream, _Edge) else stream, shown=False)


def exact(stream: Any) -> Any:
    """`stream` for rows of data as JSON, whose urls are printed as they are."""
    return _Edge(stream.stream if isinstance(stream, _Edge) else stream, shown=True, secret=True)


def harmless(stream: Any) -> Any:
    """`stream` with hidden characters made visible."""
    return stream if isinstance(stream, _Edge) else _Edge(stream, shown=True)


@contextlib.contextmanager
def edge() -> Iterator[None]:
    """Within the block, stdout and stderr show everything that is printed."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = map(harmless, before)
    try:
        yield
    finally:
        with contextlib.suppress(OSError, ValueError):  # who read it has gone; the end of the process says so
            sys.stdout.flush()
            sys.stderr.flush()
        sys.stdout, sys.stderr = before
