"""How a staged rollout goes on: pure. `TABLE` is the whole of it, one row a move.

Its law: it never brings in more than the stage's share, never goes forward while a gate is closed or the stage's time
is not over, and once a gate has closed it only goes back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import msgspec

from gpulockd.config.gates import Counted, Trip, enough, more, tripped
from gpulockd.config.shares import pools_in, threshold
from gpulockd.config.staged import (
    IN_FORCE,
    Facts,
    Instruction,
    NotNow,
    Phase,
    Revise,
    Rollout,
    Said,
    Spell,
    TakeBack,
    Tell,
)

Event = Literal[
    "gate_tripped", "rolled_back", "base_changed", "nobody_in", "unfit", "stage_passed", "last_passed", "may_finish",
    "pause", "resume", "approve", "abort", "revised", "refused", "all_back",
]  # fmt: skip

PATIENCE = 2
"""A stage with too few attempts waits so many times its hold for more."""

MOST_SPELLS = 5
"""So many are remembered: those of this rollout and of the ones before it."""

Move = Callable[[Rollout, Facts, Said], Rollout]


def begin(rollout: Rollout, facts: Facts) -> Rollout:
    """Return the rollout in its first stage.

    :raises ValueError: without stages, or if a share or hold is none
    """
    if not rollout.stages or any(not 0 < stage.share <= 1 or stage.hold_s <= 0 for stage in rollout.stages):
        raise ValueError("a stage needs a share above 0 %, at most 100 %, and a hold time above 0")
    if [stage.share for stage in rollout.stages] != sorted({stage.share for stage in rollout.stages}):
        raise ValueError("each stage needs a larger share than the one before")
    trial = "validated" if rollout.validated else "UNVALIDATED, as its author wants it"
    words = f"the rollout {rollout.id} begins ({rollout.reason or 'no reason given'}; {trial})"
    return _enter(rollout, facts, Said(words, rollout.author))


def _enter(rollout: Rollout, facts: Facts, why: Said) -> Rollout:
    """Choose who is in, and begin to count and to hold."""
    share = rollout.now.share
    if rollout.unit == "pools":
        pools, below = pools_in(rollout.id, facts.living, share, rollout.pools), 1.0
    else:
        pools, below = rollout.pools, threshold(facts.places, share)
    entered = _with(
        rollout,
        pools=pools,
        below=below,
        began_ms=facts.elapsed_ms,
        began_wall_ms=facts.wall_ms,
        paused_ms=0,
        counted=Counted(),
        positions={},
    )
    entered = _marked(entered, from_ms=facts.wall_ms)
    stage = f"stage {rollout.stage + 1} of {len(rollout.stages)}: {share:.0%}"
    return _tell(entered, f"{why.text}; {stage}, {entered.who}, holds for {rollout.now.hold_s:g} s", why)


def _begin_again(rollout: Rollout, facts: Facts, why: Said) -> Rollout:
    return _enter(_with(rollout, base=facts.revision), facts, why)


def _widen(rollout: Rollout, facts: Facts, why: Said) -> Rollout:
    return _enter(_with(rollout, stage=rollout.stage + 1), facts, why)


def _fit(rollout: Rollout, facts: Facts, why: Said) -> Rollout:
    return _marked(_with(rollout, below=threshold(facts.places, rollout.now.share, rollout.below)))


def _say(rollout: Rollout, facts: Facts, why: Said) -> Rollout:
    return _tell(rollout, why.text, why)


def _end(rollout: Rollout, facts: Facts, why: Said) -> Rollout:
    return _say(_marked(rollout, to_ms=facts.wall_ms), facts, why)


def _marked(rollout: Rollout, *, from_ms: int = 0, to_ms: int = 0) -> Rollout:
    """Write down that the candidate is in force where it is now, or that it is so nowhere any more (`to_ms`)."""
    *others, own = rollout.spells or (None,)
    if own is None or own.rollout != rollout.id:
        others, own = list(rollout.spells), Spell(rollout=rollout.id, unit=rollout.unit, from_ms=from_ms)
    pools = tuple(sorted({*own.pools, *rollout.pools}))
    own = msgspec.structs.replace(own, pools=pools, below=max(own.below, rollout.below), to_ms=to_ms)
    return _with(rollout, spells=(*others, own)[-MOST_SPELLS:])


def _stop_the_clock(rollout: Rollout, facts: Facts, why: Said) -> Rollout:
    return _tell(_with(rollout, paused_ms=max(0, facts.elapsed_ms - rollout.began_ms)), why.text, why)


def _go_on(rollout: Rollout, facts: Facts, why: Said) -> Rollout:
    return _tell(_with(rollout, began_ms=facts.elapsed_ms - rollout.paused_ms, paused_ms=0), why.text, why)


def _go_back(rollout: Rollout, facts: Facts, why: Said) -> Rollout:
    return _tell(_with(rollout, why=why.text), f"the rollout goes back: {why.text}", why)


TABLE: dict[tuple[Phase, Event], tuple[Phase, Move]] = {
    # in phase     it happens that    then           and
    ("holding",   "gate_tripped"):   ("returning",  _go_back),
    ("holding",   "rolled_back"):    ("returning",  _go_back),
    ("holding",   "base_changed"):   ("holding",    _begin_again),
    ("holding",   "nobody_in"):      ("holding",    _begin_again),
    ("holding",   "unfit"):          ("holding",    _fit),
    ("holding",   "stage_passed"):   ("holding",    _widen),
    ("holding",   "last_passed"):    ("awaiting",   _say),
    ("holding",   "may_finish"):     ("finishing",  _say),
    ("holding",   "pause"):          ("paused",     _stop_the_clock),
    ("holding",   "abort"):          ("returning",  _go_back),
    ("paused",    "gate_tripped"):   ("returning",  _go_back),
    ("paused",    "rolled_back"):    ("returning",  _go_back),
    ("paused",    "base_changed"):   ("paused",     _begin_again),
    ("paused",    "unfit"):          ("paused",     _fit),
    ("paused",    "resume"):         ("holding",    _go_on),
    ("paused",    "abort"):          ("returning",  _go_back),
    ("awaiting",  "gate_tripped"):   ("returning",  _go_back),
    ("awaiting",  "rolled_back"):    ("returning",  _go_back),
    ("awaiting",  "base_changed"):   ("holding",    _begin_again),
    ("awaiting",  "unfit"):          ("awaiting",   _fit),
    ("awaiting",  "approve"):        ("finishing",  _say),
    ("awaiting",  "abort"):          ("returning",  _go_back),
    ("finishing", "rolled_back"):    ("returning",  _go_back),
    ("finishing", "revised"):        ("done",       _end),
    ("finishing", "refused"):        ("returning",  _go_back),
    ("returning", "all_back"):       ("returned",   _end),
}  # fmt: skip
"""Every move there is. What is not here does not happen: a command is refused, a fact changes nothing."""


def moved(rollout: Rollout, event: Event, facts: Facts, why: Said) -> Rollout:
    """Return the rollout after the event; as it was if its phase knows no such move."""
    found = TABLE.get((rollout.phase, event))
    if found is None:
        return rollout
    phase, move = found
    return _with(move(rollout, facts, why), phase=phase)


def step(rollout: Rollout, facts: Facts) -> tuple[Rollout, tuple[Instruction, ...]]:
    """Return the rollout after what is so now, and what must be done. What is done twice does no harm."""
    found = _happened(rollout, facts)
    if found is not None:
        rollout = moved(rollout, found[0], facts, Said(found[1]))
    return rollout, instructions(rollout, facts)


def instructions(rollout: Rollout, facts: Facts) -> tuple[Instruction, ...]:
    """Return what must be done as it stands."""
    todo: list[Instruction] = []
    if rollout.untold:
        todo.append(Tell(rollout.untold))
    if rollout.phase == "finishing":
        todo.append(Revise())
    too_many = tuple(sorted(pool for pool in facts.carrying if not rollout.carries(pool)))
    if too_many:
        todo.append(TakeBack(too_many))
    return tuple(todo)


def told(rollout: Rollout, lines: tuple[Said, ...]) -> Rollout:
    """Return the rollout after the audit has these lines."""
    return _with(rollout, untold=tuple(line for line in rollout.untold if line not in lines))


def commanded(
    rollout: Rollout,
    command: Literal["approve", "pause", "resume", "abort"],
    facts: Facts,
    *,
    author: str,
    reason: str = "",
) -> Rollout:
    """Return the rollout after what a person wants; a gate that has closed meanwhile has the first word.

    :raises NotNow: if its phase knows no such move
    """
    stepped, _ = step(rollout, facts)
    if stepped.phase in ("returning", "returned") and command != "abort":
        raise NotNow(f"the rollout goes back: {stepped.why}; begin another when that is mended", phase=stepped.phase)
    if (stepped.phase, command) not in TABLE:
        raise NotNow(_why_not(stepped, command), phase=stepped.phase)
    words = {"approve": "approved", "pause": "paused it", "resume": "resumed it", "abort": "aborted it"}
    why = Said(f"{author} {words[command]}{f' ({reason})' if reason else ''}", author)
    by = _with(stepped, approved_by=author) if command == "approve" else stepped
    return moved(by, command, facts, why)


def given_up(rollout: Rollout, facts: Facts, *, author: str, reason: str = "") -> Rollout:
    """Return the rollout after somebody has rolled the configuration back, whether or not that made a revision."""
    why = f"{author} rolled the configuration back{f' ({reason})' if reason else ''}"
    return moved(rollout, "rolled_back", facts, Said(why, author))


def _why_not(rollout: Rollout, command: str) -> str:
    cures = {
        "holding": "a stage holds: it can be paused or aborted, and waits for approval after its last stage",
        "paused": "it is paused: resume it first, or abort it",
        "awaiting": "it waits for approval: approve or abort it",
        "finishing": "its candidate is being made the configuration of all; `gpulockd config rollback` undoes it",
        "returning": "it goes back already",
    }
    return f"cannot {command} now: {cures.get(rollout.phase, f'the rollout is over ({rollout.phase})')}"


def _happened(rollout: Rollout, facts: Facts) -> tuple[Event, str] | None:
    """Return the event that the facts amount to, and its words."""
    if rollout.phase == "returning":
        return None if facts.carrying else ("all_back", "every host goes by the configuration of before again")
    if rollout.phase not in IN_FORCE:
        return None
    if facts.revision != rollout.base:
        if facts.rolled_back:
            return "rolled_back", f"the configuration was rolled back (revision {facts.revision})"
        return "base_changed", f"the configuration changed (revision {facts.revision}), so the stage begins again"
    held_ms, hold_ms = rollout.held_ms(facts.elapsed_ms), rollout.now.hold_s * 1000
    is_up = rollout.phase == "holding" and held_ms >= hold_ms
    last_word = is_up and held_ms >= PATIENCE * hold_ms
    trip = tripped(rollout.counted, rollout.limits, last_word=last_word) if rollout.phase != "finishing" else None
    if trip is not None:
        return "gate_tripped", _words_of(trip, rollout)
    if rollout.unit == "sessions" and _fits_no_more(rollout, facts):
        return "unfit", ""
    if not is_up:
        return None
    if rollout.unit == "pools" and not set(rollout.pools).intersection(facts.living):
        # A daemon that restarts is no reason; one that is away at the end has seen nothing to its end.
        return "nobody_in", "no daemon of the hosts that are in lives, so the stage begins again with others"
    if not enough(rollout.counted, rollout.limits) and not last_word:
        return None
    return _passed(rollout)


def _fits_no_more(rollout: Rollout, facts: Facts) -> bool:
    """Whether the share has other living sessions now; while it is paused or waits, only too many count."""
    below = threshold(facts.places, rollout.now.share, rollout.below)
    return below < rollout.below or (below > rollout.below and rollout.phase == "holding")


def _passed(rollout: Rollout) -> tuple[Event, str]:
    note = "" if enough(rollout.counted, rollout.limits) else ", too few to judge but none failed"
    why = f"stage {rollout.stage + 1} has passed ({rollout.counted}{note})"
    if not rollout.last:
        return "stage_passed", why
    if rollout.limits.require_approval:
        return "last_passed", f"{why}; it waits for approval"
    return "may_finish", f"{why}; all come next"


def _words_of(trip: Trip, rollout: Rollout) -> str:
    return f"{trip} (stage {rollout.stage + 1} of {len(rollout.stages)}, {rollout.who})"


def counted(rollout: Rollout, positions: dict[str, int], **facts: Any) -> Rollout:
    """Return the rollout after what was counted (as `gates.more` takes it), and through which event of each pool."""
    return _with(rollout, counted=more(rollout.counted, **facts), positions=rollout.positions | positions)


def _tell(rollout: Rollout, text: str, by: Said) -> Rollout:
    return _with(rollout, untold=(*rollout.untold, Said(text, by.author)))


def _with(rollout: Rollout, **changes: Any) -> Rollout:
    return msgspec.structs.replace(rollout, **changes)
