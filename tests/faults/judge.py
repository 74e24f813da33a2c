"""The judge: reads what was asked, answered and physically used, and says which rule was broken, in words.

Twelve rules. What cannot be known stays open: an answer that nobody heard may have been any. Every rule looks at each
line a few times at most, so a million lines are judged in seconds.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import msgspec

from gpulockd import events
from tests.system.history import Note, Ticket, granted_twice, inversions, tickets_of

NEMESIS = "nemesis"
"""Who notes what was done to the others: `killed`, `stopped`, `woken` with the worker's name as key, and `over`."""

ENDED_SERVED = ("use", "refused", "cancelled", "lost", "stopped")


class Bounds(msgspec.Struct, frozen=True, kw_only=True):
    """How long what may take; None: this story has no such promise.

    :ivar idle_ms: a gpu may be free beside a ticket that fits it (in ms of the ledger)
    :ivar death_s: from a kill of a holder to the next use of its gpu
    :ivar served_s: from the end of all faults to the use of whoever still waits
    """

    idle_ms: int | None = None
    death_s: float | None = None
    served_s: float | None = None


class Story(msgspec.Struct, frozen=True, kw_only=True):
    """All that is known of a run.

    :ivar notes: of the workers, who are the witnesses, and of the nemesis; in the order of their time
    :ivar told: the pool's own events, in the order of their numbers
    :ivar keys_left: keys of the store that should not be there when all have gone
    :ivar shared: gpus that were also given in parts of their memory
    :ivar equal: whether all tickets wanted the same with the same priority, and stayed until they were served
    """

    notes: Sequence[Note]
    told: Sequence[events.Event] = ()
    keys_left: Sequence[str] = ()
    gpus: Sequence[str] = ()
    shared: frozenset[str] = frozenset()
    equal: bool = False
    bounds: Bounds = Bounds()


class Use(msgspec.Struct, kw_only=True):
    """One body on one gpu, as its process saw it; `until_ns` of one that never ended is the end of the story."""

    who: str
    key: str
    gpu: str
    token: int
    from_ns: int
    until_ns: int


def uses_of(notes: Sequence[Note]) -> list[Use]:
    """The bodies in the order in which they began. A killed process is on no card any more."""
    end_ns = notes[-1].at_ns if notes else 0
    open_: dict[tuple[str, str], list[Use]] = {}
    found: list[Use] = []
    for note in notes:
        if note.what == "use":
            open_[note.who, note.key] = began = [
                Use(who=note.who, key=note.key, gpu=gpu, token=note.token, from_ns=note.at_ns, until_ns=end_ns)
                for gpu in note.gpus
            ]
            found += began
        elif note.what in ("used", "lost", "left", "cancelled"):
            _close(open_.pop((note.who, note.key), ()), note.at_ns)
        elif note.who == NEMESIS and note.what == "killed":
            for place in [place for place in open_ if place[0] == note.key]:
                _close(open_.pop(place), note.at_ns)
    return found


def _close(uses: Sequence[Use], at_ns: int) -> None:
    for use in uses:
        use.until_ns = at_ns


def two_on_a_gpu(story: Story) -> Iterator[str]:
    """C1: no two bodies are on one gpu, by the kernel's locks and by the clock of the machine."""
    for note in story.notes:
        if note.what == "OVERLAP":
            yield f"{note.who} {note.key} met another on {note.gpus}"
    last: dict[str, Use] = {}
    for use in uses_of(story.notes):
        before = last.get(use.gpu)
        if before is not None and use.from_ns < before.until_ns and use.gpu not in story.shared:
            yield f"{use.gpu}: {use.who} {use.key} began while {before.who} {before.key} was on it"
        if before is None or use.until_ns > before.until_ns:
            last[use.gpu] = use


def used_without_a_grant(story: Story) -> Iterator[str]:
    """C2: every body lies in a grant to its own request: same token, gpus that were given, and not after its loss."""
    granted = {ticket.token: ticket.granted[0] for ticket in tickets_of(story.told) if ticket.granted}
    entered: dict[tuple[str, str], Note] = {}
    for note in story.notes:
        place = note.who, note.key
        if note.what == "enter":
            entered[place] = note
        elif note.what in ("left", "lost", "cancelled"):
            entered.pop(place, None)
        elif note.what == "use":
            entry = entered.get(place)
            if entry is None or entry.token != note.token:
                yield f"{note.who} {note.key} was on {note.gpus} without having entered"
            elif story.told and note.token not in granted:
                yield f"{note.who} {note.key}: token {note.token} was never granted"
            elif story.told and not set(note.gpus) <= set(granted[note.token].gpus):
                yield f"{note.who} {note.key} was on {note.gpus}, but was given {granted[note.token].gpus}"


def out_of_order(story: Story) -> Iterator[str]:
    """C3: equal wants of equal priority that stay are granted in the order of their arrival."""
    if story.equal:
        yield from inversions(tickets_of(story.told))


def tokens_not_growing(story: Story) -> Iterator[str]:
    """C4: the tokens of a gpu grow from body to body, also over everything that the store forgot."""
    last: dict[str, int] = defaultdict(int)
    for note in story.notes:
        for gpu in note.gpus if note.what == "use" else ():
            if note.token <= last[gpu] and gpu not in story.shared:
                yield f"{gpu}: token {note.token} of {note.who} after {last[gpu]}"
            last[gpu] = max(last[gpu], note.token)


def granted_more_than_once(story: Story) -> Iterator[str]:
    """C5: a request is granted at most once."""
    for id in granted_twice(tickets_of(story.told)):
        yield f"{id} was granted twice"


def idle_beside_a_waiter(story: Story) -> Iterator[str]:
    """C6: no gpu stays free beside a ticket that fits any of them."""
    tolerance_ms = story.bounds.idle_ms
    if tolerance_ms is None:
        return
    tickets = tickets_of(story.told)
    waits = sorted((ticket.arrived_ms, ticket.granted_ms, ticket.id) for ticket in tickets)
    for gpu in story.gpus if waits else ():
        holds = sorted((t.granted_ms, t.ended_ms) for t in tickets if t.granted and gpu in t.granted[0].gpus)
        free_from = waits[0][0]
        for granted_ms, ended_ms in [*holds, (1 << 60, 1 << 60)]:
            if granted_ms - free_from > tolerance_ms:
                yield from _waited(waits, gpu, free_from, granted_ms, tolerance_ms)
            free_from = max(free_from, ended_ms)


def _waited(
    waits: Sequence[tuple[int, int, str]], gpu: str, from_ms: int, until_ms: int, tolerance_ms: int
) -> Iterator[str]:
    for arrived_ms, served_ms, id in waits[: bisect_left(waits, (until_ms,))]:
        idle_ms = min(until_ms, served_ms) - max(from_ms, arrived_ms)
        if idle_ms > tolerance_ms and served_ms < 1 << 60:
            yield f"{id} waited {idle_ms} ms while {gpu} was free"


def late_after_a_death(story: Story) -> Iterator[str]:
    """C7: when a holder is killed, whoever had asked before is on its gpu within the bound."""
    if story.bounds.death_s is None:
        return
    uses, bound_ns = uses_of(story.notes), int(story.bounds.death_s * 1e9)
    by_gpu: dict[str, list[Use]] = defaultdict(list)
    for use in uses:
        by_gpu[use.gpu].append(use)
    asked = {(note.who, note.key): note.at_ns for note in story.notes if note.what == "ask"}
    for death in story.notes:
        if death.who != NEMESIS or death.what != "killed":
            continue
        for use in uses:
            if use.who != death.key or use.until_ns != death.at_ns:
                continue
            waited = [next_ for next_ in by_gpu[use.gpu] if next_.from_ns >= death.at_ns][:1]
            for next_ in waited:
                late_ns = next_.from_ns - death.at_ns
                if asked.get((next_.who, next_.key), death.at_ns) < death.at_ns and late_ns > bound_ns:
                    yield f"{use.gpu}: {late_ns / 1e9:.2f} s from the death of {use.who} to {next_.who}"


def never_served(story: Story) -> Iterator[str]:
    """C8: when the faults are over, whoever still waits is served within the bound."""
    over = [note.at_ns for note in story.notes if note.who == NEMESIS and note.what == "over"]
    if story.bounds.served_s is None or not over:
        return
    dead = {note.key for note in story.notes if note.who == NEMESIS and note.what == "killed"}
    waiting: dict[tuple[str, str], int] = {}
    late: list[tuple[str, str, int]] = []
    for note in story.notes:
        place = note.who, note.key
        if note.what == "ask":
            waiting[place] = note.at_ns
        elif note.what in ENDED_SERVED and place in waiting:
            late.append((*place, note.at_ns - max(over[-1], waiting.pop(place))))
    end_ns = story.notes[-1].at_ns
    late += [(*place, end_ns - max(over[-1], at_ns)) for place, at_ns in waiting.items() if place[0] not in dead]
    for who, key, waited_ns in late:
        if waited_ns > story.bounds.served_s * 1e9:
            yield f"{who} {key} waited {waited_ns / 1e9:.1f} s after the last fault"


def strangers_signalled(story: Story) -> Iterator[str]:
    """C9: nobody is ended by a signal but who was killed by the test, or whose lease was over."""
    over = {told.lease for told in story.told if isinstance(told, events.LockRevoked | events.LockExpired)}
    leases: dict[str, set[str]] = defaultdict(set)
    killed = set()
    for note in story.notes:
        if note.what == "enter":
            leases[note.who].add(note.lease)
        elif note.who == NEMESIS and note.what == "killed":
            killed.add(note.key)
        elif (
            note.what == "ended"
            and note.text.startswith("-")
            and note.who not in killed
            and not leases[note.who] & over
        ):
            yield f"{note.who} was ended by signal {note.text[1:]}, and had lost nothing"


def left_behind(story: Story) -> Iterator[str]:
    """C10: when all have gone, the store holds what it is to hold and nothing else."""
    for key in story.keys_left:
        yield f"the key {key} was left"


def changed_by_a_stale_one(story: Story) -> Iterator[str]:
    """C11: what is over stays over: no end of a lease after its end, no word of its token after that."""
    ended: dict[str, events.Event] = {}
    ends = events.LockReleased | events.LockExpired | events.LockRevoked
    for told in story.told:
        if told.lease is None:
            continue
        before = ended.get(told.lease)
        if before is not None and isinstance(told, ends | events.LockAcquired):
            yield f"{told.lease}: {told.kind} (#{told.seq}) after {before.kind} (#{before.seq})"
        if isinstance(told, ends):
            ended[told.lease] = told


def not_a_mutex(story: Story) -> Iterator[str]:
    """C12: the ledger's own holds of a whole gpu follow each other; the tokens are their order."""
    holds: dict[str, list[Ticket]] = defaultdict(list)
    for ticket in tickets_of(story.told):
        for gpu in ticket.granted[0].gpus if ticket.granted else ():
            if gpu not in story.shared:
                holds[gpu].append(ticket)
    for gpu, tickets in holds.items():
        tickets.sort(key=lambda ticket: ticket.token)
        for before, after in pairwise(tickets):
            if before.ended is None or before.ended.seq > after.granted[0].seq:
                yield f"{gpu}: {after.id} (token {after.token}) was granted before {before.id} had ended"


RULES: dict[str, Callable[[Story], Iterator[str]]] = {
    "C1": two_on_a_gpu,
    "C2": used_without_a_grant,
    "C3": out_of_order,
    "C4": tokens_not_growing,
    "C5": granted_more_than_once,
    "C6": idle_beside_a_waiter,
    "C7": late_after_a_death,
    "C8": never_served,
    "C9": strangers_signalled,
    "C10": left_behind,
    "C11": changed_by_a_stale_one,
    "C12": not_a_mutex,
}


def judged(story: Story) -> list[str]:
    """Everything that breaks a rule, each with the rule's name; empty: the story is clean."""
    return [f"{name}: {broken}" for name, rule in RULES.items() for broken in rule(story)]
