"""Where a program looks for its store, and what it says when nobody is there."""

from __future__ import annotations

import json
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpulockd import places
from gpulockd.client.finding import find_store
from gpulockd.errors import StoreUnavailable


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The runtime folder of a daemon that was killed with its store: its files are left over."""
    folder = Path(tempfile.mkdtemp(prefix="gld-", dir="/tmp"))
    for name in ("GPULOCKD_REDIS_URL", "GPULOCKD_POOL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GPULOCKD_SOCKET", str(folder))
    note = {"pool": "p", "url": f"unix://{folder / places.STORE_SOCKET}"}
    (folder / places.STORE_NOTE).write_text(json.dumps(note))
    for name in (places.STORE_SOCKET, places.GUARD_SOCKET):
        listening(folder / name).close()
    yield folder
    shutil.rmtree(folder)


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
    assert (found.url, found.pool) == (f"unix://{runtime / places.STORE_SOCKET}", "p")


def test_a_store_that_refuses_is_waited_for_while_somebody_listens_in_the_daemons_place(runtime: Path) -> None:
    """Systemd holds the guard's socket while daemon and store are started again."""
    with listening(runtime / places.GUARD_SOCKET):
        assert find_store().pool == "p"


def test_without_note_and_sockets_nothing_is_known(runtime: Path) -> None:
    """A daemon that has stopped with its store leaves neither."""
    for path in runtime.iterdir():
        path.unlink()
    with pytest.raises(StoreUnavailable, match="no Redis is known here"):
        find_store()
