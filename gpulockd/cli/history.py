"""`gpulockd history`: who held which GPU, who waited for one, and how it ended."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from urllib.parse import urlencode

from gpulockd.cli import http
from gpulockd.cli.options import Parser, duration, whole
from gpulockd.cli.records import Record, is_meant, name_of, no_such_gpu, seconds, task_of
from gpulockd.cli.talk import OK, say, table

HEAD = ("BEGAN", "TASK", "GPU", "WAITED", "HELD", "ENDED")
DEFAULT_S = 3600.0
MOST_ROWS = 2000
DAY_S = 86_400
SLACK_S = 1.0

HOW = {"timed_out": "waited too long", "failed": "wait failed", "withdrawn": "left the queue"}


def main(words: Sequence[str]) -> int:
    """Print the holds, and the waits that led to none, the latest first."""
    parser = Parser("history", "Who held which GPU, who waited for one, and how it ended; the latest first.")
    parser.add_argument("--task", metavar="NAME", help="only this task, or task id")
    parser.add_argument("--gpu", metavar="GPU", help="only this GPU: its index or key")
    parser.add_argument("--since", type=duration, default=DEFAULT_S, metavar="10m", help="how far back; default 1h")
    parser.add_argument(
        "--limit", type=whole(1, MOST_ROWS), default=50, metavar="N", help="how many of each at most; default 50"
    )
    parser.json_flag()
    args = parser.parse_args(words)
    asked = {"since": f"{args.since:.3f}", "length": args.limit, "task": args.task, "gpu": args.gpu}
    query = urlencode({name: value for name, value in asked.items() if value is not None})
    with http.find() as daemon:
        past = daemon.get(f"/api/v1/history?{query}")
        if args.gpu is not None and not past["holds"] and not past["waits"]:
            gpus = daemon.get("/api/v1/gpus")["gpus"]
            if not any(is_meant(record, args.gpu) for record in gpus):
                raise no_such_gpu(args.gpu)
    if args.json:
        print(json.dumps(past, indent=2))
        return OK
    rows = rows_of(past)[: args.limit]
    print(
        table(HEAD, [row for _, row in rows], shrink=("TASK", "ENDED"))
        if rows
        else "nobody held or waited in that time"
    )
    if past["more"] or len(rows) == args.limit:
        say("there may be more: --limit shows it")
    if past["from"] > past["to"] - args.since + SLACK_S:
        say(f"the events reach back to {moment(past['from'], past['to'])} only")
    return OK


def rows_of(past: Record) -> list[tuple[float, tuple[str, ...]]]:
    """Each hold, and each wait that ended without one, with the moment that sorts it; the latest first."""
    rows = [(hold["began"], _hold(hold, past["to"])) for hold in past["holds"]]
    # Who waited and got its GPUs stands there as a hold, with how long it waited.
    rows += [(wait["began"], _wait(wait, past["to"])) for wait in past["waits"] if wait["outcome"] != "acquired"]
    return sorted(rows, key=lambda row: -row[0])


def _hold(hold: Record, now_s: float) -> tuple[str, ...]:
    ended = "holds it now" if hold["ended"] is None else str(hold["how"])
    if hold["how"] not in (None, "released") and hold["reason"]:
        ended = f"{ended}: {str(hold['reason']).replace('_', ' ')}"
    held = seconds(hold["held_s"])
    return (moment(hold["began"], now_s), *_who(hold), seconds(hold["waited_s"] or 0.0), held, ended)


def _wait(wait: Record, now_s: float) -> tuple[str, ...]:
    return (moment(wait["began"], now_s), *_who(wait), seconds(wait["waited_s"]), "", HOW[wait["outcome"]])


def _who(record: Record) -> tuple[str, str]:
    return task_of(record), ", ".join(name_of(key) for key in record["gpus"])


def moment(at_s: float, now_s: float) -> str:
    """A moment (unix seconds): the time of day, with its date if that was more than a day ago."""
    form = "%H:%M:%S" if now_s - at_s < DAY_S else "%m-%d %H:%M"
    return time.strftime(form, time.localtime(at_s))
