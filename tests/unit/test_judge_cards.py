"""What is done about a card that fails, comes back, hangs, or has strangers on it: the judgement alone."""

from __future__ import annotations

import pytest

from gpulockd.daemon.judge_cards import (
    CardMemory,
    EndLeases,
    Look,
    Name,
    Order,
    Policy,
    Report,
    Stranger,
    after,
    hidden_mib,
    judge,
    met,
    remember,
)
from gpulockd.hardware import xids
from gpulockd.hardware.processes.identity import Process
from gpulockd.hardware.readings import CardProcess, Reading
from gpulockd.model import GpuState

WELL = Look(reading=Reading(uuid="GPU-a", at_ms=0, recovery="none"), processes=())
OLD_WELL = Look(reading=Reading(uuid="GPU-a", at_ms=0), processes=())
NEEDS_RESET = Look(reading=Reading(uuid="GPU-a", at_ms=0, recovery="gpu_reset"), processes=())
LOST = Look(lost="a GPU has fallen off the bus")
HANGS = Look(hangs=True)
AWAY = Look(unknown="the NVIDIA driver is not loaded")


class Card:
    """A card's memory and its state in the ledger, as the service would lead them."""

    def __init__(self, state: GpuState = "ready", policy: Policy = "report") -> None:
        self.state: GpuState = state
        self.policy: Policy = policy
        self.memory = CardMemory()

    @property
    def is_out(self) -> bool:
        """Whether it is out of the pool as lost."""
        return self.state == "lost"

    def see(self, look: Look, *reported: int) -> list[Order]:
        """One look, judged and obeyed."""
        self.memory = remember(met(self.state, self.memory), look, reported)
        orders = judge(self.state, self.memory, self.policy)
        self.memory = after(self.memory, orders)
        for order in orders:
            if isinstance(order, Report):
                self.state = "ready" if order.state == "settled" else order.state
        return list(orders)


def test_a_lost_card_leaves_the_pool_and_comes_back_after_two_clean_looks() -> None:
    """One look that goes well proves nothing of a card that was lost."""
    card = Card()
    assert card.see(LOST) == [Report("lost", LOST.lost), EndLeases(LOST.lost)]
    assert [type(order) for order in card.see(LOST)] == [EndLeases]  # reported once
    assert card.see(WELL) == []
    assert card.see(LOST) == [EndLeases(LOST.lost)]
    assert card.see(WELL) == []
    assert [type(order) for order in card.see(WELL)] == [Report]
    assert not card.is_out
    assert card.see(WELL) == []


@pytest.mark.parametrize("state", ["drained"])
def test_a_drained_card_stays_drained_whatever_it_says(state: GpuState) -> None:
    """Somebody wanted it so; only what is on it is told."""
    card = Card(state)
    assert card.see(LOST) == [EndLeases(LOST.lost)]
    assert card.see(WELL) == card.see(WELL) == card.see(WELL) == []
    assert card.state == state


@pytest.mark.parametrize("xid", sorted(xids.APPLICATION))
def test_errors_of_programs_cost_no_card(xid: int) -> None:
    """A program that crashes on the card does so every day."""
    card = Card()
    assert card.see(WELL, xid) == []
    assert not xids.is_fatal(xid)


def test_a_fatal_xid_stands_until_the_driver_says_that_nothing_is_needed() -> None:
    """A driver that tells what the card needs is believed, after it has said so twice."""
    card = Card()
    assert card.see(NEEDS_RESET, 48)[0] == Report("lost", "XID 48: a double-bit memory error; it needs a reset")
    assert card.is_out
    card.see(NEEDS_RESET)
    card.see(WELL)
    assert card.is_out
    card.see(WELL)
    assert not card.is_out


def test_on_an_old_driver_a_fatal_xid_stands_until_the_card_was_away() -> None:
    """It tells of no need; a card that was gone and is back was reset, one that only answers was not."""
    card = Card()
    assert card.see(OLD_WELL, 119)[0] == Report("lost", "XID 119: the GPU's system processor does not answer")
    for _ in range(5):
        card.see(OLD_WELL)
    assert card.is_out
    card.see(LOST)
    card.see(OLD_WELL)
    card.see(OLD_WELL)
    assert not card.is_out


def test_a_card_with_an_xid_is_used_again_when_somebody_says_so() -> None:
    """They have looked at it; the XID of before is no reason to take it away again at once."""
    card = Card()
    card.see(OLD_WELL, 95)
    card.state = "ready"  # `gpulockd gpu resume`
    assert card.see(OLD_WELL) == []
    assert card.see(OLD_WELL) == []
    assert card.see(OLD_WELL, 95)[0] == Report("lost", "XID 95: an uncontained memory error")


def test_a_lost_card_that_somebody_resumes_is_lost_still() -> None:
    """A word makes no card answer."""
    card = Card()
    card.see(LOST)
    card.state = "ready"
    assert card.see(LOST)[0] == Report("lost", LOST.lost)


def test_a_card_that_hangs_twice_leaves_the_pool_but_its_holder_goes_on() -> None:
    """It may answer again: a reset of a neighbour, a long kernel; nobody new begins on it meanwhile."""
    card = Card()
    assert card.see(HANGS) == []
    assert card.see(HANGS) == [Report("lost", "it does not answer its driver")]
    assert card.see(HANGS) == []
    card.see(WELL)
    assert card.see(WELL) == [Report("ready", "the card answers again and is well")]


def test_a_card_that_its_driver_does_not_have_takes_nobody_new_and_its_holder_goes_on() -> None:
    """A container can lose sight of every card while all of them work; that must not end every lease."""
    card, missing = Card(), Look(missing="the driver no longer has this GPU")
    assert card.see(missing) == [Report("lost", missing.missing)]
    assert card.see(missing) == []
    card.see(OLD_WELL)
    assert card.see(OLD_WELL) == [Report("ready", "the card answers again and is well")]


@pytest.mark.parametrize("state", ["ready", "lost"])
def test_a_driver_that_does_not_answer_says_nothing_of_its_cards(state: GpuState) -> None:
    """An upgrade of the driver must not end every lease of the host, nor bring a lost card back."""
    card = Card(state)
    if state == "lost":
        card.see(LOST)
    for _ in range(5):
        assert not [order for order in card.see(AWAY) if isinstance(order, Report)]
    assert card.state == state


def stranger(pid: int) -> Stranger:
    """Somebody without a lease."""
    return Stranger(Process(pid, 1), f"game (pid {pid}, user bob)", 2048)


def test_a_stranger_is_named_once_and_only_when_seen_twice() -> None:
    """Who begins or ends between ledger and card is no stranger."""
    card, look = Card(), Look(reading=WELL.reading, processes=(), strangers=(stranger(7),))
    assert card.see(look) == []
    assert card.see(look) == [Name(stranger(7))]
    assert card.see(look) == []
    assert card.see(WELL) == []
    assert card.see(look) == []
    assert card.see(look) == [Name(stranger(7))]  # it had gone
    assert Card(policy="ignore").see(look) == []


def test_where_strangers_are_waited_for_the_next_holder_does_not_begin() -> None:
    """And a gpu that somebody else has put into quarantine is not set free by this."""
    card, look = Card(policy="wait"), Look(reading=WELL.reading, processes=(), strangers=(stranger(7), stranger(8)))
    card.see(look)
    held_back = card.see(look)[-1]
    assert isinstance(held_back, Report)
    assert held_back.reason == "game (pid 7, user bob), 2048 MiB; game (pid 8, user bob), 2048 MiB"
    assert card.state == "quarantined"
    assert card.see(look) == []
    assert card.see(WELL) == [Report("settled", "the processes without a lease are gone")]
    others = Card("quarantined", "wait")
    assert others.see(WELL) == others.see(WELL) == []


def test_memory_of_nobody_is_told_only_where_that_is_certain() -> None:
    """From a container the processes are hidden; an old driver's own reserve is not somebody's."""
    reading = Reading(uuid="GPU-a", at_ms=0, used_mib=30_000, reserved_mib=500)
    assert hidden_mib(Look(reading=reading, processes=())) == 30_000
    assert hidden_mib(Look(reading=reading, processes=(CardProcess(pid=1, used_mib=29_900),))) == 0
    assert hidden_mib(Look(reading=reading, processes=(CardProcess(pid=1),))) == 0
    assert hidden_mib(Look(reading=Reading(uuid="GPU-a", at_ms=0, used_mib=30_000), processes=())) == 0
    assert hidden_mib(Look(reading=reading)) == hidden_mib(LOST) == 0
