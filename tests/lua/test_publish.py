"""What a pool publishes: who may change it, under which version, and what an offer makes of it."""

from __future__ import annotations

from typing import Any

import pytest

from gpulockd.ledger.publishing import Published, publish, published
from gpulockd.ledger.verbs import Call
from tests.lua.both import Both, card

SLOW, FAST = {"gpu_lock": {"poll_interval": 2.0}}, {"gpu_lock": {"poll_interval": 0.5}}


def events(both: Both) -> list[bytes]:
    """The types of all events so far."""
    rows: Any = both.ledger._client.xrange(both.keys.events_channel)
    return [fields[b"e"].split(b'"')[3] for _, fields in rows]


def read(both: Both) -> Published:
    """What a client reads."""
    answer = both.ledger.ask(published(both.keys))
    assert isinstance(answer, Published)
    return answer


def test_a_change_is_published_under_a_version_that_every_answer_tells(two_cards: Both) -> None:
    """So a client that lost the message knows of it without asking."""
    assert two_cards.publish("d", 2, SLOW) == ("published", 2, SLOW)
    assert two_cards.publish("d", 2, SLOW) == ("published", 2, SLOW)
    assert two_cards.publish("d", 7, FAST) == ("published", 7, FAST)
    two_cards.keepalive("a")
    two_cards.request("a", "held")
    assert (read(two_cards).version, read(two_cards).defaults) == (7, FAST)


def test_an_older_version_changes_nothing_and_is_told_the_present_one(two_cards: Both) -> None:
    """A command that was stuck in a socket must not bring the old configuration back."""
    two_cards.publish("d", 7, FAST)
    assert two_cards.publish("d", 6, SLOW) == ("superseded", 7, FAST)
    assert two_cards.publish("d", 7, SLOW) == ("superseded", 7, FAST)


def test_only_the_daemon_that_offers_the_pool_publishes(two_cards: Both) -> None:
    """A daemon that was replaced has nothing to say any more."""
    assert two_cards.publish("a", 7, FAST) == ("not_offered",)
    two_cards.open("e")
    two_cards.end("d", "d", what="session")
    two_cards.offer("e", card(0))
    assert two_cards.publish("d", 7, FAST) == ("no_session",)
    assert two_cards.publish("e", 7, FAST) == ("published", 7, FAST)


def test_nobodys_word_counts_while_no_daemon_offers_the_pool(two_cards: Both) -> None:
    """The programs of a host whose daemon has died still read what it published: another may take it back."""
    assert two_cards.publish("", 7, FAST) == ("not_offered",)
    two_cards.end("d", "d", what="session")
    assert two_cards.publish("", 7, FAST) == ("published", 7, FAST)


def test_an_offer_keeps_what_was_published_later_than_its_daemon_knows(two_cards: Both) -> None:
    """An offer that was under way when the configuration changed is late, not new."""
    two_cards.publish("d", 7, FAST)
    two_cards.offer("d", card(0), defaults=SLOW, version=6)
    assert read(two_cards).defaults == FAST
    two_cards.offer("d", card(0), defaults=FAST, version=7)
    assert two_cards.model.version == 7
    two_cards.offer("d", card(0), defaults=SLOW, version=None)
    assert (read(two_cards).version, read(two_cards).defaults) == (8, SLOW)


def test_versions_go_on_over_a_loss_of_all_data(two_cards: Both) -> None:
    """A client counts them; one that began at 1 again would be heard by nobody."""
    two_cards.publish("d", 7, FAST)
    two_cards.lose_all()
    two_cards.open("d", known=True)
    two_cards.offer("d", card(0), defaults=FAST, version=7)
    assert (read(two_cards).version, read(two_cards).defaults) == (7, FAST)


@pytest.mark.parametrize("offered_before", [False, True])
def test_the_event_is_told_once_for_a_version(two_cards: Both, *, offered_before: bool) -> None:
    """Who follows the events counts changes; who asks again after a lost answer makes none."""
    if offered_before:
        two_cards.offer("d", card(0), defaults=FAST, version=7)
    call: Call[object] = publish(  # type: ignore[assignment] # any answer will do
        two_cards.keys, session="d", version=7, defaults=FAST, kind="config_changed", facts={"reason": "revision 7"}
    )
    for _ in range(2):
        assert isinstance(two_cards.ledger.ask(call), Published)
    assert events(two_cards).count(b"config_changed") == 1
