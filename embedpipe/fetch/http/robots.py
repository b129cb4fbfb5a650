"""robots.txt (RFC 9309): parsed by Protego, cached per origin."""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from protego import Protego

from ..outcome import Failure

MAX_BYTES = 500 * 1024  # what the RFC asks a crawler to read at least; the rest is left out

_MOST_KEPT = 2_000
_MOST_CHARACTERS = 5_000_000

Origin = tuple[str, str, int]


@dataclass(frozen=True, slots=True)
class Rules:
    """What one robots.txt says to one agent; without a file everything is allowed.

    size: characters of the file. unreachable: why there was none to read, which forbids everything for the time being.
    """

    file: Protego | None = None
    agent: str = ""
    size: int = 0
    unreachable: Failure | None = None

    def allow(self, path: str) -> bool:
        """Whether `path` (with its query) may be asked for."""
        return self.file is None or bool(self.file.can_fetch(path, self.agent))


ALLOW_ALL = Rules()


def parse_robots(text: str, agent: str) -> Rules:
    """The rules for `agent`: those of the groups that name it, else of those that name `*`."""
    # Only the product's name counts: "embedpipe/1.0" means us as well.
    text = re.sub(r"(?im)^(\s*user-agent\s*:\s*[a-z_-]+)[^a-z_\n#-][^\n]*", r"\1", text)
    return Rules(Protego.parse(text), agent, len(text))


@dataclass(slots=True)
class _Entry:
    asking: threading.Lock = field(default_factory=threading.Lock)
    rules: Rules | None = None

    @property
    def weight(self) -> int:
        return self.rules.size if self.rules else 0


class RobotsCache:
    """The rules of each origin: asked for once, while others that need them wait; the oldest are forgotten."""

    def __init__(self, fetch: Callable[[Origin], Rules]) -> None:
        self.fetch = fetch
        self.lock = threading.Lock()
        self.kept: OrderedDict[Origin, _Entry] = OrderedDict()

    def rules(self, origin: Origin) -> Rules:
        """The rules of `origin`."""
        with self.lock:
            entry = self.kept.setdefault(origin, _Entry())
            self.kept.move_to_end(origin)
        with entry.asking:
            if entry.rules is None:
                entry.rules = self.fetch(origin)
                self._forget()
        return entry.rules

    def _forget(self) -> None:
        with self.lock:
            size = sum(entry.weight for entry in self.kept.values())
            while size > _MOST_CHARACTERS or len(self.kept) > _MOST_KEPT:
                size -= self.kept.popitem(last=False)[1].weight
