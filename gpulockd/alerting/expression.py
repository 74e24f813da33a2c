"""Conditions such as `timeout_rate > 10% and not deadlock_detected`: read once, judged often, never executed.

    condition  = both { "or" both }
    both       = plain { "and" plain }
    plain      = "not" plain | comparison
    comparison = operand [ ( ">" | ">=" | "<" | "<=" | "==" | "!=" ) operand ]
    operand    = name | number [ "%" | duration unit ] | "true" | "false" | "(" condition ")"

A fact that is not known (None) makes a condition unknown, unless the rest of it decides (Kleene's three values).
"""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

import msgspec

from gpulockd.errors import ConfigError
from gpulockd.units import parse_duration_s

Kind = Literal["share", "count", "seconds", "boolean"]
"""What a fact is: a part of one, a number of things, a time (in seconds), or true or false."""

Value = float | bool | None

LONGEST = 500
DEEPEST = 32

_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:\d+(?:\.\d+)?(?:ms|s|m|h|d))+(?![A-Za-z0-9_.])|(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?\s*%?)"
    r"|(?P<name>[A-Za-z_][A-Za-z0-9_]*)|(?P<sign>>=|<=|==|!=|&&|\|\||[<>!()])|(?P<end>$)|(?P<wrong>.))",
    re.DOTALL,
)
_WORDS = {"and": "and", "&&": "and", "or": "or", "||": "or", "not": "not", "!": "not"}
_COMPARED: dict[str, Callable[[Any, Any], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
}
_UNITS = {"share": "a part of one (0.1 or 10%)", "count": "a number", "seconds": "a duration (5m or 300)"}


class ConditionError(ConfigError):
    """The condition cannot be read: correct it where the message says."""

    column: int = 1


class Token(msgspec.Struct, frozen=True):
    """One word of a condition: its kind, its text, and its column (from 1)."""

    kind: str
    text: str
    column: int


class Name(msgspec.Struct, frozen=True):
    """A fact."""

    name: str

    def of(self, facts: Mapping[str, Value]) -> Value:
        """Its value now."""
        return facts.get(self.name)


class Constant(msgspec.Struct, frozen=True):
    """A value that stands in the condition."""

    value: float | bool

    def of(self, facts: Mapping[str, Value]) -> Value:
        """The value."""
        return self.value


class Comparison(msgspec.Struct, frozen=True):
    """Two operands and a sign."""

    sign: str
    left: Node
    right: Node

    def of(self, facts: Mapping[str, Value]) -> bool | None:
        """Whether it holds; None if one side is not known."""
        left, right = self.left.of(facts), self.right.of(facts)
        return None if left is None or right is None else _COMPARED[self.sign](left, right)


class Negation(msgspec.Struct, frozen=True):
    """`not`."""

    inner: Node

    def of(self, facts: Mapping[str, Value]) -> bool | None:
        """The contrary."""
        held = self.inner.of(facts)
        return None if held is None else not held


class Joined(msgspec.Struct, frozen=True):
    """`and` (`decides` False) or `or` (`decides` True): one part of that value decides."""

    decides: bool
    parts: tuple[Node, ...]

    def of(self, facts: Mapping[str, Value]) -> bool | None:
        """What the parts say together."""
        held = [part.of(facts) for part in self.parts]
        if self.decides in held:
            return self.decides
        return None if None in held else not self.decides


Node = Name | Constant | Comparison | Negation | Joined


class Condition(msgspec.Struct, frozen=True, kw_only=True):
    """A condition: its text, its facts in the order in which they stand, and its meaning."""

    text: str
    names: tuple[str, ...]
    node: Node

    def holds(self, facts: Mapping[str, Value]) -> bool | None:
        """Return whether it is true of these facts; None if they do not say."""
        held = self.node.of(facts)
        return None if held is None else bool(held)


def parse(text: str, known: Mapping[str, Kind]) -> Condition:
    """Read a condition.

    :param known: every fact that it may name, and its kind
    :raises ConditionError: naming the column of what is wrong, and what was probably meant
    """
    if not isinstance(text, str) or len(text) > LONGEST:
        raise _wrong(f"a condition is text of at most {LONGEST} characters", 1)
    reader = _Reader(_tokens(text), known)
    node, kind = reader.condition(0)
    rest = reader.next()
    if rest.kind != "end":
        raise _wrong(f"{rest.text!r} is too much; join conditions by 'and' or 'or'", rest.column)
    if kind != "boolean":
        raise _wrong("this is a value and no condition; compare it, as in 'timeout_rate > 0.1'", 1)
    if not reader.names:
        raise _wrong(f"the condition names no fact; known are {', '.join(sorted(known))}", 1)
    return Condition(text=text, names=tuple(dict.fromkeys(reader.names)), node=node)


def _wrong(what: str, column: int) -> ConditionError:
    return ConditionError(f"column {column}: {what}", column=column)


def _tokens(text: str) -> list[Token]:
    found, at = [], 0
    while True:
        match = _TOKEN.match(text, at)
        assert match is not None  # the last alternatives take anything
        kind = match.lastgroup or ""
        word = match[kind]
        column = match.start(kind) + 1
        if kind == "wrong":
            meant = {"=": "; compare with '=='", "&": "; write 'and'", "|": "; write 'or'"}.get(word, "")
            raise _wrong(f"{word!r} has no meaning here{meant}", column)
        found.append(Token(_WORDS.get(word.lower(), kind), word, column))
        at = match.end()
        if kind == "end":
            return found


class _Reader:
    """Recursive descent over the tokens; every method returns a node and the kind of its value."""

    def __init__(self, tokens: list[Token], known: Mapping[str, Kind]) -> None:
        self.names: list[str] = []
        self._tokens = tokens
        self._known = known
        self._at = 0

    def peek(self) -> Token:
        return self._tokens[self._at]

    def next(self) -> Token:
        token = self._tokens[self._at]
        self._at = min(self._at + 1, len(self._tokens) - 1)
        return token

    def condition(self, depth: int) -> tuple[Node, str]:
        return self._joined("or", depth, lambda: self._joined("and", depth, lambda: self._plain(depth)))

    def _joined(self, word: str, depth: int, part: Callable[[], tuple[Node, str]]) -> tuple[Node, str]:
        if depth > DEEPEST:
            raise _wrong(f"more than {DEEPEST} levels of parentheses", self.peek().column)
        begin = self.peek().column
        node, kind = part()
        parts = [node]
        while self.peek().kind == word:
            sign = self.next()
            after = self.peek().column
            right, right_kind = part()
            for one, where in ((kind, begin), (right_kind, after)):
                if one != "boolean":
                    raise _wrong(f"{sign.text!r} joins conditions, and this is a value; compare it", where)
            parts.append(right)
        return (node, kind) if len(parts) == 1 else (Joined(word == "or", tuple(parts)), "boolean")

    def _plain(self, depth: int) -> tuple[Node, str]:
        if self.peek().kind != "not":
            return self._comparison(depth)
        sign, odd = self.next(), True
        while self.peek().kind == "not":
            self.next()
            odd = not odd
        column = self.peek().column
        node, kind = self._comparison(depth)
        if kind != "boolean":
            raise _wrong(f"{sign.text!r} needs a condition, and this is a value; compare it", column)
        return (Negation(node) if odd else node), kind

    def _comparison(self, depth: int) -> tuple[Node, str]:
        left, left_kind = self._operand(depth)
        sign = self.peek()
        if sign.text not in _COMPARED:
            return left, left_kind
        self.next()
        column = self.peek().column
        right, right_kind = self._operand(depth)
        _check_kinds(left_kind, right_kind, sign, column)
        _check_rate(left, right, column)
        _check_rate(right, left, column)
        again = self.peek()
        if again.text in _COMPARED:
            raise _wrong("one comparison at a time; join two by 'and'", again.column)
        return Comparison(sign.text, left, right), "boolean"

    def _operand(self, depth: int) -> tuple[Node, str]:
        token = self.next()
        if token.text == "(":
            inner = self.condition(depth + 1)
            closing = self.next()
            if closing.text != ")":
                raise _wrong(f"')' is missing for the '(' in column {token.column}", closing.column)
            return inner
        if token.kind == "number":
            return _number(token)
        if token.kind == "name":
            return self._name(token)
        what = "the condition ends where" if token.kind == "end" else f"{token.text!r} stands where"
        raise _wrong(f"{what} a name or a value must stand", token.column)

    def _name(self, token: Token) -> tuple[Node, str]:
        if token.text.lower() in ("true", "false"):
            return Constant(token.text.lower() == "true"), "boolean"
        if token.text not in self._known:
            meant = difflib.get_close_matches(token.text, self._known, n=1)
            hint = f"did you mean {meant[0]!r}?" if meant else f"known are {', '.join(sorted(self._known))}"
            raise _wrong(f"unknown name {token.text[:64]!r}; {hint}", token.column)
        self.names.append(token.text)
        return Name(token.text), self._known[token.text]


def _number(token: Token) -> tuple[Node, str]:
    if token.text.endswith("%"):
        value, kind = float(token.text[:-1]) / 100, "share"
    elif token.text[-1].isalpha():
        value, kind = parse_duration_s(token.text), "seconds"
    else:
        value, kind = float(token.text), "number"
    if value == float("inf"):
        raise _wrong(f"{token.text!r} is too large", token.column)
    return Constant(value), kind


def _check_kinds(left: str, right: str, sign: Token, column: int) -> None:
    """:raises ConditionError: if two sides cannot be compared by that sign"""
    if (left == "boolean") != (right == "boolean"):
        fact = right if left == "boolean" else left
        raise _wrong(f"true or false cannot be compared with {_UNITS.get(fact, 'a number')}", column)
    if left == "boolean" and sign.text not in ("==", "!="):
        raise _wrong(f"true and false have no order; use '==' or '!=' instead of {sign.text!r}", sign.column)
    if left != right and "number" not in (left, right):
        raise _wrong(f"this must be {_UNITS[left]}, not {_UNITS[right]}", column)


def _check_rate(fact: Node, other: Node, column: int) -> None:
    """:raises ConditionError: for a rate that is compared with more than 1, which it never is"""
    if not isinstance(fact, Name) or not fact.name.endswith("_rate") or not isinstance(other, Constant):
        return
    if other.value > 1:
        meant = f"; did you mean {other.value:g}%?" if other.value <= 100 else ""
        raise _wrong(f"{fact.name} is a part of one and never more than 1 (100%){meant}", column)
