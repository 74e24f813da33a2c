"""GPUs for web services: real uvicorn, real clients that wait, stream and hang up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.daemons import Daemon
from tests.states import until
from tests.system.commands import Started, ask, leases, one_daemon, queued
from tests.system.uvicorns import Service, hang_up, uvicorn

pytestmark = pytest.mark.timeout(300)  # a busy machine takes seconds for each start of Python

APP = "tests.system.asgi_app:app"
FORMS = pytest.mark.parametrize("form", ["", "/plain"], ids=["dependency", "middleware"])


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    """One simulated GPU, so that a second request waits. The service is not ended where it is slow to leave."""
    with one_daemon(simulate=1, config={"settle": {"grace": 60}}) as running:
        yield running


@pytest.fixture(scope="module")
def serving(daemon: Daemon, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The service, for all tests of this file."""
    with uvicorn(APP, tmp_path_factory.mktemp("asgi"), daemon) as service:
        yield service


@pytest.fixture
def service(serving: Service, daemon: Daemon) -> Iterator[Service]:
    """The service without the notes of earlier tests; afterwards nothing is held or queued."""
    for note in serving.folder.iterdir():
        if note.name not in ("socket", "log"):
            note.unlink()
    yield serving
    serving.go()
    assert serving.process.poll() is None, serving.log
    asyncio.run(until(lambda: is_free(daemon)))


def is_free(daemon: Daemon) -> bool:
    """Whether nobody holds or waits."""
    return not ask(daemon, "leases") and not ask(daemon, "queue")


def holding(client: httpx.AsyncClient, name: str, form: str = "") -> asyncio.Task[httpx.Response]:
    """A request that holds until told."""
    return asyncio.create_task(client.post(f"{form}/hold/{name}", json={"a": "b"}))


@FORMS
async def test_requests_take_turns_and_keep_their_bodies(service: Service, form: str) -> None:
    """What everybody wants of it: one at a time, and the handler sees its request."""
    async with service.client() as client:
        first = holding(client, "one", form)
        await until(lambda: service.noted("one.in"))
        second = holding(client, "two", form)
        await asyncio.sleep(0.1)
        assert not service.noted("two.in")
        service.go()
        for answer in (await first, await second):
            assert answer.status_code == 200, answer.text
            assert answer.json()["gpu"] == 0
            assert answer.json()["task"] in ("hold", "plain_hold")
            assert answer.json().get("body", {"a": "b"}) == {"a": "b"}
            assert answer.json().get("length", 9) == 9


async def test_a_body_that_the_handler_reads_itself_is_there(service: Service) -> None:
    """The body is read before the GPU is asked for, and must not be gone then."""
    async with service.client() as client:
        answer = await client.post("/raw/x", content=b"x" * 300_000)
        assert answer.json() == {"length": 300_000}


async def test_a_long_body_passes_the_middleware(service: Service) -> None:
    """It keeps the beginning only, and the app reads the rest."""
    service.go()
    async with service.client() as client:
        answer = await client.post("/plain/hold/long", content=b"x" * 5_000_000)
        assert answer.json()["length"] == 5_000_000


@pytest.mark.parametrize(("method", "path"), [("GET", "/now"), ("POST", "/plain/now/x")])
async def test_busy_is_503_with_the_expected_wait(service: Service, daemon: Daemon, method: str, path: str) -> None:
    """A client must know when to come again, and no names of holders."""
    async with service.client() as client:
        request = holding(client, "one")
        await until(lambda: service.noted("one.in"))
        refused = await client.request(method, path)
        assert refused.status_code == 503
        detail = refused.json()["detail"]
        assert refused.headers["retry-after"] == str(detail["retry_after_s"])
        assert (detail["place"], detail["retry_after_s"] > 0) == (1, True)
        assert "hold" not in refused.text
        service.go()
        await request


async def test_retry_after_follows_what_holds_have_taken(service: Service, daemon: Daemon, tmp_path: Path) -> None:
    """A forecast by the task's last holds, not a constant."""
    began = time.monotonic()
    for held_s in ("0", "0", "10"):
        assert Started(daemon, tmp_path, "run", "-q", "--task", "steady", "--", "sleep", held_s).wait(60) == 0
    longest_s = time.monotonic() - began
    holder = Started(daemon, tmp_path, "run", "-q", "--task", "steady", "--", "sleep", "300")
    try:
        await until(lambda: leases(daemon, "steady"))
        async with service.client() as client:
            expected, detail = None, {}
            while expected is None:  # the recorder counts the last hold within about a second
                refused = await client.get("/now")
                detail = refused.json()["detail"]
                expected = detail["expected_wait_s"]
                assert leases(daemon, "steady")[0]["held_s"] < longest_s, "it was never said"
        assert 0 < expected <= detail["retry_after_s"] <= longest_s + 1
    finally:
        holder.close()


@FORMS
async def test_a_client_that_hangs_up_while_waiting_leaves_the_queue(
    service: Service, daemon: Daemon, form: str
) -> None:
    """Nobody waits for an answer that nobody reads."""
    async with service.client() as client, service.client() as other:
        first = holding(client, "one", form)
        await until(lambda: service.noted("one.in"))
        second = holding(other, "two", form)
        await until(lambda: ask(daemon, "queue"))
        await hang_up(second)
        await until(lambda: not ask(daemon, "queue"))
        service.go()
        assert (await first).status_code == 200
        assert not service.noted("two.in")


@FORMS
async def test_a_client_that_hangs_up_frees_its_gpu(service: Service, daemon: Daemon, form: str) -> None:
    """The handler is cancelled, then the GPU is given back."""
    async with service.client() as client, service.client() as other:
        first = holding(client, "one", form)
        await until(lambda: service.noted("one.in"))
        second = holding(other, "two", form)
        await until(lambda: ask(daemon, "queue"))
        await hang_up(first)
        await until(lambda: service.noted("one.cancelled") and service.noted("two.in"))
        service.go()
        assert (await second).status_code == 200
    assert "Traceback" not in service.log


async def test_a_handler_in_a_thread_sees_that_its_client_is_gone(service: Service, daemon: Daemon) -> None:
    """A thread cannot be cancelled, and its GPU is not free before it has ended."""
    async with service.client() as client:
        request = asyncio.create_task(client.get("/sync/one"))
        await until(lambda: service.noted("one.in"))
        assert leases(daemon, "in_a_thread")[0]["percent"] == 50
        await hang_up(request)
        await until(lambda: service.noted("one.out") and is_free(daemon))


@FORMS
async def test_a_streamed_answer_holds_its_gpu_to_the_end(service: Service, daemon: Daemon, form: str) -> None:
    """The model still runs while the client reads."""
    async with service.client() as client, client.stream("GET", f"{form}/stream/one") as answer:
        lines = answer.aiter_lines()
        assert await anext(lines) == "first"
        await until(lambda: service.noted("one.in"))
        assert ask(daemon, "leases")
        service.go()
        async for _ in lines:
            continue
        await until(lambda: is_free(daemon))
    assert service.noted("one.out")


@FORMS
async def test_a_client_that_leaves_a_stream_frees_its_gpu(service: Service, daemon: Daemon, form: str) -> None:
    """Who has read enough closes the page."""
    async with service.client() as client, client.stream("GET", f"{form}/stream/one") as answer:
        await anext(answer.aiter_lines())
        await until(lambda: service.noted("one.in"))
    await until(lambda: service.noted("one.cancelled") and is_free(daemon))


@FORMS
async def test_background_tasks_hold_the_gpu_and_outlive_the_client(
    service: Service, daemon: Daemon, form: str
) -> None:
    """The client has its answer, so that it goes away means nothing."""
    async with service.client() as client:
        assert (await client.get(f"{form}/later/one")).status_code == 200
        await until(lambda: service.noted("one.in"))
    await asyncio.sleep(0.2)
    assert ask(daemon, "leases")
    service.go()
    await until(lambda: service.noted("one.out") and is_free(daemon))


async def test_a_handlers_own_errors_come_out_as_they_are(service: Service, daemon: Daemon) -> None:
    """And the GPU is free afterwards."""
    async with service.client() as client:
        teapot = await client.get("/fails/teapot")
        assert (teapot.status_code, teapot.json()) == (418, {"detail": "short and stout"})
        assert (await client.get("/fails/fault")).status_code == 500
    await until(lambda: is_free(daemon))
    async with service.client() as client:  # uvicorn closes the connection of a fault
        assert (await client.get("/now")).status_code == 200


async def test_a_gpu_that_was_taken_away_is_503(service: Service, daemon: Daemon) -> None:
    """An operator took it: the client may try again."""
    async with service.client() as client:
        request = holding(client, "one")
        await until(lambda: service.noted("one.in"))
        await daemon.ask("DELETE", "/api/v1/leases/0")
        answer = await request
        assert (answer.status_code, int(answer.headers["retry-after"]) > 0) == (503, True)
        assert service.noted("one.cancelled")


async def test_the_status_app_shows_holders_and_waiters(service: Service, daemon: Daemon) -> None:
    """Mounted in the service's own app, read-only."""
    async with service.client() as client:
        first = holding(client, "one")
        await until(lambda: service.noted("one.in"))
        second = holding(client, "two")
        await until(lambda: queued(daemon, "hold"))
        facts: dict[str, Any] = {}
        while not facts.get("queue"):  # one look a second
            facts = (await client.get("/gpu/status.json")).json()
        assert facts["gpus"][0]["holders"][0]["task"] == "hold"
        assert [ticket["place"] for ticket in facts["queue"]] == [1]
        page = await client.get("/gpu/")
        assert "GPU 0" in page.text and "hold" in page.text
        assert (await client.post("/gpu/")).status_code == 405
        service.go()
        await asyncio.gather(first, second)


async def test_a_service_without_a_daemon_starts_and_answers_503(tmp_path: Path) -> None:
    """It may be started first; it says so in its log."""
    with uvicorn(APP, tmp_path / "alone", None, GPULOCKD_SOCKET=str(tmp_path / "nowhere/api.sock")) as service:
        async with service.client() as client:
            assert (await client.get("/now")).status_code == 503
            assert (await client.get("/gpu/status.json")).status_code == 503
        assert "gpulockd serve" in service.log
