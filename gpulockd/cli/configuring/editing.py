"""`gpulockd config edit`: the live document in an editor, then applied."""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
from collections.abc import Sequence

from gpulockd.cli import http
from gpulockd.cli.configuring import changing
from gpulockd.cli.configuring.checking import tree_of
from gpulockd.cli.configuring.telling import Record, flat, yaml_lines
from gpulockd.cli.options import Parser
from gpulockd.cli.talk import NEGATIVE, OK, CommandError, say

NOTE = """\
# What is set live for {scope}, over file and environment. Save and leave the editor to apply it.
# A line that you delete goes back to what file and environment say. *** stands for a secret that is kept.
"""


def edit(words: Sequence[str]) -> int:
    """Open $VISUAL or $EDITOR on what is set live, and send what differs afterwards."""
    parser = Parser("config edit", "Edit what is set live, in $VISUAL or $EDITOR; what differs is applied.")
    changing.add_flags(parser)
    args = parser.parse_args(words)
    with http.find() as daemon:
        said = daemon.get("/api/v1/config")
    live = said["live"]
    shown: Record = (live.get("pools", {}).get(args.pool) if args.pool else live.get("all")) or {}
    draft = _draft(shown, args.pool)
    try:
        _open(draft)
        wished = flat(tree_of(draft)) if not _is_empty(draft) else {}
    except CommandError as wrong:
        raise CommandError(wrong.what, f"{wrong.hint}; the draft is kept: {draft}", wrong.code) from None
    before = flat(shown)
    change = {
        "set": {path: value for path, value in wished.items() if path not in before or before[path] != value},
        "unset": [path for path in before if path not in wished],
        "expect": (said["revision"] or {}).get("number"),
    }
    if not change["set"] and not change["unset"]:
        os.unlink(draft)
        print("no change")
        return OK
    try:
        code = changing.send(args, change, json=args.json)
    except CommandError:
        say(f"the draft is kept: {draft}")
        raise
    os.unlink(draft)
    return code


def _draft(shown: Record, pool: str | None) -> str:
    text = NOTE.format(scope=f"pool {pool}" if pool else "the whole fleet")
    handle, path = tempfile.mkstemp(prefix="gpulockd-", suffix=".yml")
    with open(handle, "w", encoding="utf-8") as file:
        file.write(text + "".join(f"{line}\n" for line in yaml_lines(shown)))
    return path


def _open(path: str) -> None:
    """:raises CommandError: if the editor cannot be run or fails"""
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    try:
        done = subprocess.run([*shlex.split(editor), path], check=False)
    except (OSError, ValueError) as wrong:
        raise CommandError(f"cannot run the editor {editor!r} ({wrong})", "set EDITOR", NEGATIVE) from None
    if done.returncode != 0:
        raise CommandError(f"the editor ended with code {done.returncode}: nothing was changed", "try again", NEGATIVE)


def _is_empty(path: str) -> bool:
    """Whether only comments are left."""
    with open(path, encoding="utf-8", errors="replace") as file:
        return all(not line.strip() or line.lstrip().startswith("#") for line in file)
