"""A team's Celery set-up for tests: a broker, a daemon with simulated cards, and workers of every kind.

Its law: no worker and no child of it outlives its block.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from gpulockd.ledger import answers as a
from gpulockd.ledger import verbs
from gpulockd.ledger.keys import PoolKeys
from gpulockd.ledger.store import BlockingStore
from gpulockd.model import Snapshot
from tests.daemons import READY_WITHIN_S, ROOT, end, start_daemon
from tests.servers import Server
from tests.states import until_blocking

TERMS = {"session": {"ttl": 6.0, "keepalive": 1.0, "rpc_deadline": 1.0, "margin": 0.5, "claim_window": 1.0}}
RESULT_WITHIN_S = 60.0


@dataclass
class Worker:
    """A running Celery worker: the process that was started, and those that it starts."""

    process: subprocess.Popen[bytes]
    queue: str
    log_path: Path

    @property
    def log(self) -> str:
        """All that it has said."""
        return self.log_path.read_text()

    def signal(self, number: int) -> None:
        """Send a signal to the worker itself, not to its children."""
        self.process.send_signal(number)

    def ended(self) -> int:
        """Wait for the worker's end and return its exit code."""
        return self.process.wait(RESULT_WITHIN_S)


@dataclass
class Shop:
    """Broker, daemon, and what the tasks have noted."""

    folder: Path
    broker: Server
    pool: str
    app: Any
    tasks: Any
    env: dict[str, str]
    made: int = 0
    gates: list[Path] = field(default_factory=list)
    sent: list[Any] = field(default_factory=list)

    # What has happened

    def notes(self, name: str = "", what: str = "") -> list[dict[str, Any]]:
        """What the tasks have noted, oldest first, of that name and kind."""
        text = (self.folder / "notes").read_text()
        found = [json.loads(line) for line in text.splitlines()]
        return [note for note in found if name in ("", note.get("name")) and what in ("", note["what"])]

    def noted(self, name: str, what: str = "enter", times: int = 1) -> dict[str, Any]:
        """Wait until a task has noted that, and return the note."""
        until_blocking(lambda: len(self.notes(name, what)) >= times, RESULT_WITHIN_S)
        return self.notes(name, what)[times - 1]

    def snapshot(self) -> Snapshot:
        """All of the pool now."""
        store = BlockingStore(self.env["STORE"], deadline_s=5)
        answer = store.ask(verbs.snapshot(PoolKeys(self.pool)))
        store.close()
        assert isinstance(answer, a.Pictured), answer
        return answer.snapshot

    def until(self, holds: Callable[[Snapshot], object]) -> Snapshot:
        """Wait until that is so of the pool."""
        seen: list[Snapshot] = []

        def stands() -> object:
            seen.append(self.snapshot())
            return holds(seen[-1])

        until_blocking(stands, RESULT_WITHIN_S)
        return seen[-1]

    def until_quiet(self) -> None:
        """Wait until nobody holds and nobody waits."""
        self.until(lambda pool: not pool.leases and not pool.queue)

    def command(self, *words: str) -> str:
        """What a command says."""
        command = [sys.executable, "-m", "gpulockd", *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=RESULT_WITHIN_S, cwd=ROOT, env=self.env)
        assert done.returncode == 0, done.stderr
        return done.stdout

    # What is done

    def name(self) -> str:
        """A name that no other task has."""
        self.made += 1
        return f"n{self.made}"

    def gate(self) -> Path:
        """A file that is not there yet: tasks that are given it hold their card until it is."""
        self.made += 1
        self.gates.append(self.folder / f"gate{self.made}")
        return self.gates[-1]

    def open_gates(self) -> None:
        """Let every task leave its card."""
        for gate in self.gates:
            gate.touch()

    def send(self, worker: Worker | str, task: str, *args: Any, **how: Any) -> Any:
        """Send a task to that worker, and return its result to come."""
        queue = worker if isinstance(worker, str) else worker.queue
        self.sent.append(getattr(self.tasks, task).apply_async([str(arg) for arg in args], queue=queue, **how))
        return self.sent[-1]

    def get(self, result: Any) -> Any:
        """Wait for a task's result."""
        return result.get(timeout=RESULT_WITHIN_S, interval=0.02)

    @contextlib.contextmanager
    def worker(self, *words: str, pool: str = "prefork", queue: str = "", **env: str) -> Iterator[Worker]:
        """Start a worker and wait until it is ready; end it and all that it started afterwards."""
        self.made += 1
        queue = queue or f"q{self.made}"
        log_path = self.folder / f"worker{self.made}.log"
        command = [
            sys.executable,
            "-m",
            "celery",
            "-A",
            "tests.system.celery_app",
            "worker",
            "--pool",
            pool,
            "-Q",
            queue,
        ]
        command += ["-n", f"w{self.made}@test", "--without-gossip", "--without-mingle", "-l", "INFO", *words]
        with log_path.open("ab") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=ROOT, env=self.env | env
            )
        worker, family = Worker(process, queue, log_path), psutil.Process(process.pid)
        known: list[psutil.Process] = []
        try:
            until_blocking(lambda: " ready." in worker.log or process.poll() is not None, RESULT_WITHIN_S)
            assert process.poll() is None, worker.log
            known = family.children(recursive=True)
            yield worker
        finally:
            with contextlib.suppress(psutil.NoSuchProcess):
                known += family.children(recursive=True)
            for one in [family, *known]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()
            process.wait()

    def overlaps(self, *names: str) -> list[tuple[str, str]]:
        """Pairs of these tasks that were on one card at one time, by what they noted themselves."""
        inside: dict[str, str] = {}
        found = []
        for one in (note for note in self.notes() if note.get("name") in names):
            if one["what"] == "enter" and "gpu" in one:
                if one["gpu"] in inside:
                    found.append((inside[one["gpu"]], one["name"]))
                inside[one["gpu"]] = one["name"]
            elif one["what"] == "leave" and inside.get(one["gpu"]) == one["name"]:
                del inside[one["gpu"]]
        return found


@contextlib.contextmanager
def open_shop(broker: Server) -> Iterator[Shop]:
    """Start a daemon with two simulated cards, and load the application as one that sends tasks does."""
    folder = Path(tempfile.mkdtemp(prefix="gld-", dir="/tmp"))
    process = start_daemon(folder, config=TERMS)
    try:
        assert process.stdout is not None
        assert select.select([process.stdout], [], [], READY_WITHIN_S)[0], (folder / "daemon.log").read_text()
        pool = process.stdout.readline().decode().split("pool ")[1].split(",")[0]
        (folder / "notes").touch()
        env = {name: value for name, value in os.environ.items() if not name.startswith(("GPULOCKD_", "GPU_LOCK_"))}
        env |= {
            "CELERY_BROKER": f"redis+socket://{broker.socket_path}",
            "CELERY_NOTES": str(folder / "notes"),
            "GPULOCKD_SOCKET": str(folder / "run/api.sock"),
            "STORE": f"unix://{folder / 'run/store.sock'}",
        }
        os.environ["CELERY_BROKER"] = env["CELERY_BROKER"]
        tasks = importlib.import_module("tests.system.celery_app")
        shop = Shop(folder, broker, pool, tasks.app, tasks, env)
        yield shop
        for result in shop.sent:
            result.forget()  # or Celery asks the broker for it when that has ended
        shop.sent.clear()
    finally:
        os.environ.pop("CELERY_BROKER", None)
        end(process)
        _end_store(folder)
        shutil.rmtree(folder, ignore_errors=True)


def _end_store(folder: Path) -> None:
    """The private store outlives its daemon."""
    for one in psutil.process_iter(["cmdline"]):
        if any(str(folder) in word for word in one.info["cmdline"] or ()):
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
