"""What a host says of the use of its files, asked for once: robots.txt and the reservations of tdmrep.json."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from ..outcome import Failure
from . import robots, tdmrep

_MOST_KEPT = 2_000
_MOST_CHARACTERS = 5_000_000

Origin = tuple[str, str, int]


@dataclass(frozen=True, slots=True)
class OriginRules:
    """Both files of one origin. unreachable: why one of them could not be read, which forbids everything for now."""

    robots: robots.Rules = robots.ALLOW_ALL
    reservations: tdmrep.Reservations = tdmrep.NONE
    unreachable: Failure | None = None

    @property
    def size(self) -> int:
        """Characters of both files."""
        return self.robots.size + self.reservations.size

    def refusal(self, host: str, path: str) -> Failure | None:
        """Why `path` (with its query) may not be requested of `host`; None if it may."""
        if self.unreachable is not None:
            return self.unreachable
        if not self.robots.allow(path):
            return Failure("opt_out", f"forbidden by robots.txt of {host}")
        if (found := self.reservations.of(path)) is not None:
            policy = f" (policy: {found.policy[:200]})" if found.policy else ""
            return Failure("opt_out", f"data mining is reserved by tdmrep.json of {host}{policy}")
        return None


@dataclass(slots=True)
class _Entry:
    asking: threading.Lock = field(default_factory=threading.Lock)
    rules: OriginRules | None = None

    @property
    def weight(self) -> int:
        return self.rules.size if self.rules else 0


class RulesCache:
    """A cache of rules per origin: requested once, while other threads wait; the oldest are evicted."""

    def __init__(self, fetch: Callable[[Origin], OriginRules]) -> None:
        self.fetch = fetch
        self.lock = threading.Lock()
        self.kept: OrderedDict[Origin, _Entry] = OrderedDict()

    def rules(self, origin: Origin) -> OriginRules:
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
