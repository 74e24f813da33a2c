"""`gpulockd queue`: who waits, and for what."""

from __future__ import annotations

import json
from collections.abc import Sequence

from gpulockd.cli import http
from gpulockd.cli.options import Parser
from gpulockd.cli.records import name_of, process_of, seconds, starts, task_of, wants_of
from gpulockd.cli.talk import OK, fitted, table
from gpulockd.units import clean

HEAD = ("PLACE", "TASK", "PROCESS", "WANTS", "PRIO", "WAITED", "STARTS")
NAMED = 3
"""Of how many the reason is said: those behind them wait for the same."""


def main(words: Sequence[str]) -> int:
    """Print the queue, the next one first; above it, in short, who holds."""
    parser = Parser("queue", "Who waits, for what and since when; the next one first.")
    parser.json_flag()
    args = parser.parse_args(words)
    with http.find() as daemon:
        line, leases = daemon.get("/api/v1/queue"), daemon.get("/api/v1/leases")["leases"]
    if args.json:
        print(json.dumps({"queue": line["queue"], "queued": line["queued"]}, indent=2))
        return OK
    holders = [lease for lease in leases if not lease.get("of")]
    rows = [
        (
            str(ticket.get("place") or ""),
            task_of(ticket),
            process_of(ticket),
            wants_of(ticket),
            str(ticket.get("priority", 0)),
            seconds(ticket.get("waited_s")),
            starts(ticket),
        )
        for ticket in line["queue"]
    ]
    # People take an empty queue for an idle machine, so who runs stands beside who waits.
    for lease in holders:
        gpus = ", ".join(name_of(key) for key in lease["gpus"])
        task = task_of(lease)
        print(fitted(f"GPU {gpus} held by {task} for {seconds(lease.get('held_s'))}", task))
    print(table(HEAD, rows, shrink=("TASK", "WANTS")) if rows else "nobody waits")
    for ticket in line["queue"][:NAMED]:
        if ticket.get("why"):
            print(f"{ticket['place']} waits: {clean(ticket['why'])}")
    if line["queued"] > len(rows):
        print(f"and {line['queued'] - len(rows)} more")
    return OK
