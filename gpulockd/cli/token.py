"""`gpulockd token`: the token that writes over TCP need."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Sequence

from gpulockd import places
from gpulockd.cli import http
from gpulockd.cli.options import Parser
from gpulockd.cli.talk import NEGATIVE, NOT_PERMITTED, OK, CommandError, say

TOKEN_FILE = "api-token"


def main(words: Sequence[str]) -> int:
    """Print the token."""
    parser = Parser("token", "Print the token that writes over TCP need (Authorization: Bearer …).")
    parser.add_argument("--state-dir", metavar="DIR", help="the daemon's state folder; default: the usual ones")
    folders, note = _folders(parser.parse_args(words).state_dir)
    for folder in folders:
        path = os.path.join(folder, TOKEN_FILE)
        try:
            with open(path, encoding="utf-8") as file:
                token = file.read().strip()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except PermissionError:
            raise CommandError(
                f"cannot read {path} (not permitted)", "ask as the user that runs the daemon", NOT_PERMITTED
            ) from None
        if note:
            say(f"{note}; this is the token in {folder}")
        print(token)
        return OK
    raise CommandError(
        f"no token in {' or '.join(folders)}",
        "the daemon makes it at its first start ('gpulockd serve'); --state-dir names another folder",
        NEGATIVE,
    )


def told() -> str | None:
    """The state folder of the local daemon, as its guard's socket says; None if none answers."""
    found = places.find_runtime()
    if found is None:
        return None
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
            door.settimeout(1.0)
            door.connect(os.path.join(found[0], places.GUARD_SOCKET))
            door.sendall(b'{"verb": "hello"}\n')
            said = json.loads(door.makefile("rb").readline(65536))
    except (OSError, ValueError):
        return None
    state = said.get("state_dir") if isinstance(said, dict) else None
    return state if isinstance(state, str) else None


def _folders(named: str | None) -> tuple[list[str], str]:
    """The state folders in which a token may lie, best first, and why it may be another daemon's ("" if it cannot).

    :raises http.DaemonDown: if GPULOCKD_SOCKET names a daemon that does not answer: its token is not known
    """
    if named:
        return [os.path.abspath(os.path.expanduser(named))], ""
    if os.environ.get("STATE_DIRECTORY"):
        return [os.environ["STATE_DIRECTORY"].split(":")[0]], ""
    state = told()
    if state:
        return [state], ""
    found = places.find_runtime() or places.runtime_candidates()[0]
    answers = places.is_answered(*found)
    if os.environ.get("GPULOCKD_SOCKET") and not answers:
        down = http.DaemonDown(found[1], "no answer")
        down.hint += "; or name its state folder by --state-dir"
        raise down
    note = "the daemon does not say where its state is" if answers else "no daemon answers"
    return _usual(), note


def _usual() -> list[str]:
    home = os.environ.get("HOME") or os.path.expanduser("~")
    user = os.environ.get("XDG_STATE_HOME") or ("" if os.getuid() == 0 else os.path.join(home, ".local/state"))
    return [*([os.path.join(user, "gpulockd")] if user else []), "/var/lib/gpulockd"]
