"""What a ledger that has lost its data is told of the leases that are in: their own processes may be stopped."""

from __future__ import annotations

import socket

import msgspec

from gpulockd.client.whoami import boot_id
from gpulockd.clock import boottime_s
from gpulockd.daemon.fence import Fence
from gpulockd.ledger.verbs import BroughtLease
from gpulockd.model import Process


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
