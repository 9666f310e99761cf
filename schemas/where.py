"""The expressions of ``keep: {where: …}``: comparisons, arithmetic and logic over columns of the index.

The grammar is a small part of Python's: names of columns, numbers, strings, ``+ - * / %``, comparisons, ``in``,
``and``, ``or``, ``not``. Nothing is executed as Python: the syntax tree is walked, and its parts are NumPy calls. A
value that is not known (null, NaN, a division by zero) stays unknown, as in SQL; a row passes only if the expression is
true.

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
_NO_ROWS: dict[ColumnType, Column] = {
    "number": np.zeros(0),
    "string": Strings(np.zeros(0, np.int64), ()),
    "truth": Truth(np.zeros(0, bool), np.zeros(0, bool)),
}


class Where:
    """A parsed expression; ``columns`` are the columns that it names."""

    def __init__(self, text: str, known: Mapping[str, ColumnType] = COLUMNS) -> None:
        """``known`` are the columns that it may name.

        Raises ValueError, whose message is a sentence, if ``text`` is no expression, names an unknown column or mixes
        types.
        """
        self.text = text
        if len(text) > _MOST_CHARACTERS:
            raise ValueError(
                f"has {len(text):,} characters, and {_MOST_CHARACTERS:,} are the most; list episodes in a file"
            )
        # The name of the column "return" is a keyword of Python.
        renamed = _STRING_OR_RETURN.sub(lambda match: _RETURN if match[0] == "return" else match[0], text)
        try:
            self._tree = ast.parse(f"(\n{renamed}\n)", mode="eval").body
            if self._tree.lineno == 1:  # the text closed the parenthesis that was added here
                raise SyntaxError("unmatched ')'")
            # Every fault shows when the expression is evaluated for no rows.
            self._evaluate({name: _NO_ROWS[type_] for name, type_ in known.items()})
        except SyntaxError as error:
            raise ValueError(f"is no expression: {error.msg}; it may hold {_GRAMMAR}") from None
        except UnicodeEncodeError as error:
            raise ValueError(f"is no expression: {error.reason}") from None
        except (RecursionError, MemoryError):
            raise ValueError(_TOO_DEEP) from None
        self.columns = frozenset(_names(self._tree))

    def passes(self, columns: Mapping[str, Column], rows: int) -> np.ndarray:
        """The rows for which the expression is true, bool (N,), given at least its ``columns``."""
        return np.broadcast_to(self._evaluate(columns).true, rows)

    def _evaluate(self, columns: Mapping[str, Column]) -> Any:
        with np.errstate(all="ignore"):
            return _want("truth", "the whole", self._tree, columns, 0)


def _value(node: ast.expr, columns: Mapping[str, Column], depth: int) -> Any:
    """The value of a part of an expression: a column, or a column's value of shape ()."""
    if depth > _MOST_NESTED:
        raise ValueError(_TOO_DEEP)
    inner = depth + 1
    match node:
        case ast.Name():
            [name] = _names(node)
            if name not in columns:
                raise ValueError(f"{name!r} is no column; the columns are {', '.join(columns)}")
            return columns[name]
        case ast.Constant(value=str() as string):
            return Strings(np.zeros((), np.int64), [string])
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            try:
                return np.float64(number)
            except OverflowError:
                raise ValueError(f"holds the number {str(number)[:20]}…, which is too large") from None
        case ast.Constant():
            raise ValueError(f"holds {node.value!r}, and may hold {_GRAMMAR}")
        case ast.BoolOp(op=ast.And()):
            parts = [_want("truth", "'and'", part, columns, inner) for part in node.values]
            return reduce(_and, parts)
        case ast.BoolOp():
            parts = [_want("truth", "'or'", part, columns, inner) for part in node.values]
            return reduce(lambda left, right: Truth(left.true | right.true, left.false & right.false), parts)
        case ast.UnaryOp(op=ast.Not()):
            truth = _want("truth", "'not'", node.operand, columns, inner)
            return Truth(truth.false, truth.true)
        case ast.UnaryOp(op=ast.USub() | ast.UAdd()):
            number = _want("number", "a sign", node.operand, columns, inner)
            return -number if isinstance(node.op, ast.USub) else number
        case ast.BinOp() if type(node.op) in _COMPUTE:
            left, right = (_want("number", "arithmetic", side, columns, inner) for side in (node.left, node.right))
            result = _COMPUTE[type(node.op)](left, right)
            return np.where(np.isfinite(result), result, np.nan)
        case ast.Compare():
            operands = [node.left, *node.comparators]
            pairs = zip(operands, node.ops, operands[1:], strict=False)
            return reduce(_and, [_compared(*pair, columns, inner) for pair in pairs])
    raise ValueError(f"holds {_text(node)!r}, and may hold {_GRAMMAR}")


def _compared(
    left_node: ast.expr, operation: ast.cmpop, right_node: ast.expr, columns: Mapping[str, Column], depth: int
) -> Truth:
    left = _value(left_node, columns, depth)
    if isinstance(operation, ast.In | ast.NotIn):
        truth = _among(left_node, left, right_node, columns, depth)
        return truth if isinstance(operation, ast.In) else Truth(truth.false, truth.true)
    if type(operation) not in _COMPARE:
        raise ValueError("compares with 'is'; write == or !=")
    right = _value(right_node, columns, depth)
    sign, compare = _COMPARE[type(operation)]
    types = _type(left), _type(right)
    if types[0] != types[1] or types[0] == "truth":
        sides = f"{_text(left_node)}, a {types[0]}, with {_text(right_node)}, a {types[1]}"
        raise ValueError(f"compares {sides}, by {sign}")
    if isinstance(left, Strings):
        left, right = _ranks(left, right)
    known, true = ~(np.isnan(left) | np.isnan(right)), compare(left, right)
    return Truth(known & true, known & ~true)


def _among(node: ast.expr, value: Any, right: ast.expr, columns: Mapping[str, Column], depth: int) -> Truth:
    """Which rows of a value are in the list ``right``."""
    if not (isinstance(right, ast.Tuple | ast.List) and right.elts):
        raise ValueError(f"looks for {_text(node)} in {_text(right)!r}; give a list, such as in ('a', 'b')")
    items = [_want(_type(value), f"a list beside {_text(node)}", item, columns, depth) for item in right.elts]
    if named := _names(right):
        raise ValueError(f"looks for {_text(node)} in a list with {min(named)}; a list holds no columns")
    if isinstance(value, Strings):
        wanted = {item.names[0] for item in items}
        codes, at = np.unique(value.codes, return_inverse=True)
        found = np.array([code >= 0 and value.names[code] in wanted for code in codes.tolist()], bool)
        known, true = value.codes >= 0, found[at].reshape(value.codes.shape)
    else:
        known, true = ~np.isnan(value), np.isin(value, np.array(items, np.float64))
    return Truth(known & true, known & ~true)


def _want(type_: ColumnType, where: str, node: ast.expr, columns: Mapping[str, Column], depth: int) -> Any:
    """The value of ``node``; ValueError if it has another type than the one that ``where`` needs."""
    value = _value(node, columns, depth)
    if _type(value) != type_:
        kinds = {"truth": "a comparison", "number": "a number", "string": "a string"}
        raise ValueError(f"{_text(node)} is {kinds[_type(value)]}, and {where} needs {kinds[type_]}")
    return value


def _type(value: Any) -> ColumnType:
    return "string" if isinstance(value, Strings) else "truth" if isinstance(value, Truth) else "number"


def _names(tree: ast.expr) -> list[str]:
    """The columns that a part of an expression names."""
    names = [node.id for node in ast.walk(tree) if isinstance(node, ast.Name)]
    return ["return" if name == _RETURN else name for name in names]


def _text(node: ast.AST) -> str:
    """The source of a part of an expression, cut if it is long."""
    text = re.sub(rf"\b{_RETURN}\b", "return", ast.unparse(node))
    return text if len(text) <= 60 else text[:57] + "..."


def _and(left: Truth, right: Truth) -> Truth:
    return Truth(left.true & right.true, left.false | right.false)


def _ranks(left: Strings, right: Strings) -> tuple[np.ndarray, np.ndarray]:
    """Numbers in the order of the strings (by code point), float64 (N,) or (); NaN for null."""
    sides = [(side, *np.unique(side.codes, return_inverse=True)) for side in (left, right)]
    names = {side.names[code] for side, codes, _ in sides for code in codes.tolist() if code >= 0}
    ranks = {name: rank for rank, name in enumerate(sorted(names))}
    first, second = (
        np.array([ranks[side.names[code]] if code >= 0 else np.nan for code in codes.tolist()], np.float64)[at].reshape(
            side.codes.shape
        )
        for side, codes, at in sides
    )
    return first, second
