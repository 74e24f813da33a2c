"""What the routes of the monitoring need of the daemon: its checks, what was done about old leases, what cards say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from gpulockd.ledger.suspicions import Evidence
from gpulockd.model import Snapshot


class CardReading(Protocol):
    """One sample of a card: memory in MiB, utilization 0 to 1, °C and W; None is what it does not tell."""

    @property
    def at_ms(self) -> int: ...
    @property
    def used_mib(self) -> int | None: ...
    @property
    def total_mib(self) -> int | None: ...
    @property
    def utilization(self) -> float | None: ...
    @property
    def temperature_c(self) -> float | None: ...
    @property
    def power_w(self) -> float | None: ...


class Oversight(Protocol):
    """What the monitor has counted since it began; moments are unix seconds.

    `works`: its last check is not long ago, and had a picture. `heard` and `missed` count tasks at full checks: heard
    of in time, and silent for too long.
    """

    @property
    def is_running(self) -> bool: ...
    @property
    def works(self) -> bool: ...
    @property
    def started_s(self) -> float: ...
    @property
    def last_check_s(self) -> float | None: ...
    @property
    def last_error(self) -> str | None: ...
    @property
    def checks(self) -> int: ...
    @property
    def healthy(self) -> int: ...
    @property
    def unhealthy(self) -> int: ...
    @property
    def warnings(self) -> int: ...
    @property
    def softs(self) -> int: ...
    @property
    def hards(self) -> int: ...
    @property
    def recovered(self) -> int: ...
    @property
    def failed(self) -> int: ...
    @property
    def last_recovery_s(self) -> float | None: ...
    @property
    def heard(self) -> int: ...
    @property
    def missed(self) -> int: ...


class TaskSeen(Protocol):
    """What a task last said: progress 0 to 100, moments in unix seconds."""

    @property
    def task_id(self) -> str: ...
    @property
    def status(self) -> str: ...
    @property
    def progress(self) -> float: ...
    @property
    def message(self) -> str: ...
    @property
    def start_time(self) -> float: ...
    @property
    def last_update(self) -> float: ...


class TasksSeen(Protocol):
    """The tasks that hold something, by the ids of their tickets."""

    @property
    def active(self) -> Sequence[str]: ...
    @property
    def stalled(self) -> Sequence[str]: ...
    @property
    def dead(self) -> Sequence[str]: ...
    @property
    def orphaned(self) -> Sequence[str]: ...


class Oversees(Protocol):
    """What the daemon's own services know, for those who only look."""

    def oversight(self) -> Oversight:
        """What the monitor has counted."""

    def tasks(self, snapshot: Snapshot) -> TasksSeen:
        """The tasks of a snapshot by their condition."""

    def heartbeats(self, snapshot: Snapshot) -> Mapping[str, TaskSeen]:
        """What the tasks of a snapshot last said, by the ids of their tickets."""

    def evidence(self, snapshot: Snapshot) -> Mapping[str, Evidence]:
        """What is seen of the leases' runs and cards, by lease id."""

    def readings(self) -> Mapping[str, Sequence[CardReading]]:
        """The last readings of each card, by UUID, the latest last."""
