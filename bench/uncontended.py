"""`bench/uncontended`: a request that is granted at once and its release, beside what the same two scripts cost bare.

All in one process and one loop, in alternating rounds. The time of each script on the server is the server's own
(`SLOWLOG`), read in rounds that are not timed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from statistics import median
from typing import Any
from uuid import uuid4

import msgspec
import redis
import redis.asyncio

from bench.ground import POOL, Ground, Work
from bench.tables import Aim, percentile, show_aims, table
from gpulockd import gpu_lock
from gpulockd.client.process import line_for
from gpulockd.ledger import address, verbs
from gpulockd.ledger.keys import PoolKeys
from gpulockd.ledger.lua_files import script
from gpulockd.ledger.wire.commands import WireCommands
from gpulockd.model import Job, Wants

PAIRS = 200
"""Pairs a round."""
ROUNDS, QUICK_ROUNDS = 30, 8

OURS, BLOCKING = "gpulockd, async with", "gpulockd, with (a thread)"
BARE, NOTHING = "the same two scripts, bare FCALL", "two times `return 1`, FCALL"
BARE_REDIS_PY, NOTHING_REDIS_PY = "the same two scripts, through redis-py", "two times `return 1`, through redis-py"
REDIS_PY, PYTHON_REDIS_LOCK = "redis-py Lock", "python-redis-lock (a thread)"

NOT_A_SCRIPT_US = 20
"""What is logged took longer (in µs). The log has the commands that a script calls too, and writing them down while the
script runs would count as the script's own time; none of them takes so long."""

Pair = Callable[[], Awaitable[object]]
Send = Callable[..., Awaitable[Any]]


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the table: medians over all rounds (in µs), and what a pair costs."""

    contender: str
    pair_us: float
    p99_us: float
    to_bare: float
    to_nothing: float
    commands: float
    redis_cpu_us: float
    rounds: int


class ScriptTime(msgspec.Struct, frozen=True, kw_only=True):
    """How long the server was busy with one script (in µs)."""

    script: str
    p50_us: float
    p99_us: float
    calls: int


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """The table, the scripts, and what we promise ourselves of them."""

    rows: list[Row]
    scripts: list[ScriptTime]
    aims: list[Aim]


class Rounds:
    """What the rounds of one contender gave."""

    def __init__(self, client_commands: tuple[str, ...]) -> None:
        self.client_commands = client_commands
        self.pairs_us: list[float] = []
        self.medians_us: list[float] = []
        self.commands = 0
        self.cpu_ns = 0

    def add(self, pairs_us: list[float], before: Work, after: Work) -> None:
        """Take one round."""
        self.pairs_us += pairs_us
        self.medians_us.append(median(pairs_us))
        self.commands += after.commands(self.client_commands, before)
        self.cpu_ns += after.cpu_ns - before.cpu_ns


def measure(ground: Ground, *, quick: bool) -> Result:
    """Measure everything, in alternating rounds."""
    return asyncio.run(_measure(ground, QUICK_ROUNDS if quick else ROUNDS))


async def _measure(ground: Ground, rounds: int) -> Result:
    client: Any = address.async_client(ground.url, deadline_s=5.0, name="bench")
    wire = WireCommands(ground.url, deadline_s=5.0, name="bench-wire")
    plain = redis.asyncio.Redis.from_url(ground.url)
    await wire.load("#!lua name=bench_nothing\nredis.register_function('bench_nothing', function() return 1 end)")
    bare = await _bare_pair(lambda *words: wire.run(words))
    contenders: dict[str, Pair] = {
        OURS: _our_pair,
        BARE: bare,
        NOTHING: _nothing(lambda *words: wire.run(words)),
        BARE_REDIS_PY: await _bare_pair(client.execute_command),
        NOTHING_REDIS_PY: _nothing(client.execute_command),
        REDIS_PY: lambda: _redis_py_pair(plain),
    }
    threads: dict[str, Callable[[], object]] = {
        BLOCKING: _our_blocking_pair,
        PYTHON_REDIS_LOCK: _python_redis_lock_pair(ground.url),
    }
    # A script's own SET counts in INFO like a client's.
    found = {name: Rounds(("fcall",)) for name in (*contenders, *threads)}
    for peer in (REDIS_PY, PYTHON_REDIS_LOCK):
        found[peer] = Rounds(("evalsha", "eval", "set"))
    for n in range(rounds + 1):
        for name in found:
            before = ground.work()
            if name in contenders:
                pairs_us = await _time(contenders[name])
            else:
                pairs_us = await asyncio.to_thread(_time_blocking, threads[name])
            if n > 0:  # the first round warms up
                found[name].add(pairs_us, before, ground.work())
    scripts = await _script_times(ground, bare)
    await wire.aclose()
    await client.aclose()
    await plain.aclose()
    rows = [_row(name, found, rounds) for name in found]
    return Result(rows=rows, scripts=scripts, aims=_aims(rows, scripts))


async def _time(pair: Pair) -> list[float]:
    pairs_us = []
    for _ in range(PAIRS):
        began = time.perf_counter_ns()
        await pair()
        pairs_us.append((time.perf_counter_ns() - began) / 1000)
    return pairs_us


def _time_blocking(pair: Callable[[], object]) -> list[float]:
    pairs_us = []
    for _ in range(PAIRS):
        began = time.perf_counter_ns()
        pair()
        pairs_us.append((time.perf_counter_ns() - began) / 1000)
    return pairs_us


async def _our_pair() -> None:
    async with gpu_lock("gpu_lock:0", pool=POOL):
        pass


def _our_blocking_pair() -> None:
    with gpu_lock("gpu_lock:0", pool=POOL):
        pass


async def _bare_pair(send: Send) -> Pair:
    """The scripts that `_our_pair` runs, in the session of this process, with nothing around them."""
    keys, wants, job = PoolKeys(POOL), Wants(keys=("gpu_lock:0",)), Job(task="python")
    session = (await line_for(POOL)).session
    fixed = (len(keys.wire), *keys.wire)
    example = verbs.request(
        keys, session=session.id, id="", wants=wants, priority=0, wait=True, job=job, lock_timeout_ms=3_600_000,
        asked_ms=session.ledger_ms,
    )  # fmt: skip
    request, end = script("request").function, script("end").function
    asker, words = example.args[0], example.args[2:]

    async def pair() -> None:
        id = uuid4().hex
        answer = await send("FCALL", request, *fixed, asker, id, *words)
        await send("FCALL", end, *fixed, asker, "ticket", id, answer[6], "released")

    return pair


def _nothing(send: Send) -> Pair:
    async def pair() -> None:
        await send("FCALL", "bench_nothing", 0)
        await send("FCALL", "bench_nothing", 0)

    return pair


async def _redis_py_pair(plain: Any) -> None:
    async with plain.lock("bench-lock", timeout=60):
        pass


def _python_redis_lock_pair(url: str) -> Callable[[], object]:
    import redis_lock

    client = redis.Redis.from_url(url)

    def pair() -> None:
        with redis_lock.Lock(client, "bench-lock-2", expire=60):
            pass

    return pair


async def _script_times(ground: Ground, bare: Pair) -> list[ScriptTime]:
    """The server's own time for each script, from its log of slow commands."""
    control = ground.control
    names = {script(name).function.encode(): name for name in ("request", "end")}
    control.config_set("slowlog-max-len", 10 * PAIRS)
    control.config_set("slowlog-log-slower-than", NOT_A_SCRIPT_US)
    control.slowlog_reset()
    for _ in range(2 * PAIRS):
        await bare()
    control.config_set("slowlog-log-slower-than", -1)
    times: dict[str, list[float]] = {name: [] for name in names.values()}
    for entry in control.slowlog_get(10 * PAIRS):
        words = entry["command"].split(b" ")
        if words[0].upper() == b"FCALL" and words[1] in names:
            times[names[words[1]]].append(float(entry["duration"]))
    return [
        ScriptTime(script=name, p50_us=median(found), p99_us=percentile(found, 0.99), calls=len(found))
        for name, found in times.items()
    ]


def _row(name: str, found: dict[str, Rounds], rounds: int) -> Row:
    mine, pairs = found[name], rounds * PAIRS

    def ratio(other: str) -> float:
        pairs_of_rounds = zip(mine.medians_us, found[other].medians_us, strict=True)
        return round(median(one / two for one, two in pairs_of_rounds), 3)

    return Row(
        contender=name,
        pair_us=round(median(mine.medians_us), 1),
        p99_us=round(percentile(mine.pairs_us, 0.99), 1),
        to_bare=ratio(BARE),
        to_nothing=ratio(NOTHING),
        commands=round(mine.commands / pairs, 2),
        redis_cpu_us=round(mine.cpu_ns / 1000 / pairs, 1),
        rounds=rounds,
    )


def _aims(rows: list[Row], scripts: list[ScriptTime]) -> list[Aim]:
    ours = next(row for row in rows if row.contender == OURS)
    return [
        Aim(text="a pair / the same two scripts bare", value=ours.to_bare, limit=1.3),
        Aim(text="a pair / two times `return 1`", value=ours.to_nothing, limit=2.2),
        *(Aim(text=f"server µs of `{found.script}`, p50", value=found.p50_us, limit=50) for found in scripts),
    ]


def show(result: Result) -> str:
    """The numbers as Markdown."""
    head = ("request and release", "p50 µs", "p99 µs", "/ bare scripts", "/ `return 1`", "commands", "Redis µs", "runs")
    lines: list[tuple[str, ...]] = [head]
    lines += [
        (
            row.contender,
            f"{row.pair_us:,.0f}",
            f"{row.p99_us:,.0f}",
            f"{row.to_bare:.2f}",
            f"{row.to_nothing:.2f}",
            f"{row.commands:.1f}",
            f"{row.redis_cpu_us:,.0f}",
            f"{row.rounds} × {PAIRS}",
        )
        for row in result.rows
    ]
    return f"{table(lines)}\n\n{show_aims(result.aims)}\n"
