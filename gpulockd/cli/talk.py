"""How commands speak: data on stdout, talk on stderr, errors in three parts, colours only on a terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from gpulockd.units import clean

TYPE_CHECKING = False  # see gpulockd/__init__.py
if TYPE_CHECKING:
    from typing import TextIO

OK, NEGATIVE, USAGE, NO_DAEMON, NOT_PERMITTED = 0, 1, 2, 3, 4
"""Exit codes of every command but `run`."""

GAP = "  "
NARROWEST = 8
"""A column is not cut to fewer characters."""

_COLOURS = {"green": "32", "yellow": "33", "red": "31", "bold": "1", "dim": "2"}


class CommandError(Exception):
    """A command cannot do what was asked: what, where, and what to do about it (`hint`); `code` is its exit code."""

    def __init__(self, what: str, hint: str = "", code: int = NEGATIVE) -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint
        self.code = code


def say(text: str, who: str = "gpulockd") -> None:
    """Say something to the person on stderr, whatever others have put into it. A closed stderr is no reason to stop."""
    _talk(f"{who}: {_safe(text)}")


def hint(text: str) -> None:
    """Say what to do, below what went wrong."""
    _talk(f"  hint: {_safe(text)}")


def complain(wrong: CommandError, who: str = "gpulockd") -> None:
    """Say what went wrong and what to do."""
    say(wrong.what, who)
    if wrong.hint and wrong.hint not in wrong.what:
        hint(wrong.hint)


def _talk(line: str) -> None:
    if sys.stderr is None:  # closed at the start; `print` would take stdout instead
        return
    try:
        print(line, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        return


def _safe(text: str) -> str:
    return text if text.isprintable() else "\n".join(clean(line) for line in text.split("\n"))


def is_colourful(stream: TextIO) -> bool:
    """Whether colours help there: a terminal, and NO_COLOR not set."""
    return (
        stream is not None and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb" and stream.isatty()
    )


def paint(text: str, colour: str) -> str:
    """The text in a colour, where stdout shows colours."""
    return f"\033[{_COLOURS[colour]}m{text}\033[0m" if is_colourful(sys.stdout) else text


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    colours: Sequence[str | None] | None = None,
    *,
    shrink: Sequence[str] = (),
) -> str:
    """Rows in columns under a head; `colours` has one colour or None a row.

    :param shrink: the columns that are cut where the terminal is too narrow for all; a file gets all of it
    """
    rows = [[clean(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    _fit(widths, [head.index(name) for name in shrink], terminal_width())
    lines = [_line(head, widths)]
    for i, row in enumerate(rows):
        colour = colours[i] if colours else None
        lines.append(paint(_line(row, widths), colour) if colour else _line(row, widths))
    return "\n".join(lines)


def terminal_width() -> int | None:
    """How many columns stdout has, None if it is no terminal."""
    if sys.stdout is None:  # closed at the start
        return None
    try:
        return (os.get_terminal_size(sys.stdout.fileno()).columns or None) if sys.stdout.isatty() else None
    except (OSError, ValueError):
        return None


def shortened(text: str, most: int) -> str:
    """A text of at most so many characters; an ellipsis stands for what was cut."""
    return text if len(text) <= most else f"{text[: max(0, most - 1)]}…"


def fitted(line: str, part: str) -> str:
    """A line cut for the terminal: this part of it first, then its gaps; a file gets all of it."""
    width = terminal_width()
    if width is None or len(line) <= width:
        return line
    if part:
        line = line.replace(part, shortened(part, max(NARROWEST, len(part) - len(line) + width)), 1)
    return line if len(line) <= width else " ".join(line.split())


def _fit(widths: list[int], may_shrink: Sequence[int], width: int | None) -> None:
    """Take from the widest of those columns until all fit, or none has anything to give."""
    while width is not None and may_shrink and sum(widths) + len(GAP) * (len(widths) - 1) > width:
        widest = max(may_shrink, key=lambda i: widths[i])
        if widths[widest] <= NARROWEST:
            return
        widths[widest] -= 1


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    fitted = (shortened(cell, width).ljust(width) for cell, width in zip(cells, widths, strict=True))
    return GAP.join(fitted).rstrip()
