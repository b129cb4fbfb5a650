"""Small wrong changes to the source of a module: comparisons, signs, constants, conditions, statements left out."""

from __future__ import annotations

import ast
import copy
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

_COMPARISONS: dict[type, tuple[type, ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
_OPERATORS: dict[type, type] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
_PAIRS = ("min max", "any all", "minimum maximum", "floor ceil", "zeros ones", "zeros_like ones_like", "argmin argmax")
_SWAPPED = {a: b for pair in _PAIRS for a, b in (pair.split(), pair.split()[::-1])}
# Guards against mistakes of our own, not behaviour.
_GUARDS = {"strict", "stacklevel"}


@dataclass(frozen=True, slots=True)
class Mutant:
    """A module's source after one change.

    text: the line that was changed, stripped. change: `before → after`, numbered where a line has it more than once.
    """

    line: int
    text: str
    change: str
    source: str


def mutants_of(source: str) -> list[Mutant]:
    """All of them, in the order of the lines. Texts of errors, annotations, decorators and asserts stay as they are."""
    lines = source.encode().splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    found: list[Mutant] = []
    times: Counter[tuple[int, str]] = Counter()
    for node, after in _changes(ast.parse(source)):
        start = starts[node.lineno - 1] + node.col_offset
        stop = starts[node.end_lineno - 1] + node.end_col_offset
        text = ast.unparse(after)
        piece = f"({text})" if isinstance(after, ast.expr) else text
        changed = source.encode()[:start] + piece.encode() + source.encode()[stop:]
        change = f"{ast.unparse(node)} → {text}"
        times[node.lineno, change] += 1
        if (time := times[node.lineno, change]) > 1:
            change += f" (time {time})"
        found.append(Mutant(node.lineno, lines[node.lineno - 1].decode().strip(), change, changed.decode()))
    return sorted(found, key=lambda mutant: mutant.line)


def _changes(node: ast.AST) -> Iterator[tuple[ast.AST, ast.AST]]:
    """What can be put in the place of what, from a node down."""
    if isinstance(node, ast.Assert | ast.JoinedStr) or (isinstance(node, ast.Call) and _name(node.func) == "TypeVar"):
        return
    yield from ((node, after) for after in _variants(node))
    if isinstance(node, ast.Raise):
        return
    if isinstance(node, ast.If | ast.While) and not isinstance(node.test, ast.Compare | ast.UnaryOp):
        yield node.test, ast.UnaryOp(ast.Not(), node.test)
    for name, value in ast.iter_fields(node):
        if name not in ("annotation", "returns", "decorator_list"):
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from _changes(child)


def _variants(node: ast.AST) -> Iterator[ast.AST]:
    match node:
        case ast.Compare():
            for place, op in enumerate(node.ops):
                for other in _COMPARISONS[type(op)]:
                    yield _with(node, ops=[*node.ops[:place], other(), *node.ops[place + 1 :]])
        case ast.BinOp() if type(node.op) in _OPERATORS:
            yield _with(node, op=_OPERATORS[type(node.op)]())
        case ast.BoolOp():
            yield _with(node, op=ast.Or() if isinstance(node.op, ast.And) else ast.And())
        case ast.UnaryOp(op=ast.Not() | ast.USub() | ast.Invert()):
            yield node.operand
        case ast.Constant(value=bool()):
            yield ast.Constant(not node.value)
        case ast.Constant(value=int() | float()):
            yield ast.Constant(node.value + 1)
            yield ast.Constant(node.value - 1)
        case ast.IfExp():
            yield _with(node, body=node.orelse, orelse=node.body)
        case ast.Return(value=ast.expr()) if ast.unparse(node.value) != "None":
            yield _with(node, value=ast.Constant(None))
        case ast.Expr(value=ast.Call()) | ast.AugAssign() | ast.Raise() | ast.Delete():
            yield ast.Pass()
        case ast.Assign() if all(isinstance(target, ast.Attribute | ast.Subscript) for target in node.targets):
            yield ast.Pass()
        case ast.Continue():
            yield ast.Break()
        case ast.Break():
            yield ast.Continue()
        case ast.Subscript(slice=ast.Slice() as cut):
            yield _with(node, slice=_with(cut, lower=_moved(cut.lower, 1) if cut.lower else ast.Constant(1)))
            yield _with(node, slice=_with(cut, upper=_moved(cut.upper, -1) if cut.upper else ast.Constant(-1)))
        case ast.Call():
            yield from _calls(node)
        case ast.ListComp() | ast.SetComp() | ast.DictComp() | ast.GeneratorExp():
            for place, part in enumerate(node.generators):
                if part.ifs:
                    parts = [*node.generators[:place], _with(part, ifs=[]), *node.generators[place + 1 :]]
                    yield _with(node, generators=parts)


def _calls(node: ast.Call) -> Iterator[ast.AST]:
    if (other := _SWAPPED.get(_name(node.func))) is not None:
        yield _with(node, func=_with(node.func, **{"id" if isinstance(node.func, ast.Name) else "attr": other}))
    for place, keyword in enumerate(node.keywords):
        if keyword.arg is not None and keyword.arg not in _GUARDS:
            yield _with(node, keywords=node.keywords[:place] + node.keywords[place + 1 :])


def _name(called: ast.expr) -> str:
    return getattr(called, "id", getattr(called, "attr", ""))


def _with(node: ast.AST, **fields: object) -> ast.AST:
    changed = copy.copy(node)
    for name, value in fields.items():
        setattr(changed, name, value)
    return changed


def _moved(bound: ast.expr, by: int) -> ast.expr:
    return ast.BinOp(bound, ast.Add() if by > 0 else ast.Sub(), ast.Constant(1))
