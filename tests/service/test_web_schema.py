"""The whole OpenAPI document against a real daemon, by schemathesis with all its checks, over TCP and the unix socket.

`GPULOCKD_SCHEMA_SECONDS` says how long (8 for each transport if not said), `GPULOCKD_SCHEMA_SEED` repeats a run.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import os
import random
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

import hypothesis
import pytest
import requests
import schemathesis
from requests.adapters import BaseAdapter
from schemathesis import Case
from schemathesis.config import SchemathesisConfig

from gpulockd import __version__
from gpulockd.web.openapi import document
from gpulockd.web.routes import ROWS
from tests.daemons import STEADY, Daemon
from tests.system.commands import one_daemon

BUDGET_S = float(os.environ.get("GPULOCKD_SCHEMA_SECONDS", "8"))
SEED = int(os.environ.get("GPULOCKD_SCHEMA_SEED") or random.randrange(2**32))
EXAMPLES = max(5, round(BUDGET_S / 2))
STREAM_FOR_S = 0.15

# What is said is well formed and yet cannot be: a GPU that is not there, a time in no unit, a revision that is stale.
MEANINGLESS = ["2xx", "404", "408", "409", "410", "422", "503"]
CONFIG = {"checks": {"positive_data_acceptance": {"expected-statuses": MEANINGLESS}}}


class Unix(http.client.HTTPConnection):
    """A connection to a unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=60)
        self.path = path

    def connect(self) -> None:
        """Connect to it."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(60)
        self.sock.connect(self.path)


class Reading(BaseAdapter):
    """Sends what schemathesis has made, and reads an answer that goes on for a moment only."""

    def __init__(self, daemon: Daemon, *, unix: bool) -> None:
        super().__init__()
        self.daemon = daemon
        self.unix = unix

    def send(self, request: requests.PreparedRequest, *_: Any, **__: Any) -> requests.Response:
        """Send it on a connection of its own."""
        connection: http.client.HTTPConnection
        connection = Unix(self.daemon.socket) if self.unix else http.client.HTTPConnection(*self._address(), timeout=60)
        connection.connect()
        door: socket.socket = connection.sock
        headers: dict[str, Any] = {name: value for name, value in request.headers.items() if value is not None}
        headers = {"Host": f"127.0.0.1:{self.daemon.port}"} | headers
        try:
            connection.putrequest(str(request.method), request.path_url, skip_host=True, skip_accept_encoding=True)
            for name, value in headers.items():
                connection.putheader(name, value)
            body: Any = request.body
            connection.endheaders(body.encode() if isinstance(body, str) else body)
            answer = connection.getresponse()
            body = self._body(answer, door)
        finally:
            door.close()
            connection.close()
        return _response(request, answer, body)

    def close(self) -> None:
        """Nothing is kept open."""

    def _address(self) -> tuple[str, int]:
        return "127.0.0.1", self.daemon.port

    @staticmethod
    def _body(answer: http.client.HTTPResponse, door: socket.socket) -> bytes:
        if answer.getheader("content-length") is not None:
            return answer.read()
        body, until_s = b"", time.monotonic() + STREAM_FOR_S
        with contextlib.suppress(TimeoutError):
            while (remaining_s := until_s - time.monotonic()) > 0:
                door.settimeout(remaining_s)
                part = answer.read1(65536)
                if not part:
                    break
                body += part
        return body


def _response(request: requests.PreparedRequest, answer: http.client.HTTPResponse, body: bytes) -> requests.Response:
    from urllib3 import HTTPHeaderDict, HTTPResponse

    made = requests.Response()
    made.status_code, made.reason, made.url, made.request = answer.status, answer.reason, str(request.url), request
    made.headers.update(answer.headers.items())
    made._content = body
    headers = HTTPHeaderDict(answer.headers.items())
    made.raw = HTTPResponse(io.BytesIO(body), headers=headers, status=answer.status, preload_content=False)
    return made


class Budget:
    """So long may one transport take (in seconds), in equal shares for what comes; what is left over goes on."""

    def __init__(self, operations: int) -> None:
        self.left, self.of_one_s, self.until_s, self.calls = operations, 0.0, 0.0, 0
        self.total_s = BUDGET_S

    def begin(self) -> None:
        """The next operation begins."""
        self.of_one_s = self.total_s / max(1, self.left)
        self.left -= 1
        self.until_s = time.monotonic() + self.of_one_s

    def end(self) -> None:
        """It has ended."""
        self.total_s -= min(self.total_s, self.of_one_s - max(0.0, self.until_s - time.monotonic()))

    @property
    def is_spent(self) -> bool:
        """Whether this operation has had its share."""
        return time.monotonic() > self.until_s


BUDGETS: dict[bool, Budget] = {}


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    """A daemon in which leases of a cut connection end soon."""
    settings = STEADY | {"settle": {"timeout": 1.0, "grace": 0.2}, "gpu_lock": {"max_wait_time": 1}}
    with one_daemon(config=settings, simulate=4) as made:
        yield made
    for sleeper in SLEEPERS:
        sleeper.kill()
        sleeper.wait()


def _schema(*, unix: bool) -> Any:
    found = document(ROWS, __version__, needs_token=not unix)
    return schemathesis.openapi.from_dict(found, config=SchemathesisConfig.from_dict(CONFIG))


SLEEPERS: list[subprocess.Popen[bytes]] = []
"""The processes for which leases are held; what is wrong with such a lease ends its process."""


def _spare_others(body: Any) -> None:
    """Let a lease that is asked for a process be for one of ours: any number may be that of a process of this host."""
    if isinstance(body, dict) and isinstance(body.get("pid"), int):
        if not SLEEPERS or SLEEPERS[-1].poll() is not None:
            SLEEPERS.append(subprocess.Popen(["sleep", "600"]))
        body["pid"] = SLEEPERS[-1].pid


def _check(case: Case[Any], daemon: Daemon, headers: Mapping[str, str], *, unix: bool) -> None:
    """Send the case and look at its answer with every check."""
    budget = BUDGETS[unix]
    if budget.is_spent:
        return
    budget.calls += 1
    _spare_others(case.body)
    session = requests.Session()
    session.mount("http://", Reading(daemon, unix=unix))
    base = f"http://127.0.0.1:{daemon.port}"
    assert urlsplit(base).port
    case.call_and_validate(base_url=base, session=session, headers=dict(headers))


@pytest.fixture(autouse=True)
def _share(request: pytest.FixtureRequest) -> Iterator[None]:
    unix = "unix" in request.node.name
    budget = BUDGETS.setdefault(unix, Budget(len(ROWS)))
    budget.begin()
    yield
    budget.end()


few = hypothesis.settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=False,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)


@hypothesis.seed(SEED)
@_schema(unix=False).parametrize()  # type: ignore[untyped-decorator] # it is Any
@few
def test_what_the_document_says_is_so_over_tcp(case: Case[Any], daemon: Daemon) -> None:
    """Clients are made from it, and whoever reads it believes it. With the token, as the document says."""
    _check(case, daemon, {"Authorization": f"Bearer {daemon.token}"}, unix=False)


@hypothesis.seed(SEED)
@_schema(unix=True).parametrize()  # type: ignore[untyped-decorator] # it is Any
@few
def test_what_the_document_says_is_so_over_the_unix_socket(case: Case[Any], daemon: Daemon) -> None:
    """The command line speaks there; no token is needed."""
    _check(case, daemon, {}, unix=True)


def test_the_daemon_has_survived_it(daemon: Daemon) -> None:
    """Its log has no failure of its own."""
    print(f"seed {SEED}: {', '.join(f'{budget.calls} calls' for budget in BUDGETS.values())}")
    assert daemon.process.poll() is None
    assert '"web.failed"' not in daemon.log
