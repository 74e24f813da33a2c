"""What the routes know of the daemon that they belong to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import anyio
import anyio.abc

from gpulockd.client.guarded import Admits
from gpulockd.errors import StoreUnavailable
from gpulockd.ledger import answers as a
from gpulockd.ledger import verbs
from gpulockd.ledger.keys import PoolKeys
from gpulockd.ledger.verbs import Call, Terms
from gpulockd.model import Job, Snapshot
from gpulockd.settings import Settings
from gpulockd.web.feed import Feed

T = TypeVar("T")

PICTURE_AGE_S = 0.5
PICTURE_PAUSE_S = 0.1


class Asks(Protocol):
    """Sends a script on the daemon's own connection."""

    async def __call__(self, call: Call[T]) -> T: ...


class GivesBack(Protocol):
    """A lease that the daemon holds for a process."""

    def give_back(self) -> None:
        """End it as its holder would."""


@dataclass(kw_only=True)
class Backend:
    """One daemon, as its web sees it.

    :param url: the store's
    :param api_socket: path of the unix socket
    :param guard_for: who lets in a lease on this host, for a process (pid, its start in kernel ticks, its user's uid)
    :param limits_s: the ages at which a job is warned of, asked to stop, and ended (in seconds)
    :param reasons: why the daemon is not ready, empty if it is
    :param tasks: what outlives a request runs here
    :param holdings: the leases that this daemon holds for processes, by id
    :param waiters: how many requests for a lease each user has open
    :param stopping: set when the daemon stops: streams must end
    """

    pool: str
    url: str
    api_socket: str
    settings: Settings
    version: str
    token: str
    uid: int
    ask: Asks
    feed: Feed
    guard_for: Callable[[int, int, int], Admits | None]
    limits_s: Callable[[Job], tuple[float, float, float]]
    reasons: Callable[[], tuple[str, ...]]
    tasks: anyio.abc.TaskGroup
    stopping: anyio.Event
    waiters: Counter[str] = field(default_factory=Counter)
    holdings: dict[str, GivesBack] = field(default_factory=dict)
    _looking: anyio.Lock = field(default_factory=anyio.Lock)
    _picture: Snapshot | None = None
    _pictured_at: float = float("-inf")
    _pictured_seq: int = -1

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
        answer = await self.ask(verbs.snapshot(self.keys, first=first, length=length))
        if not isinstance(answer, a.Pictured):
            raise StoreUnavailable(f"the store knows nothing of pool {self.pool!r} yet")
        return answer.snapshot

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
