"""What a ledger that has lost its data is told of the leases that are in, as `assertions.py` has it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from gpulockd.ledger.verbs import BroughtLease
from tests.faults.simulator.store import TERMS
from tests.faults.simulator.world import Coroutine

if TYPE_CHECKING:
    from tests.faults.simulator.daemon import Daemon


def assert_all(daemon: Daemon) -> Coroutine:
    """Say each lease that is in for its session: its own process may be stopped."""
    for lease in list(daemon.guard.fence.leases.values()):
        if lease.lost or lease.holder.state != "in" or not lease.assertion:
            continue
        words = msgspec.convert(lease.assertion, BroughtLease)
        words.age_ms = max(0, round(daemon.clock() * 1000) - lease.began_ms)
        words.id, words.token, words.gpus = lease.id, lease.token, lease.gpus
        host, session = daemon.host.name, lease.holder.session
        yield daemon.store.ask(daemon, daemon.pool, "open", session, host, TERMS, True, [], [words], 0, host)
