"""However a Celery worker ends, the next task gets the card, and only when the one before is really gone."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from tests.servers import Server
from tests.system.celery_shop import Shop, Worker, open_shop

pytestmark = pytest.mark.timeout(300)  # a busy machine takes seconds for each start of Python


@pytest.fixture(scope="module")
def shop(valkey_server: Server) -> Iterator[Shop]:
    """Broker and daemon of this module."""
    with open_shop(valkey_server) as shop:
        yield shop


@pytest.fixture(scope="module")
def others(shop: Shop) -> Iterator[Worker]:
    """A worker whose tasks come next."""
    with shop.worker("-c", "2") as worker:
        yield worker


@pytest.fixture(autouse=True)
def _quiet(shop: Shop) -> Iterator[None]:
    """Each test leaves the cards free."""
    yield
    shop.open_gates()
    shop.until_quiet()


def test_a_killed_child_hands_on_and_its_task_is_delivered_again(shop: Shop, others: Worker) -> None:
    """One request id in two runs is two leases: the second is a grant of its own, after those who came before it."""
    twice, between, gate = shop.name(), shop.name(), shop.gate()
    result = shop.send(others, "late", twice, gate)
    first = shop.noted(twice)
    following = shop.send(others, "hold", between)
    shop.until(lambda pool: pool.queue)
    os.kill(first["pid"], signal.SIGKILL)
    gate.touch()
    assert shop.get(following) == between
    assert shop.get(result) == twice
    second = shop.noted(twice, times=2)
    token = shop.notes(between, "enter")[0]["token"]
    assert first["token"] < token < second["token"]
    assert first["id"] == second["id"] == result.id


def test_a_run_that_is_delivered_twice_waits_for_the_first(shop: Shop) -> None:
    """Redis hands a message out again after its visibility timeout, though the first run is still on the card."""
    name, gate = shop.name(), shop.gate()
    with shop.worker("-c", "1") as slow:
        result = shop.send(slow, "late", name, gate)
        first = shop.noted(name)
        with shop.worker("-c", "1", queue=slow.queue, CELERY_VISIBILITY="1"):
            pool = shop.until(lambda pool: pool.queue)
            assert [one.job.task_id for one in (*pool.leases, *pool.queue)] == [result.id] * 2
            assert len(shop.notes(name, "enter")) == 1
            gate.touch()
            assert first["token"] < shop.noted(name, times=2)["token"]
            shop.noted(name, "leave", times=2)
    notes = [note["what"] for note in shop.notes(name)]
    assert notes[:4] == ["enter", "leave", "enter", "leave"]


def test_a_warm_shutdown_lets_the_holder_and_the_waiter_finish(shop: Shop, others: Worker) -> None:
    """SIGTERM means: end what was begun. A task that waits for its card has been begun."""
    holds, waits, gate = shop.name(), shop.name(), shop.gate()
    with shop.worker("-c", "2") as worker:
        first = shop.send(worker, "hold", holds, gate)
        shop.noted(holds)
        second = shop.send(worker, "hold", waits)
        shop.until(lambda pool: pool.queue)
        worker.signal(signal.SIGTERM)
        gate.touch()
        assert [shop.get(first), shop.get(second)] == [holds, waits]
        assert worker.ended() == 0
    assert not shop.overlaps(holds, waits)


@pytest.mark.parametrize("end", [signal.SIGQUIT, signal.SIGKILL], ids=["cold", "killed"])
def test_a_worker_that_ends_at_once_empties_card_and_queue(shop: Shop, others: Worker, end: signal.Signals) -> None:
    """Its children die with it: neither a lease nor a place may stay behind."""
    holds, waits, following = shop.name(), shop.name(), shop.name()
    with shop.worker("-c", "2") as worker:
        shop.send(worker, "hold", holds, shop.gate())
        shop.noted(holds)
        shop.send(worker, "hold", waits)
        shop.until(lambda pool: pool.queue)
        last = shop.send(others, "hold", following)
        shop.until(lambda pool: len(pool.queue) == 2)
        worker.signal(end)
        assert shop.get(last) == following
        worker.ended()
    assert not shop.notes(waits)
