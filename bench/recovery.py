"""`bench recovery`: from the kill -9 of a holder to the first line of the next body, on a guarded host.

The next one is always the same process, which has asked while the holder held; the holders are of every kind that
users have. The kinds alternate. The floor is the kernel's own lock on a file, which the death of its holder frees.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import psutil

from bench.ground import server_binary
from bench.host import LOST_S, Host, Party
from bench.tables import Aim, percentile, show_aims, table
from bench.victims import KEY
from tests.servers import Server

KILLS, QUICK_KILLS = 100, 5
PAUSE_S = (0.02, 0.12)
"""How long all is left alone before the kill: not always the same, lest it meet the daemon's timers (in seconds)."""

P50_LIMIT_MS, WORST_LIMIT_MS = 50.0, 1000.0

FLOOR = "floor: the kernel's lock on a file"

LIBRARY = {
    "library, async": "async",
    "library, sync": "sync",
    "forked child of a parent that used it": "fork",
    FLOOR: "file",
}
RUN = "`gpulockd run`, its wrapper"
CELERY = "Celery prefork child"
NAMESPACE = "in a pid namespace of its own"

Victim = Callable[[], Any]
"""Makes a block in which a victim holds; its value is the process to kill."""


class Found(msgspec.Struct, kw_only=True):
    """What the kills of one kind gave together."""

    victim: str
    gaps_ms: list[float] = []
    disagreements: int = 0


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the table; times in ms."""

    victim: str
    p50_ms: float
    p90_ms: float
    worst_ms: float
    disagreements: int
    kills: int

    @classmethod
    def of(cls, found: Found) -> Row:
        """The line of what was found."""
        return cls(
            victim=found.victim,
            p50_ms=round(percentile(found.gaps_ms, 0.5), 1),
            p90_ms=round(percentile(found.gaps_ms, 0.9), 1),
            worst_ms=round(max(found.gaps_ms), 1),
            disagreements=found.disagreements,
            kills=len(found.gaps_ms),
        )


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """The table, what was left out and why, and what we promise ourselves."""

    rows: list[Row]
    left_out: list[str]
    aims: list[Aim]


class Scene:
    """A host, the one who comes next, and the victims."""

    def __init__(self, host: Host, stack: ExitStack) -> None:
        self.host = host
        self.file = str(host.folder / "file")
        self.left_out: list[str] = []
        self.kinds: dict[str, Victim] = {name: self._library(kind) for name, kind in LIBRARY.items()}
        self.kinds[RUN] = self._run
        if importlib.util.find_spec("celery") is None:
            self.left_out.append(f"{CELERY}: celery is not installed")
        else:
            self.kinds[CELERY] = self._celery(stack)
        if os.getuid() != 0 or shutil.which("unshare") is None:
            self.left_out.append(f"{NAMESPACE}: it takes root and unshare")
        else:
            self.kinds[NAMESPACE] = self._namespace
        self._next = host.party("-m", "bench.victims", "next", self.file)
        stack.callback(self._next.close)
        self._pauses = random.Random(1)

    def kill_one(self, found: Found) -> None:
        """Let a victim hold, kill it, and look what came of it."""
        ours = found.victim != FLOOR
        with self.kinds[found.victim]() as pid:
            self._next.tell("lock" if ours else "file")
            if ours:
                self.host.until(lambda: self.host.get("/api/v1/queue")["queued"] == 1)
            time.sleep(self._pauses.uniform(*PAUSE_S))
            killed = time.monotonic_ns()
            os.kill(pid, signal.SIGKILL)
            began = int(self._next.hear("began"))
            found.gaps_ms.append((began - killed) / 1e6)
            if ours:
                found.disagreements += not self._agrees()
            self._next.tell("leave")
            self._next.hear("left")
        self.host.until(lambda: not self.host.get("/api/v1/leases")["leases"])

    def _agrees(self) -> bool:
        """Whether gpus and leases say the same: the next one alone has the card, and is on no other."""
        leases = self.host.get("/api/v1/leases")["leases"]
        gpus = self.host.get("/api/v1/gpus")["gpus"]
        holders = [(lease["pid"], lease["gpus"]) for lease in leases]
        on_cards = {gpu["key"]: gpu["leases"] for gpu in gpus}
        said = {gpu["key"]: [lease["id"] for lease in leases if gpu["key"] in lease["gpus"]] for gpu in gpus}
        return holders == [(self._next.process.pid, [KEY])] and on_cards == said

    def _library(self, kind: str) -> Victim:
        @contextmanager
        def victim() -> Iterator[int]:
            with self._party("-m", "bench.victims", kind, self.file) as party:
                yield int(party.hear("in"))

        return victim

    @contextmanager
    def _run(self) -> Iterator[int]:
        command = ("run", "--quiet", "--gpu", "0", "--", "sh", "-c", "echo in; exec cat")
        with self._party("-m", "gpulockd", *command) as party:
            party.hear("in")
            yield party.process.pid

    @contextmanager
    def _namespace(self) -> Iterator[int]:
        prefix = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
        with self._party("-m", "bench.victims", "async", self.file, prefix=prefix) as party:
            party.hear("in")
            (child,) = psutil.Process(party.process.pid).children()
            yield child.pid

    @contextmanager
    def _party(self, *words: str, prefix: tuple[str, ...] = ()) -> Iterator[Party]:
        party = self.host.party(*words, prefix=prefix)
        try:
            yield party
        finally:
            party.close()

    def _celery(self, stack: ExitStack) -> Victim:
        """A Celery worker that lives to the end; it replaces the child that was killed."""
        notes = self.host.folder / "notes"
        broker = stack.enter_context(Server(server_binary(None)))
        env = {"BENCH_BROKER": f"redis+socket://{broker.socket_path}", "BENCH_NOTES": str(notes)}
        words = ("-m", "celery", "-A", "bench.celery_victim", "worker", "--pool", "prefork", "--concurrency", "1")
        quiet = ("--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel", "ERROR")
        worker = self.host.party(*words, *quiet, **env)
        stack.callback(worker.close)
        os.environ.update(env)
        task = importlib.import_module("bench.celery_victim").hold

        @contextmanager
        def victim() -> Iterator[int]:
            held = len(_lines(notes))
            task.delay()
            self.host.until(lambda: len(_lines(notes)) > held, LOST_S)
            yield int(_lines(notes)[-1])

        return victim


def _lines(file: Path) -> list[str]:
    return [line for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")] if file.exists() else []


def measure(*, quick: bool) -> Result:
    """Kill one of each kind in turn, again and again."""
    with Host() as host, ExitStack() as stack:
        scene = Scene(host, stack)
        for name in scene.kinds:  # a first time that does not count: files are read, a worker starts
            scene.kill_one(Found(victim=name))
        all_found = [Found(victim=name) for name in scene.kinds]
        for n in range(kills := QUICK_KILLS if quick else KILLS):
            for found in all_found:
                scene.kill_one(found)
            if sys.stderr.isatty():
                print(f"\r{n + 1} of {kills}", end="" if n + 1 < kills else "\n", file=sys.stderr, flush=True)
        rows = [Row.of(found) for found in all_found]
        return Result(rows=rows, left_out=scene.left_out, aims=aims_of(rows))


def aims_of(rows: list[Row]) -> list[Aim]:
    """What we promise ourselves, as this run has it."""
    ours = [row for row in rows if row.victim != FLOOR]
    aims = [Aim(text=f"p50 ms: {row.victim}", value=row.p50_ms, limit=P50_LIMIT_MS) for row in ours]
    aims.append(Aim(text="worst ms of all", value=max(row.worst_ms for row in ours), limit=WORST_LIMIT_MS))
    wrong = sum(row.disagreements for row in ours)
    aims.append(Aim(text="kills after which gpus and leases disagree", value=wrong, limit=0))
    return aims


def show(result: Result) -> str:
    """The numbers as Markdown."""
    lines: list[tuple[str, ...]] = [("killed holder", "p50 ms", "p90 ms", "worst ms", "disagreements", "kills")]
    lines += [
        (
            row.victim,
            f"{row.p50_ms:,.1f}",
            f"{row.p90_ms:,.1f}",
            f"{row.worst_ms:,.1f}",
            "" if row.victim == FLOOR else str(row.disagreements),
            str(row.kills),
        )
        for row in result.rows
    ]
    left_out = "".join(f"\nLeft out: {line}." for line in result.left_out)
    return f"{table(lines)}\n{left_out}\n{show_aims(result.aims)}\n"
