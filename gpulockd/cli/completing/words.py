"""What can be written after `gpulockd`: every command with its options, read from the commands' own parsers."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import NamedTuple, NoReturn

from gpulockd.cli import COMMANDS, options

HIDDEN = frozenset({"store"})
"""Commands that no person calls."""
FILES = frozenset({"FILE", "DIR", "PATH"})
"""The values, by their name in the help, that are files."""


class Option(NamedTuple):
    """One option: its names, what it does, and what follows it: nothing (None), a file, or one of the choices."""

    names: tuple[str, ...]
    does: str
    value: str | None
    is_file: bool
    choices: tuple[str, ...]


class Command(NamedTuple):
    """One command: its words ("config set"), what it does, options, sub-commands, and what its own words may be."""

    words: tuple[str, ...]
    does: str
    options: tuple[Option, ...]
    inner: tuple[tuple[str, str], ...]
    choices: tuple[str, ...]
    takes_file: bool
    takes_command: bool


class _Caught(Exception):
    """The parser of a command that was asked for its help."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        super().__init__()
        self.parser = parser


def commands() -> list[Command]:
    """All commands, those with sub-commands before these."""
    found: list[Command] = []
    for name, does in COMMANDS.items():
        if name not in HIDDEN:
            found += _of(name, does)
    return found


def _of(name: str, does: str) -> Iterator[Command]:
    module = import_module(f"gpulockd.cli.{name.replace('-', '_')}")
    inner: dict[str, tuple[str, str]] = getattr(module, "SUBCOMMANDS", {})
    if inner:
        yield Command((name,), does, (), tuple((word, text) for word, (_, text) in inner.items()), (), False, False)
        for word, (_, text) in inner.items():
            yield _read((name, word), text, _parser_of(module.main, [word, "--help"]))
        return
    parser = _parser_of(module.main, ["--help"])
    yield _read((name,), does, parser)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {choice.dest: choice.help or "" for choice in action._choices_actions}
            for word, verb in action.choices.items():
                yield _read((name, word), helps.get(word, ""), verb)


def _parser_of(main: Callable[[list[str]], int], words: list[str]) -> argparse.ArgumentParser:
    with _catching():
        try:
            main(words)
        except _Caught as caught:
            return caught.parser
    raise AssertionError(f"{words}: its parser is no options.Parser")


@contextmanager
def _catching() -> Iterator[None]:
    """Let a parser that is to print its help show itself instead."""

    def show(self: argparse.ArgumentParser, file: object = None) -> NoReturn:
        raise _Caught(self)

    usual = options.Parser.print_help
    options.Parser.print_help = show  # type: ignore[method-assign] # for this moment
    try:
        yield
    finally:
        options.Parser.print_help = usual  # type: ignore[method-assign]


def _read(words: tuple[str, ...], does: str, parser: argparse.ArgumentParser) -> Command:
    found: list[Option] = []
    inner: list[tuple[str, str]] = []
    choices: list[str] = []
    takes_file = takes_command = False
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            inner += [(choice.dest, choice.help or "") for choice in action._choices_actions]
        elif action.option_strings:
            found.append(_option(action))
        else:
            choices += [str(choice) for choice in action.choices or ()]
            takes_file = takes_file or action.metavar in FILES
            takes_command = takes_command or action.nargs == argparse.REMAINDER
    return Command(words, does, tuple(found), tuple(inner), tuple(choices), takes_file, takes_command)


def _option(action: argparse.Action) -> Option:
    value = None if action.nargs == 0 else str(action.metavar or action.dest.upper())
    choices = tuple(str(choice) for choice in action.choices or ())
    does = (action.help or "").replace("%%", "%")
    return Option(tuple(action.option_strings), does, value, value in FILES, choices)
