"""Looks how the system is after its configuration was taken back: does the store answer, does a grant flow?"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol
from uuid import uuid4

import anyio
import msgspec
import structlog

from gpulockd.config.status import Facts, Status, gpus_not_well, overall_status, why_critical
from gpulockd.daemon.current import Current
from gpulockd.errors import GpuLockError, StoreUnavailable
from gpulockd.ledger import answers as a
from gpulockd.ledger import publishing, verbs
from gpulockd.ledger.keys import PoolKeys
from gpulockd.ledger.recorded import Ask
from gpulockd.ledger.statistics import Statistics
from gpulockd.ledger.verbs import Terms
from gpulockd.model import PROBE_KEY, Job, Wants

VERIFY_S = 20.0
"""How long a check may take to come true (in seconds)."""

RETRY_S = 0.1
RESTART_S = 120.0
MOST_SAID = 500

Check = str | bool | float

_log = structlog.get_logger(__name__)


class Verified(msgspec.Struct, frozen=True, kw_only=True):
    """What was looked at (True, or why not; a number is for people), and the word for all of it."""

    checks: dict[str, Check]
    overall_status: Status

    @property
    def trouble(self) -> str:
        """The first thing that is not well."""
        return next((f"{name}: {said}" for name, said in self.checks.items() if isinstance(said, str)), "")

    @property
    def is_well(self) -> bool:
        """Whether everything is, and the word for it is not "critical"."""
        return not self.trouble and self.overall_status != "critical"

    @property
    def works(self) -> bool:
        """Whether the configuration is in force and a grant flows, however the last attempts ended."""
        return not any(isinstance(said, str) for name, said in self.checks.items() if name != "status")


class Verify(Protocol):
    """Looks, and where the configuration says a command for it, restarts what depends on it before."""

    async def __call__(self, revision: int, *, restart: bool) -> Verified: ...


class Verifying:
    """Verifies for one pool.

    :param session: the id of the daemon's session at this moment
    """

    def __init__(self, current: Current, ask: Ask, keys: PoolKeys, session: Callable[[], str]) -> None:
        self._current = current
        self._ask = ask
        self._keys = keys
        self._session = session

    def __repr__(self) -> str:
        return f"<Verifying {self._keys.pool}>"

    async def __call__(self, revision: int, *, restart: bool) -> Verified:
        """Look, for at most `VERIFY_S` seconds a check.

        :param revision: the one that must be in force
        """
        checks: dict[str, Check] = {}
        before = await self._rates()
        command = self._current.settings.config.restart
        if restart and command:
            checks["restart"] = await restarted(command)
        checks["store"] = await self._until_well(self._store)
        checks["revision"] = await self._until_well(lambda: self._published(revision))
        checks["terms"] = await self._until_well(self._terms)
        checks["grants"] = await self._until_well(self._probe)
        facts = await self._facts()
        limit = max(before, self._current.settings.config.rollback_timeout_rate)
        more = f"{facts.recent_timeout_rate:.1%} of the last attempts timed out, {before:.1%} before"
        checks["timeouts"] = facts.recent_timeout_rate <= limit or more
        checks["timeout_rate"] = round(facts.recent_timeout_rate, 4)
        status = overall_status(facts)
        checks["status"] = status != "critical" or why_critical(facts)
        return Verified(checks=checks, overall_status=status)

    async def _until_well(self, look: Callable[[], Awaitable[str]]) -> Check:
        said = "no answer in time"
        with anyio.move_on_after(VERIFY_S):
            while True:
                try:
                    said = await look()
                except GpuLockError as trouble:
                    said = trouble.message
                if not said:
                    return True
                await anyio.sleep(RETRY_S)
        return said

    async def _store(self) -> str:
        answer = await self._ask(verbs.snapshot(self._keys, length=1))
        if not isinstance(answer, a.Pictured):
            return "the store has no books of this pool"
        return f"the pool is frozen ({answer.snapshot.frozen_ms} ms)" if answer.snapshot.frozen_ms else ""

    async def _published(self, revision: int) -> str:
        answer = await self._ask(publishing.published(self._keys))
        if not isinstance(answer, publishing.Published):
            return "the pool publishes nothing"
        said = answer.defaults.get("revision")
        return "" if isinstance(said, int) and said >= revision else f"the pool publishes revision {said}"

    async def _terms(self) -> str:
        settings = self._current.settings
        terms = Terms.of(settings.session, settings.queue, settings.settle)
        clock = (await self._ask(verbs.snapshot(self._keys, length=1))).clock
        have, want = (
            (clock.ttl_ms, clock.step_ms, clock.keepalive_ms),
            (terms.ttl_ms, terms.step_ms, terms.keepalive_ms),
        )
        return "" if have == want else f"the pool's ttl, step and keepalive are {have} ms, not {want}"

    async def _probe(self) -> str:
        """Get a lease and give it back."""
        id, session = uuid4().hex, self._session()
        asked = await self._ask(
            verbs.request(
                self._keys,
                session=session,
                id=id,
                wants=Wants(keys=(PROBE_KEY,)),
                priority=0,
                wait=False,
                job=Job(task="config-probe"),
                lock_timeout_ms=60_000,
                asked_ms=None,
            )
        )
        if not isinstance(asked, a.Granted):
            return f"a request was answered {type(asked).__name__.lower()}"
        ended = await self._ask(
            verbs.end(self._keys, session=session, id=id, token=asked.token, reason="released", what="ticket")
        )
        return "" if isinstance(ended, a.Ended | a.Gone) else f"a release was answered {type(ended).__name__.lower()}"

    async def _rates(self) -> float:
        try:
            return (await Statistics.read(self._ask, self._keys, since_s=60, tasks=())).recent_timeout_rate
        except GpuLockError:
            return 0.0

    async def _facts(self) -> Facts:
        try:
            statistics = await Statistics.read(self._ask, self._keys, since_s=60, tasks=())
            answer = await self._ask(verbs.snapshot(self._keys, length=1))
        except StoreUnavailable:
            return Facts(store_answers=False)
        offered = (
            [record for record in answer.snapshot.gpus if record.offered] if isinstance(answer, a.Pictured) else []
        )
        return Facts(
            gpus=len(offered),
            gpus_not_well=gpus_not_well(offered),
            recent_success_rate=statistics.recent_success_rate,
            recent_timeout_rate=statistics.recent_timeout_rate,
        )


async def restarted(command: str) -> Check:
    """Run the operator's command. Returns True, or what it said."""
    _log.info("config.restarting", message=f"running {command!r}")
    try:
        with anyio.fail_after(RESTART_S):
            done = await anyio.run_process(["/bin/sh", "-c", command], check=False)
    except TimeoutError:
        return f"{command!r} took more than {RESTART_S:g} s"
    except OSError as wrong:
        return f"{command!r} could not be run: {wrong}"
    said = (done.stderr or done.stdout).decode(errors="replace").strip()[-MOST_SAID:]
    return True if done.returncode == 0 else f"{command!r} ended with {done.returncode}: {said}"
