"""Filters on rows: comparisons of columns and constants, in Python's own notation.

Python's parser reads a filter, and what isn't listed here is refused. Nothing is ever executed.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from datetime import date
from functools import lru_cache
from numbers import Number

from adept_ray.config.errors import UserError, describe_kind
from adept_ray.data.row_values import ValuePath, parse_path
from adept_ray.data.rows import Row

Value = Callable[[str, Row], object]
Test = Callable[[str, Row], bool]
ORDERS: dict[type[ast.cmpop], Callable[..., bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
FORM = (
    "a filter compares columns with constants, such as lang == 'en' and score > 0.5, "
    "by == != < <= > >= in, and joins that by and, or, not"
)
ROW = "row"  # row['a b'] is a column whose name Python can't write


class RowFilter:
    """Which rows are taken."""

    def __init__(self, text: str) -> None:
        """Raises :class:`UserError` for what is no filter; the message begins with what is wrong."""
        self.columns: list[str] = []
        """Those that it looks at, or paths into them."""
        try:
            tree = ast.parse(text.strip(), mode="eval")
        except SyntaxError as problem:
            raise UserError(f"{problem.msg} at character {problem.offset}; {FORM}") from None
        except (ValueError, RecursionError, MemoryError):
            raise UserError(f"it can't be read; {FORM}") from None
        try:
            self._test = self._build_test(tree.body)
        except RecursionError:
            raise UserError(f"it is nested too deeply; {FORM}") from None

    def takes(self, where: str, row: Row) -> bool:
        """Whether a row is taken. Raises :class:`UserError` for a column that isn't there or doesn't fit.

        A null is equal to None alone, and is neither smaller nor larger than anything.
        """
        return self._test(where, row)

    def _build_test(self, node: ast.expr) -> Test:
        match node:
            case ast.BoolOp(op=op, values=values):
                tests = [self._build_test(value) for value in values]
                join = all if isinstance(op, ast.And) else any
                return lambda where, row: join(test(where, row) for test in tests)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                inner = self._build_test(operand)
                return lambda where, row: not inner(where, row)
            case ast.Compare(left=left, ops=ops, comparators=others):
                nodes = [left, *others]
                links = [self._build_link(*link) for link in zip(nodes, ops, others, strict=False)]
                return lambda where, row: all(link(where, row) for link in links)
        if read_constant(node) is not None:
            raise UserError(f"{ast.unparse(node)} is compared with nothing; {FORM}")
        value, text = self._build_value(node), ast.unparse(node)
        return lambda where, row: check_answer(value(where, row), text, where)

    def _build_link(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> Test:
        """One comparison, of two neighbours."""
        first, second = self._build_value(left), self._build_value(right)
        names = ast.unparse(left), ast.unparse(right)
        compare = find_comparison(op)

        def link(where: str, row: Row) -> bool:
            values = first(where, row), second(where, row)
            try:
                return compare(*values)
            except TypeError:
                ends = (
                    f"{name} = {shorten_value(value)} ({describe_kind(value)})"
                    if name != repr(value)
                    else f"{name} ({describe_kind(value)})"
                    for name, value in zip(names, values, strict=True)
                )
                raise UserError(f"{where}: the filter can't compare {' with '.join(ends)}") from None

        return link

    def _build_value(self, node: ast.expr) -> Value:
        """A constant, or what a row has in a column."""
        if (constant := read_constant(node)) is not None:
            return lambda where, row: constant[0]
        path = ValuePath(ast.unparse(node), read_steps(node))
        self.columns.append(path.text if parse_path(path.text).column == path.column else path.column)

        def read(where: str, row: Row) -> object:
            try:
                return write_date(path.find(where, row))
            except UserError as problem:
                raise UserError(f"{problem} (the filter names it; a text stands in quotes)") from None

        return read


def read_constant(node: ast.expr) -> tuple[object] | None:
    """The value that a node writes out, alone in a tuple; None for any other node."""
    try:
        return (ast.literal_eval(node),)
    except (ValueError, TypeError, MemoryError):
        return None


def read_steps(node: ast.expr) -> tuple[str | int, ...]:
    """The steps of a path. Raises :class:`UserError` for what is none."""
    match node:
        case ast.Name(id=name):
            return (name,)
        case ast.Attribute(value=before, attr=name):
            return (*read_steps(before), name)
        case ast.Subscript(value=before, slice=place) if found := read_constant(place):
            if isinstance(key := found[0], str | int) and not isinstance(key, bool):
                at_row = isinstance(before, ast.Name) and before.id == ROW and isinstance(key, str)
                return (key,) if at_row else (*read_steps(before), key)
    raise UserError(f"'{ast.unparse(node)}' is neither a column nor a constant; {FORM}")


def find_comparison(op: ast.cmpop) -> Callable[[object, object], bool]:
    """What an operator does. Its function raises ``TypeError`` for values that can't be compared."""
    if type(op) in ORDERS:
        order = ORDERS[type(op)]
        return lambda one, other: None not in check_alike(one, other) and order(one, other)
    if isinstance(op, ast.Eq | ast.Is):
        return lambda one, other: operator.eq(*check_alike(one, other))
    if isinstance(op, ast.NotEq | ast.IsNot):
        return lambda one, other: operator.ne(*check_alike(one, other))
    if isinstance(op, ast.In):
        return is_inside
    return lambda one, other: not is_inside(one, other)


def check_alike(one: object, other: object) -> tuple[object, object]:
    """Both values, if they are of one kind or null. Raises ``TypeError``."""
    if one is not None and other is not None and find_kind(one) is not find_kind(other):
        raise TypeError
    return one, other


def is_inside(value: object, group: object) -> bool:
    """Whether a group has a value, or a text a part. Raises ``TypeError`` for another kind of value."""
    if value is None or group is None:
        return isinstance(group, list | tuple | set) and None in group
    if isinstance(group, str) and isinstance(value, str):
        return value in group
    if not isinstance(group, list | tuple | set):
        raise TypeError
    if group and not any(find_kind(each) is find_kind(value) for each in group if each is not None):
        raise TypeError
    return value in group


def find_kind(value: object) -> type:
    """What a value may be compared with."""
    kinds = (str, Number, Mapping, list)
    return next((kind for kind in kinds if isinstance(value, kind)), type(value))


def write_date(value: object) -> object:
    """A date as text, which texts such as '2024-12-31' can be compared with; anything else as it is."""
    return value.isoformat() if isinstance(value, date) else value


def check_answer(value: object, text: str, where: str) -> bool:
    """A column of yes and no; null is no. Raises :class:`UserError` for any other."""
    if value is not None and not isinstance(value, bool):
        raise UserError(f"{where}: the filter compares '{text}' with nothing: it is {shorten_value(value)}")
    return bool(value)


def shorten_value(value: object) -> str:
    """A value in a message."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:39]}…"


@lru_cache(maxsize=64)
def parse_filter(text: str) -> RowFilter:
    """The filter that somebody wrote. Raises :class:`UserError` as :class:`RowFilter` does."""
    return RowFilter(text)
