"""Measure the structure of the code, each line beside its limit: `python -m tools.house`, and `--check` in CI.

    python -m tools.house                 the table
    python -m tools.house --guess 20      functions drawn at random: can a stranger name each one's file from the tree?
    python -m tools.house --trip          the calls between `embedpipe train-decoder` and the loss, from a tiny run

A room is a module or package directly below a package, an arrow an import from one room into another, a floor one
level of the longest chain of imports.
"""

import argparse
import ast
import random
import re
import sys
import tempfile
import traceback
from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

import grimp

ROOT = Path(__file__).resolve().parents[1]
LIBRARIES = ("embedpipe", "dalle2_core")
PACKAGES = (*LIBRARIES, "cli")
# Of these names each definition means the same: the entry of a command, a preset, a storage format, a table format, a
# hash in two libraries that do not know each other.
ONE_MEANING = {"command", "tiny", "base", "paper", "write", "paths", "batches", "survey", "main", "sha256"}
_OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
_LONG_FUNCTION = 60

# The most that `--check` lets through. Lower a limit when the code has become better; raise one only with a reason.
LIMITS = {
    "dalle2_core: modules at the top": 15,  # `inputs` and `precision`, which every model shares
    "dalle2_core: rooms": 24,
    "dalle2_core: arrows": 112,
    "dalle2_core: floors": 10,
    "cli: modules beside main, options, config, display": 5,  # terminal, fields, and what commands print at their end
    "embedpipe.fetch: rooms": 14,  # rights, of the files themselves
    "embedpipe.fetch: arrows": 50,
    "embedpipe.curate: rooms": 8,
    "embedpipe.curate: arrows": 14,
    "public names defined twice or more": 0,
    "strings of the libraries that hold an --option": 0,
    "lines of the packages": 68_300,  # with takedowns, rights, pretrained decoders, GPUs, local paths, `serve`
}


def sources(package: str) -> Iterator[Path]:
    """The modules of a package."""
    return (path for path in sorted((ROOT / package).rglob("*.py")) if "__pycache__" not in path.parts)


def structure(package: str) -> tuple[int, int, int]:
    """(rooms, arrows, floors) of a package."""
    graph = grimp.build_graph(package.partition(".")[0])
    depth = package.count(".") + 2
    arrows: dict[str, set[str]] = defaultdict(set)
    for module in graph.modules:
        for target in graph.find_modules_directly_imported_by(module):
            if module.startswith(package + ".") and target.startswith(package + "."):
                above, below = (".".join(name.split(".")[:depth]) for name in (module, target))
                if above != below:
                    arrows[above].add(below)
    rooms = graph.find_children(package)
    return len(rooms), sum(map(len, arrows.values())), _floors(rooms, arrows)


def _floors(rooms: set[str], arrows: dict[str, set[str]]) -> int:
    """Levels of the longest chain; rooms that import each other stand on one floor."""
    found: dict[str, int] = {}

    def floor(room: str, above: tuple[str, ...] = ()) -> int:
        if room not in found:
            below = [floor(it, (*above, room)) for it in arrows[room] if it not in above]
            found[room] = 1 + max(below, default=0)
        return found[room]

    return max(map(floor, sorted(rooms)), default=0)


def definitions() -> dict[str, list[tuple[str, int]]]:
    """Public functions and classes at the top of a module: where each name is defined, with its length in lines."""
    found: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for package in PACKAGES:
        for path in sources(package):
            for node in ast.parse(path.read_text()).body:
                if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                    size = (node.end_lineno or node.lineno) - node.lineno + 1
                    found[node.name].append((str(path.relative_to(ROOT)), size))
    return found


def defined_twice() -> dict[str, list[str]]:
    """Names with several definitions, but for those of one meaning."""
    several = {name: [path for path, _ in places] for name, places in definitions().items() if len(places) > 1}
    return {name: paths for name, paths in several.items() if name not in ONE_MEANING}


def option_strings() -> list[tuple[str, int, str]]:
    """Strings of the libraries, docstrings aside, that name an option of the command line: (file, line, option)."""
    found = []
    for package in LIBRARIES:
        for path in sources(package):
            tree = ast.parse(path.read_text())
            docstrings = {
                id(node.body[0].value)
                for node in ast.walk(tree)
                if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
                and node.body
                and isinstance(node.body[0], ast.Expr)
            }
            for node in ast.walk(tree):
                if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
                    found += [(str(path.relative_to(ROOT)), node.lineno, it) for it in _OPTION.findall(node.value)]
    return found


def long_functions() -> list[tuple[int, str]]:
    """(lines, file:function) of functions over 60 lines, the longest first."""
    found = []
    for package in PACKAGES:
        for path in sources(package):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.FunctionDef):
                    size = (node.end_lineno or node.lineno) - node.lineno + 1
                    found.append((size, f"{path.relative_to(ROOT)}:{node.name}"))
    return sorted((it for it in found if it[0] > _LONG_FUNCTION), reverse=True)


def measured() -> dict[str, int]:
    """Each figure by its name."""
    figures = {"dalle2_core: modules at the top": len(list((ROOT / "dalle2_core").glob("*.py"))) - 1}
    for package in ("dalle2_core", "embedpipe", "embedpipe.fetch", "embedpipe.curate", "embedpipe.unclip"):
        rooms, arrows, floors = structure(package)
        figures |= {f"{package}: rooms": rooms, f"{package}: arrows": arrows, f"{package}: floors": floors}
    shared = {"__init__", "__main__", "main", "options", "config", "display"}
    beside = [path for path in (ROOT / "cli").glob("*.py") if path.stem not in shared]
    figures["cli: modules beside main, options, config, display"] = len(beside)
    figures["public names defined twice or more"] = len(defined_twice())
    figures["strings of the libraries that hold an --option"] = len(option_strings())
    figures["functions over 60 lines"] = len(long_functions())
    figures["lines of the packages"] = sum(
        len(path.read_text().splitlines()) for package in PACKAGES for path in sources(package)
    )
    return figures


def drawn(count: int, seed: int) -> list[tuple[str, str]]:
    """(name, file) of functions drawn at random, of at least five lines each."""
    known = sorted(
        (name, path)
        for name, places in definitions().items()
        for path, size in places
        if size >= 5 and len(places) == 1 and not path.startswith("cli/commands")
    )
    return random.Random(seed).sample(known, count)


def trip() -> list[str]:
    """`file:function` of each call between `embedpipe train-decoder` and the loss of a stage, from a real, tiny run."""
    from click.testing import CliRunner
    from embedpipe_cli.main import cli

    from dalle2_core.decoder.stage import DecoderStage
    from tests import shards, tiny_clip

    found: list[str] = []

    def recording(self: DecoderStage, *given: Any, **named: Any) -> NoReturn:
        frames = traceback.extract_stack()[:-1]
        inside = [frame for frame in frames if frame.filename.startswith(tuple(str(ROOT / it) for it in PACKAGES))]
        found.extend(f"{Path(frame.filename).relative_to(ROOT)}:{frame.name}" for frame in inside)
        raise KeyboardInterrupt

    with tempfile.TemporaryDirectory() as folder, mock.patch.object(DecoderStage, "loss", recording):
        data, emb, out = (str(Path(folder) / name) for name in ("shards", "emb", "decoder"))
        shards.write_shards(Path(data), shards=2, per_shard=20)
        model = tiny_clip.write(Path(folder) / "model")
        small = ["--sizes", "8", "--dims", "8", "--steps", "1", "--batch-size", "4", "--valid-share", "0.3"]
        for words in (
            ["encode", data, emb, "--model", model, "--gpus", "0"],
            ["train-decoder", data, emb, out, *small],
        ):
            CliRunner().invoke(cli, [*map(str, words), *(["--device", "cpu"] if "--sizes" in words else [])])
    return found


def main() -> int:
    """Print what was asked for; 1 where a figure is over its limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="Only say which figures are over their limits.")
    parser.add_argument("--guess", type=int, metavar="N", help="Draw N functions, and the files that hold them.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trip", action="store_true", help="The calls between train-decoder and its loss.")
    options = parser.parse_args()
    if options.guess:
        for name, path in drawn(options.guess, options.seed):
            print(f"{name:40} {path}")
        return 0
    if options.trip:
        calls = trip()
        height = {"cli": 2, "embedpipe": 1, "dalle2_core": 0}
        heights = [height[call.split("/")[0]] for call in calls]
        climbs = sum(below < above for below, above in pairwise(heights))
        files = {call.partition(":")[0] for call in calls}
        print(f"{len(calls)} calls in {len(files)} files, {climbs} up into a library above", *calls, sep="\n  ")
        return 0
    figures = measured()
    over = {name: limit for name, limit in LIMITS.items() if figures[name] > limit}
    if not options.check:
        for name, figure in figures.items():
            print(f"{figure:>7,}  {LIMITS.get(name, ''):>7}  {name}")
        for size, function in long_functions()[:10]:
            print(f"{size:>7}  lines    {function}")
        for name, paths in sorted(defined_twice().items()):
            print(f"  {name}: {', '.join(paths)}")
    for name, limit in over.items():
        print(f"{name}: {figures[name]:,}, over its limit of {limit:,}", file=sys.stderr)
    return bool(over)


if __name__ == "__main__":
    sys.exit(main())
