"""`bench handoff --guarded`: what the guard adds to a hand-off.

The same lines drain in turn in a pool without a guard, in one whose guard is a real daemon, and through the floor; all
on one server. The programs count what they say to the guard.
"""

from __future__ import annotations

import msgspec

from bench.contenders import GUARDED, GUARDED_POOL
from bench.ground import Ground
from bench.handoff import FLOOR, OURS, SIZES, WORKERS, Crew, Found, Row, Size
from bench.host import Host
from bench.tables import Aim, show_aims, table

HERE = (OURS, GUARDED, FLOOR)
MOST_WAITERS = 100
MORE_US = 500.0
"""How much later than without a guard the next body may begin, at the median (in µs)."""


class Said(msgspec.Struct, frozen=True, kw_only=True):
    """What programs said to the guard a turn, and the daemon's CPU time (in µs); each place of a line is a turn."""

    waiters: int
    admits: float
    leaves: float
    others: float
    daemon_cpu_us: float


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """The tables, and what we promise ourselves of them."""

    rows: list[Row]
    said: list[Said]
    aims: list[Aim]


def measure(ground: Ground, *, quick: bool) -> Result:
    """Measure in alternating drains."""
    rows: list[Row] = []
    said: list[Said] = []
    with Host(url=ground.url, pool=GUARDED_POOL) as host, Crew(ground) as crew:
        for contender in HERE:
            crew.drain(contender, Size(2 * WORKERS, 0.005, 1, 1), Found(contender=contender, waiters=0))
        for size in SIZES:
            if size.waiters > MOST_WAITERS:
                continue
            all_found = [Found(contender=contender, waiters=size.waiters) for contender in HERE]
            cpu_ns = 0
            for _ in range(size.quick_drains if quick else size.drains):
                for found in all_found:
                    before_ns = host.cpu_ns()
                    crew.drain(found.contender, size, found)
                    cpu_ns += host.cpu_ns() - before_ns if found.contender == GUARDED else 0
            rows += [Row.of(found) for found in all_found]
            said.append(_said(all_found[HERE.index(GUARDED)], cpu_ns))
    return Result(rows=rows, said=said, aims=aims_of(rows, said))


def _said(found: Found, cpu_ns: int) -> Said:
    turns = found.drains * (found.waiters + 1)
    a_turn = {verb: count / turns for verb, count in found.messages.items()}
    return Said(
        waiters=found.waiters,
        admits=round(a_turn.pop("admit", 0.0), 3),
        leaves=round(a_turn.pop("leave", 0.0), 3),
        others=round(sum(a_turn.values()), 3),
        daemon_cpu_us=round(cpu_ns / 1000 / turns, 1),
    )


def aims_of(rows: list[Row], said: list[Said]) -> list[Aim]:
    """What we promise ourselves, as this run has it."""
    p50_us = {(row.contender, row.waiters): row.p50_us for row in rows}
    aims = [
        Aim(
            text=f"p50 µs, N={one.waiters:,}: guarded − unguarded",
            value=p50_us[GUARDED, one.waiters] - p50_us[OURS, one.waiters],
            limit=MORE_US,
        )
        for one in said
    ]
    aims.append(Aim(text="messages to the guard before a body", value=max(s.admits + s.others for s in said), limit=1))
    aims.append(Aim(text="messages to the guard after a body", value=max(s.leaves for s in said), limit=1))
    guarded = [row for row in rows if row.contender == GUARDED]
    aims.append(Aim(text="hand-offs out of order", value=sum(row.inversions for row in guarded), limit=0))
    aims.append(
        Aim(text="bodies that began before release was called", value=sum(row.overlaps for row in guarded), limit=0)
    )
    return aims


def show(result: Result) -> str:
    """The numbers as Markdown."""
    unguarded_us = {row.waiters: row.p50_us for row in result.rows if row.contender == OURS}
    said = {one.waiters: one for one in result.said}
    head = ("hand-off", "N", "p50 µs", "p99 µs", "− unguarded", "commands", "Redis µs", "admits", "leaves", "others",
            "daemon µs", "hand-offs", "runs")  # fmt: skip
    lines: list[tuple[str, ...]] = [head]
    for row in result.rows:
        one = said[row.waiters] if row.contender == GUARDED else None
        lines.append(
            (
                row.contender,
                f"{row.waiters:,}",
                f"{row.p50_us:,.0f}",
                f"{row.p99_us:,.0f}",
                f"{row.p50_us - unguarded_us[row.waiters]:+,.0f}" if one else "",
                f"{row.commands:.1f}",
                f"{row.redis_cpu_us:,.0f}",
                f"{one.admits:.2f}" if one else "",
                f"{one.leaves:.2f}" if one else "",
                f"{one.others:.2f}" if one else "",
                f"{one.daemon_cpu_us:,.0f}" if one else "",
                f"{row.handoffs:,}",
                str(row.drains),
            )
        )
    return f"{table(lines)}\n\n{show_aims(result.aims)}\n"
