"""`mode="retry"`: a task that waits gives its slot back, keeps its place, and is granted nothing while it is away."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from gpulockd.client.parking import PASSING_S
from gpulockd.model import Snapshot
from tests.servers import Server
from tests.states import until_blocking
from tests.system.celery_shop import Shop, Worker, open_shop

pytestmark = pytest.mark.timeout(300)  # a busy machine takes seconds for each start of Python


@pytest.fixture(scope="module")
def shop(valkey_server: Server) -> Iterator[Shop]:
    """Broker and daemon of this module."""
    with open_shop(valkey_server) as shop:
        yield shop


@pytest.fixture(scope="module")
def one_slot(shop: Shop) -> Iterator[Worker]:
    """A worker with a single slot."""
    with shop.worker("-c", "1") as worker:
        yield worker


@pytest.fixture(scope="module")
def others(shop: Shop) -> Iterator[Worker]:
    """A worker whose tasks hold the card meanwhile."""
    with shop.worker("-c", "3") as worker:
        yield worker


@pytest.fixture(autouse=True)
def _quiet(shop: Shop) -> Iterator[None]:
    """Each test leaves the cards free."""
    yield
    shop.open_gates()
    shop.until_quiet()


def test_the_slot_is_free_for_others_while_the_card_is_not(shop: Shop, one_slot: Worker, others: Worker) -> None:
    """A worker full of waiters does nothing; and none of the task's own retries is used up."""
    holds, waits, gate = shop.name(), shop.name(), shop.gate()
    shop.send(others, "hold", holds, gate)
    shop.noted(holds)
    waiting = shop.send(one_slot, "patient", waits)
    until_blocking(lambda: waiting.state == "RETRY")
    for _ in range(3):
        shop.get(shop.send(one_slot, "cpu", shop.name()))
    assert not shop.notes(waits)
    gate.touch()
    assert shop.get(waiting) == f"{waits} 0"
    assert shop.notes(waits)[0]["id"] == waiting.id


def test_who_comes_back_is_before_those_who_came_later(shop: Shop, one_slot: Worker, others: Worker) -> None:
    """Otherwise a task that is polite to its worker would wait for ever behind those that are not."""
    holds, ahead, early, late = (shop.name() for _ in range(4))
    gate, second_gate = shop.gate(), shop.gate()
    shop.send(others, "hold", holds, gate)
    shop.noted(holds)
    shop.send(others, "hold", ahead, second_gate)
    shop.until(lambda pool: len(pool.queue) == 1)
    # Second in the queue it goes away soon; when it comes and is the first it stays.
    waiting = shop.send(one_slot, "patient", early, gpu={"stay": "60s", "countdown": 0.2})
    until_blocking(lambda: waiting.state == "RETRY")
    last = shop.send(others, "hold", late)
    shop.until(lambda pool: len([ticket for ticket in pool.queue if ticket.job.task_id == last.id]) == 1)
    gate.touch()
    shop.noted(ahead)
    both, came_at = [waiting.id, last.id], [time.monotonic()]

    def stays(pool: Snapshot) -> bool:
        """It may have come while it was the second, and then it goes away once more."""
        if [ticket.job.task_id for ticket in pool.queue] != both:
            came_at[0] = time.monotonic()
        return time.monotonic() - came_at[0] > 3 * PASSING_S

    pool = shop.until(stays)
    assert pool.queue[0].waited_ms > pool.queue[1].waited_ms
    second_gate.touch()
    assert [shop.get(waiting), shop.get(last)] == [f"{early} 0", late]
    first, second = shop.notes(early, "enter")[0], shop.notes(late, "enter")[0]
    assert first["token"] < second["token"]


def test_the_card_is_given_to_nobody_who_is_away(shop: Shop, one_slot: Worker, others: Worker) -> None:
    """A free card goes to the one who is there, and the one who was away has its turn when it is back."""
    holds, away, here, gate = shop.name(), shop.name(), shop.name(), shop.gate()
    shop.send(others, "hold", holds, gate)
    shop.noted(holds)
    waiting = shop.send(one_slot, "patient", away, gpu={"stay": 0.1, "countdown": 8})
    until_blocking(lambda: waiting.state == "RETRY")
    shop.until(lambda pool: not pool.queue)
    following = shop.send(others, "hold", here)
    shop.until(lambda pool: pool.queue)
    gate.touch()
    assert shop.get(following) == here
    assert not shop.notes(away)
    assert shop.get(waiting) == f"{away} 0"


def test_all_stays_together_have_a_limit(shop: Shop, one_slot: Worker, others: Worker) -> None:
    """`max_wait_time` counts from the first try, or nobody would ever be told that it is hopeless."""
    holds, waits = shop.name(), shop.name()
    shop.send(others, "hold", holds, shop.gate())
    shop.noted(holds)
    waiting = shop.send(one_slot, "patient", waits, gpu={"max_wait_time": "2s"})
    with pytest.raises(Exception, match="not free after"):
        shop.get(waiting)
    assert not shop.notes(waits)
