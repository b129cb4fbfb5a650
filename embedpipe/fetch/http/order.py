"""Which answers are certain to belong to their urls.

HTTP/1.1 matches an answer to its request by order alone. A server that answers one request twice shifts every later
answer on that connection to the wrong url, and each of them is whole. So an answer on a connection that has been used
before counts only provisionally, until that connection has ended in order: we close our side, the server closes its
own, and in between comes not a byte. The first answer on a connection is certain.

- A connection that ends otherwise voids its provisional answers.
- A byte that belongs to no request voids all provisional answers of its origin, whatever the connection: who answers
  twice once may also omit an answer, and then the numbers match again.
- Both end the reuse of connections to that origin.
- An image that had come before on the same connection may be an answer that was sent twice, with another one omitted:
  the numbers match. It is void, and if asking again gives another image, all provisional answers of its origin are.

The urls of void answers are asked for again, each on a connection of its own; those answers are final.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Iterable

Origin = tuple[str, str, int]

_MOST_KEPT = 100_000
_MOST_DOUBTED = 64  # per origin and round: many hosts have one image for everything that is missing


class AnswerOrder:
    """The provisional answers of one round of urls, by origin, and those that turned out void."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.provisional: defaultdict[Origin, set[int]] = defaultdict(set)
        self.void: set[int] = set()
        self.doubted: dict[int, tuple[Origin, int]] = {}
        self.doubts: Counter[Origin] = Counter()
        self.singly: OrderedDict[Origin, None] = OrderedDict()  # origins without reuse, the oldest first

    def may_reuse(self, origin: Origin) -> bool:
        """Whether connections to `origin` have all ended in order."""
        return origin not in self.singly

    def note(self, origin: Origin, position: int) -> None:
        """The url at `position` of the round was answered on a connection that had been used before."""
        with self.lock:
            self.provisional[origin].add(position)

    def distrust(self, origin: Origin, positions: Iterable[int], all_of_origin: bool) -> None:
        """A connection with answers to `positions` ended out of order, or (`all_of_origin`) with surplus bytes."""
        with self.lock:
            self.void |= self.provisional[origin] if all_of_origin else set(positions)
            self.singly[origin] = None
            if len(self.singly) > _MOST_KEPT:
                self.singly.popitem(last=False)

    def compare(self, position: int, body: int, earlier: set[int], final: bool) -> None:
        """An image has come for the url at `position`: the hash of its body, and those before it on its connection.

        final: it was asked for again, and counts.
        """
        with self.lock:
            if final:
                origin, doubted = self.doubted.get(position, (None, body))
                if origin is not None and doubted != body:
                    self.void |= self.provisional[origin]
                    self.singly[origin] = None
            elif body in earlier:
                self._doubt(position, body)
            earlier.add(body)

    def _doubt(self, position: int, body: int) -> None:
        for origin, positions in self.provisional.items():
            if position in positions and self.doubts[origin] < _MOST_DOUBTED:
                self.doubts[origin] += 1
                self.doubted[position] = (origin, body)
                self.void.add(position)

    def settle(self) -> set[int]:
        """End a round in which all connections have ended: the positions to ask for again, which are final then."""
        with self.lock:
            void, self.void = self.void, set()
            for positions in self.provisional.values():
                positions -= void
            if not void:
                self.provisional.clear()
                self.doubted.clear()
                self.doubts.clear()
        return void
