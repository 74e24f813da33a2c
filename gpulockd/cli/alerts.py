"""`gpulockd alerts`: what needs a person; acknowledge it, silence a rule, try the channels.

Without a daemon the list comes from the store itself, for a daemon that is gone is an alert as well.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from typing import Any, NoReturn

from gpulockd.cli import http
from gpulockd.cli.options import Parser
from gpulockd.cli.talk import NEGATIVE, NO_DAEMON, OK, USAGE, CommandError, say, table

HEAD = ("LEVEL", "STATE", "SINCE", "POOL", "RULE", "WHAT")
_COLOURS = {"critical": "red", "warning": "yellow"}
READ_DEADLINE_S = 2.0
LAST_RESOLVED = 5
"""How many alerts that are over are listed, the last ones: after a storm the list must still be read."""


class Verb(argparse.ArgumentParser):
    """The parser of one verb, whose errors are as those of the command."""

    def error(self, message: str) -> NoReturn:
        """Refuse the command line."""
        raise CommandError(f"{self.prog.partition(' ')[2]}: {message}", f"'{self.prog} --help'", USAGE)


def main(words: Sequence[str]) -> int:
    """List, or do what is said; exit code 1 if there is no such alert, rule or channel, or a test has failed."""
    parser = Parser("alerts", "What needs a person, who has taken it on, and what was.")
    parser.json_flag()
    parser.add_argument("--all", action="store_true", help=f"all that is over, not only the last {LAST_RESOLVED}")
    parser.add_argument("--history", type=int, default=0, metavar="N", help="also the last N things that happened")
    verbs = parser.add_subparsers(dest="verb", metavar="ack|silence|test|forget|down", parser_class=Verb)
    ack = verbs.add_parser("ack", help="take an alert on, so that it is not escalated")
    ack.add_argument("id", metavar="ID", help="POOL:RULE, or RULE of this pool")
    ack.add_argument("--note", default="", help="what you say to the others")
    quiet = verbs.add_parser("silence", help="tell nothing of a rule for a while")
    quiet.add_argument("id", metavar="RULE", help="a rule, POOL:RULE, or '*' for all")
    quiet.add_argument("--for", dest="for_", required=True, metavar="1h", help="how long; 0 ends a silence")
    quiet.add_argument("--note", default="", help="why")
    tried = verbs.add_parser("test", help="send a test message over the channels")
    tried.add_argument("channel", nargs="?", metavar="CHANNEL", help="one of them; default: all")
    gone = verbs.add_parser("forget", help="a pool's host is gone for good: its daemon is not missed any more")
    gone.add_argument("pool", metavar="POOL")
    down = verbs.add_parser("down", help="for OnFailure= of systemd: tell, without a daemon, that it is down")
    down.add_argument("--config", metavar="FILE", help="config.yml; default: as for 'gpulockd serve'")
    down.add_argument("--unit", default="gpulockd.service", metavar="UNIT", help="what has failed")
    for verb in (ack, quiet, tried, gone, down):
        verb.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print JSON")
    args = parser.parse_args(words)
    if not 0 <= args.history <= 1000:
        raise CommandError(f"alerts: --history {args.history}: say 0 to 1000", "", USAGE)
    if args.verb is None:
        return _list(args.json, args.history, None if args.all else LAST_RESOLVED)
    if args.verb == "down":
        return _down(args)
    with http.find() as daemon:
        return {"ack": _ack, "silence": _silence, "test": _test, "forget": _forget}[args.verb](daemon, args)


def _list(as_json: bool, history: int, most: int | None) -> int:
    found = _found(history)
    if as_json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
        return OK
    standing = [one for one in found["alerts"] if one["state"] != "resolved"]
    rows = [
        (one["level"], _state(one), _clock(one["since"]), one["pool"], one["rule"], one["detail"] or one["message"])
        for one in standing
    ]
    colours = [_COLOURS.get(one["level"]) if one["state"] == "active" else None for one in standing]
    print(table(HEAD, rows, colours) if rows else "no alerts")
    resolved = [one for one in found["alerts"] if one["state"] == "resolved"]
    resolved.sort(key=lambda one: one["resolved_at"] or 0.0, reverse=True)
    for one in resolved[:most]:
        print(f"resolved {_clock(one['resolved_at'])}: {one['pool']}:{one['rule']}  {one['message']}".rstrip())
    if most is not None and len(resolved) > most:
        print(f"… and {len(resolved) - most} more (--all)")
    for silence in found["silences"]:
        print(f"silent until {_clock(silence['until'])}: {silence['rule']} in {silence['pool']} (by {silence['by']})")
    for channel in found["channels"]:
        if not channel["configured"]:
            say(
                f"channel {channel['name']} of pool {channel['pool']} is not configured any more: {channel['untold']} "
                "notices for it wait in vain"
            )
        elif channel["error"]:
            say(f"channel {channel['name']} of pool {channel['pool']} does not work: {channel['error']}")
    for line in found["history"]:
        by = f" by {line['by']}" if line["by"] else ""
        print(f"{_clock(line['at'])}  {line['what']:<12}  {line['pool']}:{line['rule']}{by}  {line['detail']}".rstrip())
    return OK


def _found(history: int) -> dict[str, Any]:
    try:
        with http.find() as daemon:
            return daemon.get(f"/api/v1/alerts?history={history}")
    except http.DaemonDown as down:
        if down.code != NO_DAEMON:
            raise
        found = _from_store(history)
        if found is None:
            raise
        say(f"{down.what}; this is what the store has")
        return found


def _from_store(history: int) -> dict[str, Any] | None:
    """What the store has, None if none can be found or read."""
    import msgspec

    from gpulockd.client.finding import find_store
    from gpulockd.errors import GpuLockError
    from gpulockd.ledger.alerts import alert_read
    from gpulockd.ledger.store import BlockingStore
    from gpulockd.web.alert_views import alerts_view

    try:
        where = find_store()
        store = BlockingStore(where.url, deadline_s=READ_DEADLINE_S)
        try:
            stored = store.ask(alert_read(history=history))
        finally:
            store.close()
    except GpuLockError:
        return None
    found: dict[str, Any] = msgspec.to_builtins(alerts_view(where.pool or "", stored))
    return found


def _ack(daemon: http.Daemon, args: argparse.Namespace) -> int:
    said = daemon.ask("POST", f"/api/v1/alerts/{http.segment(args.id)}/ack", {"note": args.note})
    if args.json:
        print(json.dumps(said, indent=2, ensure_ascii=False))
    else:
        print(f"{said['id']} is taken on by {said['acknowledged_by']} since {_clock(said['acknowledged_at'])}")
    return OK


def _silence(daemon: http.Daemon, args: argparse.Namespace) -> int:
    body = {"for": args.for_, "note": args.note}
    said = daemon.ask("POST", f"/api/v1/alerts/{http.segment(args.id)}/silence", body)
    if args.json:
        print(json.dumps(said, indent=2, ensure_ascii=False))
    else:
        where = "every pool" if said["pool"] == "*" else f"pool {said['pool']}"
        over = time.time() >= said["until"]
        until = "is over" if over else f"until {_clock(said['until'])}"
        print(f"{said['rule']} in {where}: {'its silence ' if over else 'silent '}{until}")
    return OK


def _test(daemon: http.Daemon, args: argparse.Namespace) -> int:
    said = daemon.ask("POST", "/api/v1/alerts/test", {"channel": args.channel})["channels"]
    if args.json:
        print(json.dumps(said, indent=2, ensure_ascii=False))
    else:
        for channel in said:
            print(f"{'FAIL' if channel['error'] else 'ok':<4}  {channel['name']}  {channel['error']}".rstrip())
    return NEGATIVE if any(channel["error"] for channel in said) or not said else OK


def _forget(daemon: http.Daemon, args: argparse.Namespace) -> int:
    said = daemon.ask("DELETE", f"/api/v1/alerts/daemons/{http.segment(args.pool)}")
    print(json.dumps(said, indent=2) if args.json else f"the daemon of pool {said['pool']} is not missed any more")
    return OK


def _down(args: argparse.Namespace) -> int:
    """Tell over the channels of the configuration, with neither daemon nor store."""
    try:
        from gpulockd.daemon.telling_of_down import tell
        from gpulockd.errors import ConfigError
    except ImportError as missing:
        cure = "pip install 'gpulockd[server]'"
        raise CommandError(f"alerts down needs the package {missing.name!r}", cure, USAGE) from None
    try:
        told = tell(args.config, args.unit)
    except ConfigError as wrong:
        raise CommandError(wrong.message, "correct what it names, or name another file by --config", USAGE) from None
    if args.json:
        print(json.dumps(told, indent=2))
    else:
        for name, trouble in told.items():
            print(f"{'FAIL' if trouble else 'ok':<4}  {name}  {trouble}".rstrip())
    return OK if any(not trouble for trouble in told.values()) else NEGATIVE


def _state(alert: dict[str, Any]) -> str:
    words = [str(alert["state"])]
    words += ["escalated"] if alert["escalated"] else []
    words += ["silenced"] if alert["silenced"] else []
    words += [f"taken by {alert['acknowledged_by']}"] if alert["acknowledged_by"] else []
    return ", ".join(words)


def _clock(at_s: float | None) -> str:
    return "" if at_s is None else time.strftime("%m-%d %H:%M:%S", time.localtime(at_s))
