"""`gpulockd config …`: see the configuration, change it while everything runs, and take changes back."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from importlib import import_module

from gpulockd.cli.talk import OK, USAGE, CommandError

SUBCOMMANDS = {
    "show": ("showing", "what is in force; --origin: which layer says it"),
    "get": ("showing", "one value"),
    "set": ("changing", "change values now, for the whole fleet or one pool"),
    "unset": ("changing", "take values back to file and environment"),
    "apply": ("applying", "bring a file or a profile into force, at once or in stages (--canary)"),
    "edit": ("editing", "edit what is set live, then apply it"),
    "check": ("checking", "read a configuration file and say what is wrong in it; needs no daemon"),
    "diff": ("past", "what differs between two revisions"),
    "history": ("past", "the revisions: who, when, why"),
    "audit": ("past", "the audit log"),
    "rollback": ("returning", "bring the last stable revision back into force"),
    "impact": ("comparing", "how it went before and after a change"),
    "rollout": ("rollout", "the rollout under way"),
    "approve": ("rollout", "let it take the step that waits for approval"),
    "pause": ("rollout", "let it stand where it is"),
    "resume": ("rollout", "let it go on"),
    "abort": ("rollout", "take the candidate back everywhere"),
}
"""Every sub-command: its module in `gpulockd.cli.configuring`, and what it does."""


def main(words: Sequence[str]) -> int:
    """Run one sub-command and return its exit code."""
    name, rest = (words[0], list(words[1:])) if words else ("", [])
    if name in ("", "help", "-h", "--help"):
        print(_help(), file=sys.stdout if name else sys.stderr)
        return OK if name else USAGE
    if name not in SUBCOMMANDS:
        near = difflib.get_close_matches(name, SUBCOMMANDS, n=1)
        meant = f"; did you mean {near[0]!r}?" if near else ""
        raise CommandError(f"config: unknown command {name!r}{meant}", "'gpulockd config --help' lists them", USAGE)
    module = import_module(f"gpulockd.cli.configuring.{SUBCOMMANDS[name][0]}")
    try:
        code: int = getattr(module, name)(rest)
    except ModuleNotFoundError as missing:
        if (missing.name or "").startswith("gpulockd"):
            raise
        what = f"config {name} needs the package {missing.name!r}"
        raise CommandError(what, "pip install 'gpulockd[server]'", USAGE) from None
    return code


def _help() -> str:
    lines = ["usage: gpulockd config COMMAND …", "", "Reads and changes the configuration while everything runs.", ""]
    lines += [f"  {name:<10}{does}" for name, (_, does) in SUBCOMMANDS.items()]
    return "\n".join([*lines, "", "'gpulockd config COMMAND --help' says more about one."])
