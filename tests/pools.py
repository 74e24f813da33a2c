"""A pool that is offered without a daemon, and the environment in which programs find it."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator

import pytest
import redis

from gpulockd.client import process
from gpulockd.client.whoami import this_process
from gpulockd.daemon import neighbours
from gpulockd.ledger import answers as a
from gpulockd.ledger import verbs
from gpulockd.ledger.keys import PoolKeys
from gpulockd.ledger.store import BlockingStore
from gpulockd.model import Gpu, Snapshot
from gpulockd.settings import QueueBlock, SessionBlock, SettleBlock
from tests.servers import Server

QUICK = SessionBlock(ttl=4.0, keepalive=0.5, rpc_deadline=0.5, margin=0.2, claim_window=0.6)
"""Session times of tests that wait for the end of a session (in seconds)."""

CALM = SessionBlock(ttl=40.0, keepalive=0.5, rpc_deadline=10.0, margin=0.2, claim_window=10.0)
"""Session times of all other tests: a machine that stands still for seconds ends no session and cuts off no command."""

GIB = 1024


def simulated(count: int, *, memory_mib: int = 24 * GIB) -> list[Gpu]:
    """Gpus that nobody has."""
    return [
        Gpu(key=f"gpu_lock:{i}", index=i, uuid=f"GPU-test-{i}", name="Test GPU", memory_mib=memory_mib)
        for i in range(count)
    ]


def offer(
    server: Server,
    pool: str,
    gpus: list[Gpu],
    *,
    session: SessionBlock = CALM,
    queue: QueueBlock | None = None,
    url: str | None = None,
    defaults: dict[str, object] | None = None,
) -> None:
    """Offer `gpus` in `pool` as a daemon would that owns a fresh store, and leave."""
    keys, me, id = PoolKeys(pool), this_process(), secrets.token_hex(8)
    terms = verbs.Terms.of(session, queue or QueueBlock(), SettleBlock())
    store = BlockingStore(url or server.url, deadline_s=5)
    store.ask(verbs.open(keys, session=id, process=me, terms=terms, known_pool=False))
    with redis.Redis.from_url(server.url) as raw:
        run_id = raw.info("server")["run_id"]
    answer = store.ask(
        verbs.offer(
            keys,
            session=id,
            process=me,
            machine="test",
            terms=terms,
            defaults=defaults or {},
            gpus=gpus,
            complete_run_id=run_id,
            fresh=True,
            known_pool=False,
        )
    )
    assert isinstance(answer, a.Offered), answer
    assert answer.frozen_ms == 0
    store.ask(verbs.end(keys, session="", id=id, token=None, reason="released", what="session"))
    store.close()


def snapshot(server: Server, pool: str) -> Snapshot:
    """All of the pool now."""
    store = BlockingStore(server.url, deadline_s=5)
    answer = store.ask(verbs.snapshot(PoolKeys(pool)))
    store.close()
    assert isinstance(answer, a.Pictured), answer
    return answer.snapshot


def environment(url: str, pool: str, session: SessionBlock = CALM) -> dict[str, str]:
    """The variables by which a program finds the pool and opens it with these times."""
    return {
        "GPULOCKD_REDIS_URL": url,
        "GPULOCKD_POOL": pool,
        "GPULOCKD_SESSION_TTL": str(session.ttl),
        "GPULOCKD_SESSION_KEEPALIVE": str(session.keepalive),
        "GPULOCKD_SESSION_RPC_DEADLINE": str(session.rpc_deadline),
        "GPULOCKD_SESSION_MARGIN": str(session.margin),
        "GPULOCKD_SESSION_CLAIM_WINDOW": str(session.claim_window),
    }


@contextlib.contextmanager
def daemon_here() -> Iterator[None]:
    """Let this process be a daemon for the time of a test: its claims of cards end with that."""
    before = set(neighbours._claims)
    try:
        yield
    finally:
        for uuid in set(neighbours._claims) - before:
            neighbours._claims.pop(uuid).close()


@contextlib.contextmanager
def client_here(url: str, pool: str, session: SessionBlock = CALM) -> Iterator[None]:
    """Let this process be a client of the pool for the time of a test, and say goodbye at its end."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(url, pool, session).items():
            patch.setenv(name, value)
        try:
            yield
        finally:
            process.say_goodbye()
