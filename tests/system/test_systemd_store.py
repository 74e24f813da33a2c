"""The private store as a unit of its own: what `gpulockd store` leaves to the daemon that adopts it."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from gpulockd.daemon import storesocket, storeunit
from gpulockd.daemon.embedded import EmbeddedStore
from gpulockd.daemon.folders import Folders, prepare, resolve
from gpulockd.daemon.server import ServerLog, find_binary
from gpulockd.daemon.storesocket import StoreSocket
from gpulockd.daemon.storeunit import judge, next_start, unit_of
from gpulockd.errors import StoreUnavailable
from tests.servers import redis70_binary, valkey_binary
from tests.states import until

ROOT = Path(__file__).resolve().parent.parent.parent


@dataclass
class Unit:
    """What systemd would do: start `gpulockd store`, and judge it."""

    folders: Folders
    binary: str
    process: subprocess.Popen[bytes] | None = None
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self) -> subprocess.Popen[bytes]:
        """Start the server, and do not wait for it."""
        config = Path(self.folders.state, "config.yml")
        config.write_text(f"redis: {{server_binary: {self.binary}}}\n")
        command = [sys.executable, "-m", "gpulockd", "store", "--config", str(config)]
        command += ["--socket", self.folders.api_socket, "--state-dir", self.folders.state]
        self.process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL)
        self.started.append(self.process)
        return self.process

    async def run(self) -> bool:
        """Start it, wait until it answers, and return whether it is complete."""
        return await judge(self.folders, self.start().pid)

    def kill(self) -> None:
        """End it as a crash would."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()


@pytest.fixture(params=["valkey", "redis70"])
def unit(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Unit]:
    """The unit in folders of its own, with each of the two servers."""
    monkeypatch.setattr(storesocket, "READY_DEADLINE_S", 60.0)  # a slow machine needs its time to start Python
    binary = valkey_binary() if request.param == "valkey" else redis70_binary()
    if binary is None:
        pytest.skip(f"no {request.param} server")
    with tempfile.TemporaryDirectory(prefix="gld-") as base:
        folders = resolve(f"{base}/run/api.sock", f"{base}/state", environ={})
        prepare(folders)
        made = Unit(folders, find_binary(binary))
        yield made
        for process in made.started:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
            process.wait()


def _adopter(unit: Unit) -> EmbeddedStore:
    named = unit_of(unit.folders, {storeunit.VARIABLE: "gpulockd-store.service"})
    return EmbeddedStore(unit.folders, "t", binary=unit.binary, unit=named)


async def test_the_first_daemon_of_a_new_store_is_told_that_nobody_has_used_it(unit: Unit) -> None:
    """Only then may it open the pool at once; the next daemon finds the books that the first one made."""
    assert await unit.run() is True
    first, second = _adopter(unit), _adopter(unit)
    assert (await first.start(), first.adopted, first.fresh) == (True, True, True)
    assert (await second.start(), second.adopted, second.fresh) == (True, True, False)
    assert unit.process is not None and first.pid == unit.process.pid
    first.close()
    second.close()
    assert unit.process.poll() is None


async def test_a_killed_store_has_lost_nothing_but_is_not_new(unit: Unit) -> None:
    """Every answered write is in the file, and its locks with it."""
    await unit.run()
    await StoreSocket(unit.folders.store_socket).ask("SET", "here", "1")
    unit.kill()
    assert await unit.run() is True
    assert await StoreSocket(unit.folders.store_socket).ask("GET", "here") == b"1"
    daemon = _adopter(unit)
    assert (await daemon.start(), daemon.fresh) == (True, False)
    daemon.close()


async def test_a_torn_file_is_loaded_by_the_second_start_and_called_lossy(unit: Unit) -> None:
    """A server that starts with less than it had answered must not let the pool open at once."""
    await unit.run()
    await StoreSocket(unit.folders.store_socket).ask("SET", "here", "1" * 100)
    unit.kill()
    grown = next(Path(unit.folders.store_folder, "appendonlydir").glob("*.incr.aof"))
    grown.write_bytes(grown.read_bytes()[:-5])
    refused = unit.start()
    await until(lambda: refused.poll() is not None)
    with pytest.raises(StoreUnavailable, match="ended while it started"):
        await judge(unit.folders, refused.pid)
    assert await unit.run() is False
    daemon = _adopter(unit)
    assert (await daemon.start(), daemon.fresh) == (False, False)
    daemon.close()


async def test_a_start_that_served_somebody_counts_as_used_however_it_ended(unit: Unit) -> None:
    """The judge may have been killed with the server; what was there before that start is then no longer the truth."""
    unit.start()
    await until(lambda: b"ready to accept" in ServerLog(f"{unit.folders.state}/store.log").said().lower())
    unit.kill()
    start = next_start(unit.folders, torn=False)
    assert start.whole and start.before.used_boot == start.before.boot


async def test_the_daemon_never_starts_a_store_that_is_a_unit(unit: Unit, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would end with the daemon's own unit, and the one that systemd starts would find the folder taken."""
    with monkeypatch.context() as impatient:
        impatient.setattr(storeunit, "READY_DEADLINE_S", 0.3)
        with pytest.raises(StoreUnavailable, match=r"systemctl status gpulockd-store\.service"):
            await _adopter(unit).start()
    assert await unit.run() is True


async def test_a_second_server_for_the_same_folder_is_refused(unit: Unit) -> None:
    """Two servers would write one file."""
    await unit.run()
    first = unit.process
    assert first is not None
    second = unit.start()
    await until(lambda: second.poll() is not None)
    assert second.returncode == 1 and first.poll() is None
