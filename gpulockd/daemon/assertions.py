"""What a ledger that has lost its data is told of the leases that are in: their own processes may be stopped."""

from __future__ import annotations

import socket

import msgspec

from gpulockd.client.whoami import boot_id
from gpulockd.clock import boottime_s
from gpulockd.daemon.fence import Fence
from gpulockd.daemon.guarding import Guard
from gpulockd.ledger.verbs import BroughtLease
from gpulockd.model import Process


class GuardsWord:
    """What a guard says where the ledger is offered its gpus."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._began_alone = False

    def knows_all(self, *, after_ttl: bool = False) -> bool:
        """Whether nobody can be on a gpu here that the fence does not know.

        :param after_ttl: nobody has been answered for a ttl, so who was let in by no guard believes no more
        """
        guard = self._guard
        return not guard.unproven and (not guard.doubtful or (after_ttl and self._began_alone))

    def began_alone(self) -> None:
        """The pool had never been used when this guard came: nobody was let in by a guard before it."""
        self._began_alone = self._guard.is_first

    def doubt(self) -> None:
        """The pool has been without this guard: somebody may have begun unseen, until fence and ledger are compared."""
        self._guard.doubtful = True

    @property
    def highest_token(self) -> int:
        """The highest token that was let in."""
        return self._guard.fence.token

    def assertions(self) -> list[tuple[str, Process, BroughtLease]]:
        """The leases that are in, as a ledger that lost them must be told."""
        return assertions(self._guard.fence)


def assertions(fence: Fence) -> list[tuple[str, Process, BroughtLease]]:
    """Return each lease with its session and process."""
    told = []
    for lease in fence.leases.values():
        party = lease.holder
        if lease.lost or party.state != "in" or not lease.assertion:
            continue
        try:
            words = msgspec.convert(lease.assertion, BroughtLease)
        except msgspec.ValidationError:
            continue  # an old or foreign client: it must say it itself
        words.age_ms = max(0, round(boottime_s() * 1000) - lease.began_ms)
        # What it says of itself is believed of its own lease only.
        words.id, words.token, words.gpus = lease.id, lease.token, lease.gpus
        process = Process(pid=party.pid, host=socket.gethostname(), boot_id=boot_id(), started_ticks=party.started)
        told.append((party.session, process, words))
    return told
