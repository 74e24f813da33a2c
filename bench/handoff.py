"""`bench/handoff`: from "release is called" to "the next body begins", beside the peers and the floor.

A *drain*: one holder, N waiters in four processes who have asked one after the other; the holder leaves, then each
waiter holds for a moment and leaves. Every drain gives N hand-offs. Drains of all contenders alternate on one server.
"""

from __future__ import annotations

import itertools
import multiprocessing
import multiprocessing.connection
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, NamedTuple, Self

import msgspec

from bench import worker
from bench.contenders import CONTENDERS, GUARDED
from bench.ground import Ground
from bench.tables import Aim, percentile, show_aims, table
from bench.worker import Begin, Drain, Stamps

WORKERS = 4
HOLD_S = 0.003
SETTLE_S = 0.03
"""How long all is left alone between the last question and the first release (in seconds)."""
MOST_S = 15.0
"""A drain that takes longer is cut; what was handed off until then counts (in seconds)."""

OURS, CROWDED = "gpulockd", "gpulockd, 10,000 wait for another gpu"
PEERS = ("redis-py Lock", "python-redis-lock")
RAW, FLOOR, CONFIRMED = (
    "floor: publish → wake, asyncio streams",
    "floor: publish → wake, redis-py",
    "floor: redis-py and one confirm",
)

UNGUARDED = tuple(name for name in CONTENDERS if name != GUARDED)
"""Who takes part here; what the guard adds is a measurement of its own."""

LOST_S = 60.0
"""A worker that says nothing for so long has failed (in seconds)."""


class Size(NamedTuple):
    """How long the line is, how far apart its places ask (in seconds), and how often it is drained."""

    waiters: int
    spacing_s: float
    drains: int
    quick_drains: int


SIZES = (Size(1, 0.01, 150, 30), Size(10, 0.01, 20, 5), Size(100, 0.005, 5, 1), Size(1000, 0.002, 3, 1))
CROWDED_SIZES = (1, 100)


class Found(msgspec.Struct, kw_only=True):
    """What the drains of one contender and one size gave together; times in µs."""

    contender: str
    waiters: int
    drains: int = 0
    handoffs: int = 0
    commands: int = 0
    cpu_us: float = 0.0
    inversions: int = 0
    overlaps: int = 0
    gaps_us: list[float] = []
    messages: dict[str, int] = {}
    """What was said to a guard, by verb."""

    def add(self, stamps: list[Stamps], spacing_s: float, until_ns: int, commands: int, cpu_ns: int) -> None:
        """Take the stamps of a drain, as far as they lie before `until_ns` (when the server's work was read)."""
        served = sorted((s for s in stamps if s.began <= until_ns), key=lambda s: s.began)
        self.drains += 1
        self.handoffs += len(served) - 1
        self.commands += commands
        self.cpu_us += cpu_ns / 1000
        for before, after in itertools.pairwise(served):
            self.gaps_us.append((after.began - before.left) / 1000)
            self.overlaps += after.began < before.left
        # Out of order: somebody began who had asked at least one spacing later than one who was still waiting.
        earliest_asked = None
        for s in reversed(served):
            if earliest_asked is not None and s.asked - spacing_s * 1e9 > earliest_asked:
                self.inversions += 1
            earliest_asked = s.asked if earliest_asked is None else min(earliest_asked, s.asked)


class Crew:
    """The worker processes, until the end of the `with` block."""

    def __init__(self, ground: Ground) -> None:
        self.ground = ground
        self._context = multiprocessing.get_context("spawn")
        self._begun = self._context.Value("q", 0)
        self._pipes: list[Connection] = []
        self._drain: Drain | None = None
        self._names = (f"drain-{n}" for n in itertools.count())

    def __enter__(self) -> Self:
        for number in range(WORKERS):
            mine, theirs = self._context.Pipe()
            args = (theirs, self.ground.url, number, WORKERS, self._begun)
            self._context.Process(target=worker.main, args=args, daemon=True).start()
            theirs.close()
            self._pipes.append(mine)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pipe in self._pipes:
            with suppress(OSError):
                pipe.send("quit")
        for process in multiprocessing.active_children():
            process.join(10 if kind is None else 0)  # in the middle of a drain they do not hear
            process.kill()

    def drain(self, contender: str, size: Size, into: Found) -> None:
        """Let one line form and drain."""
        places = [tuple(range(number, size.waiters + 1, WORKERS)) for number in range(WORKERS)]
        pipes = [pipe for pipe, mine in zip(self._pipes, places, strict=True) if mine]
        drain = Drain(contender, next(self._names), (), size.waiters, size.spacing_s, HOLD_S)
        self._begun.value = 0
        self._drain = drain
        for pipe, mine in zip(pipes, places, strict=False):
            pipe.send(drain._replace(places=mine))
        assert pipes[0].recv() == "holding"
        begin = Begin(time.monotonic_ns() + round((0.01 + size.waiters * 0.0002) * 1e9))
        for pipe in pipes:
            pipe.send(begin)
        asking = len(pipes)
        while asking:
            asking -= len(self._said(pipes, LOST_S))
        time.sleep(SETTLE_S)
        before = self.ground.work()
        cpu_ns = self.ground.cpu_ns()
        pipes[0].send("go")
        done = bool(self._said(pipes, MOST_S))
        until_ns = time.monotonic_ns()
        cpu_ns = self.ground.cpu_ns() - cpu_ns
        commands = self.ground.work().commands(CONTENDERS[contender].commands, before)
        stamps: list[Stamps] = []
        for pipe in pipes:
            pipe.send("stop" if done else "cut")
        for pipe in pipes:
            while not isinstance(said := self._said([pipe], LOST_S)[0], list):
                for verb, count in said.items() if isinstance(said, dict) else ():
                    into.messages[verb] = into.messages.get(verb, 0) + count
            stamps += said
        into.add(stamps, size.spacing_s, until_ns, commands, cpu_ns)

    def _said(self, pipes: list[Connection], timeout_s: float) -> list[Any]:
        """What workers say within `timeout_s`; nothing within `LOST_S` means that one is lost."""
        ready = multiprocessing.connection.wait(pipes, timeout_s)
        if not ready and timeout_s == LOST_S:
            raise RuntimeError(f"a worker process does not answer, in {self._drain}")
        return [pipe.recv() for pipe in pipes if pipe in ready]


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the table; times in µs, commands and CPU per hand-off."""

    contender: str
    waiters: int
    p50_us: float
    p99_us: float
    commands: float
    redis_cpu_us: float
    inversions: int
    overlaps: int
    handoffs: int
    drains: int

    @classmethod
    def of(cls, found: Found) -> Row:
        """The line of what was found."""
        return cls(
            contender=found.contender,
            waiters=found.waiters,
            p50_us=round(percentile(found.gaps_us, 0.5), 1),
            p99_us=round(percentile(found.gaps_us, 0.99), 1),
            commands=round(found.commands / found.handoffs, 2),
            redis_cpu_us=round(found.cpu_us / found.handoffs, 1),
            inversions=found.inversions,
            overlaps=found.overlaps,
            handoffs=found.handoffs,
            drains=found.drains,
        )


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """The table, and what we promise ourselves of it."""

    rows: list[Row]
    aims: list[Aim]


def measure(ground: Ground, *, quick: bool) -> Result:
    """Measure everything, in alternating drains."""
    ground.gather_crowd()
    rows: list[Row] = []
    with Crew(ground) as crew:
        for contender in UNGUARDED:
            crew.drain(contender, Size(2 * WORKERS, 0.005, 1, 1), Found(contender=contender, waiters=0))
        for size in SIZES:
            here = [
                Found(contender=contender, waiters=size.waiters)
                for contender in UNGUARDED
                if contender != CROWDED or size.waiters in CROWDED_SIZES
            ]
            for _ in range(size.quick_drains if quick else size.drains):
                for found in here:
                    crew.drain(found.contender, size, found)
            rows += [Row.of(found) for found in here]
    return Result(rows=rows, aims=aims_of(rows))


def aims_of(rows: list[Row]) -> list[Aim]:
    """What we promise ourselves, as this run has it."""
    p50 = {(row.contender, row.waiters): row.p50_us for row in rows}
    sizes = [size.waiters for size in SIZES]
    confirm_us = max(0.0, p50[CONFIRMED, 1] - p50[FLOOR, 1])
    limit_us = 2 * p50[FLOOR, 1] + confirm_us
    found = [Aim(text="p50 µs, N=1: 2 × redis-py's publish → wake + one confirm", value=p50[OURS, 1], limit=limit_us)]
    for n in sizes:
        best_us = min(p50[peer, n] for peer in PEERS)
        found.append(Aim(text=f"p50 µs, N={n:,}: the best peer's", value=p50[OURS, n], limit=best_us))
    flat = [p50[OURS, n] for n in sizes]
    found.append(Aim(text="p50, N=1 to 1,000: largest / smallest", value=max(flat) / min(flat), limit=1.5))
    for n in CROWDED_SIZES:
        ratio = p50[CROWDED, n] / p50[OURS, n]
        found.append(Aim(text=f"p50, N={n:,}: with 10,000 for another gpu / without", value=ratio, limit=1.5))
    ours = [row for row in rows if row.contender in (OURS, CROWDED)]
    most = max(row.commands for row in ours)
    found.append(Aim(text="commands per hand-off, the confirm among them", value=most, limit=2.1))
    found.append(Aim(text="hand-offs out of order", value=sum(row.inversions for row in ours), limit=0))
    found.append(
        Aim(text="bodies that began before release was called", value=sum(row.overlaps for row in ours), limit=0)
    )
    return found


def show(result: Result) -> str:
    """The numbers as Markdown."""
    head = ("hand-off", "N", "p50 µs", "p99 µs", "/ floor", "commands", "Redis µs", "out of order", "hand-offs", "runs")
    floors = {row.waiters: row.p50_us for row in result.rows if row.contender == FLOOR}
    lines: list[tuple[str, ...]] = [head]
    lines += [
        (
            row.contender,
            f"{row.waiters:,}",
            f"{row.p50_us:,.0f}",
            f"{row.p99_us:,.0f}",
            f"{row.p50_us / floors[row.waiters]:.1f}",
            f"{row.commands:.1f}",
            f"{row.redis_cpu_us:,.0f}",
            f"{row.inversions / row.handoffs:.0%}",
            f"{row.handoffs:,}",
            str(row.drains),
        )
        for row in result.rows
    ]
    return f"{table(lines)}\n\n{show_aims(result.aims)}\n"
