"""robots.txt, as RFC 9309 has it: groups of agents, the longest rule wins, `*` and `$`, cached for each origin."""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import quote, unquote_to_bytes

from ..outcome import Failure

MAX_BYTES = 500 * 1024  # what the RFC asks a crawler to read at least; the rest is left out

_MOST_KEPT = 2_000
_RESERVED = "%/:?#[]@!$&'()*+,;=~"

_MOST_RULES = 200_000

Origin = tuple[str, str, int]


@dataclass(frozen=True, slots=True)
class Rule:
    """One pattern, cut at its stars. `anchored`: the path must end where the pattern does."""

    pieces: tuple[str, ...]
    anchored: bool
    allows: bool

    def matches(self, path: str) -> bool:
        """Whether the pattern matches; in time linear in the path for each piece, whoever wrote the pattern."""
        first, *others = self.pieces
        if not path.startswith(first):
            return False
        position = len(first)
        if not others:
            return not self.anchored or position == len(path)
        *middle, last = others
        for piece in middle:
            found = path.find(piece, position)
            if found < 0:
                return False
            position = found + len(piece)
        if self.anchored:
            return len(path) - len(last) >= position and path.endswith(last)
        return path.find(last, position) >= 0


@dataclass(frozen=True, slots=True)
class Rules:
    """What one robots.txt says to one agent; the rule that decides first stands first.

    `unreachable`: why there was none to read, which forbids everything for the time being.
    """

    ranked: tuple[Rule, ...] = ()
    unreachable: Failure | None = None

    def allow(self, path: str) -> bool:
        """Whether `path` (with its query) may be asked for."""
        path = _normal(path)
        return next((rule.allows for rule in self.ranked if rule.matches(path)), True)


ALLOW_ALL = Rules()


def parse_robots(text: str, agent: str) -> Rules:
    """The rules for `agent`: those of the groups that name it, else of those that name `*`."""
    groups: dict[str, list[tuple[str, bool]]] = {}
    named: list[str] = []
    in_rules = False
    for line in text.splitlines():
        name, colon, value = (piece.strip() for piece in line.partition("#")[0].partition(":"))
        if not colon:
            continue
        field = name.lower()
        if field == "user-agent":
            if in_rules:
                named, in_rules = [], False
            # Only the product's name counts: "embedpipe/1.0" means us as well.
            named.append(value if value == "*" else re.split(r"[^a-z_-]", value.lower(), maxsplit=1)[0])
            groups.setdefault(named[-1], [])
        elif field in ("allow", "disallow"):
            in_rules = True
            for group in named if value else ():  # an empty rule matches nothing
                groups[group].append((value, field == "allow"))
    chosen = groups.get(agent.lower(), groups.get("*", []))
    # The longest pattern decides; where an allowing one is as long as a forbidding one, it wins.
    ranked = sorted(((_normal(path), allows) for path, allows in chosen), key=lambda rule: (-len(rule[0]), not rule[1]))
    return Rules(tuple(_rule(path, allows) for path, allows in ranked))


def _normal(path: str) -> str:
    """Percent-encoded where it must be and only there, so that spellings of one path compare equal."""
    pieces = re.split(r"(%[0-9A-Fa-f]{2})", path)
    return "".join(
        _escape(piece) if piece[:1] == "%" and len(piece) == 3 else quote(piece, _RESERVED) for piece in pieces
    )


def _escape(escape: str) -> str:
    plain = unquote_to_bytes(escape)
    return plain.decode() if re.fullmatch(rb"[A-Za-z0-9._~-]", plain) else escape.upper()


def _rule(path: str, allows: bool) -> Rule:
    anchored = path.endswith("$")
    return Rule(tuple((path[:-1] if anchored else path).split("*")), anchored, allows)


@dataclass(slots=True)
class _Entry:
    asking: threading.Lock = field(default_factory=threading.Lock)
    rules: Rules | None = None

    @property
    def weight(self) -> int:
        return len(self.rules.ranked) if self.rules else 0


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
            rules = sum(entry.weight for entry in self.kept.values())
            while rules > _MOST_RULES or len(self.kept) > _MOST_KEPT:
                rules -= self.kept.popitem(last=False)[1].weight
