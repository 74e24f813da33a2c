"""`gpulockd events`: what happened, and with `-f` what happens."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence

from gpulockd.cli import http
from gpulockd.cli.options import Parser, duration
from gpulockd.cli.records import Record, name_of, seconds
from gpulockd.cli.talk import NO_DAEMON, OK, fitted, paint, say
from gpulockd.units import clean

FOLLOW_SILENCE_S = 60.0
RETRY_S = 1.0

_COLOURS = {"lock_acquired": "green", "lock_expired": "red", "lock_revoked": "red", "session_lost": "red"}


def main(words: Sequence[str]) -> int:
    """Print events, oldest first; with `-f` go on until Ctrl-C."""
    parser = Parser("events", "What happened, oldest first.")
    parser.add_argument("-f", "--follow", action="store_true", help="go on with what happens; Ctrl-C ends it")
    parser.add_argument("--since", type=duration, metavar="10m", help="from so long ago; default 10m, with -f: now")
    parser.add_argument("--json", action="store_true", help="print each event as a line of JSON")
    args = parser.parse_args(words)
    since_s = args.since if args.since is not None else (0.0 if args.follow else 600.0)
    daemon = http.find()
    for text in _follow(daemon, since_s) if args.follow else _past(daemon, since_s):
        print(text.decode() if args.json else _told(json.loads(text)), flush=args.follow)
    return OK


def _past(daemon: http.Daemon, since_s: float) -> Iterator[bytes]:
    with daemon.stream("GET", _path(since_s) + "&follow=0", silence_s=http.ANSWER_DEADLINE_S) as stream:
        try:
            for _, event in _events(stream):
                yield event
        except OSError as cut:
            raise http.DaemonDown(daemon.path, f"its answer broke off: {cut}") from cut


def _follow(daemon: http.Daemon, since_s: float) -> Iterator[bytes]:
    """Events without a gap over lost connections: each new one begins after the last event seen."""
    last, lost_at = "", time.time() - since_s
    while True:
        path = "/api/v1/events" if last else _path(max(0.0, time.time() - lost_at))
        try:
            with daemon.stream("GET", path, None, {"Last-Event-ID": last} if last else {}, FOLLOW_SILENCE_S) as stream:
                for id, event in _events(stream):
                    last = id
                    yield event
        except http.DaemonDown as down:
            if down.code != NO_DAEMON:
                raise
        except TimeoutError:
            continue
        except OSError:
            pass
        say("the stream of events broke off; waiting for the daemon")
        _wait_for(daemon)


def _wait_for(daemon: http.Daemon) -> None:
    while True:
        time.sleep(RETRY_S)
        try:
            with http.Daemon(daemon.path) as again:
                again.get("/livez")
            return
        except (http.DaemonDown, http.Refused):
            continue


def _events(stream: http.Stream) -> Iterator[tuple[str, bytes]]:
    """The (id, JSON) of each event of a stream of server-sent events."""
    id, data = "", b""
    for line in stream.lines():
        if line.startswith(b"id:"):
            id = line[3:].strip().decode()
        elif line.startswith(b"data:"):
            data += line[5:].strip()
        elif not line and data:
            yield id, data
            data = b""


def _path(since_s: float) -> str:
    return f"/api/v1/events?since={since_s:.3f}"


def _told(event: Record) -> str:
    kind = str(event.get("type", "event"))
    at = time.strftime("%H:%M:%S", time.localtime(event.get("at_ms", 0) / 1000))
    facts = [f"GPU {', '.join(name_of(key) for key in event['gpus'])}"] if event.get("gpus") else []
    facts += [clean(str(event[name])) for name in ("task", "reason") if event.get(name)]
    facts += [f"waited {seconds(event['waited_ms'] / 1000)}"] if event.get("waited_ms") is not None else []
    facts += [f"held {seconds(event['held_ms'] / 1000)}"] if event.get("held_ms") is not None else []
    if event.get("token"):
        facts.append(f"token {event['token']}")
    line = fitted(f"{at}  {kind.ljust(18)}  {'  '.join(facts)}".rstrip(), clean(str(event.get("task") or "")))
    return line.replace(kind, paint(kind, _COLOURS[kind]), 1) if kind in _COLOURS else line
