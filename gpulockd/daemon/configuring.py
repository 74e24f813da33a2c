"""The configuration while it lives: changed by its file, a signal, the API or another daemon of the fleet; undone.

Its law: what does not fit changes nothing and says why; what fits is one numbered revision, in force in every service
of this daemon at once, and published to its pool's clients. The store decides which revision is in force.
"""

from __future__ import annotations

from collections.abc import Awaitable, Collection
from functools import partial
from typing import Protocol

import anyio
import anyio.abc
import anyio.to_thread
import msgspec
import structlog

from gpulockd.config.change import refuse_restarts, what_says_otherwise
from gpulockd.config.live import ALL, Live, Tree, changed
from gpulockd.config.results import Candidate, Changed, RolledBack, Shown
from gpulockd.daemon.configreading import ConfigReading
from gpulockd.daemon.configuration import load_layers
from gpulockd.daemon.inforce import InForce
from gpulockd.daemon.revising import Deed, Pools, Revising, Step, Wish
from gpulockd.daemon.uptake import Event, Uptake
from gpulockd.daemon.verifying import Verified, Verify
from gpulockd.errors import ConfigError, GpuLockError, StoreUnavailable
from gpulockd.ledger import revisions
from gpulockd.ledger.revisions import Ask, Revision
from gpulockd.settings import checked, flat

RECHECK_S = 30.0
"""How often the store is asked without a hint (in seconds)."""

RETRY_S, MOST_RETRY_S = 0.2, 5.0


class WayBack(Protocol):
    """Ends what is tried meanwhile (`Rollouts.given_up`)."""

    def __call__(self, *, author: str, reason: str) -> Awaitable[None]: ...


_log = structlog.get_logger(__name__)


class Configuring(ConfigReading):
    """The service, and what web, rollout and judges call.

    :param pools: the pools of the fleet
    :param verify: looks how the system is after a rollback
    """

    def __init__(
        self,
        in_force: InForce,
        uptake: Uptake,
        ask: Ask,
        *,
        pools: Pools,
        verify: Verify,
    ) -> None:
        super().__init__(in_force, uptake, ask)
        self._revising = Revising(in_force, uptake, ask, pools)
        self._verify = verify
        self._lock = anyio.Lock()
        self._news = anyio.Event()

        self.on_way_back: WayBack | None = None
        """Told of each rollback that a person wanted, or that made a revision."""

    def __repr__(self) -> str:
        return f"<Configuring {self._in_force}>"

    def wake(self) -> None:
        """Something may have changed: look soon."""
        self._news.set()

    def offered_anew(self) -> None:
        """The pool was offered again, so what it publishes may be older."""
        self._uptake.publish_anew()
        self.wake()

    async def look(self) -> Shown:
        """Look at the store now.

        :raises StoreUnavailable: if it does not answer
        """
        async with self._lock:
            await self._uptake.look()
        return self.state

    async def reload(self, reason: str = "read again") -> None:
        """Read file and environment again, and go by them; what is wrong in them changes nothing.

        :raises ConfigError: naming file, line and column of what is wrong
        """
        async with self._lock:
            try:
                before = self._in_force.layers
                read = partial(load_layers, self.file, command=before.command)
                layers = await anyio.to_thread.run_sync(read)
                if layers.is_empty and before.file_tree:
                    raise ConfigError(f"{layers.file}: it is empty; write {{}} if everything is to have its default")
                number = self._in_force.current.revision
                self._in_force.take(self._in_force.live, number, layers)
            except ConfigError as wrong:
                await self._refuse_file(wrong, reason)
                raise
            self._in_force.trouble = ""
            hidden = self.overruled_of(what_says_otherwise(before.file_tree, layers.file_tree))
            for line in hidden:
                _log.warning("config.overruled", message=line)
            self._uptake.file_changed("; ".join((reason, *hidden)))
            try:
                await self._uptake.look()
            except StoreUnavailable as away:
                _log.warning(
                    "config.store_away", message=f"the file counts here; the fleet hears later: {away.message}"
                )
                self.wake()
        for path in self.waits_for_restart:
            _log.warning("config.waits_for_restart", message=f"{path}: changed in the file, and waits for a restart")

    async def _refuse_file(self, wrong: ConfigError, reason: str) -> None:
        if wrong.message == self._in_force.trouble:
            return
        self._in_force.trouble = wrong.message
        _log.error("config.refused", message=f"the old configuration stays: {wrong.message}")
        try:
            text = f"not taken ({reason}): {wrong.message}"
            await revisions.audit(self._ask, text=text, author="gpulockd", origin="file", what="refused")
        except StoreUnavailable as away:
            _log.debug("config.store_away", message=away.message)

    async def file_changed(self) -> None:
        """As `reload`, where nobody waits for an answer."""
        try:
            await self.reload("the file was changed")
        except GpuLockError as wrong:
            _log.debug("config.not_reloaded", message=wrong.message)

    async def change(
        self,
        tree: Tree,
        *,
        author: str,
        reason: str,
        origin: str,
        scope: str = ALL,
        expected: int | None = None,
        dry_run: bool = False,
        unvalidated: bool = False,
        unset: Collection[str] = (),
        replace: bool = False,
    ) -> Changed:
        """Set something live.

        :param scope: "all", or one pool of the fleet
        :param expected: the revision from which the change was made; None: whichever is in force
        :param unset: paths of leaves or blocks that are not to be set live any more
        :param replace: the tree is all that is set live in the scope afterwards
        :raises ConfigError: for what does not fit, in any pool
        :raises Unvalidated: if changes must pass a trial first
        :raises ConfigConflict: if another revision came first
        """
        deed = Deed(
            author=author,
            reason=f"{reason} (unvalidated)".strip() if unvalidated else reason,
            origin=origin,
            expected=expected,
        )
        async with self._refusals.of(author, origin, quiet=dry_run):
            tree = checked(tree)
            refuse_restarts({*flat(tree)})
        wish = Wish(
            next_live=lambda live: changed(live, tree, scope=scope, unset=unset, replace=replace),
            scope=scope,
            documents=(tree,),
            unvalidated=unvalidated,
            dry_run=dry_run,
        )
        async with self._lock, self._refusals.of(author, origin, quiet=dry_run):
            return await self._revising.make(wish, deed)

    async def promote(
        self,
        live: Live,
        *,
        author: str,
        reason: str,
        origin: str = "rollout",
        expected: int | None,
        validated: str = "",
    ) -> Changed:
        """Make a whole document the live one, as `change` does; it has passed its gates, so it is stable at once.

        :param validated: the digest under which it has passed a trial
        """
        refuse_restarts({*flat(live.get("all", {}))})
        wish = Wish(next_live=lambda _: live, validated=validated, unvalidated=True)
        async with self._lock:
            done = await self._revising.make(wish, Deed(author=author, reason=reason, origin=origin, expected=expected))
        made = done.revision
        if made is None or made.stable or made.origin != origin:
            return done
        await self.judged(made.number, stable=True, outcome="its rollout has passed the gates")
        return msgspec.structs.replace(done, revision=msgspec.structs.replace(made, stable=True))

    async def roll_back(
        self,
        *,
        to: int | None = None,
        author: str,
        reason: str,
        origin: str,
        expected: int | None = None,
        whole: bool = False,
    ) -> RolledBack:
        """Go back to a revision, and look afterwards how the system is.

        :param to: its number; None: the last stable one (`gpulockd.config.change.previous_stable`)
        :param expected: go back only from this revision
        :param whole: also what a rollback leaves alone: `notify`, `alerts`, `config`, `rollout`; one by itself
            (`auto_rollback`) leaves all alone by which no attempt fails
        :raises UnknownRevision: if `to` is not kept
        :raises ConfigConflict: if another revision than the expected one is in force
        """
        began_s = anyio.current_time()
        deed = Deed(author=author, reason=reason, origin=origin, expected=expected)
        async with self._lock, self._refusals.of(author, origin):
            step = await self._revising.go_back(to, deed, whole=whole)
        if self.on_way_back is not None and (step.is_one or origin != "auto_rollback"):
            await self.on_way_back(author=author, reason=reason)
        verified = await self._verify(step.after.number, restart=step.is_one)
        after = await self._mark_way_back(step, verified) if step.is_one else step.after
        result = RolledBack(
            revision=after,
            restored=step.restored,
            diff=after.diff if step.is_one else (),
            overall_status=verified.overall_status,
            took_s=round(anyio.current_time() - began_s, 3),
            verified=verified.is_well,
            checks=verified.checks,
            left_alone=step.left_alone,
        )
        _log.info("config.rolled_back", restored=result.restored, verified=result.verified, message=str(result))
        return result

    async def _mark_way_back(self, step: Step, verified: Verified) -> Revision:
        said = "verified" if verified.is_well else f"not verified: {verified.trouble}"
        well = verified.works and step.target is not None and step.target.stable
        alone = f" ({', '.join(step.left_alone)} left as they are)" if step.left_alone else ""
        outcome = f"went back to revision {step.restored}{alone}, {said}"
        marked = await revisions.mark(
            self._ask, step.after.number, stable=True if well else None, outcome=outcome, author="gpulockd"
        )
        await self.look()
        return marked

    async def judged(self, number: int, *, stable: bool | None, outcome: str) -> None:
        """Say how a revision has turned out."""
        await revisions.mark(self._ask, number, stable=stable, outcome=outcome, author="gpulockd")
        await self.look()

    async def carry(self, candidate: Candidate | None, event: Event | None = None) -> None:
        """Try a candidate in this pool, or none any more (None).

        :param event: what tells of it in the pool
        :raises ConfigError: if it does not fit this host's file
        :raises StoreUnavailable: if it could not be published
        """
        async with self._lock:
            number = self.state.current.number if self.state.current is not None else self._in_force.current.revision
            self._in_force.try_out(candidate, number)
            await self._uptake.publish(event)

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Look whenever something may have changed, until cancelled. Started once the first look was tried."""
        retry_s, started = RETRY_S, False
        while True:
            self._news = anyio.Event()
            try:
                await self.look()
                pause_s, retry_s = RECHECK_S, RETRY_S
            except StoreUnavailable as away:
                _log.debug("config.store_away", message=away.message)
                pause_s, retry_s = retry_s, min(2 * retry_s, MOST_RETRY_S)
            except GpuLockError as trouble:
                _log.error("config.failed", message=trouble.message)
                pause_s = RECHECK_S
            if not started:
                started = True
                task_status.started()
            with anyio.move_on_after(pause_s):
                await self._news.wait()
