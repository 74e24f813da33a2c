"""The judge itself: a clean story is clean, and each bug of the museum is found by the rule that is there for it."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from gpulockd import events
from tests.faults.judge import NEMESIS, RULES, Bounds, Story, judged
from tests.system.history import Note

MS = 1_000_000
GPUS = ("gpu_lock:0", "gpu_lock:1")
BOUNDS = Bounds(idle_ms=20, death_s=1.0, served_s=5.0)


class Play:
    """Writes a story in which everything is right: so many turns on two gpus, from a queue in order, one death."""

    def __init__(self, turns: int, seed: int) -> None:
        self.dice = random.Random(seed)
        self.notes: list[Note] = []
        self.told: list[events.Event] = []
        self.turns = turns
        self._run()

    def _run(self) -> None:
        free_ms = dict.fromkeys(GPUS, 0)
        arrivals_ms = sorted(self.dice.randrange(8 * self.turns) for _ in range(self.turns))
        lines: list[tuple[int, int, Callable[[], None]]] = []
        for number, arrived_ms in enumerate(arrivals_ms):
            gpu = min(free_ms, key=lambda name: (free_ms[name], name))
            from_ms = max(arrived_ms, free_ms[gpu])
            until_ms = from_ms + self.dice.randrange(5, 40)
            free_ms[gpu] = until_ms
            who, token, dies = f"w{number}", 100 + number, number == self.turns // 2
            told = {"pool": "p", "lease": f"l{number}", "session": who}
            lines += [
                (arrived_ms, 0, self._note(arrived_ms, who, "ask")),
                (arrived_ms, 1, self._tell(events.LockRequested, arrived_ms, **told)),
                (from_ms, 4, self._tell(events.LockAcquired, from_ms, token=token, gpus=(gpu,), **told,
                                        waited_ms=from_ms - arrived_ms)),
                (from_ms, 5, self._note(from_ms, who, "enter", token=token, gpus=(gpu,), lease=f"l{number}")),
                (from_ms, 6, self._note(from_ms, who, "use", token=token, gpus=(gpu,))),
            ]  # fmt: skip
            if dies:
                lines.append((until_ms, 0, self._note(until_ms, NEMESIS, "killed", key=who)))
                lines.append((until_ms, 2, self._tell(events.LockExpired, until_ms, token=token, gpus=(gpu,), **told)))
            else:
                lines.append((until_ms, 0, self._note(until_ms, who, "used", token=token, gpus=(gpu,))))
                lines.append((until_ms, 1, self._note(until_ms, who, "left")))
                lines.append((until_ms, 2, self._tell(events.LockReleased, until_ms, token=token, gpus=(gpu,), **told)))
        lines.append((1, 0, self._note(1, NEMESIS, "over")))
        for _, _, line in sorted(lines, key=lambda line: line[:2]):
            line()

    def _note(self, at_ms: int, who: str, what: str, **more: Any) -> Callable[[], None]:
        made: dict[str, Any] = {"at_ns": at_ms * MS, "who": who, "what": what, "key": "k"}
        return lambda: self.notes.append(Note(**made | more))

    def _tell(self, kind: type[events.Event], at_ms: int, **more: Any) -> Callable[[], None]:
        return lambda: self.told.append(kind(seq=len(self.told) + 1, at_ms=at_ms, **more))

    def story(self, **more: Any) -> Story:
        """The story as it stands; two gpus serve the queue in order, so all tickets are equal."""
        return Story(notes=self.notes, told=self.told, gpus=GPUS, equal=True, **{"bounds": BOUNDS} | more)

    def note_of(self, what: str, nth: int = 0) -> int:
        """Where the nth note of a kind stands."""
        return [at for at, note in enumerate(self.notes) if note.what == what][nth]

    def event_of(self, kind: type[events.Event], nth: int = 0) -> int:
        """Where the nth event of a kind stands."""
        return [at for at, told in enumerate(self.told) if isinstance(told, kind)][nth]

    def change(self, kind: str, nth: int = 0, **to: Any) -> None:
        """Change one note."""
        at = self.note_of(kind, nth)
        self.notes[at] = msgspec.structs.replace(self.notes[at], **to)
        self.notes.sort(key=lambda note: note.at_ns)


def a_second_body_comes_in(play: Play) -> None:
    """Entered while another is on the card."""
    at = play.note_of("use", 4)
    early = next(note for note in play.notes if note.what == "use" and note.gpus == play.notes[at].gpus)
    play.change("use", 4, at_ns=early.at_ns + 1)


def the_kernel_saw_two(play: Play) -> None:
    """A lock on a card's file was refused."""
    play.change("use", 3, what="OVERLAP")


def a_body_begins_before_its_grant(play: Play) -> None:
    """It did not wait for its turn."""
    del play.notes[play.note_of("enter", 6)]


def a_body_goes_on_after_its_loss(play: Play) -> None:
    """It read a grant that was over."""
    enter = play.notes[play.note_of("enter", 6)]
    play.notes.insert(play.note_of("enter", 6) + 1, msgspec.structs.replace(enter, what="lost"))


def another_card_is_used(play: Play) -> None:
    """Not the one that was given."""
    (gpu,) = play.notes[play.note_of("use", 5)].gpus
    play.change("use", 5, gpus=(GPUS[1 - GPUS.index(gpu)],))


def a_later_one_goes_first(play: Play) -> None:
    """Two that wanted the same were swapped in the queue."""
    one, two = play.event_of(events.LockAcquired, 3), play.event_of(events.LockAcquired, 5)
    first, second = play.told[one], play.told[two]
    play.told[one] = msgspec.structs.replace(first, token=second.token)
    play.told[two] = msgspec.structs.replace(second, token=first.token)


def tokens_begin_again(play: Play) -> None:
    """As after a store that forgot, and a counter that was not restored."""
    for nth in range(6, play.turns):
        play.change("use", nth, token=nth - 5)


def an_old_grant_is_let_in_late(play: Play) -> None:
    """A primary that was deposed had given it, and the next one's had begun meanwhile."""
    uses = [note for note in play.notes if note.what == "use"]
    late = next(nth for nth, note in enumerate(uses) if nth > 5 and any(note.gpus == old.gpus for old in uses[:nth]))
    for kind in ("use", "enter"):
        play.change(kind, late, token=1)


def a_retry_is_granted_again(play: Play) -> None:
    """A reply was lost, and the request was not idempotent."""
    at = play.event_of(events.LockAcquired, 2)
    play.told.insert(at + 1, msgspec.structs.replace(play.told[at], token=999))


def a_wake_up_is_lost(play: Play) -> None:
    """The card was free and the first in the queue slept on."""
    ticket = play.told[play.event_of(events.LockAcquired, play.turns - 1)]
    for at, told in enumerate(play.told):
        if told.lease == ticket.lease and isinstance(told, events.LockAcquired):
            play.told[at] = msgspec.structs.replace(told, waited_ms=(told.waited_ms or 0) + 500)


def nobody_heard_of_the_death(play: Play) -> None:
    """The next one waited for a time limit."""
    at = play.note_of("killed")
    dead = next(note for note in play.notes if note.what == "use" and note.who == play.notes[at].key)
    follows = next(note.who for note in play.notes[at:] if note.what == "use" and note.gpus == dead.gpus)
    for n, note in enumerate(play.notes):
        if n > at and note.gpus == dead.gpus:
            play.notes[n] = msgspec.structs.replace(note, at_ns=note.at_ns + 3000 * MS)
        elif (note.who, note.what) == (follows, "ask"):
            play.notes[n] = msgspec.structs.replace(note, at_ns=min(note.at_ns, dead.at_ns))
    play.notes.sort(key=lambda note: note.at_ns)


def one_waits_for_ever(play: Play) -> None:
    """It was forgotten in the queue."""
    last = max(note.at_ns for note in play.notes)
    play.notes.insert(0, Note(at_ns=0, who="forgotten", what="ask", key="k"))
    play.notes.append(Note(at_ns=last + 60_000 * MS, who="w0", what="log", text="the end"))


def a_stranger_is_killed(play: Play) -> None:
    """It had got the pid of a dead holder."""
    last = max(note.at_ns for note in play.notes)
    play.notes.append(Note(at_ns=last, who="w1", what="ended", text="-9"))


def who_left_in_order_is_killed(play: Play) -> None:
    """Its child had been killed inside, and the end of the run was meant for that one."""
    at = play.note_of("left", 2)
    left = play.notes[at]
    play.notes.insert(at + 1, Note(at_ns=left.at_ns, who=left.who, what="ended", text="-15"))


def a_stale_release_counts(play: Play) -> None:
    """The release of a lease that had expired was taken."""
    at = play.event_of(events.LockExpired)
    old = play.told[at]
    told = {name: value for name, value in msgspec.structs.asdict(old).items() if name != "planned"}
    play.told.append(events.LockReleased(**told | {"seq": len(play.told) + 1}))


def a_release_is_taken_twice(play: Play) -> None:
    """The holder's own, and the one that the guard makes up for."""
    at = play.event_of(events.LockReleased, 1)
    play.told.append(msgspec.structs.replace(play.told[at], seq=len(play.told) + 1, reason="made up"))


def a_gpu_is_given_twice(play: Play) -> None:
    """Before the lease on it had ended."""
    at = play.event_of(events.LockReleased, 2)
    moved = play.told.pop(at)
    play.told.append(moved)
    play.told[:] = [msgspec.structs.replace(told, seq=n + 1) for n, told in enumerate(play.told)]


MUSEUM: dict[str, tuple[Callable[[Play], None], ...]] = {
    "C1": (a_second_body_comes_in, the_kernel_saw_two),
    "C2": (a_body_begins_before_its_grant, a_body_goes_on_after_its_loss, another_card_is_used),
    "C3": (a_later_one_goes_first,),
    "C4": (tokens_begin_again, an_old_grant_is_let_in_late),
    "C5": (a_retry_is_granted_again,),
    "C6": (a_wake_up_is_lost,),
    "C7": (nobody_heard_of_the_death,),
    "C8": (one_waits_for_ever,),
    "C9": (a_stranger_is_killed, who_left_in_order_is_killed),
    "C11": (a_stale_release_counts, a_release_is_taken_twice),
    "C12": (a_gpu_is_given_twice,),
}


@pytest.mark.parametrize("turns", [1, 2, 12, 300])
def test_a_clean_story_is_clean(turns: int) -> None:
    """A judge that cries wolf is switched off."""
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    assert judged(Play(turns, seed).story()) == []


@pytest.mark.parametrize(
    ("rule", "plant"),
    [(rule, plant) for rule, plants in MUSEUM.items() for plant in plants],
    ids=lambda x: getattr(x, "__name__", x),
)
def test_each_bug_of_the_museum_is_found_by_its_rule(rule: str, plant: Callable[[Play], None]) -> None:
    """A rule that finds nothing is no rule."""
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    play = Play(30, seed)
    plant(play)
    assert any(broken.startswith(f"{rule}:") for broken in judged(play.story())), judged(play.story())


def test_keys_that_were_left_are_told() -> None:
    """C10 is the only rule that looks into the store."""
    assert judged(Play(3, 1).story(keys_left=("gpulockd:{p}:x",))) == ["C10: the key gpulockd:{p}:x was left"]


def test_every_rule_has_its_museum_and_its_sentence() -> None:
    """A rule without a planted bug may never have worked."""
    assert set(RULES) == set(MUSEUM) | {"C10"}
    assert all((rule.__doc__ or "").startswith(f"{name}:") for name, rule in RULES.items())
