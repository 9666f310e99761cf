"""The expressions of ``keep: {where: …}``: comparisons, arithmetic and logic over columns of the index.

The grammar is a small part of Python's: names of columns, numbers, strings, ``+ - * / %``, comparisons, ``in``,
``and``, ``or``, ``not``. Nothing is executed as Python: the syntax tree is checked and turned into NumPy calls. A value
that is not known (null, NaN, a division by zero) stays unknown, as in SQL; a row passes only if the expression is true.

Legend: N rows.
"""

import ast
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Literal

import numpy as np

ColumnType = Literal["number", "string", "truth"]
COLUMNS: dict[str, ColumnType] = {
    "agent": "string",
    "episode_id": "string",
    "expert_return": "number",
    "order": "number",
    "return": "number",
    "source_file": "string",
    "source_position": "number",
    "steps": "number",
    "task": "string",
}
"""The columns of the index that an expression in a config can name."""

_MOST_CHARACTERS, _MOST_NESTED = 10_000, 50
_TOO_DEEP = f"is nested more than {_MOST_NESTED} deep; write it shorter"
_STRING_OR_RETURN = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|\breturn\b""", re.DOTALL)
_RETURN = "_return"
_COMPARE: dict[type[ast.cmpop], tuple[str, Callable[[Any, Any], Any]]] = {
    ast.Eq: ("==", operator.eq),
    ast.NotEq: ("!=", operator.ne),
    ast.Lt: ("<", operator.lt),
    ast.LtE: ("<=", operator.le),
    ast.Gt: (">", operator.gt),
    ast.GtE: (">=", operator.ge),
}
_COMPUTE: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: np.add,
    ast.Sub: np.subtract,
    ast.Mult: np.multiply,
    ast.Div: np.divide,
    ast.Mod: np.mod,
}
_GRAMMAR = "columns, numbers, strings, + - * / %, == != < <= > >=, in (…), and, or, not and parentheses"


@dataclass(frozen=True)
class Strings:
    """A column of strings: ``codes``, int (N,), are indices into ``names``; -1 is null."""

    codes: np.ndarray
    names: Sequence[str]


@dataclass(frozen=True)
class Truth:
    """Which rows are true and which are false, bool (N,) or (); rows that are neither are unknown."""

    true: Any
    false: Any


Column = np.ndarray | Strings | Truth
"""A column of numbers is float64 (N,), NaN where unknown."""


@dataclass(frozen=True)
class _Value:
    """A checked part of an expression, and its source ``text``; ``evaluate`` computes it from columns."""

    type: ColumnType
    text: str
    evaluate: Callable[[Mapping[str, Column]], Any]


class Where:
    """A parsed expression; ``columns`` are the columns that it names."""

    def __init__(self, text: str, known: Mapping[str, ColumnType] = COLUMNS) -> None:
        """``known`` are the columns that it may name.

        Raises ValueError, whose message is a sentence, if ``text`` is no expression, names an unknown column or mixes
        types.
        """
        self.text = text
        parser = _Parser(known)
        self._value = parser.parse(text)
        self.columns = frozenset(parser.columns)

    def passes(self, columns: Mapping[str, Column], rows: int) -> np.ndarray:
        """The rows for which the expression is true, bool (N,), given at least its ``columns``."""
        with np.errstate(all="ignore"):
            return np.broadcast_to(self._value.evaluate(columns).true, rows)


class _Parser:
    """Turns the syntax tree of Python's own parser into checked values."""

    def __init__(self, known: Mapping[str, ColumnType]) -> None:
        self._known = known
        self.columns: set[str] = set()

    def parse(self, text: str) -> _Value:
        if len(text) > _MOST_CHARACTERS:
            raise ValueError(
                f"has {len(text):,} characters, and {_MOST_CHARACTERS:,} are the most; list episodes in a file"
            )
        # The name of the column "return" is a keyword of Python.
        renamed = _STRING_OR_RETURN.sub(lambda match: _RETURN if match[0] == "return" else match[0], text)
        try:
            tree = ast.parse(f"(\n{renamed}\n)", mode="eval")
            if tree.body.lineno == 1:  # the text closed the parenthesis that was added here
                raise SyntaxError("unmatched ')'")
            return self._want("truth", self._value(tree.body, 0), "the whole")
        except SyntaxError as error:
            raise ValueError(f"is no expression: {error.msg}; it may hold {_GRAMMAR}") from None
        except UnicodeEncodeError as error:
            raise ValueError(f"is no expression: {error.reason}") from None
        except (RecursionError, MemoryError):
            raise ValueError(_TOO_DEEP) from None

    def _value(self, node: ast.expr, depth: int) -> _Value:
        if depth > _MOST_NESTED:
            raise ValueError(_TOO_DEEP)
        match node:
            case ast.Name():
                return self._column(node.id)
            case ast.Constant():
                return _constant(node.value)
            case ast.BoolOp():
                return self._logic(node, depth + 1)
            case ast.UnaryOp(op=ast.Not()):
                inner = self._want("truth", self._value(node.operand, depth + 1), "'not'")
                return _Value("truth", _text(node), lambda columns: _not(inner.evaluate(columns)))
            case ast.UnaryOp(op=ast.USub() | ast.UAdd()):
                sign = -1.0 if isinstance(node.op, ast.USub) else 1.0
                number = self._want("number", self._value(node.operand, depth + 1), "a sign")
                return _Value("number", _text(node), lambda columns: sign * number.evaluate(columns))
            case ast.BinOp() if type(node.op) in _COMPUTE:
                return self._arithmetic(node, depth + 1)
            case ast.Compare():
                return self._comparison(node, depth + 1)
        raise ValueError(f"holds {_text(node)!r}, and may hold {_GRAMMAR}")

    def _column(self, name: str) -> _Value:
        name = "return" if name == _RETURN else name
        if name not in self._known:
            raise ValueError(f"{name!r} is no column; the columns are {', '.join(self._known)}")
        self.columns.add(name)
        return _Value(self._known[name], name, operator.itemgetter(name))

    def _logic(self, node: ast.BoolOp, depth: int) -> _Value:
        joins, word = (_and, "'and'") if isinstance(node.op, ast.And) else (_or, "'or'")
        parts = [self._want("truth", self._value(part, depth), word) for part in node.values]
        return _Value("truth", _text(node), lambda columns: reduce(joins, (part.evaluate(columns) for part in parts)))

    def _arithmetic(self, node: ast.BinOp, depth: int) -> _Value:
        compute = _COMPUTE[type(node.op)]
        left, right = (self._want("number", self._value(side, depth), "arithmetic") for side in (node.left, node.right))

        def evaluate(columns: Mapping[str, Column]) -> Any:
            result = compute(left.evaluate(columns), right.evaluate(columns))
            return np.where(np.isfinite(result), result, np.nan)

        return _Value("number", _text(node), evaluate)

    def _comparison(self, node: ast.Compare, depth: int) -> _Value:
        pairs, left = [], node.left
        for operation, right in zip(node.ops, node.comparators, strict=True):
            pairs.append(self._pair(left, operation, right, depth))
            left = right
        return _Value("truth", _text(node), lambda columns: reduce(_and, (pair(columns) for pair in pairs)))

    def _pair(
        self, left_node: ast.expr, operation: ast.cmpop, right_node: ast.expr, depth: int
    ) -> Callable[[Mapping[str, Column]], Truth]:
        left = self._value(left_node, depth)
        if isinstance(operation, ast.In | ast.NotIn):
            among = self._among(left, right_node, depth)
            return among if isinstance(operation, ast.In) else lambda columns: _not(among(columns))
        if type(operation) not in _COMPARE:
            raise ValueError("compares with 'is'; write == or !=")
        right = self._value(right_node, depth)
        sign, compare = _COMPARE[type(operation)]
        if left.type != right.type or left.type == "truth":
            raise ValueError(f"compares {left.text}, a {left.type}, with {right.text}, a {right.type}, by {sign}")
        if left.type == "number":
            return lambda columns: _compared(compare, left.evaluate(columns), right.evaluate(columns))
        return lambda columns: _compared(compare, *_ranks(left.evaluate(columns), right.evaluate(columns)))

    def _among(self, left: _Value, right: ast.expr, depth: int) -> Callable[[Mapping[str, Column]], Truth]:
        if not (isinstance(right, ast.Tuple | ast.List) and right.elts):
            raise ValueError(f"looks for {left.text} in {_text(right)!r}; give a list, such as in ('a', 'b')")
        literals = _Parser(self._known)
        items = [literals._value(item, depth) for item in right.elts]
        if literals.columns:
            raise ValueError(f"looks for {left.text} in a list with {min(literals.columns)}; a list holds no columns")
        values = [self._want(left.type, item, f"a list beside {left.text}").evaluate({}) for item in items]
        if left.type == "number":
            numbers = np.array(values, np.float64)
            return lambda columns: _one_of_numbers(left.evaluate(columns), numbers)
        names = {value.names[0] for value in values}
        return lambda columns: _one_of(left.evaluate(columns), names)

    def _want(self, type_: ColumnType, value: _Value, where: str) -> _Value:
        if value.type != type_:
            need = {"truth": "a comparison", "number": "a number", "string": "a string"}
            raise ValueError(f"{value.text} is {need[value.type]}, and {where} needs {need[type_]}")
        return value


def _constant(value: Any) -> _Value:
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            number = np.float64(value)
        except OverflowError:
            raise ValueError(f"holds the number {str(value)[:20]}…, which is too large") from None
        return _Value("number", repr(value), lambda _: number)
    if isinstance(value, str):
        one = Strings(np.zeros((), np.int64), [value])
        return _Value("string", repr(value), lambda _: one)
    raise ValueError(f"holds {value!r}, and may hold {_GRAMMAR}")


def _text(node: ast.AST) -> str:
    """The source of a part of an expression, cut if it is long."""
    text = re.sub(rf"\b{_RETURN}\b", "return", ast.unparse(node))
    return text if len(text) <= 60 else text[:57] + "..."


def _and(left: Truth, right: Truth) -> Truth:
    return Truth(left.true & right.true, left.false | right.false)


def _or(left: Truth, right: Truth) -> Truth:
    return Truth(left.true | right.true, left.false & right.false)


def _not(inner: Truth) -> Truth:
    return Truth(inner.false, inner.true)


def _compared(compare: Callable[[Any, Any], Any], left: Any, right: Any) -> Truth:
    known = ~(np.isnan(left) | np.isnan(right))
    true = compare(left, right)
    return Truth(known & true, known & ~true)


def _one_of_numbers(values: Any, wanted: np.ndarray) -> Truth:
    known, among = ~np.isnan(values), np.isin(values, wanted)
    return Truth(known & among, known & ~among)


def _one_of(column: Strings, wanted: set[str]) -> Truth:
    codes, at = np.unique(column.codes, return_inverse=True)
    true = np.array([code >= 0 and column.names[code] in wanted for code in codes.tolist()], bool)
    false = np.array([code >= 0 and column.names[code] not in wanted for code in codes.tolist()], bool)
    return Truth(true[at].reshape(column.codes.shape), false[at].reshape(column.codes.shape))


def _ranks(left: Strings, right: Strings) -> tuple[np.ndarray, np.ndarray]:
    """Numbers in the order of the strings (by code point), float64 (N,) or (); NaN for null."""
    sides = [(side, *np.unique(side.codes, return_inverse=True)) for side in (left, right)]
    used = [[side.names[code] if code >= 0 else None for code in codes.tolist()] for side, codes, _ in sides]
    ranks = {
        name: rank for rank, name in enumerate(sorted({name for names in used for name in names if name is not None}))
    }
    first, second = (
        np.array([np.nan if name is None else ranks[name] for name in names], np.float64)[at].reshape(side.codes.shape)
        for names, (side, _, at) in zip(used, sides, strict=True)
    )
    return first, second
