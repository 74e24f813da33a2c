"""Edges that mutants crossed unseen (docs/mutation.md): each test here has one that only it kills."""

from __future__ import annotations

import msgspec
import pytest

from gpulockd.alerting.expression import LONGEST, ConditionError, parse
from gpulockd.alerting.facts import KINDS, Seen
from gpulockd.alerting.judging import Book, Patience, book_after, judge
from gpulockd.alerting.rules import rule
from gpulockd.config.stability import Attempts, tripped
from gpulockd.daemon import judging
from gpulockd.daemon.fence import Admitted, Fence, Lease, Party, Refused
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
    assert parse_memory_mib(1, "memory") == MEMORY_STEP_MIB == 256


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
