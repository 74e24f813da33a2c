"""The configuration for who only looks: what is in force, where it comes from, what it was."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from gpulockd.config.change import SECRET_BLOCKS, base_as_of, block_of, plain, shown_value
from gpulockd.config.live import Tree, live_for
from gpulockd.config.results import Shown
from gpulockd.daemon.configuration import Layers, Origin
from gpulockd.daemon.inforce import InForce
from gpulockd.daemon.poolviews import revision_of
from gpulockd.daemon.refusals import Refusals
from gpulockd.daemon.uptake import Uptake
from gpulockd.ledger import revisions
from gpulockd.ledger.revisions import Ask, AuditLine, Revision
from gpulockd.settings import Settings, checked, flat, merged, value_at


class ConfigReading:
    """What can be seen of the configuration in this daemon."""

    def __init__(self, in_force: InForce, uptake: Uptake, ask: Ask) -> None:
        self._in_force = in_force
        self._uptake = uptake
        self._ask = ask
        self._refusals = Refusals(ask)

    @property
    def state(self) -> Shown:
        """The revision in force, the last stable one, and the live document, as last seen."""
        return self._uptake.shown

    @property
    def settings(self) -> Settings:
        """The settings in force in this daemon."""
        return self._in_force.current.settings

    @property
    def layers(self) -> Layers:
        """File and environment of this host."""
        return self._in_force.layers

    @property
    def file(self) -> str | None:
        """The configuration file, if there is one."""
        return self._in_force.layers.file

    @property
    def waits_for_restart(self) -> tuple[str, ...]:
        """What file and environment say that only a restart takes up."""
        return self._in_force.waits_for_restart

    @property
    def trouble(self) -> str:
        """Why the file, or the live document, was not taken; empty if both were."""
        return self._in_force.trouble or self._uptake.misfit

    @property
    def listeners(self) -> list[Callable[[Revision], None]]:
        """Called with each revision that this daemon takes up; they must not raise."""
        return self._uptake.listeners

    def origins(self) -> dict[str, Origin]:
        """Where each value comes from; of one that is set live, in which revision it was set."""
        return self._in_force.origins(self._uptake.said_in)

    @property
    def overruled(self) -> tuple[str, ...]:
        """What this host's file says in vain, a line each, and what says otherwise."""
        return self.overruled_of(flat(self._in_force.layers.file_tree))

    def overruled_of(self, paths: Collection[str]) -> tuple[str, ...]:
        """As `overruled`, of some settings."""
        origins, layers, lines = self.origins(), self._in_force.layers, []
        for path in sorted(paths):
            origin, said = origins.get(path), value_at(layers.file_tree, path)
            if origin is None or origin.layer in ("file", "default") or plain(origin.value) == plain(said):
                continue
            over = f"live ({origin.where})" if origin.layer == "live" else origin.where
            value = "" if block_of(path) in SECRET_BLOCKS else f" {shown_value(origin.value)}"
            lines.append(f"{path} in {layers.file} has no effect: {over} says{value or ' otherwise'}")
        return tuple(lines)

    @property
    def carries(self) -> bool:
        """Whether this pool tries a candidate."""
        return self._in_force.candidate is not None

    async def history(self, *, before: int | None = None, count: int = 50) -> list[Revision]:
        """Return a page of revisions, latest first, below a number."""
        return await revisions.history(self._ask, before=before, count=count)

    async def audit(self, *, count: int = 100, before: str = "") -> list[AuditLine]:
        """Return a page of the audit, latest first."""
        return await revisions.audits(self._ask, count=count, before=before)

    async def note_refused(self, *, text: str, author: str, origin: str) -> None:
        """Write to the audit that somebody wanted something and was refused. It raises nothing."""
        await self._refusals.note(text=text, author=author, origin=origin)

    async def tree_of(self, number: int) -> Tree:
        """Return what this pool went by as of a revision, without defaults.

        :raises UnknownRevision: if it is not kept
        """
        revision = await revision_of(self._ask, number)
        base = base_as_of(await revisions.bases(self._ask, self._in_force.pool), number) or {}
        return merged(base, live_for(revision.live, self._in_force.pool))

    async def note_validated(self, tree: Tree, verdict: dict[str, Any], *, author: str) -> str:
        """Keep what a trial has said of a candidate. Returns its digest."""
        digest = revisions.digest(checked(tree))
        await revisions.note_validated(self._ask, digest, verdict, author=author)
        return digest
