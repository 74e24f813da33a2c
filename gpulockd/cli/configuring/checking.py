"""`gpulockd config check`: read a configuration file and say what is wrong in it. It needs no daemon."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from gpulockd.cli.configuring.telling import Record, printed
from gpulockd.cli.options import Parser
from gpulockd.cli.talk import NEGATIVE, OK, USAGE, CommandError, say
from gpulockd.errors import ConfigError

STANDARD_INPUT = "-"


def check(words: Sequence[str]) -> int:
    """Check one file: 0 if a daemon could go by it, 1 if it is empty, else 2 and the place of what is wrong."""
    parser = Parser("config check", "Say whether a daemon could use this file; errors name file, line and column.")
    parser.add_argument("file", nargs="?", metavar="FILE", help="default: the one that `gpulockd serve` would read")
    parser.add_argument("--environment", action="store_true", help="with what this environment sets, as a daemon here")
    parser.json_flag()
    args = parser.parse_args(words)
    environ: Mapping[str, str] = os.environ if args.environment or args.file is None else {}
    try:
        found, count = _checked(args.file, environ)
    except _Wrong as wrong:
        if args.json:
            printed({"file": args.file, "ok": False, "error": wrong.messages[0], "errors": list(wrong.messages)})
            return wrong.code
        for message in wrong.messages[:-1]:
            say(message)
        raise CommandError(wrong.messages[-1], wrong.hint, wrong.code) from None
    if args.json:
        printed({"file": found, "ok": True, "settings": count})
    elif found is None:
        print("no configuration file: all is as by default and as the environment says")
    else:
        print(f"{found}: can be used ({count} settings)")
    return OK


class _Wrong(Exception):
    """All that is wrong, each with its place."""

    def __init__(
        self, messages: tuple[str, ...], code: int = USAGE, hint: str = "correct it, then check again"
    ) -> None:
        super().__init__(*messages)
        self.messages = messages
        self.code = code
        self.hint = hint


def _checked(file: str | None, environ: Mapping[str, str]) -> tuple[str | None, int]:
    """:raises _Wrong: if no daemon could start with it"""
    from gpulockd.daemon.configuration import load_layers
    from gpulockd.daemon.configuration.file import find
    from gpulockd.daemon.configuration.troubles import troubles
    from gpulockd.settings import flat
    from gpulockd.settings.alerting import check_addresses
    from gpulockd.web.encrypting import context_of

    with named(file) as path:
        try:
            layers = load_layers(path, environ)
            tls = layers.settings().web.tls
            check_addresses(layers.base)
            context_of(tls)
        except ConfigError as wrong:
            found: tuple[ConfigError, ...] = ()
            with suppress(OSError, ConfigError):
                read = find(path, environ) or ""
                found = troubles(Path(read).read_bytes(), read)
            raise _Wrong(tuple(renamed(one, path, file).message for one in found or (wrong,))) from None
        shown = file if path != file else layers.file
        if layers.is_empty:
            what = "it is empty: a daemon starts with the defaults, but one that runs does not take it"
            raise _Wrong((f"{shown}: {what}",), NEGATIVE, "write {} if everything is to have its default")
        return shown, len(flat(layers.base))


def tree_of(file: str) -> Record:
    """What a file sets, checked as a whole; `-` is standard input.

    :raises CommandError: naming file, line and column of what is wrong
    """
    from gpulockd.daemon.configuration import load_layers

    with named(file) as path:
        try:
            layers = load_layers(path, {})
            layers.settings()
        except ConfigError as wrong:
            raise CommandError(renamed(wrong, path, file).message, "nothing was changed; correct it", USAGE) from None
        return dict(layers.base)


@contextmanager
def named(file: str | None) -> Iterator[str | None]:
    """A file that can be opened by name, for what standard input says too."""
    if file != STANDARD_INPUT:
        yield file
        return
    with tempfile.NamedTemporaryFile("wb", suffix=".yml") as copy:
        copy.write(sys.stdin.buffer.read())
        copy.flush()
        yield copy.name


def renamed(wrong: ConfigError, path: str | None, file: str | None) -> ConfigError:
    """The error with the name that the person knows the file by."""
    if path == file or path is None:
        return wrong
    return ConfigError(wrong.message.replace(path, "(standard input)"))
