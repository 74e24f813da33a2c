"""`bench daemon`: what the daemon costs while nothing happens but life: sessions, held leases, cards to look at.

First it is left alone and its CPU time is read from the kernel; then it is asked for `/livez` again and again: an
answer that comes late is the longest time that its event loop was busy with something else.
"""

from __future__ import annotations

import io
import os
import pstats
import signal
import time
from pathlib import Path

import msgspec
import psutil

from bench.host import SERVE, Host
from bench.tables import Aim, percentile, show_aims, table

CARDS, SESSIONS, HELD = 8, 100, 20
SPAN_S, QUICK_SPAN_S = 60.0, 20.0
CALM_S = 12.0
"""How long all is left alone before the measurement (in seconds): the children of a young lease are looked for four
times as often."""

PROBE_EVERY_S = 0.01
MIB = 1 << 20

CPU_LIMIT, MEMORY_LIMIT_MB, STALL_LIMIT_MS = 0.01, 60.0, 50.0
COSTS_SHOWN = 25


class Answers(msgspec.Struct, frozen=True, kw_only=True):
    """Round trips of `/livez` (in ms). `waited_ms`: of the worst, what the daemon waited for a processor.

    `late_ms`: the most by which the asking process itself woke too late: what the machine adds to any number here.
    """

    asked: int
    p50_ms: float
    p99_ms: float
    worst_ms: float
    waited_ms: float
    late_ms: float


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What the daemon used, what its store used, and what we promise ourselves.

    `cpu`, `store_cpu`: shares of one core. `costs`: the profile, as text, if one was asked for; then `cpu` is too high.
    """

    span_s: float
    sessions: int
    leases: int
    cpu: float
    cpu_user: float
    memory_mb: float
    private_mb: float
    descriptors: int
    threads: int
    store_cpu: float
    store_memory_mb: float
    answers: Answers
    costs: str
    aims: list[Aim]


class Usage(msgspec.Struct, frozen=True):
    """CPU time of a process so far (in seconds), threads that have ended included."""

    at_s: float
    user_s: float
    all_s: float

    @classmethod
    def of(cls, process: psutil.Process) -> Usage:
        """What the kernel says."""
        times = process.cpu_times()
        return cls(time.monotonic(), times.user, times.user + times.system)

    def share(self, since: Usage) -> float:
        """The share of one core since then."""
        return (self.all_s - since.all_s) / (self.at_s - since.at_s)

    def user_share(self, since: Usage) -> float:
        """The same outside the kernel."""
        return (self.user_s - since.user_s) / (self.at_s - since.at_s)


def measure(*, quick: bool, profile: bool = False) -> Result:
    """Measure one daemon.

    :param profile: say also what its main thread ran meanwhile
    """
    span_s = QUICK_SPAN_S if quick else SPAN_S
    costs = f"/tmp/gpulockd-bench-{os.getpid()}.profile"
    serve = ("-m", "bench.profiled", costs) if profile else SERVE
    with Host(cards=CARDS, serve=serve) as host:
        programs = host.party("-m", "bench.sessions", str(SESSIONS), str(HELD))
        try:
            for _ in range(SESSIONS):
                programs.hear("in")
            time.sleep(CALM_S)
            return _measure(host, span_s, Path(costs) if profile else None)
        finally:
            programs.close()
            Path(costs).unlink(missing_ok=True)


def _measure(host: Host, span_s: float, costs: Path | None) -> Result:
    daemon, store = psutil.Process(host.pid), host.store
    pool = host.get("/api/v1/pools")["pools"][0]
    if costs is not None:
        os.kill(host.pid, signal.SIGUSR2)
    before, store_before = Usage.of(daemon), Usage.of(store)
    time.sleep(span_s)
    after, store_after = Usage.of(daemon), Usage.of(store)
    if costs is not None:
        os.kill(host.pid, signal.SIGUSR2)
        host.until(costs.exists)
    answers = _probe(host, span_s)
    memory = daemon.memory_full_info()
    found = Result(
        span_s=span_s,
        sessions=pool["sessions"],
        leases=pool["leases"],
        cpu=round(after.share(before), 4),
        cpu_user=round(after.user_share(before), 4),
        memory_mb=round(memory.rss / MIB, 1),
        private_mb=round(memory.uss / MIB, 1),
        descriptors=daemon.num_fds(),
        threads=daemon.num_threads(),
        store_cpu=round(store_after.share(store_before), 4),
        store_memory_mb=round(store.memory_info().rss / MIB, 1),
        answers=answers,
        costs=_costs(costs) if costs is not None else "",
        aims=[],
    )
    return msgspec.structs.replace(found, aims=aims_of(found))


def _probe(host: Host, span_s: float) -> Answers:
    """Ask on one connection each 10 ms; how long each answer took."""
    took_ms: list[float] = []
    worst_ms = waited_ms = late_ms = 0.0
    host.get("/livez")
    due = time.monotonic()
    until = due + span_s
    waited = _waited_ms(host.pid)
    while due < until:
        time.sleep(max(0.0, due - time.monotonic()))
        asked = time.monotonic()
        late_ms = max(late_ms, (asked - due) * 1000)
        host.get("/livez")
        answered = time.monotonic()
        took_ms.append((answered - asked) * 1000)
        earlier, waited = waited, _waited_ms(host.pid)
        if took_ms[-1] > worst_ms:
            worst_ms, waited_ms = took_ms[-1], waited - earlier
        due = max(due + PROBE_EVERY_S, time.monotonic())
    return Answers(
        asked=len(took_ms),
        p50_ms=round(percentile(took_ms, 0.5), 2),
        p99_ms=round(percentile(took_ms, 0.99), 2),
        worst_ms=round(worst_ms, 1),
        waited_ms=round(waited_ms, 1),
        late_ms=round(late_ms, 1),
    )


def _waited_ms(pid: int) -> float:
    """How long the main thread of a process has been ready and had no processor (in ms)."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e6


def _costs(file: Path) -> str:
    text = io.StringIO()
    stats = pstats.Stats(str(file), stream=text)
    for order in ("tottime", "cumulative"):
        stats.sort_stats(order).print_stats(COSTS_SHOWN)
    return text.getvalue()


def aims_of(found: Result) -> list[Aim]:
    """What we promise ourselves, as this run has it."""
    return [
        Aim(text="CPU, % of one core", value=found.cpu * 100, limit=CPU_LIMIT * 100),
        Aim(text="resident memory, MiB", value=found.memory_mb, limit=MEMORY_LIMIT_MB),
        Aim(text="longest answer of /livez, ms", value=found.answers.worst_ms, limit=STALL_LIMIT_MS),
        Aim(text="sessions or leases that are missing",
            value=max(0, SESSIONS - found.sessions) + max(0, HELD - found.leases), limit=0),
    ]  # fmt: skip


def show(result: Result) -> str:
    """The numbers as Markdown."""
    answers = result.answers
    lines = [
        (f"{CARDS} simulated cards, {result.sessions} sessions, {result.leases} leases", "daemon", "its store"),
        (
            f"CPU over {result.span_s:g} s, % of one core",
            f"{result.cpu:.2%} ({result.cpu_user:.2%} user)",
            f"{result.store_cpu:.2%}",
        ),
        ("resident MiB", f"{result.memory_mb:.1f} ({result.private_mb:.1f} its own)", f"{result.store_memory_mb:.1f}"),
        ("descriptors, threads", f"{result.descriptors}, {result.threads}", ""),
        (f"/livez, each {PROBE_EVERY_S * 1000:g} ms: p50, p99 ms", f"{answers.p50_ms:.2f}, {answers.p99_ms:.2f}", ""),
        ("worst ms (of it without a processor)", f"{answers.worst_ms:.1f} ({answers.waited_ms:.1f})", ""),
        ("the asking process's own worst delay, ms", f"{answers.late_ms:.1f}", ""),
    ]
    costs = f"\n```\n{result.costs}```\n" if result.costs else ""
    return f"{table(lines)}\n\n{show_aims(result.aims)}\n{costs}"
