"""The levels of a lease in the ledger: marked once, upwards, and told to all who are in it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lua.both import Both, Disagreement, card, on
from tests.lua.harness import planted
from tests.servers import Server

ZERO = on("gpu_lock:0")


@pytest.fixture
def both(server: Server, pool: str) -> Iterator[Both]:
    """A pool with one card and three processes."""
    with Both(server.url, pool) as here:
        here.stage(card(0))
        yield here


def test_a_level_is_marked_once_and_only_upwards(both: Both) -> None:
    """Each level acts once per lease, the highest reached wins."""
    both.request("a", "held", ZERO)
    token = both.token("held")
    both.live_on(10_000, "abcd")
    assert both.reach("held", token, "warning", 10_001) == ("marked", "early", "")
    assert both.reach("held", token, "soft", 10_000) == ("marked", "reached", "")
    assert both.reach("held", token, "soft", 10_000) == ("marked", "noted", "soft")
    assert both.reach("held", token, "warning", 10_000) == ("marked", "noted", "soft")
    assert both.reach("held", token - 1, "hard") == ("stale", token)
    assert both.reach("unknown", token, "hard") == ("gone", "unknown")


def test_all_who_are_in_a_lease_are_asked_to_stop_each_time(both: Both) -> None:
    """A ring may be lost, and a member's process holds the gpu as much as the holder's. The rings are compared by
    `Both`."""
    both.request("a", "held", ZERO)
    token = both.token("held")
    both.request("b", "joined", ZERO, inside=("held", token))
    assert both.state("joined") == "member"
    assert both.reach("held", token, "soft", stop=True)[1] == "reached"
    assert both.reach("held", token, "soft", stop=True)[1] == "noted"


def test_an_operators_word_is_no_age(both: Both) -> None:
    """Who is asked to stop early has reached no limit; its limits still come, each once."""
    both.request("a", "held", ZERO)
    token = both.token("held")
    assert both.reach("held", token, "operator", stop=True) == ("marked", "reached", "")
    assert both.reach("held", token, "operator", stop=True) == ("marked", "noted", "")
    assert both.reach("held", token, "soft", stop=True) == ("marked", "reached", "")
    assert both.reach("held", token, "operator", stop=True) == ("marked", "noted", "soft")


def test_a_claim_has_not_begun(both: Both) -> None:
    """Its winner has not said that it is there."""
    both.request("a", "held", ZERO)
    both.request("b", "next", ZERO)
    both.end("a", "held", both.token("held"))
    assert both.state("next") == "claim"
    assert both.reach("next", both.token("next"), "hard")[0] == "stale"


def test_keepalives_are_signs_of_life_unless_the_task_reports_by_itself(both: Both) -> None:
    """`heartbeat="manual"`: the process lives, its task may hang."""
    both.request("a", "held", ZERO)
    token = both.token("held")
    both.live_on(10_000, "abcd")
    assert both.reach("held", token, "silent", 5_000)[1] == "early"
    assert both.reach("held", token, "silent", 5_000, manual=True)[1] == "reached"
    assert both.reach("held", token, "silent", 5_000, manual=True)[1] == "noted"
    both.pass_time(1)
    both.progress("a", "held", token)
    assert both.reach("held", token, "silent", 5_000, manual=True)[1] == "early"
    both.live_on(5_000, "abcd")
    assert both.reach("held", token, "silent", 5_000, manual=True)[1] == "reached"


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("RANK[level] > RANK[before]", "RANK[level] >= RANK[before]"),
        ("text(t.token) ~= ARGV[3]", "false"),
        ("books.now - since < tonumber(ARGV[5])", "false"),
        ("t.beat_ms or since", "since"),
        ("tonumber(t.missed_ms or -1) < since", "true"),
        ("books.ring(one.session, 'stop ' .. one.id)", "books.ring(t.session, 'stop ' .. t.id)"),
    ],
)
def test_planted_bugs_are_seen(server: Server, pool: str, right: str, wrong: str) -> None:
    """A test that no bug can fail tests nothing."""
    tests = (
        test_a_level_is_marked_once_and_only_upwards,
        test_all_who_are_in_a_lease_are_asked_to_stop_each_time,
        test_keepalives_are_signs_of_life_unless_the_task_reports_by_itself,
    )
    caught = 0
    for number, test in enumerate(tests):
        with Both(server.url, f"{pool}-{number}", planted(right, wrong, "reach")) as here:
            here.stage(card(0))
            try:
                test(here)
            except Disagreement:
                caught += 1
    assert caught > 0
