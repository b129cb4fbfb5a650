"""Conditions on metadata columns, such as `width >= 256 and caption_length > 5`: parsed here, computed by Arrow.

SQL operators with SQL's three-valued logic (comparisons with null are unknown). The grammar is exactly what is listed
here: an expression reads columns and cannot call other code.

    or · and · not · = == != <> < <= > >= · is [not] null · [not] in (…) · [not] between … and … · [not] like '%…_'
    + - * / % · -x · numbers · 'text' · true, false · column, "column" · function(…), see FUNCTIONS
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ...errors import InputError, OptionError, did_you_mean

# name → (number of arguments, function)
FUNCTIONS: dict[str, tuple[int, Callable[..., Any]]] = {
    "lower": (1, pc.utf8_lower),
    "upper": (1, pc.utf8_upper),
    "length": (1, pc.utf8_length),
    "abs": (1, pc.abs),
    "contains": (2, lambda text, part: pc.match_substring(text, _text(part))),
    "starts_with": (2, lambda text, part: pc.starts_with(text, _text(part))),
    "ends_with": (2, lambda text, part: pc.ends_with(text, _text(part))),
    "matches": (2, lambda text, pattern: pc.match_substring_regex(text, _text(pattern))),
}

_COMPARISONS = {
    "=": pc.equal,
    "==": pc.equal,
    "!=": pc.not_equal,
    "<>": pc.not_equal,
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
}
_SUMS = {"+": pc.add_checked, "-": pc.subtract_checked}
_PRODUCTS = {
    "*": pc.multiply_checked,
    "/": lambda a, b: pc.divide(_double(a), _double(b)),
    "%": lambda a, b: pc.subtract(a, pc.multiply(b, pc.floor(pc.divide(_double(a), _double(b))))),
}
_WORDS = ("and", "or", "not", "in", "is", "null", "between", "like", "true", "false")
_TOKEN = re.compile(
    r"\s*(?:(?P<number>\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?)|(?P<text>'(?:[^']|'')*')|(?P<quoted>\"[^\"]+\")"
    r"|(?P<name>[^\W\d]\w*)|(?P<sign><=|>=|==|!=|<>|[=<>+\-*/%(),]))"
)
_DEEPEST = 60

# The columns that an expression reads → its value: an Arrow array or scalar.
Compute = Callable[[Mapping[str, Any]], Any]


@dataclass(frozen=True, slots=True)
class Expression:
    """A parsed condition. columns: those it reads. `mask(columns)` evaluates it per row."""

    text: str
    columns: frozenset[str]
    compute: Compute

    def mask(self, columns: Mapping[str, Any], rows: int) -> pa.Array:
        """bool [rows], null for unknown. `columns`: Arrow arrays by name. Raises InputError (an overflow)."""
        try:
            value = self.compute(columns)
        except pa.ArrowException as problem:
            raise InputError(f"`where={self.text!r}`: {problem}", "Write it with smaller numbers") from problem
        return pa.repeat(value, rows) if isinstance(value, pa.Scalar) else value


def parse_condition(text: str, types: Mapping[str, pa.DataType]) -> Expression:
    """Parse a condition over columns of these types.

    Raises InputError with the position of a syntax error, the unknown column, or the incompatible types.
    """
    parser = _Parser(text, types)
    compute = parser.whole()
    try:
        kind = compute({name: pa.array([], types[name]) for name in parser.columns}).type
    except (pa.ArrowException, TypeError) as problem:
        if isinstance(problem, pa.ArrowNotImplementedError):  # whose words are of functions and kernels
            said, remedy = "no such operation on it", "Compare a number with numbers, and text with text in quotes"
        else:
            said, remedy = str(problem), "Compare like with like"
        raise InputError(f"`where={text!r}`: {_types_of(parser, types)}: {said}", remedy) from problem
    if not pa.types.is_boolean(kind):
        raise InputError(
            f"`where={text!r}`: is {kind}, not true or false", "Compare it with something, as in width > 256"
        )
    return Expression(text, frozenset(parser.columns), compute)


def _types_of(parser: _Parser, types: Mapping[str, pa.DataType]) -> str:
    return ", ".join(f"{name} is {types[name]}" for name in sorted(parser.columns)) or "these types do not go together"


def _text(value: Any) -> str:
    if not isinstance(value, pa.StringScalar):
        raise TypeError("the text to look for must be written out, in single quotes")
    return str(value.as_py())


def _double(value: Any) -> Any:
    return pc.cast(value, pa.float64())


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    at: int


class _Parser:
    """Recursive descent, one method per precedence level."""

    def __init__(self, text: str, types: Mapping[str, pa.DataType]) -> None:
        self._text = text
        self._types = types
        self._tokens = self._split()
        self._next = 0
        self._depth = 0
        self.columns: set[str] = set()

    def _split(self) -> list[_Token]:
        tokens, at = [], 0
        while at < len(self._text.rstrip()):
            found = _TOKEN.match(self._text, at)
            if found is None:
                raise self._wrong("what is this?", len(self._text) - len(self._text[at:].lstrip()))
            kind = str(found.lastgroup)
            text, begins = found[kind], found.start(kind)
            if kind == "name" and text.lower() in _WORDS:
                kind, text = "word", text.lower()
            tokens.append(_Token(kind, text, begins))
            at = found.end()
        return [*tokens, _Token("end", "the end", len(self._text))]

    def _wrong(self, what: str, at: int) -> InputError:
        where = f"at {self._text[at : at + 20]!r}" if at < len(self._text) else "at its end"
        return OptionError(
            f"`where={self._text!r}`: {what}, {where}", "Write it like: width >= 256 and caption_length > 5"
        )

    def _peek(self) -> _Token:
        return self._tokens[self._next]

    def _take(self, *texts: str) -> str | None:
        """Consume the next word or operator, if it is one of these."""
        token = self._peek()
        if token.kind in ("word", "sign") and token.text in texts:
            self._next += 1
            return token.text
        return None

    def _expect(self, text: str) -> None:
        if self._take(text) is None:
            raise self._wrong(f"{text!r} expected", self._peek().at)

    def whole(self) -> Compute:
        compute = self._any()
        if self._peek().kind != "end":
            raise self._wrong("'and' or 'or' expected", self._peek().at)
        return compute

    def _any(self) -> Compute:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise self._wrong("nested too deep", self._peek().at)
        first, more = self._all(), []
        while self._take("or"):
            more.append((pc.or_kleene, self._all()))
        self._depth -= 1
        return _fold(first, more)

    def _all(self) -> Compute:
        first, more = self._negated(), []
        while self._take("and"):
            more.append((pc.and_kleene, self._negated()))
        return _fold(first, more)

    def _negated(self) -> Compute:
        turns = 0
        while self._take("not"):
            turns += 1
        inner = self._comparison()
        return _unary(pc.invert, inner) if turns % 2 else inner

    def _comparison(self) -> Compute:
        left = self._sum()
        if sign := self._take(*_COMPARISONS):
            return _binary(_COMPARISONS[sign], left, self._sum())
        if self._take("is"):
            test = pc.is_valid if self._take("not") else pc.is_null
            self._expect("null")
            return _unary(test, left)
        turned = self._take("not") is not None
        test_of = self._test(left)
        if test_of is None:
            if turned:
                raise self._wrong("'in', 'like' or 'between' expected", self._peek().at)
            return left
        return _unary(pc.invert, test_of) if turned else test_of

    def _test(self, left: Compute) -> Compute | None:
        if self._take("in"):
            self._expect("(")
            first, more = _binary(pc.equal, left, self._sum()), []
            while self._take(","):
                more.append((pc.or_kleene, _binary(pc.equal, left, self._sum())))
            self._expect(")")
            return _fold(first, more)
        if self._take("between"):
            low = self._sum()
            self._expect("and")
            above, below = _binary(pc.greater_equal, left, low), _binary(pc.less_equal, left, self._sum())
            return _binary(pc.and_kleene, above, below)
        if self._take("like"):
            return _binary(lambda text, pattern: pc.match_like(text, _text(pattern)), left, self._sum())
        return None

    def _sum(self) -> Compute:
        first, more = self._product(), []
        while sign := self._take(*_SUMS):
            more.append((_SUMS[sign], self._product()))
        return _fold(first, more)

    def _product(self) -> Compute:
        first, more = self._signed(), []
        while sign := self._take(*_PRODUCTS):
            more.append((_PRODUCTS[sign], self._signed()))
        return _fold(first, more)

    def _signed(self) -> Compute:
        turns = 0
        while self._take("-"):
            turns += 1
        inner = self._single()
        return _unary(pc.negate_checked, inner) if turns % 2 else inner

    def _single(self) -> Compute:
        token = self._peek()
        if self._take("("):
            inner = self._any()
            self._expect(")")
            return inner
        if token.kind == "end":
            raise self._wrong("something is missing", token.at)
        self._next += 1
        if token.kind == "number":
            number = float(token.text) if set(token.text) & set(".eE") else int(token.text)
            return _constant(self._number(number, token))
        if token.kind == "text":
            return _constant(pa.scalar(token.text[1:-1].replace("''", "'")))
        if token.text in ("true", "false") and token.kind == "word":
            return _constant(pa.scalar(token.text == "true"))
        if token.kind == "name" and self._take("("):
            return self._function(token)
        if token.kind in ("name", "quoted"):
            return self._column(token)
        raise self._wrong("a column, a number or a 'text' expected", token.at)

    def _number(self, value: float, token: _Token) -> pa.Scalar:
        try:
            return pa.scalar(value)
        except (OverflowError, pa.ArrowInvalid):
            raise self._wrong("too large a number", token.at) from None

    def _function(self, token: _Token) -> Compute:
        name = token.text.lower()
        if name not in FUNCTIONS:
            raise OptionError(
                f"`where={self._text!r}`: no function {token.text!r}", did_you_mean(token.text, FUNCTIONS)
            )
        count, function = FUNCTIONS[name]
        arguments = [self._any()]
        while self._take(","):
            arguments.append(self._any())
        self._expect(")")
        if len(arguments) != count:
            raise self._wrong(f"{name} takes {count}, not {len(arguments)}", token.at)
        return lambda columns: function(*(argument(columns) for argument in arguments))

    def _column(self, token: _Token) -> Compute:
        name = token.text.strip('"')
        if name not in self._types:
            raise InputError(f"`where={self._text!r}`: no column {name!r}", did_you_mean(name, self._types))
        self.columns.add(name)
        return lambda columns: columns[name]


def _constant(value: pa.Scalar) -> Compute:
    return lambda _: value


def _unary(function: Callable[[Any], Any], inner: Compute) -> Compute:
    return lambda columns: function(inner(columns))


def _binary(function: Callable[[Any, Any], Any], left: Compute, right: Compute) -> Compute:
    return lambda columns: function(left(columns), right(columns))


def _fold(first: Compute, more: Sequence[tuple[Callable[[Any, Any], Any], Compute]]) -> Compute:
    """From left to right, in a loop: a thousand operands do not recurse a thousand calls deep."""

    def compute(columns: Mapping[str, Any]) -> Any:
        value = first(columns)
        for function, part in more:
            value = function(value, part(columns))
        return value

    return compute if more else first
