"""What the routes know of the daemon that they belong to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import anyio
import anyio.abc

from gpulockd.client.guarded import Admits
from gpulockd.errors import StoreUnavailable
from gpulockd.events import Event
from gpulockd.ledger import answers as a
from gpulockd.ledger import verbs
from gpulockd.ledger.alerts import Stored, alert_read
from gpulockd.ledger.forecast import Holds
from gpulockd.ledger.keys import PoolKeys
from gpulockd.ledger.recorded import UnreadableError
from gpulockd.ledger.verbs import Call, Terms
from gpulockd.model import Job, Process, Snapshot
from gpulockd.settings import Settings
from gpulockd.web.configures import Configures, Impacts, Replays, RollsOut
from gpulockd.web.feed import Feed
from gpulockd.web.forecasting import Forecast
from gpulockd.web.hostpids import HostPid, with_host_pids
from gpulockd.web.known import Knowing, Known
from gpulockd.web.metrics import Metrics
from gpulockd.web.overseeing import Oversees
from gpulockd.web.page.kept import Kept
from gpulockd.web.standing import Standing
from gpulockd.web.timed import TimedFile
from gpulockd.web.together import Together

T = TypeVar("T")

PICTURE_AGE_S = 0.5
PICTURE_PAUSE_S = 0.1


class Asks(Protocol):
    """Sends a script on the daemon's own connection."""

    async def __call__(self, call: Call[T]) -> T: ...


class InForce(Protocol):
    """The settings of the daemon, which may change while it runs."""

    settings: Settings


class Alerting(Protocol):
    """The daemon's alerts: judged and told there; the routes only write what people say of them."""

    def reconsider(self) -> None:
        """Judge soon."""

    def channels(self) -> Mapping[str, str]:
        """The channels of this pool, by name with their kinds."""

    async def test_channel(self, name: str | None = None) -> Mapping[str, object]:
        """Send a test message over one channel, or over all.

        :raises KeyError: if there is no such channel
        """


class LetsIn(Admits, Protocol):
    """The guard of this host, for one request."""

    stays: bool
    """Whether what is held goes on when this object is closed: the next daemon takes it over."""


class GivesBack(Protocol):
    """A lease that the daemon keeps for a process, or for a time."""

    async def tell_again(self, process: Process, write: Callable[[bytes], Awaitable[None]]) -> bool:
        """Answer the request for it as it was answered, if it is that process's; False if it is not."""

    def give_back(self) -> None:
        """End it as its holder would."""

    async def renew(self, ttl_s: float | None) -> bool:
        """Let it go on for so long from now (in seconds), None: for as long as it was asked for.

        False: it has just ended.

        :raises StoreUnavailable: if the ledger or the daemon's own folder does not take it
        """

    @property
    def ends_in_s(self) -> float | None:
        """How long until its time is over (in seconds); None if it has none."""


@dataclass(kw_only=True)
class Backend:
    """One daemon, as its web sees it.

    :param url: the store's
    :param api_socket: path of the unix socket
    :param current: has the settings in force
    :param published: what the pool has published for those who ask
    :param guard_for: who lets in a lease on this host, for a process (pid, its start in kernel ticks, its user's uid,
        whether the children that it has before the grant are no part of its run)
    :param limits_s: the ages at which a job is warned of, asked to stop, and ended (in seconds)
    :param reasons: why the daemon is not ready, empty if it is
    :param tasks: what outlives a request runs here
    :param holdings: the leases that this daemon keeps, by id
    :param timed: the leases that are kept for a process or for a time, as the next daemon will find them
    :param waiters: how many requests for a lease each user has open
    :param asking: the processes (pid, start in kernel ticks) and the tickets (user, id) that a lease is just asked for;
        each one's event is set after that
    :param store_pid: the daemon's own store, 0 if it has none
    :param staying: how many each user has that go on without a request
    :param readers: how many streams of events each uid follows; None: everybody over TCP without the token
    :param configuring: reads and changes the configuration
    :param impact: compares before and after a change; `replay` says what a proposed one would have done
    :param rollouts: brings a change to the fleet in stages
    :param alerts: judges and tells; None: nobody does
    :param oversees: what the daemon's own services know; None: nobody watches
    :param connections: how many connections the store has; None: it does not tell
    :param host_pid: the host's pid of a session's process; None: pids are what the processes call themselves
    :param metrics: what is measured for Prometheus
    :param stopping: set when the daemon stops: streams must end
    """

    pool: str
    url: str
    api_socket: str
    current: InForce
    version: str
    token: str
    uid: int
    ask: Asks
    feed: Feed
    published: Callable[[], dict[str, Any]]
    guard_for: Callable[[int, int, int, bool], LetsIn]
    limits_s: Callable[[Job], tuple[float, float, float]]
    reasons: Callable[[], tuple[str, ...]]
    tasks: anyio.abc.TaskGroup
    stopping: anyio.Event
    timed: TimedFile
    configuring: Configures | None = None
    impact: Impacts | None = None
    replay: Replays | None = None
    rollouts: RollsOut | None = None
    alerts: Alerting | None = None
    oversees: Oversees | None = None
    connections: Callable[[], Awaitable[int]] | None = None
    host_pid: HostPid | None = None
    metrics: Metrics = field(default_factory=Metrics)
    knowing: Knowing = field(default_factory=Knowing)
    pages: Kept = field(default_factory=Kept)
    forecast: Forecast = field(default_factory=Forecast)
    waiters: Counter[str] = field(default_factory=Counter)
    staying: Counter[str] = field(default_factory=Counter)
    asking: dict[tuple[object, ...], anyio.Event] = field(default_factory=dict)
    store_pid: Callable[[], int] = lambda: 0
    readers: Counter[int | None] = field(default_factory=Counter)
    holdings: dict[str, GivesBack] = field(default_factory=dict)
    _looking: anyio.Lock = field(default_factory=anyio.Lock)
    _picture: Snapshot | None = None
    _pictured_at: float = float("-inf")
    _pictured_seq: int = -1

    def __post_init__(self) -> None:
        self.healths: Standing[Any] = Standing(lambda: self.feed.last)
        self._glance = Together(lambda: self._look(0, 1))
        self._alerts = Together(lambda: self.ask(alert_read()))
        self._knows = Together(
            lambda: self.knowing.now(self.ask, self.keys, self.feed, window_s=self.settings.alerts.window)
        )

    @property
    def settings(self) -> Settings:
        """The settings in force now."""
        return self.current.settings

    @property
    def keys(self) -> PoolKeys:
        """The keys of the pool."""
        return PoolKeys(self.pool)

    @property
    def terms(self) -> Terms:
        """The pool's times, as the configuration says them."""
        return Terms.of(self.settings.session, self.settings.queue, self.settings.settle)

    async def look(self, *, first: int = 0, length: int = 256) -> Snapshot:
        """See the pool now, and `length` places of its queue from `first` (0 = the head).

        :raises StoreUnavailable: if the store does not answer, or has no books of this pool yet
        """
        if (first, length) == (0, 1):
            return await self._glance()
        return await self._look(first, length)

    async def _look(self, first: int, length: int) -> Snapshot:
        answer = await self.ask(verbs.snapshot(self.keys, first=first, length=length))
        if not isinstance(answer, a.Pictured):
            raise StoreUnavailable(f"the store knows nothing of pool {self.pool!r} yet")
        return answer.snapshot if self.host_pid is None else with_host_pids(answer.snapshot, self.host_pid)

    async def known(self) -> Known:
        """Return the statistics of this moment; `window` reaches back as far as that of the alerts.

        :raises StoreUnavailable: if the store is away
        """
        return await self._knows()

    async def stored_alerts(self) -> Stored:
        """Return the alerts as they are written now, without their history.

        :raises StoreUnavailable: if the store is away
        """
        return await self._alerts()

    async def holds_ms(self) -> Holds:
        """Return the last holds of each task (ms), for forecasts; none if another version has written them.

        :raises StoreUnavailable: if the store is away
        """
        try:
            return (await self.known()).holds_ms()
        except UnreadableError:
            return {}

    def planned_ends_s(self) -> dict[str, float]:
        """In how long the leases end that were asked for with a time, by their ids (in seconds)."""
        ends = {id: held.ends_in_s for id, held in self.holdings.items()}
        return {id: end_s for id, end_s in ends.items() if end_s is not None}

    def planned_ends_ms(self) -> dict[str, int]:
        """The same in ms, for forecasts."""
        return {id: round(end_s * 1000) for id, end_s in self.planned_ends_s().items()}

    async def events(self) -> Sequence[Event]:
        """Return the last events of a day, oldest first.

        :raises StoreUnavailable: if the store is away
        """
        return await self.knowing.events(self.ask, self.keys, self.feed)

    async def picture(self) -> Snapshot:
        """See the pool after all that the feed has told: one look serves all streams, and there are few a second."""
        async with self._looking:
            age_s = anyio.current_time() - self._pictured_at
            if self._picture is not None and self._pictured_seq == self.feed.last and age_s < PICTURE_AGE_S:
                return self._picture
            await anyio.sleep(max(0.0, PICTURE_PAUSE_S - age_s))
            seq = self.feed.last
            self._picture = await self.look()
            self._pictured_at, self._pictured_seq = anyio.current_time(), seq
            return self._picture
