"""The verb by which statistics are written: who may write, what comes back, and what it leaves alone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from gpulockd.ledger import answers as a
from gpulockd.ledger.keys import PoolKeys
from gpulockd.ledger.recorded import (
    BOOK,
    Batch,
    Book,
    Recorded,
    Stored,
    Superseded,
    Write,
    read_book,
    record,
    recorded,
)
from gpulockd.ledger.store import BlockingStore
from tests.pools import offer, simulated
from tests.servers import Server, pool_keys

FAR_MS = 4_000_000_000_000


@pytest.fixture
def keys(pool: str) -> PoolKeys:
    """The keys of the pool."""
    return PoolKeys(pool)


@pytest.fixture
def store(server: Server) -> Iterator[BlockingStore]:
    """A connection."""
    store = BlockingStore(server.url, deadline_s=30)
    yield store
    store.close()


@pytest.fixture
def raw(server: Server) -> Iterator[redis.Redis]:
    """A connection behind the ledger's back."""
    with redis.Redis.from_url(server.url) as raw:
        yield raw


def batch(through: int, *writes: Write, read: int = 0) -> Batch:
    """A batch with a book of that mark."""
    return Batch(through, Book(read=read), writes)


def stored(store: BlockingStore, keys: PoolKeys, *parts: tuple[str, str]) -> tuple[dict[str, bytes], ...]:
    """What the recorder's hashes have."""
    answer = store.ask(recorded(keys, parts=parts))
    assert isinstance(answer, Stored)
    return answer.hashes


def test_a_batch_and_its_position_are_written_together_and_the_next_events_come_back(
    server: Server, pool: str, keys: PoolKeys, store: BlockingStore, raw: redis.Redis
) -> None:
    """One call a batch: written, and what happened meanwhile."""
    offer(server, pool, simulated(1))
    raw.xadd(keys.events_channel, {"e": b'{"type":"new_kind"}'}, id=f"{FAR_MS}-1")
    first = store.ask(record(keys, position=None, page=1))
    assert isinstance(first, Recorded)
    assert len(first.events) == 1 and first.added == first.length == raw.xlen(keys.events_channel)
    seq = first.events[0][0]
    assert first.first == seq
    second = store.ask(record(keys, position=None, batch=batch(seq, Write(":7", "0", b"x", FAR_MS), read=5), page=100))
    assert isinstance(second, Recorded)
    assert second.events[-1] == (FAR_MS, b'{"type":"new_kind"}')
    assert [found > seq for found, _ in second.events] == [True] * len(second.events)
    hashes = stored(store, keys, BOOK, (":7", ""), (":7", "1"))
    assert read_book(hashes[0]) == (seq, Book(read=5))
    assert hashes[1:] == ({"0": b"x"}, {})


def test_who_does_not_know_the_position_changes_nothing(
    server: Server, pool: str, keys: PoolKeys, store: BlockingStore
) -> None:
    """A recorder that was stopped for an hour must not write an hour-old sum over a new one."""
    offer(server, pool, simulated(1))
    assert isinstance(
        store.ask(record(keys, position=None, batch=batch(5, Write(":7", "0", b"new")), page=1)), Recorded
    )
    for position in (None, 4, 6):
        late = store.ask(record(keys, position=position, batch=batch(9, Write(":7", "0", b"old")), page=1))
        assert isinstance(late, Superseded) and late.position == 5
    assert stored(store, keys, (":7", "")) == ({"0": b"new"},)
    gone = store.ask(record(keys, position=5, batch=batch(9, Write(":7", "0", b"")), page=1))
    assert isinstance(gone, Recorded)
    assert stored(store, keys, (":7", "")) == ({},)


def test_a_key_gets_its_end_once_and_one_that_is_over_is_gone(
    server: Server, pool: str, keys: PoolKeys, store: BlockingStore
) -> None:
    """Minutes are kept for fourteen days from their hour on, however often they are written."""
    offer(server, pool, simulated(1))
    writes = (Write(":7", "0", b"x", 1000), Write(":8", "0", b"x", FAR_MS), Write(":9", "0", b"x"))
    assert isinstance(store.ask(record(keys, position=None, batch=batch(1, *writes), page=1)), Recorded)
    ttl = pool_keys(server, pool)
    assert "recorded:7" not in ttl and ttl["recorded:9"] == -1
    later = (Write(":8", "1", b"x", 2 * FAR_MS), Write(":9", "0", b""))
    assert isinstance(store.ask(record(keys, position=1, batch=batch(2, *later), page=1)), Recorded)
    assert 0 < pool_keys(server, pool)["recorded:8"] <= ttl["recorded:8"]


def test_a_pool_that_nobody_opened_has_no_statistics(keys: PoolKeys, store: BlockingStore, raw: redis.Redis) -> None:
    """Recording must not make books: whoever comes first would find a pool that nobody has vouched for."""
    assert store.ask(record(keys, position=None, page=1)) == a.NO_BOOKS
    assert store.ask(recorded(keys, parts=[BOOK])) == a.NO_BOOKS
    assert raw.keys(keys.base + "*") == []


def test_a_pool_whose_stream_was_removed_can_be_recorded(
    server: Server, pool: str, keys: PoolKeys, store: BlockingStore, raw: redis.Redis
) -> None:
    """An operator's DEL must not stop the recorder for good."""
    offer(server, pool, simulated(1))
    raw.delete(keys.events_channel)
    answer = store.ask(record(keys, position=None, page=1))
    assert isinstance(answer, Recorded)
    assert (answer.added, answer.length, answer.first, answer.events) == (0, 0, None, ())
