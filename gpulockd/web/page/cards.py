"""The cards: who has each gpu, since when, how far, until when, and what the hardware says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec

from gpulockd.ledger.forecast import FEWEST_HOLDS, NO_ENDS, Ends, Expected, Holds, expected_end
from gpulockd.model import GpuRecord, Job, Snapshot, TicketRecord, Wants
from gpulockd.web.overseeing import CardReading
from gpulockd.web.page import sparks
from gpulockd.web.page.words import GLYPHS, age, clock, gpu_names, job_name, percent, short

Limits = Callable[[Job], tuple[float, float, float]]
Readings = Mapping[str, Sequence[CardReading]]

SHOWN_READINGS = 60
"""How many of the last readings are drawn; one comes every five seconds."""

ROOM = 12.0
"""How far apart two limits must be for both to be named (in percent of the bar)."""

HOT_C = 100.0
WATTS = 700.0

_STATES = {
    "settling": ("warn", "settling", "what its last run left is being cleared away"),
    "quarantined": ("bad", "quarantined", "something stays on it; it is not given out"),
    "drained": ("warn", "drained", "taken out by an operator"),
    "lost": ("bad", "lost", "the card has failed"),
}


class Mark(msgspec.Struct, frozen=True):
    """Where a limit stands on the bar of ages (in percent), and what it is; `named`: there is room for its name."""

    name: str
    at: float
    text: str
    named: bool


class Tile(msgspec.Struct, frozen=True):
    """One thing that the hardware tells: now, and the lines of the last minutes."""

    name: str
    now: str
    lines: tuple[str, ...]
    range: str


class Holder(msgspec.Struct, frozen=True, kw_only=True):
    """Who holds a gpu. `left_s`: until the next limit."""

    id: str
    name: str
    who: str
    token: int
    held_s: float
    mood: str
    limit: str
    left_s: float | None
    heartbeat: str
    heartbeat_s: float | None
    percent: float | None
    note: str
    ends: str
    bar: float
    marks: tuple[Mark, ...]
    memory: str
    others: str


class Card(msgspec.Struct, frozen=True, kw_only=True):
    """One gpu."""

    key: str
    dom: str
    name: str
    model: str
    mood: str
    glyph: str
    state: str
    why: str
    steering: str
    holders: tuple[Holder, ...]
    tiles: tuple[Tile, ...]
    queued: int


class Times(msgspec.Struct, frozen=True, kw_only=True):
    """What tells when a hold ends: the task's recent holds (ms), its limits, and the ends that are set, by lease (ms).

    `now_ms` is the wall clock, for moments.
    """

    holds: Holds
    limits: Limits
    now_ms: int
    ends_ms: Ends = NO_ENDS


def cards(snapshot: Snapshot, readings: Readings, times: Times) -> tuple[Card, ...]:
    """Return the cards of a snapshot."""
    return tuple(_card(n, record, snapshot, readings, times) for n, record in enumerate(snapshot.gpus))


def _card(n: int, record: GpuRecord, snapshot: Snapshot, readings: Readings, times: Times) -> Card:
    gpu = record.gpu
    holders = tuple(
        _holder(lease, record, times)
        for lease in sorted(snapshot.leases, key=lambda one: one.token)
        if gpu.key in lease.gpus and lease.state != "member"
    )
    mood, state, why = _state(record, holders)
    return Card(
        key=gpu.key,
        dom=f"gpu-{n}",
        name=str(gpu),
        model=gpu.name or "no hardware",
        mood=mood,
        glyph=GLYPHS[mood],
        state=state,
        why=why,
        steering=_steering(record),
        holders=holders,
        tiles=_tiles(readings.get(gpu.uuid or "", ())),
        queued=sum(_wants(ticket, gpu.key) for ticket in snapshot.queue),
    )


def _state(record: GpuRecord, holders: tuple[Holder, ...]) -> tuple[str, str, str]:
    """Return mood, word and reason; the worst wins."""
    if record.state != "ready":
        mood, word, why = _STATES[record.state]
        return mood, f"{word}, still held" if holders else word, why
    if not holders:
        return "idle", "free", ""
    worst = max(holders, key=lambda holder: ("good", "warn", "bad").index(holder.mood))
    return worst.mood, "held" if len(holders) == 1 else f"shared by {len(holders)}", ""


def _steering(record: GpuRecord) -> str:
    """What an operator can do with the gpu: drain, resume, or nothing."""
    if not record.offered:
        return ""
    return "drain" if record.state == "ready" else "" if record.state == "settling" else "resume"


def _wants(ticket: TicketRecord, key: str) -> bool:
    keys = Wants.parse(ticket.wants).keys
    return not keys or key in keys


def _holder(lease: TicketRecord, record: GpuRecord, times: Times) -> Holder:
    held_s, limits_s = lease.held_ms / 1000, times.limits(lease.job)
    mood, limit, left_s = _limit(held_s, limits_s)
    wants = Wants.parse(lease.wants)
    missed = lease.missed_age_ms is not None
    others = tuple(key for key in lease.gpus if key != record.gpu.key)
    return Holder(
        id=lease.id,
        name=job_name(lease.job, lease.token),
        who=who(lease),
        token=lease.token,
        held_s=held_s,
        mood="bad" if missed and mood == "warn" else "warn" if missed and mood == "good" else mood,
        limit=limit,
        left_s=left_s,
        heartbeat="silent for too long" if missed else "heartbeat",
        heartbeat_s=None if lease.heartbeat_age_ms is None else lease.heartbeat_age_ms / 1000,
        percent=lease.percent,
        note=lease.note or "",
        ends=_ends(lease, times),
        bar=sparks.share(held_s, limits_s[2]),
        marks=_marks(limits_s),
        memory="" if wants.exclusive or not wants.memory_mib else f"{wants.memory_mib / 1024:g} GiB of it",
        others=f"with {gpu_names(others)}" if others else "",
    )


def who(ticket: TicketRecord) -> str:
    """Return which process it is: "celery@ws1 pid 48121 · user asr"."""
    process = ticket.process
    if process is None:
        return ""
    program = process.program.split(" ")[0].rsplit("/", 1)[-1]
    place = f"{program}@{process.host}" if program else process.host
    return " · ".join(
        part
        for part in (
            f"{place} pid {process.pid}" if process.pid else place,
            f"user {process.user}" if process.user else "",
        )
        if part
    )


def _limit(held_s: float, limits_s: tuple[float, float, float]) -> tuple[str, str, float | None]:
    """Return mood, what comes next, and in how many seconds."""
    warning_s, soft_s, hard_s = limits_s
    if held_s >= hard_s:
        return "bad", f"past its hard limit ({short(hard_s)}): being ended", None
    if held_s >= soft_s:
        return "bad", f"past its soft limit ({short(soft_s)}), hard stop in", hard_s - held_s
    if held_s >= warning_s:
        return "warn", f"past its warning ({short(warning_s)}), soft stop in", soft_s - held_s
    return "good", "warning in", warning_s - held_s


def _marks(limits_s: tuple[float, float, float]) -> tuple[Mark, ...]:
    warning_s, soft_s, hard_s = limits_s
    warning, soft = sparks.share(warning_s, hard_s), sparks.share(soft_s, hard_s)
    return (
        Mark("warn", warning, short(warning_s), soft - warning > ROOM and warning > ROOM / 2),
        Mark("soft", soft, short(soft_s), 100 - soft > ROOM),
        Mark("hard", 100.0, short(hard_s), True),
    )


def _ends(lease: TicketRecord, times: Times) -> str:
    """Say when it ends, or what it takes to know."""
    set_ms = times.ends_ms.get(lease.id)
    if set_ms is not None:
        return f"its time ends {clock(times.now_ms + set_ms, seconds=set_ms < 600_000)}"
    holds = times.holds.get(lease.job.task, ())
    expected = expected_end(holds, lease.held_ms)
    if expected is not None:
        return _about(expected, times.now_ms)
    if len(holds) >= FEWEST_HOLDS:
        return "end not known: it lasts longer than any before"
    return f"end not known before {FEWEST_HOLDS} finished holds of this task ({len(holds)} so far)"


def _about(expected: Expected, now_ms: int) -> str:
    spread_s = max(1.0, (expected.late_s - expected.early_s) / 2)
    precise = expected.middle_s < 120
    return f"ends ≈ {clock(now_ms + expected.middle_s * 1000, seconds=precise)} ± {short(round(spread_s))}"


def _tiles(readings: Sequence[CardReading]) -> tuple[Tile, ...]:
    """Return memory, utilisation, temperature and power; none if the card has said nothing yet."""
    if not readings:
        return ()
    shown = list(readings)[-SHOWN_READINGS:]
    last = shown[-1]
    total = last.total_mib or 0
    memory = None if last.used_mib is None or not total else last.used_mib / total
    power = [reading.power_w for reading in shown]
    watts = max([WATTS, *(value for value in power if value is not None)])
    span = age((last.at_ms - shown[0].at_ms) / 1000)
    return (
        Tile(
            "memory", percent(memory), sparks.line([reading.used_mib for reading in shown], total), f"{span}, 0–100 %"
        ),
        Tile(
            "utilisation",
            percent(last.utilization),
            sparks.line([reading.utilization for reading in shown], 1.0),
            f"{span}, 0–100 %",
        ),
        Tile(
            "temperature",
            "–" if last.temperature_c is None else f"{last.temperature_c:.0f} °C",
            sparks.line([reading.temperature_c for reading in shown], HOT_C),
            f"{span}, 0–100 °C",
        ),
        Tile(
            "power",
            "–" if last.power_w is None else f"{last.power_w:.0f} W",
            sparks.line(power, watts),
            f"{span}, 0–{watts:.0f} W",
        ),
    )
