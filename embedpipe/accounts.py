"""What became of everything that an input holds: used for a sample, or passed over for a reason. The numbers add up."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from .plural import plural

# Reason → what it means. `unknown_type` is followed by the extension: `unknown_type .npy`.
PASSED_OVER = {
    "hidden": "the name begins with a dot: .DS_Store, AppleDouble's ._name",
    "macosx": "inside a folder __MACOSX, which macOS adds to archives",
    "folder": "a folder of a tar",
    "link": "a symbolic or hard link of a tar",
    "linked_folder": "a symbolic link to a folder; links to files are followed",
    "special": "a device, a pipe or a socket",
    "sparse": "a sparse file of a tar",
    "no_extension": "no extension, and the content is no image",
    "unknown_type": "the extension is of nothing that is read, and the content is no image",
    "second_image": "another image of a sample that has one",
    "second_caption": "another caption of a sample that has one",
    "second_metadata": "another .json of a sample that has one",
    "unused_part": "a part (seg.json of 0.seg.json) that its sample has no use for",
    "not_named": "another image or caption than the one that `image_member` or `caption_member` names",
    "blank_line": "a line of a text table that is blank",
    "no_row": "an image that no row of the folder's metadata tables names",
    "repeated_row": "a row of the folder's metadata tables that names an image again",
    "nameless_row": "a row of the folder's metadata tables that names no image",
    "own_output": "in an output of embedpipe below the folder",
    "unreadable": "it cannot be opened, and its name does not say what it is; or a folder that cannot be listed",
    "companion": "a file that describes a shard beside it",
    "uncommitted": "a tar that an unfinished fetch has not committed",
}
_WORDS = {
    "macosx": "in __MACOSX",
    "linked_folder": "linked folder",
    "no_extension": "without extension",
    "second_image": "second image",
    "second_caption": "second caption",
    "second_metadata": "second .json",
    "unused_part": "unused part",
    "not_named": "not the member named",
    "blank_line": "blank",
    "no_row": "without a row in the metadata",
    "repeated_row": "row of an image that has one",
    "nameless_row": "row without the name of an image",
    "own_output": "embedpipe's own",
}
# Present in ordinary input, and nothing that anyone would miss.
_UNREMARKABLE = frozenset({"folder", "companion"})
_MOST_TYPES = 32
_OTHER_TYPES = "unknown_type …"


@dataclass(frozen=True, slots=True)
class Accounts:
    """seen = used + the sum of `passed_over`, all in one unit: members of a tar, files of a folder, rows of a table.

    used: those that belong to a sample, a row or a reject. passed_over: by reason, see PASSED_OVER. examples: the first
    one of each reason. `a + b` adds them up.
    """

    unit: str
    seen: int = 0
    used: int = 0
    passed_over: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)

    def __add__(self, other: Accounts) -> Accounts:
        return Accounts(
            unit=self.unit if self.unit == other.unit else "item",
            seen=self.seen + other.seen,
            used=self.used + other.used,
            passed_over=dict(sorted((Counter(self.passed_over) + Counter(other.passed_over)).items())),
            examples={**other.examples, **self.examples},
        )

    @property
    def add_up(self) -> bool:
        """Whether nothing is missing and nothing counted twice."""
        return self.seen == self.used + sum(self.passed_over.values())

    def said(self) -> str:
        """`7 members passed over: 5 .npy (a.npy), 2 hidden (._a.jpg)`; empty if there is nothing worth a word."""
        told = {reason: count for reason, count in self.passed_over.items() if reason not in _UNREMARKABLE}
        if not told:
            return ""
        most_first = sorted(told.items(), key=lambda item: (-item[1], item[0]))
        reasons = (f"{count:,} {_in_words(reason)}{self._example(reason)}" for reason, count in most_first)
        return f"{plural(sum(told.values()), self.unit)} passed over: {', '.join(reasons)}"

    def in_full(self) -> str:
        """`28 seen, 21 used, 7 passed over: 5 .npy, 2 hidden`."""
        passed = sum(self.passed_over.values())
        reasons = ", ".join(f"{count:,} {_in_words(reason)}" for reason, count in self.passed_over.items())
        return f"{self.seen:,} seen, {self.used:,} used, {passed:,} passed over" + f": {reasons}" * bool(reasons)

    def _example(self, reason: str) -> str:
        return f" ({self.examples[reason]})" if reason in self.examples else ""


def all_rows(count: int) -> Accounts:
    """The accounts of a table: each of its rows becomes a row or a reject."""
    return Accounts("row", count, count)


def total(*accounts: Accounts | None) -> Accounts | None:
    """The sum of those that are recorded; None if none is."""
    found: Accounts | None = None
    for each in accounts:
        found = each if found is None else found if each is None else found + each
    return found


def _in_words(reason: str) -> str:
    name, _, extension = reason.partition(" ")
    if name == "unknown_type":
        return extension if extension != "…" else "of other types"
    return _WORDS.get(name, name)


class Ledger:
    """Collects the accounts of one input while it is read."""

    def __init__(self, unit: str) -> None:
        self.unit = unit
        self._seen = 0
        self._used = 0
        self._passed_over: Counter[str] = Counter()
        self._examples: dict[str, str] = {}

    def see(self) -> None:
        """Something came."""
        self._seen += 1

    def use(self, path: str) -> None:
        """It belongs to a sample."""
        self._used += 1

    def pass_over(self, path: str, reason: str) -> None:
        """It belongs to none. reason: a name in PASSED_OVER, or `unknown_type .ext`."""
        if reason.startswith("unknown_type") and reason not in self._passed_over:
            known = sum(name.startswith("unknown_type") for name in self._passed_over)
            reason = reason if known < _MOST_TYPES else _OTHER_TYPES
        self._passed_over[reason] += 1
        self._examples.setdefault(reason, path)

    def closed(self) -> Accounts:
        """The accounts so far."""
        counts = dict(sorted(self._passed_over.items()))
        return Accounts(self.unit, self._seen, self._used, counts, dict(sorted(self._examples.items())))
