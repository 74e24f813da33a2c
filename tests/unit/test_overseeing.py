"""What the daemon sees of leases and cards, as evidence for suspicions: above all what it does not know."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from gpulockd.clock import wall_ms
from gpulockd.daemon.cardlooks import CardLooks
from gpulockd.daemon.judging import Reading
from gpulockd.daemon.levels import Rules
from gpulockd.daemon.monitor import Checks
from gpulockd.daemon.obeying import Counts
from gpulockd.daemon.overseeing import Overseeing
from gpulockd.hardware.processes.identity import Process
from gpulockd.hardware.readings import Reading as CardReading
from gpulockd.hardware.simulated import SimulatedCards
from gpulockd.ledger.suspicions import suspicions
from gpulockd.model import Snapshot
from tests.unit.test_statistics_forecast import card, pool, ticket
from tests.unit.test_statistics_suspicions import held

HERE = Process(4711, 1)


@dataclass
class Host:
    """What is known of a host: the processes of leases, the leases that were let in, and what the monitor reads."""

    processes: dict[str, frozenset[Process]] = field(default_factory=dict)
    guarded: set[str] = field(default_factory=set)
    runs: dict[str, Reading] = field(default_factory=dict)
    looks: CardLooks = field(default_factory=lambda: CardLooks(SimulatedCards("test", 2, why="a test"), tuple))

    def members(self, lease: str) -> frozenset[Process]:
        """The processes of a lease."""
        return self.processes.get(lease, frozenset())

    def overseeing(self) -> Overseeing:
        """Who looks at it."""
        return Overseeing(
            checks=lambda: Checks(started_ms=0),
            works=lambda: True,
            counts=Counts,
            rules=Rules,
            runs=lambda: self.runs,
            guarded=lambda: self.guarded,
            members=self,
            looks=self.looks,
        )

    def read(self, snapshot: Snapshot, index: int, *utilizations: float | None) -> None:
        """Give a card's last readings, one a minute, the latest now."""
        uuid, now_ms = str(snapshot.gpus[index].gpu.uuid), wall_ms()
        ages = reversed(range(len(utilizations)))
        self.looks.history[uuid] = deque(
            CardReading(uuid=uuid, at_ms=now_ms - 60_000 * age, utilization=value)
            for age, value in zip(ages, utilizations, strict=True)
        )


def test_a_card_is_idle_since_it_last_worked() -> None:
    """Ten minutes of rest behind an hour of work are ten minutes."""
    snapshot, host = pool([card(0), card(1)], [held()], [ticket("b")]), Host()
    host.read(snapshot, 0, 0.0, 0.9, *[0.0] * 11)
    idle_s = host.overseeing().evidence(snapshot)["a"].card_idle_s
    assert idle_s is not None and 599 <= idle_s < 660
    assert [one.kind for one in suspicions(snapshot, host.overseeing().evidence(snapshot))] == ["idle"]
    host.read(snapshot, 0, *[0.0] * 11, 0.5)
    assert host.overseeing().evidence(snapshot)["a"].card_idle_s == 0.0


def test_what_a_card_does_not_tell_is_no_idleness() -> None:
    """A MIG instance has no utilisation, and nobody is accused for that."""
    snapshot, host = pool([card(0), card(1)], [held()], [ticket("b")]), Host()
    assert host.overseeing().evidence(snapshot)["a"].card_idle_s is None
    host.read(snapshot, 0, None, None)
    assert host.overseeing().evidence(snapshot)["a"].card_idle_s is None


def test_all_cards_of_a_lease_must_idle() -> None:
    """A lease on two cards that works on one of them works."""
    both = ("gpu_lock:0", "gpu_lock:1")
    snapshot, host = pool([card(0), card(1)], [held(gpus=both)], [ticket("b")]), Host()
    host.read(snapshot, 0, *[0.0] * 10)
    host.read(snapshot, 1, *[0.7] * 10)
    assert host.overseeing().evidence(snapshot)["a"].card_idle_s == 0.0


def test_a_holder_is_gone_only_if_it_was_there() -> None:
    """A lease held over TCP has no process here; one that had and has none any more is dead."""
    snapshot, host = pool([card(0)], [held()], []), Host(guarded={"a"})
    overseeing = host.overseeing()
    assert overseeing.evidence(snapshot)["a"].gone_s is None
    assert overseeing.tasks(snapshot).dead == ()
    host.processes["a"] = frozenset({HERE})
    assert overseeing.evidence(snapshot)["a"].gone_s == 0.0
    host.processes.clear()
    gone_s = overseeing.evidence(snapshot)["a"].gone_s
    assert gone_s is not None and gone_s >= 0.0
    assert overseeing.tasks(snapshot).dead == ("a",)
    assert overseeing.evidence(pool([card(0)], [], [])) == {}


def test_a_run_at_rest_is_told_as_the_monitor_sees_it() -> None:
    """Rest that was not seen all the time is not known."""
    snapshot, host = pool([card(0)], [held()], []), Host()
    assert host.overseeing().evidence(snapshot)["a"].still_s is None
    host.runs["a"] = Reading(idle_ms=42_000)
    assert host.overseeing().evidence(snapshot)["a"].still_s == 42.0
