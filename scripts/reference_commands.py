"""docs/reference-commands.md, docs/reference-exit-codes.md and the manual page, from the commands' own parsers."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import gpulockd
from gpulockd import cli
from gpulockd.cli import child, run, talk
from gpulockd.cli.completing import words

COMMANDS_HEAD = """# Commands

`gpulockd COMMAND --help` says the same. Every command takes `-h`, `--help` and `--debug` (show the trace of an
unexpected error). [In the shell](shell.md) shows how they are used, [Exit codes](reference-exit-codes.md) what they end
with.
"""


def commands_page() -> str:
    """Every command with its own words and options."""
    parts = [COMMANDS_HEAD]
    for path, does, parser in parsers():
        parts.append(f"\n{'#' * (len(path) + 1)} {' '.join(path)}\n\n{does[:1].upper()}{does[1:]}.\n")
        if parser is None:
            continue
        parts.append(f"    {usage(path, parser)}\n")
        rows = [f"| {names} | {what} |" for names, what in options(parser)]
        if rows:
            parts.append("\n".join(["| option | |", "|---|---|", *rows]) + "\n")
    return "\n".join(parts)


def parsers() -> Iterator[tuple[tuple[str, ...], str, argparse.ArgumentParser | None]]:
    """Every command, in the order of the help: its words, what it does, and its parser; None if it has only others."""
    for name, does in cli.COMMANDS.items():
        if name in words.HIDDEN:
            continue
        module = import_module(f"gpulockd.cli.{name.replace('-', '_')}")
        inner: dict[str, tuple[str, str]] = getattr(module, "SUBCOMMANDS", {})
        if inner:
            yield (name,), does, None
            for word, (_, text) in inner.items():
                yield (name, word), text, words._parser_of(module.main, [word, "--help"])
            continue
        parser = words._parser_of(module.main, ["--help"])
        yield (name,), does, parser
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                helps = {choice.dest: choice.help or "" for choice in action._choices_actions}
                for word, verb in action.choices.items():
                    yield (name, word), helps.get(word) or verb.description or "", verb


def usage(path: tuple[str, ...], parser: argparse.ArgumentParser) -> str:
    """One line: the command and its own words."""
    if parser.usage:
        return parser.usage.replace("%(prog)s", parser.prog)
    own = [_word(action) for action in parser._actions if not action.option_strings]
    return " ".join(["gpulockd", *path, *(["[OPTIONS]"] if options(parser) else []), *own])


def _word(action: argparse.Action) -> str:
    if isinstance(action, argparse._SubParsersAction):
        return "|".join(action.choices)
    name = str(action.metavar or ("|".join(map(str, action.choices)) if action.choices else action.dest.upper()))
    forms: dict[Any, str] = {"?": f"[{name}]", "*": f"[{name} …]", "+": f"{name} …", argparse.REMAINDER: f"-- {name} …"}
    return forms.get(action.nargs, name)


def options(parser: argparse.ArgumentParser) -> list[tuple[str, str]]:
    """The options of a command with what they do; those that all have are left out."""
    found = []
    for action in parser._actions:
        if not action.option_strings or action.dest in ("help", "debug") or action.help == argparse.SUPPRESS:
            continue
        value = (
            ""
            if action.nargs == 0
            else f" {action.metavar or '|'.join(map(str, action.choices or ())) or action.dest.upper()}"
        )
        does = (action.help or "").replace("%%", "%").replace("|", "\\|")
        names = ", ".join(f"`{name}{value}`" for name in action.option_strings).replace("|", "\\|")
        found.append((names, does))
    return found


def exit_codes() -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """What `run` ends with, and what all others end with."""
    of_run = [
        ("the command's own", "it has run"),
        (f"{run.BUSY}", "`--no-wait`, and no GPU is free; `-E CODE` names another"),
        (f"{run.WAITED_TOO_LONG}", "`--wait` is over"),
        (f"{run.OWN_FAILURE}", "gpulockd's own failure, a usage error, or a request that can never be granted"),
        (f"{child.NOT_RUNNABLE}", "the command is not runnable"),
        (f"{child.NOT_FOUND}", "the command was not found"),
        ("128 + n", "the command was killed by signal n: 137 is SIGKILL, 143 SIGTERM (the limits end it so)"),
        (f"{cli.INTERRUPTED}", "Ctrl-C while it waited"),
    ]
    others = [
        (f"{talk.OK}", "done"),
        (f"{talk.NEGATIVE}", "the answer is no: nothing held, a check that failed, a refused change"),
        (f"{talk.USAGE}", "wrong use, or a configuration that cannot be used"),
        (f"{talk.NO_DAEMON}", "the daemon does not run, or cannot be reached"),
        (f"{talk.NOT_PERMITTED}", "not permitted"),
        (f"{cli.INTERRUPTED}", "Ctrl-C"),
        (f"{cli.PIPE_CLOSED}", "who read the output has gone, as in `gpulockd events \\| head`"),
    ]
    return of_run, others


def exit_codes_page() -> str:
    """The exit codes of all commands."""
    of_run, others = exit_codes()
    parts = ["# Exit codes\n"]
    for head, rows in (("gpulockd run", of_run), ("All other commands", others)):
        lines = [f"| {code} | {meaning} |" for code, meaning in rows]
        parts.append("\n".join([f"\n## {head}\n", "| code | meaning |", "|---|---|", *lines]) + "\n")
    parts.append(
        "\nThe daemon, `gpulockd serve`: 0 it was stopped; 1 it failed, and systemd starts it again; 2 what it was told"
        " cannot be used,\nand it is not started again.\n"
    )
    return "".join(parts)


def manual() -> str:
    """The manual page, as roff."""
    parts = [
        f'.TH GPULOCKD 1 "" "gpulockd {gpulockd.__version__}"',
        ".SH NAME\ngpulockd \\- gives each GPU to one program at a time, in a fair order",
        ".SH SYNOPSIS\n.B gpulockd\n.I COMMAND\n[OPTIONS]",
        ".SH COMMANDS",
    ]
    for path, does, parser in parsers():
        said = _roff(f"{does[:1].upper()}{does[1:]}.")
        parts.append(f".SS {' '.join(path)}\n" + (f".B {_roff(usage(path, parser))}\n.PP\n" if parser else "") + said)
        for names, what in options(parser) if parser else ():
            parts.append(f".TP\n.B {_roff(names)}\n{_roff(what)}")
    parts.append(".SH EXIT STATUS")
    for code, meaning in [*((f"run: {code}", what) for code, what in exit_codes()[0]), *exit_codes()[1]]:
        parts.append(f".TP\n.B {_roff(code)}\n{_roff(meaning)}")
    parts.append(".SH FILES\n.TP\n.B /etc/gpulockd/config.yml\nthe configuration\n.TP\n.B /run/gpulockd\nthe sockets")
    return "\n".join(parts) + "\n"


def _roff(text: str) -> str:
    plain = text.replace("\\|", "|").replace("`", "").replace("\\", "\\e").replace("-", "\\-").replace("…", "...")
    return "\\&" + plain if plain.startswith((".", "'")) else plain
