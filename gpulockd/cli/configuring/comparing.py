"""`gpulockd config impact`: how it went before and after a change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gpulockd.cli import http
from gpulockd.cli.configuring.telling import Record, ask_slowly, change_lines, printed, when
from gpulockd.cli.options import Parser, revision
from gpulockd.cli.talk import OK, table

PATH = "/api/v1/monitoring/gpu-lock/config-impact"
HEAD = ("", "BEFORE", "AFTER", "CHANGE")
LONGEST_VALUE = 60
MOMENTS = ("since", "until")
SHARES = ("success_rate", "timeout_rate", "failure_rate", "redis_cpu", "redis_cpu_most", "busy_share")
WAITS = ("poll_interval", "avg_wait_time", "wait_p50", "wait_p95")
ROWS = (
    ("from", "since", ""),
    ("to", "until", ""),
    ("poll_interval", "poll_interval", ""),
    ("attempts", "attempts", ""),
    ("mean wait", "avg_wait_time", "wait_time_improvement"),
    ("half waited less than", "wait_p50", ""),
    ("95% waited less than", "wait_p95", "wait_p95_change"),
    ("got the lock", "success_rate", "success_rate_change"),
    ("timed out", "timeout_rate", "timeout_rate_change"),
    ("failed or timed out", "failure_rate", ""),
    ("holds", "holds", ""),
    ("holds an hour", "holds_per_hour", "holds_per_hour_change"),
    ("GPUs were held", "busy_share", "busy_share_change"),
    ("Redis, of a core", "redis_cpu", "redis_cpu_change"),
    ("Redis at most", "redis_cpu_most", ""),
    ("events lost", "missed", ""),
)
"""What is shown: its name, the field of both sides, and the one that says how it has changed."""


def impact(words: Sequence[str]) -> int:
    """Print both sides, and the advice that follows from them."""
    parser = Parser("config impact", "How it went before the last change, or revision N, and after it.")
    parser.add_argument("revision", nargs="?", type=revision, metavar="N", help="default: the newest one")
    parser.json_flag()
    args = parser.parse_args(words)
    query = "" if args.revision is None else f"?revision={args.revision}"
    with http.find() as daemon:
        said = ask_slowly(daemon, "GET", PATH + query)
    if args.json:
        printed(said)
    elif not said.get("config_change_time"):
        print("the configuration has not been changed yet")
    else:
        _tell(said)
    return OK


def _tell(said: Record) -> None:
    before, after = said.get("before") or {}, said.get("after") or {}
    summary = said.get("impact_summary") or {}
    why = f" ({said['reason']})" if said.get("reason") else ""
    print(f"changed at {said['config_change_time']}: revision {said['revision']} by {said['author']}{why}")
    for line in change_lines(said.get("diff") or (), LONGEST_VALUE):
        print(f"  {line}")
    rows = [
        (title, _text(name, before.get(name)), _text(name, after.get(name)), str(summary.get(change) or ""))
        for title, name, change in ROWS
    ]
    print(table(HEAD, [row for row in rows if row[1] or row[2]]))
    if not summary.get("enough_samples", True):
        print("too few attempts to compare; the numbers are what there is")
    elif summary.get("timeouts_beyond_chance") is False:
        print("the timeouts differ by no more than chance")
    for line in summary.get("advice") or [summary.get("recommendation")]:
        if line:
            print(f"advice: {line}")


def _text(name: str, value: Any) -> str:
    if value is None:
        return ""
    if name in MOMENTS:
        return when(value * 1000)
    if name in SHARES:
        return f"{value:.1%}"
    return f"{value:.3g} s" if name in WAITS else f"{value:.4g}"
