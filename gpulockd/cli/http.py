"""HTTP to the daemon's unix socket with the standard library only, so that a short command answers at once."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from importlib import import_module

from gpulockd import places
from gpulockd.cli import older
from gpulockd.cli.connection import Answer, Connection
from gpulockd.cli.talk import NEGATIVE, NO_DAEMON, NOT_PERMITTED, USAGE, CommandError

TYPE_CHECKING = False  # see gpulockd/__init__.py
if TYPE_CHECKING:
    from typing import Any

ANSWER_DEADLINE_S = 5.0
START_HINT = "start it with 'gpulockd serve' or 'systemctl start gpulockd'"

_CODES = {400: USAGE, 401: NOT_PERMITTED, 403: NOT_PERMITTED, 404: NEGATIVE, 422: USAGE}


_COMMANDS = {
    "GET /api/v1/alerts": "'gpulockd alerts'",
    "GET /api/v1/config/history": "'gpulockd config history'",
    "GET /api/v1/gpus": "'gpulockd status'",
    "GET /api/v1/leases": "'gpulockd status'",
    "GET /api/v1/queue": "'gpulockd queue'",
    "DELETE /api/v1/leases/ID": "'gpulockd release LEASE'",
    "DELETE takes": "'gpulockd release' takes",
}


def spoken(hint: str) -> str:
    """A hint of the HTTP API in the words of the command line."""
    for request, command in _COMMANDS.items():
        hint = hint.replace(request, command)
    return hint


class Refused(CommandError):
    """The daemon answered with a problem (RFC 9457)."""

    def __init__(self, status: int, problem: dict[str, Any]) -> None:
        what = str(problem.get("detail") or problem.get("title") or f"the daemon answered {status}")
        hint = older.cure_of(what) or spoken(str(problem.get("hint") or ""))
        super().__init__(what, hint, _CODES.get(status, NEGATIVE))
        self.status = status
        self.kind = str(problem.get("kind") or "")
        self.problem = problem


class DaemonDown(CommandError):
    """Nobody answers at the socket. `was_there`: somebody had taken the request, and has ended the connection."""

    def __init__(self, path: str, why: str, code: int = NO_DAEMON, *, was_there: bool = False) -> None:
        hint = START_HINT if code == NO_DAEMON else f"ask {places.let_in(path)}"
        super().__init__(f"cannot reach the daemon at {path} ({why})", hint, code)
        self.was_there = was_there


class Stream:
    """An answer that comes line by line."""

    def __init__(self, connection: Connection, answer: Answer) -> None:
        self._connection = connection
        self._answer = answer

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def lines(self) -> Iterator[bytes]:
        """Each line without its end. Ends where the stream ends, also where it is cut off.

        :raises OSError: if the connection breaks or is silent for too long
        """
        while line := self._answer.readline():
            yield line.rstrip(b"\r\n")

    def leave(self, deadline_s: float) -> Iterator[bytes]:
        """Say that nothing more is wanted, and hear what was still under way for at most `deadline_s` a line."""
        try:
            self._connection.wait_at_most(deadline_s)
            self._connection.shut(socket.SHUT_WR)
            yield from self.lines()
        except OSError:
            return

    def hang_up(self) -> None:
        """End it from another thread: who reads it sees its end."""
        self._connection.shut(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


class Daemon:
    """The daemon behind one unix socket."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._connection: Connection | None = None

    def __enter__(self) -> Daemon:
        return self

    def __exit__(self, *_: object) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def get(self, path: str) -> dict[str, Any]:
        """What a GET answers."""
        return self.ask("GET", path)

    def ask(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        """Send one request and return its JSON.

        :raises Refused: if the daemon answers with a problem
        :raises DaemonDown: if it does not answer
        """
        if self._connection is None:
            self._connection = Connection(self.path, ANSWER_DEADLINE_S)
        answer = self._send(self._connection, method, path, body, {})
        try:
            said = json.loads(answer.read() or b"{}")
        except (OSError, ValueError) as cut:
            self._connection.close()
            raise DaemonDown(self.path, f"its answer broke off: {cut}") from cut
        return said if isinstance(said, dict) else {"answer": said}

    def stream(
        self,
        method: str,
        path: str,
        body: object = None,
        headers: dict[str, str] | None = None,
        silence_s: float | None = None,
    ) -> Stream:
        """Send one request whose answer comes line by line; `silence_s` without a byte is an error.

        :raises Refused: if the daemon answers with a problem
        :raises DaemonDown: if it does not answer
        """
        connection = Connection(self.path, silence_s)
        try:
            return Stream(connection, self._send(connection, method, path, body, headers or {}))
        except Refused:
            connection.close()
            raise

    def _send(self, connection: Connection, method: str, path: str, body: object, headers: dict[str, str]) -> Answer:
        if body is not None:
            headers = headers | {"Content-Type": "application/json"}
        try:
            answer = connection.request(method, path, None if body is None else json.dumps(body).encode(), headers)
            if answer.status >= 400:
                raise Refused(answer.status, _problem(answer.read()))
        except PermissionError as refused:
            raise DaemonDown(self.path, "not permitted", NOT_PERMITTED) from refused
        except OSError as away:
            was_there = connection.is_open and isinstance(away, ConnectionError)
            connection.close()
            raise DaemonDown(self.path, _why(away), was_there=was_there) from away
        return answer


def find() -> Daemon:
    """The daemon that GPULOCKD_SOCKET names, else that of the usual folders: `places.find_runtime` says which.

    :raises DaemonDown: if there is none
    """
    found = places.find_runtime()
    path = found[1] if found else places.runtime_candidates()[0][1]
    if not places.is_there(path):
        raise DaemonDown(path, "no such socket")
    return Daemon(path)


def segment(text: str) -> str:
    """A text as one segment of a path."""
    if text.isascii() and text.replace("-", "").replace("_", "").isalnum():
        return text
    quoted: str = import_module("urllib.parse").quote(text, safe="")  # slow to load, and seldom needed
    return quoted


def _problem(body: bytes) -> dict[str, Any]:
    try:
        problem = json.loads(body)
    except ValueError:
        return {}
    return problem if isinstance(problem, dict) else {}


def _why(away: Exception) -> str:
    if isinstance(away, TimeoutError):
        return "no answer"
    return str(getattr(away, "strerror", None) or str(away) or type(away).__name__).lower()
