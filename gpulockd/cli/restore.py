"""`gpulockd restore`: what a backup has, brought back into a running pool."""

from __future__ import annotations

import json
import os
import time
from argparse import Namespace
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from gpulockd.cli.configuring.telling import change_lines
from gpulockd.cli.options import Parser
from gpulockd.cli.talk import NOT_PERMITTED, OK, USAGE, CommandError, say
from gpulockd.units import clean

if TYPE_CHECKING:  # names of types only: they load the ledger
    from gpulockd.cli.backups import configuration, past
    from gpulockd.cli.backups.pack import Backup
    from gpulockd.ledger.store import Store


def parser() -> Parser:
    """The options."""
    made = Parser(
        "restore",
        "Bring a backup's configuration back as a revision (which 'gpulockd config rollback' undoes), with the older "
        "revisions and the audit where the store has lost them, and the statistics of hours and days that the pool has "
        "none of. Leases, tickets and config.yml stay as they are.",
    )
    made.add_argument("file", metavar="FILE", help="a file that 'gpulockd backup' has written")
    made.add_argument("--dry-run", action="store_true", help="say what differs, and change nothing")
    made.add_argument("--only", choices=("config", "history"), help="only the configuration, or only the statistics")
    made.add_argument("--reason", metavar="TEXT", default="", help="why, for history and audit")
    made.add_argument("--pool", metavar="NAME", help="whose statistics they become; default: of the backup's pool")
    made.add_argument("--config-to", metavar="PATH", help="write the backup's config.yml there, where no file is")
    made.json_flag()
    return made


def main(words: Sequence[str]) -> int:
    """Check a backup, and bring it back."""
    args = parser().parse_args(words)
    try:
        from gpulockd.cli.backups import pack
        from gpulockd.cli.backups.asking import with_store
    except ImportError as missing:
        what = f"a backup needs the package {missing.name!r}"
        raise CommandError(what, "pip install 'gpulockd[server]'", USAGE) from None
    backup = pack.read(args.file)
    config_yml = _config_yml(args.config_to, backup) if args.config_to else b""

    async def work(store: Store, pool: str) -> dict[str, Any]:
        return await _restored(args, store, pool, backup)

    told = with_store(args.pool, work)
    if args.config_to:
        told["config_file"] = _write_config(args.config_to, backup, config_yml, dry=args.dry_run)
    if args.json:
        print(json.dumps(told, indent=2, ensure_ascii=False))
    else:
        _tell(told, backup)
    return OK


async def _restored(args: Namespace, store: Store, pool: str, backup: Backup) -> dict[str, Any]:
    from gpulockd.cli.backups import asking, configuration, past

    _check_pool(args, pool, backup)
    plan = await configuration.planned(store, backup) if args.only != "history" else None
    times = await past.planned(store, backup, pool) if args.only != "config" else None
    told = {"file": backup.path, "at": backup.head.get("at"), "pool": pool, "dry_run": args.dry_run}
    made = None
    if not args.dry_run and plan is not None:
        reason = args.reason or f"restored {os.path.basename(backup.path)}"
        made = await configuration.done(store, backup, plan, author=asking.author(), reason=reason)
    if not args.dry_run and times is not None:
        await past.done(store, times)
    told["config"] = None if plan is None else _told_config(plan, None if made is None else made.number)
    told["history"] = None if times is None else _told_past(times)
    return told


def _told_config(plan: configuration.Plan, made: int | None) -> dict[str, Any]:
    from gpulockd.cli.backups.configuration import missing_words
    from gpulockd.web.secrets import hidden

    diff = [
        {"path": one.path, "before": hidden(one.path, one.before), "after": hidden(one.path, one.after)}
        for one in plan.diff
    ]
    return {
        "differs": not plan.does_nothing,
        "diff": diff,
        "of": plan.number,
        "before": plan.before,
        "revision": made,
        "brings_back_revisions": len(plan.older) if plan.lost else 0,
        "missing_secrets": missing_words(plan),
    }


def _told_past(plan: past.Plan) -> dict[str, Any]:
    return {"differs": not plan.does_nothing, "adds": plan.text, "before": plan.book is not None}


def _check_pool(args: Namespace, pool: str, backup: Backup) -> None:
    theirs = str(backup.head.get("pool", ""))
    if args.only != "config" and args.pool is None and pool != theirs:
        what = f"{backup.path} is of the pool {theirs!r}, and here is the pool {pool!r}"
        raise CommandError(what, f"'--pool {pool}' gives its statistics to this one; --only config leaves them", USAGE)


def _config_yml(path: str, backup: Backup) -> bytes:
    """What `--config-to` writes.

    :raises CommandError: if the backup has none, or something is there; nothing has been restored then
    """
    line = backup.one("file") or {}
    if line.get("text") is None and line.get("tree") is None:
        raise CommandError(f"{backup.path} has no configuration file", "", USAGE)
    if os.path.lexists(path):
        raise CommandError(f"{path} is there, and stays", "name a file that is not there", USAGE)
    text = line.get("text")
    return (json.dumps(line["tree"], indent=2) + "\n" if text is None else str(text)).encode()


def _write_config(path: str, backup: Backup, content: bytes, *, dry: bool) -> str:
    if not dry:
        _write_whole(path, content)
    if (backup.one("file") or {}).get("hidden"):
        say(f"{path}: '***' stands where secrets were; put them in before a daemon reads it")
    return path


def _write_whole(path: str, content: bytes) -> None:
    made = False
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            made = True
            file.write(content)
    except OSError as refused:
        if made:
            with suppress(OSError):
                os.unlink(path)
        raise CommandError(f"{path}: {refused.strerror}", "", NOT_PERMITTED) from None


def _tell(told: dict[str, Any], backup: Backup) -> None:
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(backup.head.get("at", 0)))
    print(f"backup of {at}, pool {backup.head['pool']}, gpulockd {clean(str(backup.head['made_by']), 40)}")
    if told["config"] is not None:
        _tell_config(told["config"], dry=told["dry_run"])
    if told["history"] is not None:
        adds = "would add" if told["dry_run"] else "added"
        print(
            f"statistics: {adds} {told['history']['adds']}" if told["history"]["differs"] else "statistics: all there"
        )
    if told.get("config_file"):
        print(f"config.yml: {told['config_file']}")


def _tell_config(config: dict[str, Any], *, dry: bool) -> None:
    if not config["differs"]:
        print("configuration: as it is")
        return
    does = "would become" if dry else "is"
    number = "the next revision" if config["revision"] is None else f"revision {config['revision']}"
    print(f"configuration: that of revision {config['of']} of the backup {does} {number}")
    for line in change_lines(config["diff"]):
        print(f"  {line}")
    if config["brings_back_revisions"]:
        print(f"  with {config['brings_back_revisions']} older revisions and their audit, which the store has lost")
    if config["missing_secrets"]:
        say(f"not in the backup, set anew: {config['missing_secrets']}")
    if config["before"] is not None and not dry:
        print(f"undo: gpulockd config rollback {config['before']} --all")
