"""`gpulockd status`: who has which GPU."""

from __future__ import annotations

import json
from collections.abc import Sequence

from gpulockd.cli import http
from gpulockd.cli.options import Parser
from gpulockd.cli.records import (
    Record,
    gib,
    is_meant,
    name_of,
    no_such_gpu,
    process_of,
    progress_of,
    seconds,
    task_of,
)
from gpulockd.cli.talk import OK, table

HEAD = ("GPU", "MODEL", "STATE", "TASK", "PROCESS", "HELD", "MEMORY", "PROGRESS")


def main(words: Sequence[str]) -> int:
    """Print the GPUs, their holders and how many wait."""
    parser = Parser("status", "Who has which GPU, since when, and how many wait.")
    parser.add_argument("gpu", nargs="?", metavar="GPU", help="only this one: its index, key or UUID")
    parser.json_flag()
    args = parser.parse_args(words)
    with http.find() as daemon:
        gpus, leases = daemon.get("/api/v1/gpus")["gpus"], daemon.get("/api/v1/leases")["leases"]
        line = daemon.get("/api/v1/queue")
    if args.gpu is not None:
        gpus = [record for record in gpus if is_meant(record, args.gpu)]
        if not gpus:
            raise no_such_gpu(args.gpu)
        leases = [lease for lease in leases if any(record["key"] in lease["gpus"] for record in gpus)]
    if args.json:
        print(json.dumps({"gpus": gpus, "leases": leases, "queue": line["queue"], "queued": line["queued"]}, indent=2))
    else:
        _print(gpus, leases, line)
    return OK


def _print(gpus: list[Record], leases: list[Record], line: Record) -> None:
    rows: list[tuple[str, ...]] = []
    colours: list[str | None] = []
    for record in gpus:
        holders = [lease for lease in leases if record["key"] in lease["gpus"] and not lease.get("of")]
        for i, lease in enumerate(holders or [None]):
            rows.append(_row(record, lease, is_first=i == 0))
            colours.append(_colour(record, lease))
    print(
        table(HEAD, rows, colours, shrink=("TASK", "PROGRESS", "MODEL"))
        if rows
        else "no GPU is offered here, and no lock is held"
    )
    oldest = f", oldest {seconds(line['queue'][0]['waited_s'])} ({task_of(line['queue'][0])})" if line["queue"] else ""
    print(f"queue: {line['queued']} waiting{oldest}")


def _row(record: Record, lease: Record | None, *, is_first: bool) -> tuple[str, ...]:
    total, used = gib(record.get("memory_mib")), gib(record.get("used_mib"))
    memory = f"{used} of {total}" if _is_shared(record) and total else total
    card = (name_of(record["key"]), record.get("name") or "", _state(record, lease)) if is_first else ("", "", "")
    if lease is None:
        return (*card, "", "", "", memory, "")
    held = (task_of(lease), process_of(lease), seconds(lease.get("held_s")))
    return (*card, *held, memory if is_first else "", progress_of(lease))


def _is_shared(record: Record) -> bool:
    return 0 < (record.get("used_mib") or 0) < (record.get("memory_mib") or 0)


def _state(record: Record, lease: Record | None) -> str:
    if record.get("state") != "ready":
        return str(record.get("state"))
    if lease is None:
        return "free"
    return "shared" if _is_shared(record) else "held"


def _colour(record: Record, lease: Record | None) -> str | None:
    if record.get("state") != "ready":
        return "red"
    return "green" if lease is None else "yellow"
