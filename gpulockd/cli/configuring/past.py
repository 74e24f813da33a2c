"""`gpulockd config history|diff|audit`: what was in force when, and who changed it."""

from __future__ import annotations

from collections.abc import Sequence

from gpulockd.cli import http
from gpulockd.cli.configuring.telling import Record, change_lines, diff_lines, printed, when
from gpulockd.cli.options import Parser, revision, whole
from gpulockd.cli.talk import OK, table

HEAD = ("", "REVISION", "WHEN", "WHO", "BY", "STABLE", "WHAT")
SHOWN_CHANGES = 3
LONGEST_VALUE = 40
"""Longer values are cut; `diff` and --json have them whole."""


def history(words: Sequence[str]) -> int:
    """Print the revisions, the newest first."""
    parser = Parser("config history", "The revisions, the newest first; > is the one in force.")
    parser.add_argument("-n", "--count", type=whole(1, 200), default=20, metavar="N", help="how many (20)")
    parser.add_argument("--before", type=revision, metavar="N", help="only those before revision N")
    parser.json_flag()
    args = parser.parse_args(words)
    before = "" if args.before is None else f"&before={max(0, args.before)}"
    with http.find() as daemon:
        said = daemon.get(f"/api/v1/config/history?count={args.count}{before}")
    if args.json:
        printed(said)
        return OK
    rows = [_row(revision, said) for revision in said["revisions"]]
    print(table(HEAD, rows) if rows else "no revision yet")
    return OK


def _row(revision: Record, said: Record) -> tuple[str, ...]:
    number = revision["number"]
    return (
        ">" if number == said["current"] else "",
        str(number),
        when(revision["at_ms"]),
        revision["author"],
        revision["origin"] + (f" of {revision['of']}" if revision.get("of") is not None else ""),
        "stable" if revision["stable"] else "",
        _what(revision),
    )


def _what(revision: Record) -> str:
    lines = change_lines(revision["diff"], LONGEST_VALUE)
    more = f" and {len(lines) - SHOWN_CHANGES} more" if len(lines) > SHOWN_CHANGES else ""
    where = f"[{revision['pool']}]" if revision.get("pool") else ""
    reason = f"({revision['reason']})" if revision["reason"] else ""
    outcome = f"- {revision['outcome']}" if revision["outcome"] else ""
    said = (where, f"{', '.join(lines[:SHOWN_CHANGES])}{more}", reason, outcome)
    return " ".join(part for part in said if part)


def diff(words: Sequence[str]) -> int:
    """Print what differs between two revisions."""
    parser = Parser("config diff", "What differs between revisions A and B, as this pool's daemon goes by them.")
    parser.add_argument("older", nargs="?", type=revision, metavar="A", help="default: the last stable one")
    parser.add_argument("newer", nargs="?", type=revision, metavar="B", help="default: the one in force")
    parser.json_flag()
    args = parser.parse_args(words)
    query = "&".join(f"{name}={getattr(args, name)}" for name in ("older", "newer") if getattr(args, name) is not None)
    with http.find() as daemon:
        said = daemon.get(f"/api/v1/config/diff?{query}")
    if args.json:
        printed(said)
    elif not said["diff"]:
        print(f"no difference between revisions {said['older']} and {said['newer']}")
    else:
        print(f"--- revision {said['older']}\n+++ revision {said['newer']}")
        print("\n".join(diff_lines(said["diff"])))
    return OK


def audit(words: Sequence[str]) -> int:
    """Print the audit log, the newest line last."""
    parser = Parser("config audit", "Who did what to the configuration; the newest line comes last.")
    parser.add_argument("-n", "--count", type=int, default=50, metavar="N", help="how many (50)")
    parser.json_flag()
    args = parser.parse_args(words)
    with http.find() as daemon:
        said = daemon.get(f"/api/v1/config/audit?count={max(1, min(args.count, 200))}")
    if args.json:
        printed(said)
        return OK
    for line in reversed(said["audit"]):
        number = "" if line["revision"] is None else f"  revision {line['revision']}"
        what = f"{line['what']}: {line['text']}" if line["text"] else line["what"]
        print(f"{when(line['at_ms'])}  {line['author']} ({line['origin']}){number}  {what}")
    return OK
