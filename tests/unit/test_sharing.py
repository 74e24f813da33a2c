"""What one user may have of what is finite."""

from __future__ import annotations

import os

from gpulockd.daemon.anteroom import Anteroom
from gpulockd.daemon.callers import Caller
from gpulockd.daemon.fence import Lease
from gpulockd.daemon.sharing import Shares, room_for_callers


def test_nobody_takes_so_much_that_another_gets_nothing() -> None:
    """A limit of its own for each user would either starve one who is alone or be reached by a few together."""
    shares = Shares(100)
    taken = {uid: sum(shares.take(uid) for _ in range(1000)) for uid in (1, 2, 3)}
    assert taken == {1: 50, 2: 25, 3: 13}
    assert shares.take(4)
    for _ in range(50):
        shares.give_back(1)
    assert shares.take(2)


def test_the_connections_fit_the_descriptors() -> None:
    """A daemon that promises more than it can open stops to accept anybody."""
    assert room_for_callers(4096) <= 4096
    assert room_for_callers(1 << 40) < 1 << 40


def test_one_users_waiting_leases_leave_room_for_anothers() -> None:
    """Who floods the guard with made-up leases must not be all that waits before it."""

    def asks(uid: int, number: int) -> bool:
        lease = Lease(id=f"{uid}-{number}", token=number, gpus=("gpu_lock:0",), exclusive=True)
        return room.put(lease, callers.setdefault(uid, Caller(None, uid, lambda _: None)))

    room, callers = Anteroom(most=64), dict[int, Caller]()
    assert sum(asks(1, number) for number in range(1, 1000)) == 32
    assert asks(1, 32), "the same lease asks again"
    assert asks(os.getuid() + 2, 1)
    assert [lease.token for lease, _ in room.in_turn()][:2] == [32, 31]
