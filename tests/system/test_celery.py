"""Celery's tasks hold cards: under each pool, at each end that Celery knows, with the real broker."""

from __future__ import annotations

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
def worker(shop: Shop) -> Iterator[Worker]:
    """A prefork worker with four children, for tests that leave it alive."""
    with shop.worker("-c", "4") as worker:
        yield worker


@pytest.fixture(autouse=True)
def _quiet(shop: Shop) -> Iterator[None]:
    """Each test leaves the cards free."""
    yield
    shop.open_gates()
    shop.until_quiet()


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_tasks_of_every_form_hold_the_card_one_at_a_time(shop: Shop, pool: str) -> None:
    """The plain decorator, a block and the base class are one lock, whatever the worker is made of."""
    with shop.worker("-c", "3", pool=pool) as worker:
        forms = ["plain", "hold", "block", "plain", "hold", "unbound"]
        sent = {name: shop.send(worker, form, name) for name, form in ((shop.name(), form) for form in forms)}
        assert [shop.get(result) for result in sent.values()] == list(sent)
        assert not shop.overlaps(*sent)
        for name, result in sent.items():
            assert shop.notes(name, "enter")[0].get("id", result.id) == result.id


def test_a_child_that_is_replaced_after_each_task_leaves_nothing(shop: Shop) -> None:
    """`--max-tasks-per-child` ends children without a word, and the next must not wait for a dead session."""
    with shop.worker("-c", "2", "--max-tasks-per-child", "1") as worker:
        names = [shop.name() for _ in range(4)]
        for result in [shop.send(worker, "hold", name) for name in names]:
            shop.get(result)
        assert len({shop.notes(name, "enter")[0]["pid"] for name in names}) == len(names)
        assert not shop.overlaps(*names)


@pytest.mark.parametrize("green", ["gevent", "eventlet"])
def test_green_threads_are_refused_at_once_and_told_what_to_use(shop: Shop, green: str) -> None:
    """A body on the card never yields, so the lease would die of silence; a worker that hangs would be worse still."""
    pytest.importorskip(green)
    with shop.worker("-c", "2", pool=green) as worker:
        for form in ("plain", "hold"):
            with pytest.raises(Exception, match="--pool prefork"):
                shop.get(shop.send(worker, form, shop.name()))
        assert shop.get(shop.send(worker, "cpu", "other")) == "other"
        assert f"this worker's pool is {green}" in worker.log


def test_who_holds_and_how_far_it_is_can_be_seen(shop: Shop, worker: Worker) -> None:
    """An operator looks for the request id that Celery's log names, and at the progress that the task tells Celery."""
    gate = shop.gate()
    result = shop.send(worker, "tells", gate)
    shop.noted("tells")
    waiting = shop.send(worker, "plain", shop.name())
    pool = shop.until(lambda pool: pool.leases and pool.leases[0].percent is not None and pool.queue)
    (lease,), (ticket,) = pool.leases, pool.queue
    assert (lease.job.task, lease.job.task_id) == ("tests.system.celery_app.tells", result.id)
    assert (lease.percent, lease.note) == (45.0, "segment 9")
    assert (ticket.job.task, ticket.job.task_id) == ("plain", waiting.id)
    assert result.state == "PROGRESS"
    status = shop.command("status")
    assert result.id in status and "45" in status
    gate.touch()
    shop.get(waiting)


def test_one_call_may_say_what_it_needs(shop: Shop, worker: Worker) -> None:
    """A caller knows the size of its file, the task the rest; who cannot import the task says it in a header."""
    first, second, third = shop.name(), shop.name(), shop.name()
    shop.get(shop.send(worker, "hold", first, gpu={"lock_key": "gpu_lock:1"}))
    name = "tests.system.celery_app.hold"
    words = {"queue": worker.queue, "headers": {"gpu": {"lock_key": "gpu_lock:1", "priority": 3}}}
    shop.get(shop.app.send_task(name, [second], **words))
    shop.get(shop.send(worker, "hold", third))
    assert [shop.notes(one, "enter")[0]["gpu"] for one in (first, second, third)] == [
        "gpu_lock:1", "gpu_lock:1", "gpu_lock:0"
    ]  # fmt: skip


def test_celerys_hard_limit_ends_the_child_and_the_next_gets_the_card(shop: Shop, worker: Worker) -> None:
    """The pool kills with SIGKILL: nobody in the child can release."""
    stuck, following = shop.name(), shop.name()
    # Celery counts from the beginning of the task: on a busy machine it takes seconds until it is on the card.
    result = shop.send(worker, "hold", stuck, shop.gate(), time_limit=6)
    shop.noted(stuck)
    shop.get(shop.send(worker, "hold", following))
    with pytest.raises(Exception, match="TimeLimitExceeded"):
        shop.get(result)
    assert not shop.notes(stuck, "leave")


def test_celerys_soft_limit_reaches_the_body_and_the_wait(shop: Shop, worker: Worker) -> None:
    """A body saves its work while it still holds the card; who only waits leaves the queue."""
    saves, waits, gate = shop.name(), shop.name(), shop.gate()
    assert shop.get(shop.send(worker, "soft", saves)) == saves
    assert shop.notes(saves, "saved")[0]["lost"] is False
    holding = shop.name()
    shop.send(worker, "hold", holding, gate)
    shop.noted(holding)
    waiting = shop.send(worker, "hold", waits, soft_time_limit=6)
    shop.until(lambda pool: pool.queue)
    shop.until(lambda pool: not pool.queue)
    gate.touch()
    with pytest.raises(Exception, match="SoftTimeLimitExceeded"):
        shop.get(waiting)
    assert not shop.notes(waits)


def test_the_leases_own_soft_limit_asks_the_task_to_stop(shop: Shop, worker: Worker) -> None:
    """It counts from the grant, where Celery's counts from the beginning of the wait."""
    assert shop.get(shop.send(worker, "stops")) == "stopped"


def test_a_revoked_task_leaves_the_card_or_the_queue(shop: Shop, worker: Worker) -> None:
    """`revoke(terminate=True)` ends the child; whoever comes next must not wait for it."""
    holds, waits, following = shop.name(), shop.name(), shop.name()
    holding = shop.send(worker, "hold", holds, shop.gate())
    shop.noted(holds)
    waiting = shop.send(worker, "hold", waits)
    shop.until(lambda pool: pool.queue)
    waiting.revoke(terminate=True)
    shop.until(lambda pool: not pool.queue)
    last = shop.send(worker, "hold", following)
    shop.until(lambda pool: pool.queue)
    holding.revoke(terminate=True)
    assert shop.get(last) == following
    assert not shop.notes(waits) and not shop.notes(holds, "leave")
