"""The guard's decisions without a daemon: real processes and a real record, no socket and no store."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gpulockd.daemon.admission import Admit, LeaseWords, Leave
from gpulockd.daemon.assertions import GuardsWord
from gpulockd.daemon.callers import Caller
from gpulockd.daemon.guarding import Guard
from gpulockd.daemon.journal import Journal
from gpulockd.hardware.processes.following import Runs
from gpulockd.hardware.processes.identity import identify
from gpulockd.hardware.processes.watch import Watch


@contextmanager
def guard_in(folder: Path) -> Iterator[Guard]:
    """A guard with a record of its own."""
    journal = Journal(str(folder / "guard.log"), "boot")
    fence, _ = journal.load()
    with Watch() as watch, Runs() as runs:
        yield Guard(fence, journal, runs, watch)
    journal.close()


def me() -> Caller:
    """This process, as a caller."""
    return Caller(identify(os.getpid()), os.getuid(), lambda _: None)


async def test_what_a_member_lost_is_not_its_holders_loss(tmp_path: Path) -> None:
    """After an emptied store a process that had joined is told that it lost; its holder is on the card still."""
    with guard_in(tmp_path) as guard:
        caller, token = me(), 1
        words = LeaseWords(id="lease", token=token, gpus=("gpu_lock:0",))
        assert guard.admit(caller, Admit(session="holder", lease=words)) == {"admitted": "lease", "token": token}
        joined = LeaseWords(id="member", token=token, of="lease")
        assert guard.admit(caller, Admit(session="member", lease=joined)) == {"admitted": "member", "token": token}
        guard.leave(caller, Leave(lease="member", token=token, lost=True))
        assert guard.fence.leases["lease"].lost == ""
        assert guard.fence.sessions_inside(guard.callers.hear) == {"holder"}
        guard.leave(caller, Leave(lease="lease", token=token, lost=True))
        assert guard.fence.leases["lease"].lost == "told"


async def test_a_lease_given_back_in_order_lets_the_next_one_in(tmp_path: Path) -> None:
    """The hand-off's own path: admit waits, leave answers it."""
    said: list[object] = []
    with guard_in(tmp_path) as guard:
        first, second = me(), Caller(identify(os.getpid()), os.getuid(), said.append)
        guard.admit(first, Admit(session="s1", lease=LeaseWords(id="t1", token=1, gpus=("gpu_lock:0",))))
        answer = guard.admit(second, Admit(session="s2", lease=LeaseWords(id="t2", token=2, gpus=("gpu_lock:0",))))
        assert answer is not None
        assert answer["waits"] == "t2"
        guard.leave(first, Leave(lease="t1", token=1))
        assert said == [{"admitted": "t2", "token": 2}]


async def test_only_a_guard_that_began_alone_trusts_in_time(tmp_path: Path) -> None:
    """Whom a guard of before let in works on without belief; whom none let in believes for a ttl at most."""
    with guard_in(tmp_path) as guard:
        guard.doubtful = True
        word = GuardsWord(guard)
        assert not word.knows_all(after_ttl=True)
        word.began_alone()
        assert not word.knows_all(after_ttl=True), "its record was lost, not new"
        guard.is_first = True
        word.began_alone()
        assert word.knows_all(after_ttl=True)
        assert not word.knows_all()
        guard.unproven.add("lease")
        assert not word.knows_all(after_ttl=True)
        guard.unproven.clear()
        guard.doubtful = False
        assert word.knows_all()
