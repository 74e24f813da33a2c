"""The full check of locks, heartbeats and cards, every `monitor_interval`: for what no event has told.

Limits and deaths act on their own time elsewhere; this finds what was missed, counts what it finds, and looks at what
the runs use, so that a silent one that still works is not taken for dead.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

import anyio
import anyio.abc
import msgspec
import structlog

from gpulockd.clock import wall_ms
from gpulockd.daemon.heartbeats import Tasks, tasks_of
from gpulockd.daemon.judging import Reading, Readings
from gpulockd.daemon.levels import Rules, limits_of, reached
from gpulockd.daemon.obeying import LOGGER, Asks
from gpulockd.daemon.usage import Sample, Watched, readings_of, watched
from gpulockd.errors import GpuLockError, StoreUnavailable
from gpulockd.ledger import answers as a
from gpulockd.ledger import verbs
from gpulockd.ledger.keys import PoolKeys
from gpulockd.model import Snapshot

_log = structlog.get_logger(LOGGER)

SampleRuns = Callable[[Snapshot], Awaitable[Mapping[str, Sample]]]
"""Looks at the runs of all leases of this host; a lease that it leaves out is not known."""


async def nothing_known(snapshot: Snapshot) -> Mapping[str, Sample]:
    """For a host whose runs nobody watches."""
    return {}


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """Something wrong with `what`: overdue, stalled, dead, orphaned, quarantined, lost or unreachable."""

    kind: str
    what: str


class Checks(msgspec.Struct, kw_only=True):
    """The checks since the daemon's start; moments are unix milliseconds.

    `heard` and `missed` count tasks, each at each check: heard of in time, or silent for too long.
    """

    started_ms: int
    total: int = 0
    healthy: int = 0
    unhealthy: int = 0
    heard: int = 0
    missed: int = 0
    last_ms: int | None = None
    last_error: str | None = None
    findings: tuple[Finding, ...] = ()
    tasks: Tasks = Tasks()


def findings_of(snapshot: Snapshot, tasks: Tasks, rules: Rules) -> tuple[Finding, ...]:
    """What is wrong in a pool: pure."""
    overdue = [
        lease.id
        for lease in snapshot.leases
        if lease.state == "held" and reached(lease.held_ms, limits_of(lease.job, rules)) == "hard"
    ]
    found = [Finding(kind="overdue", what=id) for id in overdue]
    for kind, ids in (("stalled", tasks.stalled), ("dead", tasks.dead), ("orphaned", tasks.orphaned)):
        found += [Finding(kind=kind, what=id) for id in ids]
    bad = ("quarantined", "lost")
    found += [Finding(kind=record.state, what=record.gpu.key) for record in snapshot.gpus if record.state in bad]
    return tuple(found)


class Monitor:
    """Checks, and what it has seen: `checks` for people, `readings()` for who judges.

    :param ask: sends a script
    :param rules: the rules in force at this moment
    :param sample: looks at the runs
    """

    on_check: Callable[[], Awaitable[object]] | None = None
    """Called after each check that had a picture: judge everything once more."""

    def __init__(
        self,
        keys: PoolKeys,
        ask: Asks,
        *,
        rules: Callable[[], Rules],
        sample: SampleRuns = nothing_known,
    ) -> None:
        self.checks = Checks(started_ms=wall_ms())
        self._keys = keys
        self._ask = ask
        self._rules = rules
        self._sample = sample
        self._runs: dict[str, Watched] = {}
        self._news = anyio.Event()

    def __repr__(self) -> str:
        return f"<Monitor {self._keys.pool} {self.checks.total} checks>"

    @property
    def is_running(self) -> bool:
        """Whether it checks at all."""
        return self._rules().monitor.enabled

    def readings(self) -> dict[str, Reading]:
        """What is known of the runs, by lease id."""
        return readings_of(self._runs)

    def wake(self) -> None:
        """Check now: the rules have changed."""
        self._news.set()

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Check until cancelled."""
        _log.info("monitor.started", logger=LOGGER, message="GPU锁监控循环开始")
        task_status.started()
        while True:
            self._news = anyio.Event()
            if self.is_running:
                await self.check()
            with anyio.move_on_after(self._rules().monitor.monitor_interval):
                await self._news.wait()

    async def check(self) -> Checks:
        """Look at everything once; a store that is away makes it an unhealthy check."""
        checks = self.checks
        checks.total += 1
        checks.last_ms = wall_ms()
        try:
            found = await self._found()
            checks.last_error = None
        except GpuLockError as trouble:
            if not isinstance(trouble, StoreUnavailable):
                _log.error("monitor.failed", logger=LOGGER, message=trouble.message)
            checks.last_error = trouble.message
            found = (Finding(kind="unreachable", what=self._keys.pool),)
        self._tell(found)
        checks.findings = found
        checks.healthy += not found
        checks.unhealthy += bool(found)
        return checks

    async def _found(self) -> tuple[Finding, ...]:
        answer = await self._ask(verbs.snapshot(self._keys, length=1))
        if not isinstance(answer, a.Pictured):
            return (Finding(kind="unreachable", what=self._keys.pool),)
        snapshot, rules = answer.snapshot, self._rules()
        samples, now_s = await self._sample(snapshot), anyio.current_time()
        living = {lease.id for lease in snapshot.leases}
        self._runs = {id: watched(self._runs.get(id), one, now_s) for id, one in samples.items() if id in living}
        self.checks.tasks = tasks = tasks_of(snapshot, Readings(runs=self.readings()), rules)
        self.checks.heard += len(tasks.active)
        self.checks.missed += len(tasks.stalled) + len(tasks.dead)
        found = findings_of(snapshot, self.checks.tasks, rules)
        if self.on_check is not None:
            await self.on_check()
        return found

    def _tell(self, found: tuple[Finding, ...]) -> None:
        before = set(self.checks.findings)
        for finding in found:
            if finding not in before:
                _log.warning(f"monitor.{finding.kind}", logger=LOGGER, message=f"{finding.what} is {finding.kind}")
        for finding in before.difference(found):
            _log.info("monitor.over", logger=LOGGER, message=f"{finding.what} is no longer {finding.kind}")
