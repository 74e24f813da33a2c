"""`gpulockd config show|get`: what is in force, and which layer says it."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from gpulockd.cli import http
from gpulockd.cli.configuring.telling import (
    Record,
    at,
    cut,
    flat,
    printed,
    revision_text,
    room,
    value_text,
    yaml_lines,
)
from gpulockd.cli.options import Parser
from gpulockd.cli.talk import NEGATIVE, OK, USAGE, CommandError, say, table

HEAD = ("SETTING", "VALUE", "LAYER", "WHERE")


def show(words: Sequence[str]) -> int:
    """Print the configuration in force as YAML, or with --origin which layer says each value."""
    parser = Parser("config show", "The configuration in force here, as a config.yml that says the same.")
    parser.add_argument("path", nargs="?", metavar="SETTING", help="only this block or setting, such as gpu_lock")
    parser.add_argument("--origin", action="store_true", help="which layer says each value: file, environment, live …")
    parser.add_argument("--live", action="store_true", help="only what is set live")
    parser.json_flag()
    args = parser.parse_args(words)
    if args.live and (args.path is not None or args.origin):
        raise CommandError("config show: --live shows all that is set live", "leave SETTING and --origin out", USAGE)
    with http.find() as daemon:
        said = daemon.get("/api/v1/config")
    if args.path is not None:
        said = _only(said, args.path)
    if args.json:
        printed(said)
    elif args.origin:
        print(_origins(said))
    else:
        print("\n".join([*_heading(said), *yaml_lines(said["live"] if args.live else said["settings"])]))
    if said["trouble"] and not args.json:
        say(f"the file's last change was not taken: {said['trouble']}")
    return OK


def get(words: Sequence[str]) -> int:
    """Print one value; a block as YAML."""
    parser = Parser("config get", "One value of the configuration in force here.")
    parser.add_argument("path", metavar="SETTING", help="such as gpu_lock.poll_interval")
    parser.json_flag()
    args = parser.parse_args(words)
    with http.find() as daemon:
        said = daemon.get("/api/v1/config")
    value = _found(said, args.path)
    if args.json:
        printed(value)
    elif isinstance(value, dict):
        print("\n".join(yaml_lines(value)))
    else:
        print(value if isinstance(value, str) else value_text(value))
    return OK


def _found(said: Record, path: str) -> object:
    try:
        return at(said["settings"], path)
    except KeyError:
        # A setting first: its block is as near to a slip in its name as itself is.
        near = difflib.get_close_matches(path, flat(said["settings"]), n=1)
        near = near or difflib.get_close_matches(path, said["settings"], n=1)
        hint = f"did you mean {near[0]!r}?" if near else "'gpulockd config show --origin' lists them"
        raise CommandError(f"there is no setting {path!r}", hint, NEGATIVE) from None


def _only(said: Record, path: str) -> Record:
    value = _found(said, path)
    *blocks, last = path.split(".")
    tree: Record = {last: value}
    for block in reversed(blocks):
        tree = {block: tree}
    origins = [one for one in said["origins"] if one["path"] == path or one["path"].startswith(f"{path}.")]
    return said | {"settings": tree, "origins": origins}


def _heading(said: Record) -> list[str]:
    stable = "" if said["stable"] is None else f"; the last stable one is {said['stable']}"
    lines = [f"# pool {said['pool']}, {revision_text(said['revision'])}{stable}", f"# file: {said['file'] or 'none'}"]
    if said["waits_for_restart"]:
        lines.append(f"# waits for a restart of the daemon: {', '.join(said['waits_for_restart'])}")
    return lines


def _origins(said: Record) -> str:
    known = said["origins"]
    beside = sum(max((len(one[name]) for one in known), default=0) for name in ("path", "layer", "where")) + 6
    most = room(beside)
    rows = [(one["path"], cut(value_text(one["value"]), most), one["layer"], one["where"]) for one in known]
    colours = [None if one["layer"] == "default" else "bold" for one in said["origins"]]
    return table(HEAD, rows, colours)
