"""`gpulockd config rollout|approve|pause|resume|abort`: a change that goes to the fleet in stages."""

from __future__ import annotations

from collections.abc import Sequence

from gpulockd.cli import http
from gpulockd.cli.configuring.telling import Record, ask_slowly, flat, printed, value_text
from gpulockd.cli.options import Parser
from gpulockd.cli.talk import OK

PATH = "/api/v1/config/rollout"


def rollout(words: Sequence[str]) -> int:
    """Print the rollout under way, or the last one."""
    parser = Parser("config rollout", "The rollout under way, or the last one: stage, share, gates.")
    parser.json_flag()
    args = parser.parse_args(words)
    with http.find() as daemon:
        said = daemon.get(PATH)
    if args.json:
        printed(said)
    else:
        tell(said)
    return OK


def approve(words: Sequence[str]) -> int:
    """Let it take the step that waits for approval."""
    return _steer("approve", "Let the rollout take the step that waits for approval.", words)


def pause(words: Sequence[str]) -> int:
    """Let it stand where it is."""
    return _steer("pause", "Let the rollout stand where it is.", words)


def resume(words: Sequence[str]) -> int:
    """Let it go on."""
    return _steer("resume", "Let a paused rollout go on.", words)


def abort(words: Sequence[str]) -> int:
    """Take the candidate back everywhere."""
    return _steer("abort", "Take the candidate back everywhere; nothing of it stays in force.", words)


def _steer(verb: str, does: str, words: Sequence[str]) -> int:
    parser = Parser(f"config {verb}", does)
    parser.add_argument("--reason", metavar="TEXT", default="", help="why, for the audit log")
    parser.json_flag()
    args = parser.parse_args(words)
    with http.find() as daemon:
        said = ask_slowly(daemon, "POST", f"{PATH}/{verb}", {"reason": args.reason})
    if args.json:
        printed(said)
    else:
        tell(said)
    return OK


def tell(said: Record) -> None:
    """Print a rollout: its text if it has one, then what it says of itself."""
    found = said.get("rollout")
    if not found:
        print("no rollout yet")
        return
    text = found.get("text")
    if text:
        print(text)
    for name, value in flat({name: value for name, value in found.items() if name != "text"}).items():
        if value not in (None, "", [], {}):
            print(f"  {name}: {value if isinstance(value, str) else value_text(value)}")
