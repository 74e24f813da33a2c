"""A guard's word for a lease that no event loop holds: a small thread keeps the connection and says hello again."""

from __future__ import annotations

import socket
import threading
import time
from typing import Any

import msgspec

from gpulockd.client.guarded import LastWord, sockets_of, words_of
from gpulockd.client.session import Session
from gpulockd.client.table import Entry
from gpulockd.clock import boottime_s

CONNECT_S = 1.0
RETRY_S = 0.1
MOST_RETRY_S = 1.0
LONGEST_LINE = 64 * 1024


class Standing:
    """The connection to the guard of one session, for its one entry; from `start` until the process ends."""

    def __init__(self, session: Session, entry: Entry) -> None:
        self._session = session
        self._entry = entry
        self._vouched = False
        self._word = LastWord()
        self._socket: socket.socket | None = None
        self._thread = threading.Thread(target=self._keep, name="gpulockd-guard", daemon=True)

    def start(self) -> None:
        """Begin; the entry is vouched for once the guard has said so."""
        self._entry.guard = self
        self._thread.start()

    def vouches(self, entry: Entry) -> bool:
        """Whether the guard has let this lease in and stands."""
        return self._vouched and boottime_s() - self._word.at_s <= self._session.guard_silence_s

    def leave(self) -> None:
        """Say that the run is over; who does not hear it finds it in the ledger."""
        connection = self._socket
        if connection is not None:
            try:
                connection.sendall(
                    _line(
                        {
                            "verb": "leave",
                            "lease": self._entry.id,
                            "token": self._entry.token,
                            "lost": self._entry.lost.is_set(),
                        }
                    )
                )
            except OSError:
                return

    def _keep(self) -> None:
        pause_s = RETRY_S
        while self._entry.state in ("held", "member") and not self._entry.lost.is_set():
            for path in sockets_of(self._session) if self._session.guarded else ():
                try:
                    self._stand(path)
                    pause_s = RETRY_S
                except OSError:
                    continue
                finally:
                    self._vouched, self._socket = False, None
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, MOST_RETRY_S)

    def _stand(self, path: str) -> None:
        """Say hello and hear until the connection ends."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(CONNECT_S)
            connection.connect(path)
            self._word.asked()
            connection.sendall(_line(self._hello()))
            lines = connection.makefile("rb")
            self._hear(lines.readline(LONGEST_LINE))
            connection.settimeout(None)
            self._socket = connection
            while line := lines.readline(LONGEST_LINE):
                self._hear(line)

    def _hello(self) -> dict[str, Any]:
        entry = self._entry
        held = words_of(entry, entry.token, tuple(gpu.key for gpu in entry.gpus))
        return {"verb": "hello", "session": self._session.id, "as_of": entry.token, "held": [held], "known": []}

    def _hear(self, line: bytes) -> None:
        try:
            said = msgspec.json.decode(line)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return
        if not isinstance(said, dict):
            return
        self._word.heard(said)
        if said.get("pool") == self._session.pool:
            self._vouched = self._entry.id in (said.get("admitted") or ())
        elif said.get("lost") == self._entry.id and said.get("token") in (None, self._entry.token):
            self._entry.lose(str(said.get("reason", "ended")))


def _line(words: dict[str, Any]) -> bytes:
    return msgspec.json.encode(words) + b"\n"
