"""Which attempts began under a rollout's candidate: they say nothing of the revision that all others go by."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from gpulockd.config.stability import Attempts
from gpulockd.config.staged import Spell
from gpulockd.events import Event
from gpulockd.ledger.tally import outcome

SESSION_LETTERS = 8
"""Events carry so many letters of a session's id, and its place comes from them."""

SLACK_MS = 1_000
"""How much earlier than it was written down a candidate may have been in force (in ms)."""

ShareOf = Callable[[str, str], float]
"""The place in [0, 1) of a session in a rollout, by the id of each."""


def touching(spells: Iterable[Spell], pool: str) -> tuple[Spell, ...]:
    """Return the spells in which a pool had a candidate."""
    return tuple(spell for spell in spells if pool in spell.pools)


def is_within(spells: Iterable[Spell], from_ms: float) -> bool:
    """Whether a candidate was in force at any time since a moment (wall clock)."""
    return any(not spell.to_ms or spell.to_ms >= from_ms for spell in spells)


def without_canaries(
    events: Iterable[Event], spells: Collection[Spell], share_of: ShareOf, grace_ms: float
) -> Attempts:
    """Count the attempts of a pool that did not begin under a candidate.

    A wait keeps the settings that it began with, so one of a canary is its own whenever it ends.

    :param spells: those in which this pool had a candidate
    :param grace_ms: how long after a candidate was taken back a program may not have heard of it (in ms)
    """
    found = {"acquired": 0, "timed_out": 0, "failed": 0}
    for event in events:
        ended = outcome(event)
        if ended in found and not any(_is_under(spell, event, share_of, grace_ms) for spell in spells):
            found[ended] += 1
    return Attempts(**found)


def _is_under(spell: Spell, event: Event, share_of: ShareOf, grace_ms: float) -> bool:
    began_ms = event.at_ms - (event.waited_ms or 0)
    if began_ms < spell.from_ms - SLACK_MS or (spell.to_ms and began_ms > spell.to_ms + grace_ms):
        return False
    if spell.unit == "pools" or not event.session:  # whose it is nobody can say: it must not count against the others
        return True
    return share_of(spell.rollout, event.session[:SESSION_LETTERS]) < spell.below
