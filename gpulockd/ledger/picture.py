"""The reply of `snapshot.lua`, read into the model's `Snapshot`."""

from __future__ import annotations

from typing import Any

import msgspec

from gpulockd.model import Gpu, GpuRecord, Job, Process, Snapshot, TicketRecord

Flat = dict[str, str]


def _flat(raw: list[bytes]) -> Flat:
    words = [part.decode("utf-8", "replace") if isinstance(part, bytes) else str(part) for part in raw]
    return dict(zip(words[::2], words[1::2], strict=True))


def _keys(joined: str | None) -> tuple[str, ...]:
    return tuple(joined.split(",")) if joined else ()


_gpus_read: dict[bytes, Gpu] = {}


def gpu_of(told: bytes) -> Gpu:
    """A gpu as `_gpus.lua` tells it; it never changes while it is told in these words, so each is built once."""
    found = _gpus_read.get(told)
    if found is None:
        if len(_gpus_read) > 4096:
            _gpus_read.clear()
        key, *facts = told.decode("utf-8", "replace").split(" ", 4)
        found = Gpu(key=key)
        if facts:
            index, uuid, memory_mib, name = facts
            found = Gpu(key=key, index=int(index), uuid=uuid or None, memory_mib=int(memory_mib), name=name or None)
        _gpus_read[told] = found
    return found


CORE = (
    "state",
    "session",
    "wants",
    "stamp",
    "score",
    "priority",
    "lock_timeout_ms",
    "token",
    "granted_ms",
    "gpus",
    "of",
)
"""The words that `_tickets.lua` packs into a ticket's `core`; task and task id follow, a line each, as JSON texts."""


def core_of(packed: str) -> Flat:
    """The fields of a ticket's `core`; what it has not is not there."""
    words, task, task_id = packed.split("\n")
    fields = dict(zip(CORE, words.split(" "), strict=True))
    absent = {"granted_ms": "0", "gpus": "-", "of": "-"}
    fields = {name: word for name, word in fields.items() if absent.get(name) != word}
    return fields | {"task": msgspec.json.decode(task, type=str), "task_id": task_id and msgspec.json.decode(task_id)}


def _gpu_record(row: list[bytes]) -> GpuRecord:
    state, exclusive, shared, used_mib, offered = (part.decode() for part in row[1:])
    return GpuRecord(
        gpu=gpu_of(row[0]),
        state=state,  # type: ignore[arg-type] # Lua writes only these words
        offered=offered == "1",
        exclusive=exclusive or None,
        shared=int(shared),
        used_mib=int(used_mib),
    )


def _age(now_ms: int, fields: Flat, name: str) -> int | None:
    return max(0, now_ms - int(float(fields[name]))) if fields.get(name) else None


def _seen_age(now_ms: int, fields: Flat) -> int | None:
    """Whatever renews a lease puts its own end at one lock timeout from then."""
    if fields.get("state") != "held" or not fields.get("due_ms") or not fields.get("lock_timeout_ms"):
        return None
    return max(0, now_ms - int(float(fields["due_ms"])) + int(float(fields["lock_timeout_ms"])))


def _ends_in(now_ms: int, fields: Flat) -> int | None:
    due_ms = fields.get("due_ms")
    return max(0, int(float(due_ms)) - now_ms) if due_ms and fields.get("state") == "held" else None


def _ticket_record(row: list[Any], now_ms: int, place: int | None) -> TicketRecord:
    fields, id, process = _flat(row[0]), row[1].decode(), row[2]
    fields |= core_of(fields["core"]) if "core" in fields else {}
    waited_until = int(float(fields["granted_ms"])) if fields.get("granted_ms") else now_ms
    percent = fields.get("percent")
    return TicketRecord(
        id=id,
        state=fields.get("state", "waiting"),  # type: ignore[arg-type] # Lua writes only these words
        session=fields.get("session", ""),
        wants=fields.get("wants", ""),
        priority=int(fields.get("priority", 0)),
        job=msgspec.json.decode(fields["job"], type=Job) if fields.get("job") else Job(task=""),
        process=msgspec.json.decode(process, type=Process) if process else None,
        waited_ms=max(0, waited_until - int(float(fields.get("stamp", waited_until)))),
        gpus=_keys(fields.get("gpus")),
        token=int(fields.get("token") or 0),
        held_ms=_age(now_ms, fields, "granted_ms") or 0,
        percent=float(percent) if percent else None,
        note=fields.get("note") or None,
        heartbeat_age_ms=_age(now_ms, fields, "beat_ms"),
        level=fields.get("level", ""),  # type: ignore[arg-type] # Lua writes only these words
        asked_to_stop=fields.get("asked") == "1",
        seen_age_ms=_seen_age(now_ms, fields),
        missed_age_ms=_age(now_ms, fields, "missed_ms"),
        ends_in_ms=_ends_in(now_ms, fields),
        of=fields.get("of"),
        place=place,
        chosen=_keys(fields.get("chosen")),
    )


def snapshot_of(pool: str, now_ms: int, parts: list[Any], first: int) -> Snapshot:
    """Read meta, gpus, leases, queue from place `first`, queued, sessions, next due, counters: parts in their order."""
    meta = _flat(parts[0])
    frozen_until = float(meta.get("frozen_until") or 0)
    return Snapshot(
        pool=pool,
        epoch=meta.get("epoch", ""),
        at_ms=int(float(meta.get("last_ms", 0))),
        token=int(float(meta.get("token", 0))),
        offered=meta.get("offered") == "1",
        guarded=meta.get("guarded") == "1",
        boot_id=meta.get("boot_id", ""),
        host=parts[8].decode(),
        frozen_ms=max(0, int(frozen_until) - now_ms) if frozen_until else 0,
        frozen_why=meta.get("frozen_why", ""),
        gpus=tuple(_gpu_record(row) for row in parts[1]),
        leases=tuple(_ticket_record(row, now_ms, None) for row in parts[2]),
        queue=tuple(_ticket_record(row, now_ms, place) for place, row in enumerate(parts[3], first + 1)),
        queued=int(parts[4]),
        sessions=int(parts[5]),
        next_due_ms=max(0, int(parts[6]) - now_ms) if parts[6] else None,
        counters={name: int(value) for name, value in _flat(parts[7]).items()},
    )
