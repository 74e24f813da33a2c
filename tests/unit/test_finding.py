"""Where a program looks for its store, and what it says when nobody is there."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpulockd import places
from gpulockd.cli import http
from gpulockd.client.finding import find_store
from gpulockd.errors import StoreUnavailable

NOBODY = 65534

AS_NOBODY = f"""
import grp, json, os, sys  # the rest of Python may be closed to nobody
from gpulockd import places
from gpulockd.cli import http
from gpulockd.client.finding import find_store
os.environ["GPULOCKD_SOCKET"] = sys.argv[1]
os.setgroups([])
os.setgid({NOBODY})
os.setuid({NOBODY})
said = []
for look in (lambda: http.find().get("/livez"), find_store):
    try:
        look()
        said.append(["found", "", 0])
    except Exception as wrong:
        said.append([str(wrong), getattr(wrong, "hint", ""), getattr(wrong, "code", 0)])
print(json.dumps([*said, [str(places.is_answered(sys.argv[1], sys.argv[1] + "/api.sock")), "", 0]]))
"""


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The runtime folder of a daemon that was killed with its store: its files are left over."""
    folder = Path(tempfile.mkdtemp(prefix="gld-", dir="/tmp"))
    for name in ("GPULOCKD_REDIS_URL", "GPULOCKD_POOL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GPULOCKD_SOCKET", str(folder))
    leave_over(folder)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def both(monkeypatch: pytest.MonkeyPatch, runtime: Path) -> tuple[Path, Path]:
    """The user's folder and the service's, each with what a killed daemon leaves over."""
    folders = runtime / "gpulockd", runtime / "service"
    for folder in folders:
        folder.mkdir()
        leave_over(folder)
    monkeypatch.delenv("GPULOCKD_SOCKET")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    monkeypatch.setattr(places, "SYSTEM_RUNTIME", str(folders[1]))
    return folders


def leave_over(folder: Path) -> None:
    """Leave there what a daemon leaves that is killed with its store."""
    note = {"pool": folder.name, "url": f"unix://{folder / places.STORE_SOCKET}"}
    (folder / places.STORE_NOTE).write_text(json.dumps(note))
    for name in (places.STORE_SOCKET, places.GUARD_SOCKET, places.API_SOCKET):
        listening(folder / name).close()


def as_nobody(folder: Path) -> list[tuple[str, str, int]]:
    """What a command and a program of another user are told (text, hint, exit code), and whether a daemon is there."""
    done = subprocess.run(
        [sys.executable, "-c", AS_NOBODY, str(folder)], capture_output=True, text=True, check=True, timeout=60
    )
    return [(text, hint, code) for text, hint, code in json.loads(done.stdout)]


def listening(path: Path) -> socket.socket:
    """Somebody at a socket who never says a word."""
    path.unlink(missing_ok=True)
    end = socket.socket(socket.AF_UNIX)
    end.bind(str(path))
    end.listen()
    return end


def test_a_left_over_note_of_a_store_that_refuses_is_said_at_once(runtime: Path) -> None:
    """Deadlines spent on a socket that nobody listens on tell a user nothing."""
    with pytest.raises(StoreUnavailable, match=r"does not run.*start `gpulockd serve`"):
        find_store()


def test_the_note_of_a_store_that_runs_on_is_used_while_the_daemon_is_down(runtime: Path) -> None:
    """That is what the note is for."""
    with listening(runtime / places.STORE_SOCKET):
        found = find_store()
    assert (found.url, found.pool) == (f"unix://{runtime / places.STORE_SOCKET}", runtime.name)


def test_a_store_that_refuses_is_waited_for_while_somebody_listens_in_the_daemons_place(runtime: Path) -> None:
    """Systemd holds the guard's socket while daemon and store are started again."""
    with listening(runtime / places.GUARD_SOCKET):
        assert find_store().pool == runtime.name


def test_without_note_and_sockets_nothing_is_known(runtime: Path) -> None:
    """A daemon that has stopped with its store leaves neither."""
    for path in runtime.iterdir():
        path.unlink()
    with pytest.raises(StoreUnavailable, match="no Redis is known here"):
        find_store()


def test_sockets_left_over_hide_no_living_daemon(both: tuple[Path, Path]) -> None:
    """A command that worked beside a program that did not would be two rules where a user knows of one."""
    user, service = both
    with listening(service / places.STORE_SOCKET), listening(service / places.API_SOCKET) as api:
        assert find_store().pool == "service"
        assert http.find().path == str(service / places.API_SOCKET)
        api.close()
        assert find_store().pool == "service", "its store alone is sign enough"
    assert places.find_runtime() == (str(user), str(user / places.API_SOCKET))
    with pytest.raises(StoreUnavailable, match=r"does not run.*remove it") as wrong:
        find_store()
    assert str(user / places.STORE_NOTE) in str(wrong.value)


def test_who_is_in_the_first_folder_is_found_there_by_all(both: tuple[Path, Path]) -> None:
    """While a daemon is started again its programs stay with its store: another daemon would give out GPUs twice."""
    user, service = both
    with listening(service / places.STORE_SOCKET), listening(service / places.API_SOCKET):
        for name in (places.API_SOCKET, places.STORE_SOCKET):
            with listening(user / name):
                assert places.find_runtime() == (str(user), str(user / places.API_SOCKET))
                assert http.find().path == str(user / places.API_SOCKET)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_what_is_closed_to_a_user_is_not_called_absent(runtime: Path) -> None:
    """Starting another daemon would be the wrong cure: the right one is a user, or a group where there is one."""
    runtime.chmod(0o700)
    command, program, answered = as_nobody(runtime)
    assert answered[0] == "True", "nobody can tell, so nobody may go to another daemon"
    assert (command[1], command[2]) == ("ask as root", 4) and "(not permitted)" in command[0]
    assert f"{runtime / places.GUARD_SOCKET} is closed to user {NOBODY}: run as root; " in program[0]
    runtime.chmod(0o755)
    (runtime / places.API_SOCKET).chmod(0o666)
    (runtime / places.GUARD_SOCKET).chmod(0o660)
    assert as_nobody(runtime)[2][0] == "False", "the open door tells that nobody is there"
    (runtime / places.GUARD_SOCKET).chmod(0o666)
    store = runtime / places.STORE_SOCKET
    store.chmod(0o700)
    program = as_nobody(runtime)[1]
    assert f"{store} is closed to user {NOBODY}: run as root; " in program[0]
    assert "install-service" in program[0] and "group" not in program[0]
    os.chown(store, 4242, 4243)
    store.chmod(0o660)
    assert "run as 4242 or as root, or join the group 4243 (usermod -aG 4243 USER" in as_nobody(runtime)[1][0]
