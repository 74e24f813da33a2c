"""`bench web`: answers of the health route under load with readers of events attached, and whether crowds delay grants.

The load comes at fixed moments, whether or not the answers before have come; an answer's time counts from the moment
at which its request was due. The same load goes to a bare route beside (`bench.floor`), in turns, while the same
programs run: what the machine and the asking process add is in both. The crowds are connections that say nothing, and
readers that do not read.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path
from statistics import median

import msgspec

from bench.floor import EVENTS, HEALTH
from bench.host import Host
from bench.tables import Aim, percentile, show_aims, table

PER_SECOND, READERS, WIRES = 500, 100, 32
SPAN_S, QUICK_SPAN_S, TURNS, QUICK_TURNS = 10.0, 5.0, 3, 1
IDLE, DEAF = 1000, 20
BLOCKS, QUICK_BLOCKS, PAIRS = 8, 3, 200
ANSWER_LIMIT_MS, FLOOR_LIMIT, RATIO_LIMIT = 10.0, 3.0, 1.25

GRANTS = f"""
import asyncio, sys, time
from gpulockd import gpu_lock
async def main():
    loop = asyncio.get_running_loop()
    while await loop.run_in_executor(None, sys.stdin.readline):
        took = []
        for _ in range({PAIRS}):
            began = time.perf_counter()
            async with gpu_lock(gpus=[0]):
                took.append((time.perf_counter() - began) * 1e6)
        took.sort()
        print("took", took[len(took) // 2], took[int(len(took) * 0.99)], flush=True)
asyncio.run(main())
"""


TRICKLE = """
import asyncio
from gpulockd import gpu_lock
async def main():
    while True:
        async with gpu_lock():
            await asyncio.sleep(0.05)
asyncio.run(main())
"""


class Answers(msgspec.Struct, frozen=True, kw_only=True):
    """Times of the answers (in ms), how late the asking process itself was, and what the server used.

    `cpu`: the server's share of one core; `waited`: the share of the time in which it was ready and had no processor.
    """

    server: str
    asked: int
    p50_ms: float
    p99_ms: float
    worst_ms: float
    late_p99_ms: float
    events_read: int
    cpu: float
    waited: float


class Grants(msgspec.Struct, frozen=True, kw_only=True):
    """Times of a grant (in µs): the median of the blocks' medians and 99th percentiles."""

    crowd: str
    p50_us: float
    p99_us: float


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured, and what we promise ourselves."""

    answers: list[Answers]
    grants: list[Grants]
    aims: list[Aim]


def measure(*, quick: bool) -> Result:
    """Measure one daemon with two simulated cards."""
    with Host(cards=2) as host:
        turns, span_s = (QUICK_TURNS, QUICK_SPAN_S) if quick else (TURNS, SPAN_S)
        answers = asyncio.run(_answers(host, turns, span_s))
        grants = asyncio.run(_grants(host, QUICK_BLOCKS if quick else BLOCKS))
    return Result(answers=answers, grants=grants, aims=_aims(answers, grants))


def _port(host: Host) -> int:
    found = re.search(r"http://127\.0\.0\.1:(\d+)", host.log)
    assert found is not None
    return int(found[1])


def _head(path: str, port: int) -> bytes:
    return f"GET {path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\n\r\n".encode()


class Load:
    """Requests at fixed moments over a few kept connections."""

    def __init__(self, port: int, span_s: float) -> None:
        self._port = port
        self._due: asyncio.Queue[float | None] = asyncio.Queue()
        self._span_s = span_s
        self.took_ms: list[float] = []
        self.late_ms: list[float] = []

    async def run(self) -> None:
        """Send them all and read all answers."""
        wires = [asyncio.create_task(self._wire()) for _ in range(WIRES)]
        began = time.monotonic()
        for number in range(round(PER_SECOND * self._span_s)):
            due = began + number / PER_SECOND
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            self.late_ms.append((time.monotonic() - due) * 1000)
            self._due.put_nowait(due)
        for _ in wires:
            self._due.put_nowait(None)
        await asyncio.gather(*wires)

    async def _wire(self) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        request = _head(HEALTH, self._port)
        while (due := await self._due.get()) is not None:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(f"{HEALTH} answered {head[:40]!r}")
            await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0]))
            self.took_ms.append((time.monotonic() - due) * 1000)
        writer.close()


async def _answers(host: Host, turns: int, span_s: float) -> list[Answers]:
    """Load the daemon and the bare route in turns; of each the turn whose 99th percentile is the median."""
    floor = host.party("-m", "bench.floor")
    trickle = host.party("-c", TRICKLE)  # so that there is something to read
    try:
        servers = {"gpulockd": (_port(host), host.pid), "a bare route": (int(floor.hear("port")), floor.process.pid)}
        found: dict[str, list[Answers]] = {name: [] for name in servers}
        for _ in range(turns):
            for name, (port, pid) in servers.items():
                found[name].append(await _load(name, port, pid, span_s))
    finally:
        trickle.close()
        floor.close()
    return [sorted(all_of, key=lambda one: one.p99_ms)[len(all_of) // 2] for all_of in found.values()]


async def _load(name: str, port: int, pid: int, span_s: float) -> Answers:
    read = 0

    async def follow() -> None:
        nonlocal read
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(_head(EVENTS, port))
            while text := await reader.read(65536):
                read += text.count(b"data: ")
        finally:
            writer.close()

    readers = [asyncio.create_task(follow()) for _ in range(READERS)]
    await asyncio.sleep(2.0)
    (ran_s, waited_s), began_s = _processor_s(pid), time.monotonic()
    load = Load(port, span_s)
    await load.run()
    (now_ran_s, now_waited_s), took_s = _processor_s(pid), time.monotonic() - began_s
    for one in readers:
        one.cancel()
    await asyncio.gather(*readers, return_exceptions=True)
    return Answers(
        server=name,
        asked=len(load.took_ms),
        p50_ms=round(percentile(load.took_ms, 0.5), 2),
        p99_ms=round(percentile(load.took_ms, 0.99), 2),
        worst_ms=round(max(load.took_ms), 1),
        late_p99_ms=round(percentile(load.late_ms, 0.99), 2),
        events_read=read,
        cpu=round((now_ran_s - ran_s) / took_s, 4),
        waited=round((now_waited_s - waited_s) / took_s, 4),
    )


def _processor_s(pid: int) -> tuple[float, float]:
    """How long the main thread of a process has run, and how long it was ready and had no processor (in seconds)."""
    ran_ns, waited_ns, _ = Path(f"/proc/{pid}/schedstat").read_text().split()
    return int(ran_ns) / 1e9, int(waited_ns) / 1e9


@contextlib.asynccontextmanager
async def _crowd(port: int, *, idle: int = 0, deaf: int = 0) -> AsyncIterator[None]:
    """Connections that have asked once and say nothing more, and readers of events that never read."""
    wires: list[socket.socket] = []
    loop = asyncio.get_running_loop()
    try:
        for number in range(idle + deaf):
            made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            made.setblocking(False)
            if number >= idle:
                made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            wires.append(made)
            await loop.sock_connect(made, ("127.0.0.1", port))
            await loop.sock_sendall(made, _head("/livez" if number < idle else "/api/v1/events?since=1h", port))
            if number < idle:
                await loop.sock_recv(made, 4096)
        yield
    finally:
        for one in wires:
            one.close()


async def _grants(host: Host, blocks: int) -> list[Grants]:
    port = _port(host)
    crowds = {
        "nobody": {},
        f"{IDLE:,} idle connections": {"idle": IDLE},
        f"{DEAF} readers that do not read": {"deaf": DEAF},
    }
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in crowds}
    party = host.party("-c", GRANTS)
    try:
        for block in range(blocks + 1):  # the first warms up
            for name, crowd in crowds.items():
                async with _crowd(port, **crowd):
                    await asyncio.sleep(0.2)
                    party.tell("go")
                    said = await asyncio.to_thread(party.hear, "took")
                    if block:
                        p50, p99 = map(float, said.split())
                        found[name].append((p50, p99))
                await asyncio.sleep(0.2)
    finally:
        party.close()
    return [
        Grants(
            crowd=name, p50_us=round(median(p50 for p50, _ in all_of)), p99_us=round(median(p99 for _, p99 in all_of))
        )
        for name, all_of in found.items()
    ]


def _aims(answers: list[Answers], grants: list[Grants]) -> list[Aim]:
    (ours, floor), (alone, *crowded) = answers, grants
    text = f"{PER_SECOND} health requests a second with {READERS} readers of events, p99"
    answered = [
        Aim(text=f"{text}, ms", value=ours.p99_ms, limit=ANSWER_LIMIT_MS),
        Aim(text=f"{text}, to that of a bare route", value=ours.p99_ms / floor.p99_ms, limit=FLOOR_LIMIT),
    ]
    ratios = [
        Aim(
            text=f"a grant beside {one.crowd}, to one beside nobody (p50)",
            value=one.p50_us / alone.p50_us,
            limit=RATIO_LIMIT,
        )
        for one in crowded
    ]
    return [*answered, *ratios]


def show(result: Result) -> str:
    """The numbers as Markdown."""
    heads = (
        "p50, ms",
        "p99, ms",
        "worst, ms",
        "asking process late (p99), ms",
        "events read",
        "CPU",
        "without processor",
    )
    answers = [(f"`{HEALTH}` of", *heads)]
    for one in result.answers:
        times = f"{one.p50_ms}", f"{one.p99_ms}", f"{one.worst_ms}", f"{one.late_p99_ms}"
        answers.append((one.server, *times, f"{one.events_read:,}", f"{one.cpu:.1%}", f"{one.waited:.1%}"))
    rows = [("a grant beside", "p50, µs", "p99, µs")]
    rows += [(one.crowd, f"{one.p50_us:,.0f}", f"{one.p99_us:,.0f}") for one in result.grants]
    return "\n\n".join([table(answers), table(rows), show_aims(result.aims)]) + "\n"
