"""What a peer says of ids, tokens and gpus that are not its own: it ends nobody, and nothing of it stays."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpulockd.daemon.admission import FARTHEST_TOKEN, Admit, Hello, LeaseWords, Leave
from gpulockd.daemon.assertions import GuardsWord
from gpulockd.daemon.callers import Caller
from gpulockd.daemon.fence import Fence, Lease, Party
from gpulockd.daemon.guarding import Guard
from gpulockd.daemon.journal import Journal
from gpulockd.daemon.naming import MOST_FRESH
from gpulockd.hardware.processes.identity import identify
from tests.unit.test_guarding import guard_in, me

ZERO, ONE, NOBODY = ("gpu_lock:0",), ("gpu_lock:1",), 65534


class Speaker:
    """One process that speaks to the guard, and what it has heard."""

    def __init__(self, guard: Guard, caller: Caller | None = None, session: str = "honest") -> None:
        self.guard, self.session, self.heard = guard, session, list[Any]()
        self.caller = caller or me()
        self.caller.say = self.heard.append

    def admit(self, id: str, token: int, gpus: tuple[str, ...] = ZERO, **more: Any) -> Any:
        words = LeaseWords(id=id, token=token, gpus=gpus, **more)
        return self.guard.admit(self.caller, Admit(session=self.session, lease=words))

    def hello(self, id: str, token: int, gpus: tuple[str, ...] = ZERO) -> Any:
        words = LeaseWords(id=id, token=token, gpus=gpus)
        return self.guard.hello(self.caller, Hello(session=self.session, held=[words], as_of=1))["admitted"]

    def leave(self, id: str, token: int) -> None:
        self.guard.leave(self.caller, Leave(lease=id, token=token))


@pytest.fixture
def liars() -> Iterator[Caller]:
    """A process of another user."""
    with subprocess.Popen(["sleep", "60"]) as other:
        yield Caller(identify(other.pid), NOBODY, lambda _: None)
        other.kill()


def granted(guard: Guard, id: str) -> Lease:
    """The ledger says so."""
    lease = guard.fence.leases[id]
    guard.found(lease, lease.gpus, exclusive=lease.exclusive)
    return lease


async def test_nobody_joins_a_lease_under_the_id_of_another(tmp_path: Path, liars: Caller) -> None:
    """A1: at the joiner's death the guard took the other's lease for dead, and ended its run."""
    with guard_in(tmp_path) as guard:
        victim, liar = Speaker(guard), Speaker(guard, liars, "liar")
        victim.admit("V", 7, ONE)
        granted(guard, "V")
        assert liar.hello("A", 5, ("gpu_lock:none",)) == ["A"]
        assert "refused" in liar.admit("V", 5, of="A")
        assert liars.process is not None
        guard.died(liars.process)
        assert guard.fence.leases["V"].inside


def test_a_party_of_one_lease_leaves_no_other() -> None:
    """A1: two leases may have parties of one ticket; each is of its own lease."""
    fence = Fence()
    for id, token in (("V", 1), ("A", 2)):
        fence.enter(
            Lease(id=id, token=token, gpus=(f"gpu_lock:{id}",), exclusive=True, parties=[Party(ticket=id, session=id)])
        )
    fence.join("A", Party(ticket="V", session="liar"))
    assert fence.leave("A", "V", "dead") is None
    assert fence.leases["V"].holder.state == "in"


async def test_a_hello_takes_nobodys_lease(tmp_path: Path, liars: Caller) -> None:
    """A2: a higher token under the id of a holder took it out of the fence, and the next one began beside it."""
    with guard_in(tmp_path) as guard:
        victim, liar = Speaker(guard), Speaker(guard, liars, "liar")
        victim.admit("V", 7)
        lease = granted(guard, "V")
        assert liar.hello("V", 8, ("gpu_lock:none",)) == []
        liar.leave("V", 8)
        assert guard.fence.leases == {"V": lease}
        assert "waits" in liar.admit("W", 9)


@pytest.mark.parametrize("ends", ["left", "thrown out", "died"])
async def test_the_token_of_a_lie_does_not_stay(tmp_path: Path, liars: Caller, ends: str) -> None:
    """A3: after two lines nobody could begin any more, over restarts of the daemon too."""
    now_ms = round(time.time() * 1000)
    with guard_in(tmp_path) as guard:
        liar = Speaker(guard, liars, "liar")
        assert liar.hello("far", (1 << 53) - 1) == []
        assert "refused" in liar.admit("far", now_ms + 2 * FARTHEST_TOKEN)
        assert liar.hello("near", now_ms + FARTHEST_TOKEN // 2) == ["near"]
        lie = guard.fence.leases["near"]
        assert GuardsWord(guard).highest_token == 0
        if ends == "left":
            liar.leave("near", lie.token)
        elif ends == "died":
            assert liars.process is not None
            guard.died(liars.process)
        if ends != "left":
            guard.throw_out(lie)
        assert guard.fence.marks == {}
        assert Speaker(guard).admit("honest", now_ms) == {"admitted": "honest", "token": now_ms}
        granted(guard, "honest")
        assert GuardsWord(guard).highest_token == now_ms
    assert Journal(str(tmp_path / "guard.log"), "boot").load()[0].token == now_ms


def test_a_record_of_before_says_by_its_end_what_was_never_granted(tmp_path: Path) -> None:
    """An earlier version has not written that a lease stood on its process's word alone."""
    journal = Journal(str(tmp_path / "guard.log"), "boot")
    journal.load()
    for token, never in ((5, False), (9, True)):
        lease = Lease(id="t", token=token, gpus=ZERO, exclusive=True, parties=[Party(ticket="t", session="s")])
        journal.entered(lease)
        journal.over(lease, never=never)
    journal.close()
    assert Journal(str(tmp_path / "guard.log"), "boot").load()[0].marks == {"gpu_lock:0": (5, 5)}


async def test_a_lie_under_a_waiters_id_costs_it_no_place(tmp_path: Path, liars: Caller) -> None:
    """A5: it was refused at its turn, gave up its ticket, and went to the end of the queue."""
    with guard_in(tmp_path) as guard:
        honest, liar = Speaker(guard), Speaker(guard, liars, "liar")
        assert liar.hello("T", 5, ("gpu_lock:free",)) == ["T"]
        assert "waits" in honest.admit("T", 7)
        liar.leave("T", 7)
        assert honest.heard == []
        guard.throw_out(guard.fence.leases["T"])
        assert honest.heard == [{"admitted": "T", "token": 7}]
        assert guard.fence.leases["T"].holder.session == "honest"


async def test_a_waiters_id_may_wait_twice_and_be_left_once(tmp_path: Path, liars: Caller) -> None:
    """A5: neither a lie that waits, nor one that was left, nor one that joins keeps the ticket's own process out."""
    with guard_in(tmp_path) as guard:
        before, honest, liar = Speaker(guard, session="before"), Speaker(guard), Speaker(guard, liars, "liar")
        before.admit("B", 6)
        assert liar.hello("T", 7, ONE) == ["T"]
        liar.leave("T", 7)
        assert "waits" in liar.admit("T", 8)
        assert "waits" in honest.admit("T", 7)
        liar.leave("T", 8)
        assert liar.hello("A", 9, ("gpu_lock:free",)) == ["A"]
        granted(guard, "A")
        assert "admitted" in liar.admit("T", 9, of="A")
        before.leave("B", 6)
        assert honest.heard == []
        guard.joining.compare(guard.joining.unheard(), [])
        guard.let_in()
        assert honest.heard == [{"admitted": "T", "token": 7}]


async def test_a_holder_whose_id_was_taken_before_its_hello_is_in_after_the_lie(tmp_path: Path, liars: Caller) -> None:
    """Its body has begun already; the next one must wait for it."""
    with guard_in(tmp_path) as guard:
        holder, liar = Speaker(guard), Speaker(guard, liars, "liar")
        assert liar.hello("H", 7, ("gpu_lock:free",)) == ["H"]
        assert holder.hello("H", 7) == []
        guard.throw_out(guard.fence.leases["H"])
        assert guard.fence.leases["H"].holder.session == "honest"
        assert "waits" in liar.admit("next", 9)


async def test_a_lie_about_sharing_is_corrected(tmp_path: Path) -> None:
    """A4: a share that said it was the whole card kept all others out."""
    with guard_in(tmp_path) as guard:
        honest = Speaker(guard)
        honest.admit("S", 7, ZERO, exclusive=True)
        guard.found(guard.fence.leases["S"], ONE, exclusive=False)
        assert honest.admit("next", 8, ONE, exclusive=False) == {"admitted": "next", "token": 8}
        assert guard.fence.marks == {"gpu_lock:1": (0, 7)}


async def test_lies_that_wait_in_a_row_come_after_who_is_honest(tmp_path: Path, liars: Caller) -> None:
    """A4: each is thrown out at a comparison; a thousand of them would have kept a gpu for a thousand."""
    with guard_in(tmp_path) as guard:
        honest, liar = Speaker(guard), Speaker(guard, liars, "liar")
        liar.admit("f1", 10)
        for number in range(2, 50):
            liar.admit(f"f{number}", 10 + number)
        assert "waits" in honest.admit("T", 7)
        guard.throw_out(guard.fence.leases["f1"])
        assert honest.heard == [{"admitted": "T", "token": 7}]


async def test_what_the_ledger_says_of_a_holder_is_its_hello(tmp_path: Path, liars: Caller) -> None:
    """It comes while a guard that begins asks the ledger: the holder is not thrown out, and a liar is."""
    with guard_in(tmp_path) as guard:
        holder, liar = Speaker(guard), Speaker(guard, liars, "liar")
        holder.hello("H", 7)
        liar.hello("V", 8, ONE)
        for id, token, gpus, session in (("H", 7, ZERO, "honest"), ("V", 8, ONE, "of V")):
            party = Party(ticket=id, session=session)
            guard.adopt_ledgers(Lease(id=id, token=token, gpus=gpus, exclusive=True, parties=[party]))
        assert [words for words in holder.heard if "lost" in words] == []
        assert [lease.holder.session for lease in guard.fence.leases.values()] == ["honest", "of V"]
        assert guard.unproven == {"V"}
        assert guard.fence.fresh == []


async def test_lies_of_one_user_are_bounded_and_leave_nothing(tmp_path: Path, liars: Caller) -> None:
    """A6: 71,000 made-up leases made the daemon and its record grow for good."""
    with guard_in(tmp_path) as guard:
        honest, liar = (
            Speaker(guard, Caller(identify(os.getpid()), 1000, lambda _: None)),
            Speaker(guard, liars, "liar"),
        )
        for number in range(MOST_FRESH):
            liar.hello(f"f{number}", number + 1, (f"none:{number}",))
        assert len(guard.fence.fresh) <= MOST_FRESH // 2
        assert honest.admit("T", 7) == {"admitted": "T", "token": 7}
        for lease in guard.fence.fresh:
            liar.leave(lease.id, lease.token)
        assert guard.fence.marks == {}
        assert [lease.id for lease in guard.fence.leases.values()] == ["T"]
