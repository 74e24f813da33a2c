"""The command line's own forms: a parser whose errors have three parts, and types for durations and GPUs."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from importlib import import_module

from gpulockd.cli.talk import USAGE, CommandError
from gpulockd.errors import GpuLockError
from gpulockd.units import parse_duration_s

TYPE_CHECKING = False  # see gpulockd/__init__.py
if TYPE_CHECKING:
    from typing import NoReturn, TypeVar

    T = TypeVar("T")


class Parser(argparse.ArgumentParser):
    """A parser of one command. Its errors are `CommandError`s with the exit code `usage_code`."""

    def __init__(self, command: str, description: str, *, usage_code: int = USAGE, usage: str | None = None) -> None:
        super().__init__(
            prog=f"gpulockd {command}",
            description=description,
            usage=usage,
            allow_abbrev=False,
            add_help=True,
            formatter_class=_Help,
        )
        self.usage_code = usage_code
        self.usage_hint = f"'{self.prog} --help'"
        self.add_argument("--debug", action="store_true", help="show the trace of an unexpected error")

    def error(self, message: str) -> NoReturn:
        """Refuse the command line."""
        command = self.prog.partition(" ")[2]
        message += self._meant(message)
        raise CommandError(f"{command}: {message}" if command else message, self.usage_hint, self.usage_code)

    def _meant(self, message: str) -> str:
        """The option that a misspelled one may have been meant as."""
        unknown = message.removeprefix("unrecognized arguments: ").split(" ")[0].split("=")[0]
        if unknown == message or not unknown.startswith("--"):
            return ""
        difflib = import_module("difflib")  # slow to load, and seldom needed
        near = difflib.get_close_matches(unknown, [one for one in self._option_string_actions if len(one) > 2], n=1)
        return f"; did you mean {near[0]!r}?" if near else ""

    def json_flag(self) -> None:
        """Add `--json`, which every listing has."""
        self.add_argument("--json", action="store_true", help="print JSON")


class _Help(argparse.HelpFormatter):
    """The usual help. Its own way to learn the terminal's width loads all of `shutil`, at each option that is added."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=_columns() - 2)


def _columns() -> int:
    said = os.environ.get("COLUMNS", "")
    if said.isdigit() and int(said) > 0:
        return int(said)
    try:
        return os.get_terminal_size(sys.__stdout__.fileno() if sys.__stdout__ else 1).columns or 80
    except (OSError, ValueError):
        return 80


def checked(parse: Callable[[str], T]) -> Callable[[str], T]:
    """Make an argparse type of a function that refuses with our own errors."""

    def convert(text: str) -> T:
        try:
            return parse(text)
        except GpuLockError as wrong:
            raise argparse.ArgumentTypeError(wrong.message) from None

    return convert


def revision(text: str) -> int:
    """The number of a revision of the configuration.

    :raises argparse.ArgumentTypeError: unless it is a whole number from 0
    """
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise argparse.ArgumentTypeError(f"{text!r} is no revision; say its number, 0 or more")
    return int(text)


def whole(least: int, most: int) -> Callable[[str], int]:
    """Make an argparse type of whole numbers in a range."""

    def convert(text: str) -> int:
        if not (text.isascii() and text.isdigit() and least <= int(text[:19]) <= most):
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {least} to {most}")
        return int(text)

    return convert


duration = checked(parse_duration_s)
"""A duration: seconds, "250ms", "5m", "1h30m" (in seconds)."""
