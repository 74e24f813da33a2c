"""A daemon with one GPU, and a Celery worker of the services on it: real prefork, four children."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.daemons import ROOT, STEADY, Daemon
from tests.states import until_blocking
from tests.system.commands import one_daemon
from tests.yivideo.services.common.card import ENOUGH

CHILDREN = 4
READY = "ready."


class Services:
    """The services of one host: their application, their notes, and the processes of their worker."""

    def __init__(self, daemon: Daemon, folder: Path, app: Any) -> None:
        self.daemon = daemon
        self.app = app
        self._notes = folder / "notes"
        self._enough = folder / f"notes{ENOUGH}"
        self._log = folder / "worker.log"
        self.worker: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        """All that the worker has said."""
        return self._log.read_text()

    def notes(self, **facts: object) -> list[dict[str, Any]]:
        """The notes with these facts, in the order in which they were written."""
        lines = self._notes.read_text().splitlines() if self._notes.exists() else []
        found = [json.loads(line) for line in lines]
        return [one for one in found if facts.items() <= one.items()]

    def forget(self) -> None:
        """Begin the notes anew."""
        self._notes.unlink(missing_ok=True)
        self._enough.unlink(missing_ok=True)

    def enough(self) -> None:
        """End what computes on the card."""
        self._enough.touch()

    def send(self, task: str, *args: object, **options: object) -> Any:
        """Send a task; its result can be waited for."""
        return self.app.send_task(task, args, **options)

    def done(self, result: Any) -> Any:
        """What became of a task: its return value, or its exception."""
        until_blocking(result.ready, 80)
        return result.result

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Run the worker."""
        command = [sys.executable, "-m", "celery", "-A", "tests.yivideo.services.celery_app", "worker"]
        command += ["--pool", "prefork", "--concurrency", str(CHILDREN), "--loglevel", "INFO"]
        command += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
        with self._log.open("ab") as log:
            worker = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=ROOT, start_new_session=True
            )
        self.worker = worker
        try:
            until_blocking(lambda: READY in self.log or worker.poll() is not None, 60)
            assert worker.poll() is None, self.log
            yield
        finally:
            worker.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.wait(30)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(worker.pid, 9)
            worker.wait()


@contextlib.contextmanager
def services(folder: Path) -> Iterator[Services]:
    """The services on a host with one GPU, whose own store is broker and keeps the results."""
    with contextlib.ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        daemon = stack.enter_context(one_daemon(config=STEADY, simulate=1))
        broker = f"redis+socket://{daemon.store_url.removeprefix('unix://')}?virtual_host=7"
        for name, value in {
            "GPULOCKD_SOCKET": daemon.socket,
            "YIVIDEO_BROKER": broker,
            "YIVIDEO_NOTES": str(folder / "notes"),
        }.items():
            patch.setenv(name, value)
        app = importlib.import_module("tests.yivideo.services.celery_app").app
        made = Services(daemon, folder, app)
        stack.enter_context(made.working())
        yield made
        app.close()
