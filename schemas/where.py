"""The expressions of ``keep: {where: …}``: comparisons, arithmetic and logic over columns of the index.

The grammar is a small part of Python's: names of columns, numbers, strings, ``+ - * / %``, comparisons, ``in``,
``and``, ``or``, ``not``; and of SQL's: ``is null``, ``is not null``, names in backticks; and ``matches`` and
``contains``. Nothing is executed as Python: the syntax tree is walked, and its parts are calls of NumPy and Arrow. What
Python's grammar lacks is written in operators of it that have no other meaning here. A value that is not known (null,
NaN, a division by zero) stays unknown, as in SQL; a row passes only if the expression is true.

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
import pyarrow as pa
import pyarrow.compute as pc

from gatokit.schemas.words import did_you_mean

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
"""The columns of every index that an expression in a config can name, beside those of the source's own values."""

_MOST_CHARACTERS, _MOST_NESTED = 10_000, 50
_TOO_DEEP = f"is nested more than {_MOST_NESTED} deep; write it shorter"
_MOST_IN_PATTERN = 1_000
_MOST_NAMED = 40
_STRING = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\""""
_SQL = {"matches": "@", "contains": "<<", "not matches": "//", "not contains": ">>"}
"""The operator of Python that stands for each operator that it lacks."""
_FROM_SQL = re.compile(
    rf"{_STRING}|`(?P<quoted>[^`\n]*)`|\bnot\s+(?P<negated>matches|contains)\b|(?P<symbol>//|<<|>>|@)"
    r"|\b(?P<word>return|matches|contains|null|true|false)\b",
    re.DOTALL,
)
_TO_SQL = re.compile(rf"{_STRING}|//|<<|>>|@|\b_column_[0-9a-f]*\b", re.DOTALL)
_WORDS = {"null": "None", "true": "True", "false": "False"}
_COLUMN = "_column_"
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
_GRAMMAR = (
    "columns, numbers, strings, + - * / %, == != < <= > >=, in (…), matches, contains, is null, and, or, not and "
    "parentheses"
)


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


@dataclass(frozen=True)
class Rounded:
    """A column of numbers, float64 (N,), that were rounded: each may be off by ``rounding``, float64 (N,).

    Compared with another number, it is equal to it if the difference is not larger. In arithmetic it is its value.
    """

    values: np.ndarray
    rounding: np.ndarray


Column = np.ndarray | Strings | Truth | Rounded
"""A column of numbers is float64 (N,), NaN where unknown."""
_ANY: Any = object()
"""A column whose type is not known yet: it has the type that its place needs."""
_NO_ROWS: dict[ColumnType, Column] = {
    "number": np.zeros(0),
    "string": Strings(np.zeros(0, np.int64), ()),
    "truth": Truth(np.zeros(0, bool), np.zeros(0, bool)),
}


def arrow_column(column: pa.Array | pa.ChunkedArray) -> Column:
    """A column of numbers, strings (also of a dictionary) or booleans as expressions take it."""
    if pa.types.is_boolean(column.type):
        known, true = (
            np.asarray(part.to_numpy(zero_copy_only=False) if isinstance(part, pa.Array) else part.to_numpy(), bool)
            for part in (pc.is_valid(column), pc.fill_null(column, False))
        )
        return Truth(true, known & ~true)
    if pa.types.is_dictionary(column.type) or pa.types.is_string(column.type):
        return Strings(*coded(column))
    numbers = pc.cast(column, pa.float64())
    return np.asarray(numbers.to_numpy(zero_copy_only=False) if isinstance(numbers, pa.Array) else numbers.to_numpy())


def coded(column: pa.Array | pa.ChunkedArray) -> tuple[np.ndarray, list[str]]:
    """The code of each row of strings, int64 (N,), -1 for null, and the value of each code."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    codes: np.ndarray = pc.fill_null(column.indices, -1).to_numpy(zero_copy_only=False).astype(np.int64)
    return codes, column.dictionary.to_pylist()


def column_type(type_: str) -> ColumnType:
    """The type in expressions of a column of the index (``schemas.index.METADATA_TYPES``)."""
    return "string" if type_ == "string" else "truth" if type_ == "bool" else "number"


class Where:
    """A parsed expression; ``columns`` are the columns that it names."""

    def __init__(self, text: str, known: Mapping[str, ColumnType] | None = COLUMNS) -> None:
        """``known`` are the columns that it may name; None if only the source knows them, so that any name will do.

        Raises ValueError, whose message is a sentence, if ``text`` is no expression, names an unknown column or mixes
        types.
        """
        self.text = text
        if len(text) > _MOST_CHARACTERS:
            raise ValueError(
                f"has {len(text):,} characters, and {_MOST_CHARACTERS:,} are the most; list episodes in a file"
            )
        try:
            self._tree = ast.parse(f"(\n{_FROM_SQL.sub(_as_python, text)}\n)", mode="eval").body
            if self._tree.lineno == 1:  # the text closed the parenthesis that was added here
                raise SyntaxError("unmatched ')'")
            self.columns = frozenset(_names(self._tree))
            types = dict.fromkeys(self.columns, None) | COLUMNS if known is None else known
            # Every fault shows when the expression is evaluated for no rows.
            self._evaluate({name: _ANY if type_ is None else _NO_ROWS[type_] for name, type_ in types.items()})
        except SyntaxError as error:
            raise ValueError(f"is no expression: {error.msg}; it may hold {_GRAMMAR}") from None
        except UnicodeEncodeError as error:
            raise ValueError(f"is no expression: {error.reason}") from None
        except (RecursionError, MemoryError):
            raise ValueError(_TOO_DEEP) from None

    def passes(self, columns: Mapping[str, Column], rows: int) -> np.ndarray:
        """The rows for which the expression is true, bool (N,), given at least its ``columns``."""
        return np.broadcast_to(self._evaluate(columns).true, rows)

    def _evaluate(self, columns: Mapping[str, Column]) -> Any:
        with np.errstate(all="ignore"):
            return _want("truth", "the whole", self._tree, columns, 0)


def unknown_column(name: str, known: Sequence[str]) -> str:
    """A sentence that says that ``name`` is no column, and which are."""
    question = did_you_mean(name, known)
    more = ", …" if len(known) > _MOST_NAMED else ""
    return f"{name!r} is no column; {question + ' ' if question else ''}the columns are " + (
        ", ".join(known[:_MOST_NAMED]) + more
    )


def _as_python(match: re.Match[str]) -> str:
    """What Python's parser reads in place of a part of an expression."""
    if match["symbol"]:
        raise ValueError(f"holds {match['symbol']!r}, and may hold {_GRAMMAR}")
    if match["quoted"] is not None:
        return _column_name(match["quoted"])
    if match["negated"]:
        return f" {_SQL['not ' + match['negated']]} "
    word = match["word"]
    if word == "return":
        return _column_name(word)
    if word in _SQL:
        return f" {_SQL[word]} "
    return _WORDS[word] if word else match[0]


def _column_name(name: str) -> str:
    """A name of Python that stands for a column that Python could not name."""
    return _COLUMN + name.encode().hex()


def _value(node: ast.expr, columns: Mapping[str, Column], depth: int) -> Any:
    """The value of a part of an expression: a column, or a column's value of shape ()."""
    if depth > _MOST_NESTED:
        raise ValueError(_TOO_DEEP)
    inner = depth + 1
    match node:
        case ast.Name():
            [name] = _names(node)
            if name not in columns:
                raise ValueError(unknown_column(name, list(columns)))
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
        case ast.BinOp(op=ast.MatMult() | ast.FloorDiv()):
            truth = _found_in(node, "matches", pc.match_substring_regex, columns, inner)
            return truth if isinstance(node.op, ast.MatMult) else Truth(truth.false, truth.true)
        case ast.BinOp(op=ast.LShift() | ast.RShift()):
            truth = _found_in(node, "contains", pc.match_substring, columns, inner)
            return truth if isinstance(node.op, ast.LShift) else Truth(truth.false, truth.true)
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
    left: Any = _value(left_node, columns, depth)
    if isinstance(operation, ast.In | ast.NotIn):
        truth = _among(left_node, left, right_node, columns, depth)
        return truth if isinstance(operation, ast.In) else Truth(truth.false, truth.true)
    if isinstance(operation, ast.Is | ast.IsNot):
        if not (isinstance(right_node, ast.Constant) and right_node.value is None):
            raise ValueError("compares with 'is'; write == or !=, or is null")
        known = _known(_NO_ROWS["number"] if left is _ANY else left)
        return Truth(~known, known) if isinstance(operation, ast.Is) else Truth(known, ~known)
    sign, compare = _COMPARE[type(operation)]
    mark = right_node.value if isinstance(right_node, ast.Constant) else None
    if isinstance(mark, bool) and sign in ("==", "!=") and (left is _ANY or isinstance(left, Truth)):
        answer: Any = _NO_ROWS["truth"] if left is _ANY else left
        return answer if mark == (sign == "==") else Truth(answer.false, answer.true)
    right: Any = Truth(True, False) if isinstance(mark, bool) else _value(right_node, columns, depth)
    if left is _ANY or right is _ANY:
        type_ = "number" if left is right else _type(right if left is _ANY else left)
        left, right = (_NO_ROWS[type_] if side is _ANY else side for side in (left, right))
    types = _type(left), _type(right)
    if types[0] != types[1] or types[0] == "truth":
        sides = f"{_text(left_node)}, a {types[0]}, with {_text(right_node)}, a {types[1]}"
        way_out = "; write == true or == false" if types[0] == "truth" != types[1] else ""
        raise ValueError(f"compares {sides}, by {sign}{way_out}")
    if isinstance(left, Strings):
        left, right = _ranks(left, right)
    else:
        rounding = sum(side.rounding for side in (left, right) if isinstance(side, Rounded))
        left, right = _exact(left), _exact(right)
        right = np.where(np.abs(left - right) <= rounding, left, right)
    known, true = ~(np.isnan(left) | np.isnan(right)), compare(left, right)
    return Truth(known & true, known & ~true)


def _among(node: ast.expr, value: Any, right: ast.expr, columns: Mapping[str, Column], depth: int) -> Truth:
    """Which rows of a value are in the list ``right``, or which rows of the column ``right`` contain a string."""
    if isinstance(right, ast.Name) and isinstance(node, ast.Constant) and isinstance(node.value, str):
        text: str = node.value
        return _of_names(_want("string", "'in'", right, columns, depth), lambda names: pc.match_substring(names, text))
    if not (isinstance(right, ast.Tuple | ast.List) and right.elts):
        raise ValueError(f"looks for {_text(node)} in {_text(right)!r}; give a list, such as in ('a', 'b')")
    if value is _ANY:
        value = _NO_ROWS[_type(_value(right.elts[0], columns, depth))]
    if isinstance(value, Truth):
        raise ValueError(f"looks for {_text(node)} in a list; write == true or == false")
    items = [_want(_type(value), f"a list beside {_text(node)}", item, columns, depth) for item in right.elts]
    if named := _names(right):
        raise ValueError(f"looks for {_text(node)} in a list with {min(named)}; a list holds no columns")
    if isinstance(value, Strings):
        return _of_names(value, lambda names: pc.is_in(names, pa.array([item.names[0] for item in items], pa.string())))
    if isinstance(value, Rounded):
        nearest = [np.abs(value.values - item) <= value.rounding for item in items]
        known, true = ~np.isnan(value.values), np.any(nearest, axis=0)
        return Truth(known & true, known & ~true)
    known, true = ~np.isnan(value), np.isin(value, np.array(items, np.float64))
    return Truth(known & true, known & ~true)


def _found_in(
    node: ast.BinOp, word: str, find: Callable[[pa.Array, str], pa.Array], columns: Mapping[str, Column], depth: int
) -> Truth:
    """In which rows of a value a part of text is found; ``word`` is the operator."""
    value = _want("string", f"'{word}'", node.left, columns, depth)
    pattern = node.right.value if isinstance(node.right, ast.Constant) else None
    if not isinstance(pattern, str):
        raise ValueError(f"{word!r} needs a string behind it, not {_text(node.right)}")
    if word == "matches":
        check_pattern(pattern)
    return _of_names(value, lambda names: find(names, pattern))


def check_pattern(pattern: str) -> None:
    """Raises ValueError, with a sentence, if this is no regular expression of RE2, or too long."""
    if len(pattern) > _MOST_IN_PATTERN:
        raise ValueError(f"has a pattern of {len(pattern):,} characters, and {_MOST_IN_PATTERN:,} are the most")
    try:
        matching([""], pattern)
    except pa.ArrowInvalid as error:
        reason = str(error).removeprefix("Invalid regular expression: ")
        raise ValueError(f"has {pattern!r}, which is no regular expression of RE2: {reason}") from None


def matching(texts: Sequence[str], pattern: str) -> list[bool]:
    """In which texts a regular expression of RE2 matches. Its time grows with the length of a text and no faster."""
    found: list[bool] = pc.match_substring_regex(pa.array(texts, pa.string()), pattern).to_pylist()
    return found


def _of_names(value: Strings, test: Callable[[pa.Array], pa.Array]) -> Truth:
    """The rows whose string passes a test, which sees each string once."""
    codes, at = np.unique(value.codes, return_inverse=True)
    names = pa.array([value.names[code] if code >= 0 else "" for code in codes.tolist()], pa.string())
    found = np.asarray(test(names).to_numpy(zero_copy_only=False), bool)
    known, true = value.codes >= 0, found[at].reshape(value.codes.shape)
    return Truth(known & true, known & ~true)


def _known(value: Any) -> Any:
    """The rows whose value is known, bool (N,) or ()."""
    if isinstance(value, Truth):
        return value.true | value.false
    return value.codes >= 0 if isinstance(value, Strings) else ~np.isnan(_exact(value))


def _want(type_: ColumnType, where: str, node: ast.expr, columns: Mapping[str, Column], depth: int) -> Any:
    """The value of ``node``; ValueError if it has another type than the one that ``where`` needs."""
    value = _value(node, columns, depth)
    if value is _ANY:
        return _NO_ROWS[type_]
    if _type(value) != type_:
        kinds = {"truth": "a comparison", "number": "a number", "string": "a string"}
        raise ValueError(f"{_text(node)} is {kinds[_type(value)]}, and {where} needs {kinds[type_]}")
    return _exact(value) if type_ == "number" else value


def _exact(number: Any) -> Any:
    """A number or a column of numbers without what it says of its rounding."""
    return number.values if isinstance(number, Rounded) else number


def _type(value: Any) -> ColumnType:
    return "string" if isinstance(value, Strings) else "truth" if isinstance(value, Truth) else "number"


def _names(tree: ast.expr) -> list[str]:
    """The columns that a part of an expression names."""
    names = [node.id for node in ast.walk(tree) if isinstance(node, ast.Name)]
    return [_decoded(name) for name in names]


def _text(node: ast.AST) -> str:
    """The source of a part of an expression, cut if it is long."""
    text = _TO_SQL.sub(_as_written, ast.unparse(node))
    return text if len(text) <= 60 else text[:57] + "..."


def _as_written(match: re.Match[str]) -> str:
    """The part of an expression that was written so for Python's parser."""
    part = match[0]
    if part.startswith(_COLUMN):
        name = _decoded(part)
        return name if name.isidentifier() else f"`{name}`"
    return next((word for word, sign in _SQL.items() if sign == part), part)


def _decoded(name: str) -> str:
    """The column that a name of Python stands for."""
    try:
        return bytes.fromhex(name.removeprefix(_COLUMN)).decode() if name.startswith(_COLUMN) else name
    except ValueError:
        return name


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
