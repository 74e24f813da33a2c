"""Starts workers, tells them what to do, reads what they did, and ends them whatever happens."""

from __future__ import annotations

import contextlib
import json
import os
import random
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
import redis

from gpulockd.settings import SessionBlock
from tests.pools import QUICK, environment, snapshot
from tests.servers import Server
from tests.states import until_blocking
from tests.system.history import Note, read_notes

ROOT = Path(__file__).parents[2]
WITHIN_S = 60.0

BRISK = SessionBlock(ttl=3.0, keepalive=0.4, rpc_deadline=0.4, margin=0.2, claim_window=0.5)
"""Session times of tests that wait for the end of several sessions (in seconds)."""

SOAK = os.environ.get("GPULOCKD_SOAK") == "1"
"""Whether to run ten times as long."""


class Started:
    """A worker that runs."""

    def __init__(self, crew: Crew, role: str, name: str, arguments: dict[str, Any]) -> None:
        self.name = name
        self.path = crew.folder / f"{name}.jsonl"
        self.stopped = False
        self._offset = 0
        self._notes: list[Note] = []
        self._errors = crew.folder / f"{name}.err"
        command = [*crew.prefix, sys.executable, "-W", "error", "-m", "tests.system.workers", role]
        command += [str(crew.folder), name]
        command += [str(crew.random.randrange(1 << 30)), json.dumps(arguments)]
        with self._errors.open("wb") as errors:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=errors, stderr=errors, cwd=ROOT, env=crew.environment
            )

    def __repr__(self) -> str:
        return f"<Started {self.name} pid={self.process.pid}>"

    def tell(self, *words: str, **wish: Any) -> None:
        """Say a command to a worker that obeys."""
        assert self.process.stdin is not None
        line = " ".join([*words, *([json.dumps(wish)] if wish else [])])
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def ask(self, key: str, **wish: Any) -> float:
        """Let it ask, and return once its request is sent. Returns when (seconds on CLOCK_MONOTONIC)."""
        self.tell("ask", key, **wish)
        return self.wait_for("asked", key).at_s

    def notes(self) -> list[Note]:
        """What it has noted so far."""
        if self.path.exists():
            with self.path.open("rb") as file:
                file.seek(self._offset)
                new = file.read()
            whole = new[: new.rfind(b"\n") + 1]
            self._offset += len(whole)
            self._notes += [msgspec.json.decode(line, type=Note) for line in whole.splitlines()]
        return self._notes

    def find(self, what: str, key: str | None = None) -> Note | None:
        """The latest note of that kind."""
        found = [note for note in self.notes() if note.what == what and key in (None, note.key)]
        return found[-1] if found else None

    def wait_for(self, what: str, key: str | None = None, within_s: float = WITHIN_S) -> Note:
        """The latest note of that kind, as soon as there is one.

        :raises AssertionError: if there is none within `within_s` seconds
        """
        deadline = time.monotonic() + within_s
        while (note := self.find(what, key)) is None:
            late, ended = time.monotonic() > deadline, self.process.poll() is not None
            if late or (ended and self.find(what, key) is None):
                raise AssertionError(f"{self.name}: no {what!r} {key} within {within_s:g} s; {self.last_words()}")
            time.sleep(0.002)
        return note

    def logged(self, words: str) -> bool:
        """Whether it logged these words."""
        return any(note.what == "log" and words in note.text for note in self.notes())

    def last_words(self) -> str:
        """Its latest notes and what it printed, for the message of a failure."""
        told = [f"{note.what} {note.key} {note.text}".strip() for note in self.notes()[-12:]]
        return f"{told} {self._errors.read_text()[-2000:]}"

    def stop(self) -> None:
        """Freeze it (SIGSTOP)."""
        self.process.send_signal(signal.SIGSTOP)
        self.stopped = True

    def resume(self) -> float:
        """Let it run on (SIGCONT). Returns when (seconds on CLOCK_MONOTONIC)."""
        at = time.monotonic()
        self.process.send_signal(signal.SIGCONT)
        self.stopped = False
        return at

    def kill(self) -> float:
        """End it at once (SIGKILL). Returns when (seconds on CLOCK_MONOTONIC)."""
        at = time.monotonic()
        self.process.kill()
        self.process.wait()
        return at

    def finish(self, within_s: float = WITHIN_S) -> None:
        """Wait until it has ended by itself.

        :raises AssertionError: if it did not, or said that something went wrong
        """
        try:
            self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} has not finished in {within_s:g} s: {self.last_words()}") from None
        assert self.process.returncode == 0, self.last_words()

    def dismiss(self) -> None:
        """End its input and wait until it has said goodbye."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.finish()

    def printed(self) -> str:
        """What it printed, which is nothing where all is well."""
        return self._errors.read_text()

    def close(self) -> None:
        """End it, however it is."""
        if self.process.poll() is None:
            self.process.kill()
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()


class Crew:
    """The workers of one test; their seed is printed, and GPULOCKD_SEED repeats it. `prefix` is put before the commands
    of those that are started from now on."""

    prefix: tuple[str, ...] = ()

    def __init__(
        self, folder: Path, url: str, pool: str, session: SessionBlock = QUICK, **more_environment: str
    ) -> None:
        self.folder = folder
        self.environment = dict(os.environ) | environment(url, pool, session) | more_environment
        self.seed = int(os.environ.get("GPULOCKD_SEED") or secrets.randbelow(1 << 30))
        self.random = random.Random(self.seed)
        self.workers: dict[str, Started] = {}
        print(f"REPRO: GPULOCKD_SEED={self.seed}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self.workers.values():
            worker.close()

    def start(self, role: str, *names: str, **arguments: Any) -> list[Started]:
        """Start one worker a name."""
        started = [Started(self, role, name, arguments) for name in names]
        self.workers |= {worker.name: worker for worker in started}
        return started

    def obedient(self, *names: str) -> list[Started]:
        """Start workers that obey, and return once they listen."""
        started = self.start("obey", *names)
        for worker in started:
            worker.wait_for("ready")
        return started

    def notes(self) -> list[Note]:
        """What all have noted, children of workers too, in the order of time."""
        return read_notes(sorted(self.folder.glob("*.jsonl")))


def passed(for_s: float) -> None:
    """Return after `for_s` seconds: for tests in which the time itself is what happens."""
    ends_at = time.perf_counter() + for_s
    while (left_s := ends_at - time.perf_counter()) > 0:
        time.sleep(left_s if left_s > 0.005 else 0.0)


def queued(server: Server, pool: str, count: int) -> None:
    """Return once `count` tickets wait."""
    until_blocking(lambda: snapshot(server, pool).queued == count, WITHIN_S)


def keepalives_heard(server: Server) -> int:
    """How many keepalive threads are connected and have sent a script."""
    with redis.Redis.from_url(server.url) as store:
        return len([c for c in store.client_list() if c["name"] == "gpulockd-keepalive" and "fcall" in c["cmd"]])
