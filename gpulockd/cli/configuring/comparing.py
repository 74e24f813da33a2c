"""`gpulockd config impact`: how it went before and after a change."""

from __future__ import annotations

from collections.abc import Sequence

from gpulockd.cli import http
from gpulockd.cli.configuring.telling import Record, ask_slowly, printed, value_text, when
from gpulockd.cli.options import Parser
from gpulockd.cli.talk import OK, table

PATH = "/api/v1/monitoring/gpu-lock/config-impact"
HEAD = ("", "BEFORE", "AFTER")
MOMENTS = ("since", "until")
NOT_SHOWN = ("exact", "missed", "gpu_lock", "advice", "enough_samples", "least_samples")


def impact(words: Sequence[str]) -> int:
    """Print both sides, and the advice that follows from them."""
    parser = Parser("config impact", "How it went before the last change, or revision N, and after it.")
    parser.add_argument("revision", nargs="?", type=int, metavar="N", help="default: the newest one")
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
    print(f"changed at {said['config_change_time']}")
    names = [name for name in dict.fromkeys([*before, *after]) if name not in NOT_SHOWN]
    rows = [(name, _text(name, before.get(name)), _text(name, after.get(name))) for name in names]
    print(table(HEAD, [row for row in rows if row[1] or row[2]]))
    summary = said.get("impact_summary") or {}
    for name, value in summary.items():
        if name not in NOT_SHOWN and value not in (None, ""):
            print(f"{name}: {_text(name, value)}")
    for line in summary.get("advice") or []:
        if line != summary.get("recommendation"):
            print(f"advice: {line}")


def _text(name: str, value: object) -> str:
    if value is None or isinstance(value, dict):
        return ""
    if name in MOMENTS and isinstance(value, int | float):
        return when(value * 1000)
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else value_text(value)
