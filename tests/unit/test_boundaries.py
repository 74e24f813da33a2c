"""Edges that mutants crossed unseen (docs/mutation.md): each test here has one that only it kills."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import msgspec
import pytest

from gpulockd.alerting.expression import LONGEST, ConditionError, parse
from gpulockd.alerting.facts import KINDS, Seen
from gpulockd.alerting.judging import Book, Patience, book_after, judge
from gpulockd.alerting.rules import rule
from gpulockd.config.stability import Attempts, tripped
from gpulockd.daemon import judging
from gpulockd.daemon.fence import Admitted, Fence, Lease, Party, Refused
from gpulockd.daemon.journal import Journal
from gpulockd.errors import ImpossibleRequest
from gpulockd.ledger.recorded import DAY_MS, day_name
from gpulockd.ledger.statistics import days_of
from gpulockd.settings import ConfigBlock
from gpulockd.units import MEMORY_STEP_MIB, clean, parse_memory_mib
from tests.unit.test_judging import NOW_S, RULES, lease, picture


def on_card(id: str, token: int, *, exclusive: bool) -> Lease:
    party = Party(ticket=id, session=f"s-{id}")
    return Lease(id=id, token=token, gpus=("gpu_lock:0",), exclusive=exclusive, parties=[party])


def test_a_budget_that_has_left_stands_in_no_older_budgets_way() -> None:
    """Budgets share the card, so their grants may reach the guard in any order."""
    fence = Fence()
    fence.enter(on_card("b", 5, exclusive=False))
    fence.remove("b")
    assert fence.marks == {"gpu_lock:0": (0, 5)}
    assert fence.ask(on_card("a", 3, exclusive=False)) == Admitted()
    assert isinstance(fence.ask(on_card("c", 3, exclusive=True)), Refused)


def test_a_whole_lease_that_has_left_stands_in_an_older_budgets_way() -> None:
    """That budget's turn was before a whole other hold: its process has slept through it."""
    fence = Fence()
    assert fence.token == 0
    fence.enter(on_card("b", 5, exclusive=True))
    fence.remove("b")
    assert fence.marks == {"gpu_lock:0": (5, 5)}
    assert isinstance(fence.ask(on_card("a", 3, exclusive=False)), Refused)


def test_a_rate_may_be_compared_with_all_of_it() -> None:
    """100 % is a rate; only more is none."""
    assert parse("success_rate >= 100%", KINDS).holds({"success_rate": 1.0})
    with pytest.raises(ConditionError, match="never more than 1"):
        parse("success_rate > 1.01", KINDS)


def test_a_text_that_is_too_long_is_wrong_from_its_beginning() -> None:
    """No other column would say where."""
    with pytest.raises(ConditionError, match=r"column 1:"):
        parse(" " * LONGEST + "deadlock_detected", KINDS)


def test_an_alert_says_what_its_rule_says_now() -> None:
    """Who changes a rule's words while its alert stands wants to read the new ones."""
    patience = Patience(resolve_after_s=60, escalate_after_s=900, keep_s=3600)
    first, facts = rule("HIGH", "queue_length > 5", "warning", "too many wait", 0.0), Seen(values={"queue_length": 9.0})
    book = book_after(Book(), judge("p", (first,), facts, Book(), 0, patience))
    assert book.alerts["p:HIGH"].message == "too many wait"
    other = msgspec.structs.replace(first, level="critical", message="far too many wait")
    book = book_after(book, judge("p", (other,), facts, book, 1000, patience))
    assert (book.alerts["p:HIGH"].level, book.alerts["p:HIGH"].message) == ("critical", "far too many wait")
    assert judge("p", (other,), facts, book, 2000, patience) == ()


def test_only_holders_bring_something_to_do() -> None:
    """A claim has no age, so nobody looks again for its sake."""
    assert judging.next_look_s(picture(lease(1)), judging.Readings(), RULES, NOW_S) < float("inf")
    assert judging.next_look_s(picture(lease(1, state="claim")), judging.Readings(), RULES, NOW_S) == float("inf")


def test_a_size_that_no_float_holds_is_refused_as_others_are() -> None:
    """JSON may say a number of 400 digits."""
    with pytest.raises(ImpossibleRequest):
        parse_memory_mib(10**400, "memory")
    assert parse_memory_mib("1MiB", "memory") == MEMORY_STEP_MIB == 256


def test_a_rate_that_is_as_before_takes_nothing_back() -> None:
    """Going back would change nothing."""
    rules = ConfigBlock(rollback_samples=10)
    assert tripped(Attempts(80, 20, 0), Attempts(80, 20, 0), rules) == ""
    assert tripped(Attempts(80, 20, 0), Attempts(81, 20, 0), rules)


def test_a_text_is_cut_only_where_a_length_is_given() -> None:
    """The ellipsis stands inside the length."""
    assert clean("a long name") == "a long name"
    assert (clean("a long name", 6), clean("a long", 6)) == ("a lon…", "a long")


def test_a_window_is_read_from_the_day_of_its_beginning_to_that_of_its_end() -> None:
    """A task's numbers stand in the books of days."""
    names = [day_name(day) for day in (20, 21, 22)]
    assert days_of(21 * DAY_MS - 1, 22 * DAY_MS, None) == [(name, "") for name in names]
    assert days_of(21 * DAY_MS, 21 * DAY_MS, ["a", "b"]) == [(names[1], "a"), (names[1], "b")]


def test_a_process_is_in_what_it_has_not_left() -> None:
    """Neither another process of the lease, nor one that has the same number, nor one that is out."""
    fence = Fence()
    inside = Party(ticket="a", session="s", pid=7, started=70)
    left = Party(ticket="b", session="s", pid=7, started=70, state="left")
    other = Party(ticket="c", session="s", pid=8, started=80)
    found = Lease(id="a", token=1, gpus=("gpu_lock:0",), exclusive=True, parties=[inside, left, other])
    fence.enter(found)
    assert fence.of_process(7, 70) == [(found, inside)]
    assert fence.of_process(8, 80) == [(found, other)]
    assert fence.of_process(7, 71) == []


def test_a_record_that_is_closed_keeps_no_descriptor(tmp_path: Path) -> None:
    """A daemon that changes its folder would run out of them."""
    before = len(os.listdir("/proc/self/fd"))
    journal = Journal(str(tmp_path / "guard.log"), "boot")
    journal.load()
    journal.entered(on_card("a", 1, exclusive=True))
    assert len(os.listdir("/proc/self/fd")) == before + 1
    journal.close()
    journal.close()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("heartbeat", ["manual", "automatic"])
def test_a_missed_heartbeat_says_whose_it_was(heartbeat: Literal["manual", "automatic"]) -> None:
    """One that the task sends itself ends the task, one of its process does not."""
    silent = lease(30, heartbeat=heartbeat, seen_ms=10**7, beat_ms=10**7)
    missed = [one for one in judging.judge(picture(silent), judging.Readings(), RULES, NOW_S) if hasattr(one, "manual")]
    assert missed
    assert all(one.manual == (heartbeat == "manual") for one in missed)


def test_an_alert_that_was_never_raised_has_been_raised_no_time() -> None:
    """The first message would say that it is the second."""
    patience = Patience(resolve_after_s=60, escalate_after_s=900, keep_s=3600)
    waits = rule("HIGH", "queue_length > 5", "warning", "too many wait", 10.0)
    book = book_after(Book(), judge("p", (waits,), Seen(values={"queue_length": 9.0}), Book(), 0, patience))
    assert (book.alerts["p:HIGH"].state, book.alerts["p:HIGH"].times) == ("pending", 0)
    book = book_after(book, judge("p", (waits,), Seen(values={"queue_length": 9.0}), book, 11_000, patience))
    assert (book.alerts["p:HIGH"].state, book.alerts["p:HIGH"].times) == ("active", 1)
