"""The commands as processes, against a real daemon, and what the ledger says meanwhile."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gpulockd.cli import http
from tests.daemons import Daemon, running_daemon

ROOT = Path(__file__).resolve().parents[2]
ANSWERED_WITHIN_S = 30.0


@contextmanager
def one_daemon(*args: str, **how: Any) -> Iterator[Daemon]:
    """A daemon for tests that are no coroutines."""
    with asyncio.Runner() as runner:
        manager = running_daemon(*args, **how)
        daemon = runner.run(manager.__aenter__())
        try:
            yield daemon
        finally:
            runner.run(manager.__aexit__(None, None, None))


def clean_env(**more: str) -> dict[str, str]:
    """The environment without anything of ours, and `more`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("GPULOCKD_", "GPU_LOCK"))}
    return kept | {"NO_COLOR": "1", "PYTHONPATH": str(ROOT)} | more


def command(*words: str) -> list[str]:
    """The words of a `gpulockd` command."""
    return [sys.executable, "-m", "gpulockd", *words]


def call(daemon: Daemon | None, *words: str, within_s: float = 60.0, **env: str) -> subprocess.CompletedProcess[str]:
    """Run one command to its end."""
    if daemon is not None:
        env = {"GPULOCKD_SOCKET": daemon.socket} | env
    return subprocess.run(
        command(*words),
        env=clean_env(**env),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=within_s,
    )


class Started:
    """A command that runs. Its output goes to files, so that nobody has to read it."""

    def __init__(self, daemon: Daemon, folder: Path, *words: str, **env: str) -> None:
        self.out, self.err = folder / f"out-{id(self)}", folder / f"err-{id(self)}"
        with self.out.open("wb") as out, self.err.open("wb") as err:
            # Whoever runs the tests may ignore SIGHUP, as nohup does.
            self.process = subprocess.Popen(
                ["env", "--default-signal=HUP", *command(*words)],
                env=clean_env(GPULOCKD_SOCKET=daemon.socket, **env),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    @property
    def said(self) -> str:
        """What it has said on stderr so far."""
        return self.err.read_text()

    @property
    def printed(self) -> str:
        """What it has printed so far."""
        return self.out.read_text()

    def wait(self, within_s: float = 30.0) -> int:
        """Its exit code."""
        return self.process.wait(within_s)

    def close(self) -> None:
        """Leave nothing behind."""
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def ask(daemon: Daemon, what: str) -> Any:
    """What GET /api/v1/<what> answers. A machine that stalls keeps the daemon, or its store, from answering in time."""
    deadline = time.monotonic() + ANSWERED_WITHIN_S
    while True:
        try:
            with http.Daemon(daemon.socket) as asked:
                return asked.get(f"/api/v1/{what}")[what]
        except (http.DaemonDown, http.Refused) as away:
            lasting = daemon.process.poll() is not None or (isinstance(away, http.Refused) and away.status != 503)
            if lasting or time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def leases(daemon: Daemon, task: str) -> list[dict[str, Any]]:
    """The leases of that task."""
    return [lease for lease in ask(daemon, "leases") if lease["task"] == task]


def queued(daemon: Daemon, task: str) -> list[dict[str, Any]]:
    """The tickets of that task in the queue."""
    return [ticket for ticket in ask(daemon, "queue") if ticket["task"] == task]


def lives(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def is_followed(daemon: Daemon, pid: int) -> bool:
    """Whether the guard has written down that this process is of a run; from then on its end is heard."""
    record = (daemon.state / f"guard-{daemon.pool}.log").read_text()
    return f"[{pid}," in record


def read_json(path: Path) -> Any:
    """A JSON file."""
    return json.loads(path.read_text())
