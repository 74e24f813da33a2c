"""The own connections to one server: whose reply is whose, what ends a connection, and how a server is greeted."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import FrameType

import pytest
import redis

from gpulockd.errors import ConfigError, GpuLockError, StoreUnavailable
from gpulockd.ledger.store import Store
from gpulockd.ledger.subscription import Subscription
from gpulockd.ledger.wire.commands import WireCommands
from gpulockd.ledger.wire.trouble import Broken, Late, Refused
from tests.proxies import proxied
from tests.servers import NOT_PERSISTENT, Server, redis70_binary
from tests.states import until

DEADLINE_S = 1.5
"""Of commands of which one is to be late, and the others are not, on a machine that stands still for a second."""


@contextlib.asynccontextmanager
async def commands(url: str, deadline_s: float = 20.0) -> AsyncIterator[WireCommands]:
    """Commands to one server, closed at the end of the block."""
    opened = WireCommands(url, deadline_s=deadline_s, name="test-wire")
    try:
        yield opened
    finally:
        await opened.aclose()


def clients(server: Server, name: str) -> list[dict[str, str]]:
    """The connections of that name, as the server sees them."""
    with redis.Redis.from_url(server.url) as raw:
        return [row for row in raw.client_list() if row["name"] == name]


@contextlib.contextmanager
def user(server: Server, *rules: str) -> Iterator[None]:
    """Let the server know a user for the time of a block."""
    with redis.Redis.from_url(server.url) as raw:
        raw.execute_command("ACL", "SETUSER", "wirer", "reset", "on", ">se cret", *rules)
        try:
            yield
        finally:
            raw.execute_command("ACL", "DELUSER", "wirer")


async def test_each_of_many_tasks_gets_its_own_reply(server: Server) -> None:
    """All tasks of a loop share one connection; a reply that goes astray would grant one task another's lease."""
    async with commands(server.url) as wired:
        said = await asyncio.gather(*(wired.run(("ECHO", f"{n}" * (1 + 97 * (n % 50)))) for n in range(500)))
        assert said == [(f"{n}" * (1 + 97 * (n % 50))).encode() for n in range(500)]
        assert len(clients(server, "test-wire")) == 1


async def test_a_word_that_cannot_be_sent_takes_no_place_in_the_line(server: Server) -> None:
    """A reply for a command that was never sent would give each later command the reply of the one before."""
    async with commands(server.url) as wired:
        await wired.run(("PING",))
        with pytest.raises(UnicodeEncodeError):
            await wired.run(("ECHO", "caf\udce9.wav"))
        said = await asyncio.gather(*(wired.run(("ECHO", str(n))) for n in range(3)))
        assert said == [b"0", b"1", b"2"]


@pytest.mark.parametrize("raises", ["sending", "reading"])
async def test_an_error_in_the_middle_of_a_command_ends_the_connection(server: Server, raises: str) -> None:
    """A signal handler may raise anywhere; afterwards nobody knows whose the next reply is."""
    async with commands(server.url) as wired:
        await wired.run(("PING",))
        wire = wired._wire
        assert wire is not None
        first = asyncio.ensure_future(wired.run(("ECHO", "first")))
        await asyncio.sleep(0)

        def interrupt(frame: FrameType, event: str, _: object) -> None:
            if event == "call" and frame.f_code.co_name == ("write" if raises == "sending" else "_take"):
                sys.setprofile(None)
                raise InterruptedError("a signal handler raised here")

        sys.setprofile(interrupt)
        try:
            if raises == "sending":
                with pytest.raises(InterruptedError):
                    wired.begin(("ECHO", "torn"))
            with pytest.raises(Broken):
                await first
        finally:
            sys.setprofile(None)
        said = await asyncio.gather(*(wired.run(("ECHO", str(n))) for n in range(3)))
        assert said == [b"0", b"1", b"2"] and wired._wire is not wire


async def test_a_cancelled_command_takes_its_reply_with_it(server: Server) -> None:
    """The reply still comes, and must not be taken for the next command's."""
    async with commands(server.url) as wired:
        await wired.run(("PING",))
        first = asyncio.ensure_future(wired.run(("ECHO", "first")))
        second = asyncio.ensure_future(wired.run(("ECHO", "second")))
        await asyncio.sleep(0)
        first.cancel()
        assert await second == b"second"
        assert await wired.run(("ECHO", "third")) == b"third"
        assert first.cancelled()


async def test_a_late_command_ends_the_connection_and_all_that_wait_on_it(server: Server) -> None:
    """After a missed deadline nobody knows whose the next reply is, so none may be read."""
    async with commands(server.url, DEADLINE_S) as wired:
        await wired.run(("PING",))
        server.pause()
        said = await asyncio.gather(*(wired.run(("ECHO", str(n))) for n in range(3)), return_exceptions=True)
        assert [type(one) for one in said] == [Late, Late, Late]
        server.resume()
        assert await wired.run(("ECHO", "again")) == b"again"


async def test_connecting_counts_against_the_deadline(server: Server) -> None:
    """A server that accepts and says nothing, as a frozen one does, must not hold the caller for ever."""
    server.pause()
    async with commands(server.url, DEADLINE_S) as wired:
        with pytest.raises(Late):
            await wired.run(("PING",))
        server.resume()
        assert await wired.run(("PING",)) == b"PONG"


async def test_a_reply_that_trickles_in_is_late_too(server: Server) -> None:
    """Single bytes are no answer: the deadline is the command's, not the socket's."""
    async with proxied(server) as proxy, commands(proxy.url, DEADLINE_S) as wired:
        await wired.run(("PING",))
        proxy.trickle_s = 0.2
        with pytest.raises(Late):
            await wired.run(("ECHO", "a long reply"))


async def test_a_broken_connection_fails_what_is_under_way_and_the_next_command_opens_another(server: Server) -> None:
    """The transport repeats nothing: whether the server ran it is for the caller's ids to settle."""
    async with proxied(server) as proxy, commands(proxy.url) as wired:
        await wired.run(("PING",))
        waiting = asyncio.ensure_future(wired.run(("BLPOP", "test-wire-nothing", "30")))
        await until(lambda: any(row["cmd"] == "blpop" for row in clients(server, "test-wire")))
        proxy.cut()
        with pytest.raises(Broken):
            await waiting
        assert await wired.run(("PING",)) == b"PONG"


async def test_closing_frees_the_socket_and_the_next_command_opens_it_again(server: Server) -> None:
    """A line that could not be opened is closed and tried again by the next caller."""
    async with commands(server.url) as wired:
        await wired.run(("PING",))
        (descriptor,) = wired.descriptors()
        os.fstat(descriptor)
        await wired.aclose()
        assert wired.descriptors() == []
        await until(lambda: not clients(server, "test-wire"))
        assert await wired.run(("PING",)) == b"PONG"


async def test_an_error_of_the_server_is_the_commands_own(server: Server) -> None:
    """The connection stays good after a refusal, and the others' replies stay theirs."""
    async with commands(server.url) as wired:
        said = await asyncio.gather(wired.run(("NOSUCH",)), wired.run(("ECHO", "x")), return_exceptions=True)
        assert isinstance(said[0], Refused)
        assert said[0].code == "ERR"
        assert said[1] == b"x"


async def test_user_password_and_database_of_the_url_are_used(server: Server) -> None:
    """Percent-encoded, as every URL: a space in a password is no reason to be refused."""
    with user(server, "+@all", "~*", "&*"):
        async with commands(f"unix://wirer:se%20cret@{server.socket_path}?db=3") as wired:
            assert await wired.run(("ACL", "WHOAMI")) == b"wirer"
            assert b" db=3 " in await wired.run(("CLIENT", "INFO"))


async def test_a_wrong_password_is_an_error_of_the_configuration(server: Server) -> None:
    """Trying again would not help, so it is not called unavailable; and the secret is not printed."""
    with user(server, "+@all"):
        store = Store(f"unix://wirer:wrong@{server.socket_path}", deadline_s=5)
        with pytest.raises(ConfigError, match=r"refused.*check user, password") as refused:
            await store.check()
        assert "wirer:wrong" not in str(refused.value)
        await store.aclose()


async def test_a_command_that_an_acl_forbids_says_so(server: Server) -> None:
    """`NOPERM` names a missing permission; waiting for the server would hide it."""
    with user(server, "+@all", "-smembers", "~*"):
        store = Store(f"unix://wirer:se%20cret@{server.socket_path}", deadline_s=5)
        with pytest.raises(ConfigError, match=r"NOPERM|permission"):
            await store.pools()
        await store.aclose()


async def test_a_database_that_does_not_exist_is_said(server: Server) -> None:
    """A typo in the URL fails at the first command, with the server's own words."""
    store = Store(f"{server.url}?db=4000", deadline_s=5)
    with pytest.raises(GpuLockError, match="DB index"):
        await store.check()
    await store.aclose()


async def test_nobody_at_the_address_is_unavailable(tmp_path: Path) -> None:
    """The message asks the right question."""
    store = Store(f"unix://{tmp_path}/nobody.sock", deadline_s=5)
    with pytest.raises(StoreUnavailable, match="is it running"):
        await store.check()
    await store.aclose()


async def test_messages_before_anybody_listens_are_kept_and_a_cancelled_wait_loses_none(server: Server) -> None:
    """The doorbell may ring between the subscription and the first look."""
    ear = await Subscription.open(server.url, ("test-a", "test-b"), deadline_s=20)
    with redis.Redis.from_url(server.url) as raw:
        raw.publish("test-a", "1")
        raw.publish("test-b", "2")
        assert await ear.next() == b"1"
        assert await ear.next() == b"2"
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await ear.next()
        raw.publish("test-b", "3")
        heard: list[bytes] = []
        hearing = asyncio.ensure_future(ear.hear(heard.append))
        await until(lambda: heard == [b"3"])
        raw.publish("test-a", "4")
        await until(lambda: heard == [b"3", b"4"])
        hearing.cancel()
        await asyncio.wait((hearing,))
    await ear.aclose()


async def test_a_broken_subscription_raises_and_stays_broken(server: Server) -> None:
    """It must not come back in silence: what was said meanwhile would be lost."""
    async with proxied(server) as proxy:
        ear = await Subscription.open(proxy.url, ("test-a",), deadline_s=20)
        hearing = asyncio.ensure_future(ear.next())
        await asyncio.sleep(0.05)
        proxy.cut()
        with pytest.raises(StoreUnavailable):
            await hearing
        with pytest.raises(StoreUnavailable):
            await ear.next()
        await ear.aclose()


async def test_a_subscription_that_is_never_confirmed_is_given_up(server: Server) -> None:
    """A frozen server accepts connections."""
    server.pause()
    with pytest.raises(StoreUnavailable, match="in time"):
        await Subscription.open(server.url, ("test-a",), deadline_s=DEADLINE_S)


def test_it_runs_under_uvloop(server: Server) -> None:
    """The package `gpulockd[fast]` brings it; its transports are not asyncio's."""
    uvloop = pytest.importorskip("uvloop")

    async def speak() -> None:
        ear = await Subscription.open(server.url, ("test-uv",), deadline_s=20)
        async with commands(server.url, DEADLINE_S) as wired:
            said = await asyncio.gather(*(wired.run(("ECHO", f"{n}" * 9000)) for n in range(20)))
            assert said == [(f"{n}" * 9000).encode() for n in range(20)]
            assert len(wired.descriptors()) == len(ear.descriptors()) == 1
            await wired.run(("PUBLISH", "test-uv", "news"))
            assert await ear.next() == b"news"
            server.pause()
            with pytest.raises(Late):
                await wired.run(("PING",))
            server.resume()
            assert await wired.run(("PING",)) == b"PONG"
        await ear.aclose()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(speak())


def _free_port() -> int:
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        return int(door.getsockname()[1])


def _tls_server(stack: contextlib.ExitStack, binary: str, *args: str) -> tuple[Server, int]:
    """A server with TLS on a free port; another program may take that before it does."""
    for _ in range(5):
        port = _free_port()
        with contextlib.suppress(RuntimeError):
            server = Server(binary, args=(*NOT_PERSISTENT, "--tls-port", str(port), *args))
            return stack.enter_context(server), port
    pytest.fail("no port stays free")


@pytest.fixture(scope="module")
def tls_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, int, Path]]:
    """A server that speaks TLS on a port, and the certificate that it shows."""
    binary, openssl = redis70_binary(), shutil.which("openssl")
    if binary is None or openssl is None:
        pytest.skip("needs /usr/bin/redis-server and openssl")
    folder = tmp_path_factory.mktemp("tls")
    key, cert = folder / "key.pem", folder / "cert.pem"
    words = ("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost")
    subprocess.run(
        [openssl, *words, "-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(cert)],
        check=True,
        capture_output=True,
    )
    tls = ("--tls-cert-file", str(cert), "--tls-key-file", str(key), "--tls-ca-cert-file", str(cert))
    with contextlib.ExitStack() as stack:
        server, port = _tls_server(stack, binary, *tls, "--tls-auth-clients", "no")
        yield server, port, cert


async def test_rediss_speaks_tls_and_checks_the_certificate(tls_server: tuple[Server, int, Path]) -> None:
    """The options of redis-py's URLs mean what they mean there."""
    _, port, cert = tls_server
    async with commands(f"rediss://localhost:{port}/0?ssl_ca_certs={cert}&ssl_check_hostname=true") as wired:
        assert await wired.run(("ECHO", "x" * 100_000)) == b"x" * 100_000
        assert len(wired.descriptors()) == 1
    async with commands(f"rediss://localhost:{port}/0") as stranger:
        with pytest.raises(OSError, match=r"(?i)certificate"):
            await stranger.run(("PING",))
    ear = await Subscription.open(f"rediss://localhost:{port}/0?ssl_ca_certs={cert}", ("t",), deadline_s=20)
    await ear.aclose()
