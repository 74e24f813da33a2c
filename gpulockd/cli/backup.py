"""`gpulockd backup`: configuration, statistics and events in one file."""

from __future__ import annotations

import json
import os
import time
from argparse import Namespace
from collections.abc import Sequence
from contextlib import suppress

from gpulockd.cli import http
from gpulockd.cli.options import Parser
from gpulockd.cli.talk import NEGATIVE, OK, USAGE, CommandError, say, table
from gpulockd.cli.token import told
from gpulockd.errors import ConfigError

KEEP = 14


def parser() -> Parser:
    """The options."""
    made = Parser(
        "backup",
        "Write configuration (file, revisions, audit), statistics and events into one file of mode 0600: JSON lines in "
        "gzip, with a checksum. Leases and tickets are not in it. It reads the store, so it needs no daemon.",
    )
    made.add_argument("file", nargs="?", metavar="FILE", help="default: a new one in --folder")
    made.add_argument("--folder", metavar="DIR", help="default: 'backups' in the daemon's state folder")
    made.add_argument("--keep", type=int, default=KEEP, metavar="N", help=f"keep the newest N there; default {KEEP}")
    made.add_argument("--list", action="store_true", help="name the backups there, and read each to its end")
    made.add_argument("--with-secrets", action="store_true", help="also passwords and webhooks, else marked")
    made.add_argument("--config", metavar="FILE", help="the daemon's config.yml; default: as the daemon says")
    made.add_argument("--pool", metavar="NAME", help="whose statistics and events; default: the local daemon's")
    made.add_argument("--state-dir", metavar="DIR", help="as the daemon's")
    made.json_flag()
    return made


def main(words: Sequence[str]) -> int:
    """Take a backup, or list those there are."""
    args = parser().parse_args(words)
    if args.keep < 1:
        raise CommandError(f"backup: --keep {args.keep} keeps nothing", "keep at least 1", USAGE)
    if args.list and args.file:
        raise CommandError("backup: --list writes nothing, so it takes no file", "--folder DIR looks elsewhere", USAGE)
    try:
        return _list(args) if args.list else _take(args)
    except ImportError as missing:
        raise CommandError(
            f"a backup needs the package {missing.name!r}", "pip install 'gpulockd[server]'", USAGE
        ) from None


def _take(args: Namespace) -> int:
    from gpulockd.cli.backups import folder as shelf
    from gpulockd.cli.backups import pack, taking
    from gpulockd.cli.backups.asking import with_store
    from gpulockd.ledger.store import Store

    folder = _folder(args)
    own_name = args.file is None or os.path.isdir(args.file)
    if own_name:
        folder = args.file or folder
        shelf.prepare(folder)

    async def read(store: Store, pool: str) -> tuple[str, pack.Record, list[pack.Record]]:
        head, lines = await taking.taken(store, pool, config=config, secrets=args.with_secrets)
        return pool, head, lines

    config = _config(args)
    pool, head, lines = with_store(args.pool, read)
    _warn(lines)
    content = pack.packed(head, lines)
    path = shelf.new_path(folder, pool) if own_name else args.file
    pack.keep(path, content)
    gone = shelf.drop_old(folder, pool, args.keep) if own_name else []
    made = {"file": os.path.abspath(path), "bytes": len(content), "lines": len(lines), **head, "removed": gone}
    if args.json:
        print(json.dumps(made, indent=2))
        return OK
    hidden = "secrets included" if args.with_secrets else "without secrets"
    print(f"{made['file']}: pool {pool}, revision {head['revision']}, {len(content)} bytes, {hidden}")
    for one in gone:
        say(f"removed the oldest: {one}")
    return OK


def _list(args: Namespace) -> int:
    from gpulockd.cli.backups import folder as shelf

    folder = _folder(args)
    found = shelf.kept(folder)
    if args.json:
        listed = [{"file": one.path, "bytes": one.size, "trouble": one.trouble or None, **one.head} for one in found]
        print(json.dumps(listed, indent=2))
    elif not found:
        print(f"no backup in {folder}; 'gpulockd backup' takes one")
    else:
        head = ("WHEN", "POOL", "REVISION", "BYTES", "SECRETS", "STATE", "FILE")
        rows = [
            (
                _when(one.head.get("at")),
                str(one.head.get("pool", "-")),
                str(one.head.get("revision", "-")),
                str(one.size),
                "yes" if one.head.get("secrets") else "no" if one.head else "-",
                f"unusable: {one.trouble}" if one.trouble else "whole",
                one.path,
            )
            for one in found
        ]
        print(table(head, rows, ["red" if one.trouble else None for one in found]))
    return NEGATIVE if any(one.trouble for one in found) else OK


def _when(at: object) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at)) if isinstance(at, int | float) else "-"


def _folder(args: Namespace) -> str:
    from gpulockd.daemon import folders

    if args.folder:
        return str(args.folder)
    is_said = args.state_dir or os.environ.get("STATE_DIRECTORY")
    state = None if is_said else told()
    try:
        return os.path.join(state or folders.resolve(None, args.state_dir).state, "backups")
    except ConfigError as wrong:
        raise CommandError(wrong.message, "--folder names another place", USAGE) from None


def _config(args: Namespace) -> str | None:
    """The daemon's configuration file, as the command line or the daemon itself says."""
    if args.config:
        return str(args.config)
    with suppress(CommandError), http.find() as daemon:
        file = daemon.get("/api/v1/config").get("file")
        return str(file) if file else None
    return None


def _warn(lines: Sequence[dict[str, object]]) -> None:
    for line in lines:
        if line.get("trouble"):
            say(f"the configuration file is not in the backup: {line['trouble']}")
