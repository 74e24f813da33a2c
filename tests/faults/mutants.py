"""Mutants: the same program with one small thing wrong. A test that sees none of them sees little else.

Python is changed by its syntax tree, Lua line by line with its strings and comments masked; either way exactly one
passage differs, so a survivor is read in one glance.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec

ROOT = Path(__file__).resolve().parents[2]

FLIPPED = {"<=": "<", "<": "<=", ">=": ">", ">": ">=", "==": "!=", "!=": "==", "is not": "is", "is": "is not"}
FLIPPED |= {"not in": "in", "in": "not in", "and": "or", "or": "and", "+": "-", "-": "+"}
LUA_FLIPPED = {"<=": "<", "<": "<=", ">=": ">", ">": ">=", "==": "~=", "~=": "==", "and": "or", "or": "and"}
LUA_FLIPPED |= {"+": "-"}


@functools.cache
def text_of(file: str) -> bytes:
    """A file as it was when it was first asked for, so that places stay right while somebody works on it."""
    return (ROOT / file).read_bytes()


class Mutant(msgspec.Struct, frozen=True, kw_only=True):
    """One change: bytes `begin` to `end` of `file` become `new`. `kind` is what was done, `was` what stood there."""

    file: str
    line: int
    kind: str
    begin: int
    end: int
    was: str
    new: str

    def __str__(self) -> str:
        was, new = (" ".join(text.split()) for text in (self.was, self.new))
        return f"{self.file}:{self.line}: {self.kind}: {was} -> {new or '(nothing)'}"

    def text(self) -> bytes:
        """The file with the change in it."""
        whole = text_of(self.file)
        return whole[: self.begin] + self.new.encode() + whole[self.end :]


def mutants_of(file: str) -> list[Mutant]:
    """All mutants of a Python or Lua file of the package, in the order of their places."""
    whole = text_of(file)
    made = _lua(whole) if file.endswith(".lua") else _python(whole)
    found = []
    for kind, begin, end, new in made:
        line = whole.count(b"\n", 0, begin) + 1
        was = whole[begin:end].decode()
        found.append(Mutant(file=file, line=line, kind=kind, begin=begin, end=end, was=was, new=new))
    return sorted(found, key=lambda m: (m.begin, m.kind))


Change = tuple[str, int, int, str]


class _Places:
    """Where the nodes of a Python file stand, in bytes."""

    def __init__(self, whole: bytes) -> None:
        self.whole = whole
        self._starts = [0]
        for line in whole.split(b"\n"):
            self._starts.append(self._starts[-1] + len(line) + 1)

    def begin(self, node: ast.expr | ast.stmt) -> int:
        return self._starts[node.lineno - 1] + node.col_offset

    def end(self, node: ast.expr | ast.stmt) -> int:
        return self._starts[(node.end_lineno or node.lineno) - 1] + (node.end_col_offset or 0)

    def between(self, left: ast.expr, right: ast.expr, kind: str) -> Iterator[Change]:
        """The operator that stands between two operands, turned round."""
        gap = self.whole[self.end(left) : self.begin(right)].decode()
        found = re.search(r"is not|not in|[<>=!]=|[<>+-]|\b(?:is|in|and|or)\b", gap)
        if found is not None:
            at = self.end(left) + len(gap[: found.start()].encode())
            yield kind, at, at + len(found[0].encode()), FLIPPED[found[0]]


def _python(whole: bytes) -> Iterator[Change]:
    at = _Places(whole)
    for node in _executed(ast.parse(whole)):
        if isinstance(node, ast.Compare) and len(node.ops) == 1:
            yield from at.between(node.left, node.comparators[0], "comparison")
        elif isinstance(node, ast.BoolOp):
            yield from at.between(node.values[0], node.values[1], "and/or")
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub):
            yield from at.between(node.left, node.right, "sign")
        elif isinstance(node, ast.Constant) and type(node.value) is int:
            yield "off by one", at.begin(node), at.end(node), str(node.value + 1)
        elif isinstance(node, ast.Expr | ast.AugAssign) and not isinstance(node.value, ast.Constant):
            yield "dropped", at.begin(node), at.end(node), "pass"
        if isinstance(node, ast.If | ast.While | ast.IfExp):
            begin, end = at.begin(node.test), at.end(node.test)
            yield "negated", begin, end, f"(not ({whole[begin:end].decode()}))"


def _executed(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node that runs: annotations and what only the type checker reads do not."""
    for name, value in ast.iter_fields(tree):
        if name in ("annotation", "returns", "decorator_list", "type_params"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST) or isinstance(child, ast.JoinedStr):
                continue
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            yield child
            yield from _executed(child)


def _masked(line: str) -> str:
    """The line with its strings and its comment blanked, each character in its place."""
    quoted = re.sub(r"'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\"", lambda m: "'" + "_" * (len(m[0]) - 2) + "'", line)
    code, dashes, comment = quoted.partition("--")
    return code + " " * len(dashes + comment)


def _lua(whole: bytes) -> Iterator[Change]:
    at = 0
    for raw in whole.split(b"\n"):
        line = raw.decode()
        assert line.isascii() or _masked(line).strip() == "", line  # places are counted in bytes
        yield from ((kind, at + begin, at + end, new) for kind, begin, end, new in _lua_line(line, _masked(line)))
        at += len(raw) + 1


def _lua_line(line: str, code: str) -> Iterator[Change]:
    for found in re.finditer(r"<=|>=|==|~=|[<>]", code):
        yield "comparison", *found.span(), LUA_FLIPPED[found[0]]
    for found in re.finditer(r"(?<= )(and|or|\+)(?= )", code):
        yield "sign" if found[0] == "+" else "and/or", *found.span(), LUA_FLIPPED[found[0]]
    for found in re.finditer(r"(?<![\w.])\d+(?![\w.])", code):
        yield "off by one", *found.span(), str(int(found[0]) + 1)
    for found in re.finditer(r"\b(?:if|while) (.+?) (?:then|do)\b", code):
        begin, end = found.span(1)
        yield "negated", begin, end, f"not ({line[begin:end]})"
    bare = code.strip()
    alone = re.fullmatch(r"[\w.]+\(.*\)", bare) and bare.count("(") == bare.count(")")
    one_line = re.fullmatch(r"if .* then (return|redis\.call|[\w.]+ =).* end", bare)
    if alone or one_line:
        yield "dropped", len(code) - len(code.lstrip()), len(code.rstrip()), ""
