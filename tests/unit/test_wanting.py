"""Whom a request over HTTP names as holder."""

from __future__ import annotations

import os

from gpulockd.client.whoami import started_ticks
from gpulockd.model import Process
from gpulockd.web.auth import Caller, Peer
from gpulockd.web.wanting import LeaseWish, process_of


def test_a_process_that_the_kernel_hides_is_not_found_by_what_it_says() -> None:
    """Its number means another process here, which the guard would take for the holder, and end in its place."""
    wish = LeaseWish(process=Process(pid=os.getpid(), host="box", boot_id=""))
    hidden = process_of(wish, Caller(peer=Peer(pid=0, uid=os.getuid()), trusted=True))
    assert (hidden.pid, hidden.started_ticks) == (os.getpid(), 0)
    shown = process_of(wish, Caller(peer=Peer(pid=os.getppid(), uid=os.getuid()), trusted=True))
    assert (shown.pid, shown.started_ticks) == (os.getppid(), started_ticks(os.getppid()))
