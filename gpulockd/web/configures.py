"""What the routes of the configuration need of the daemon: who changes it, compares it and brings it to the fleet."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

from gpulockd.config.results import Changed, RolledBack, Shown
from gpulockd.ledger.revisions import AuditLine, Revision
from gpulockd.settings import Settings, Tree


class Origin(Protocol):
    """Where a value comes from."""

    @property
    def layer(self) -> str: ...
    @property
    def where(self) -> str: ...
    @property
    def value(self) -> Any: ...


class Configures(Protocol):
    """Reads and changes the configuration of the fleet."""

    @property
    def state(self) -> Shown: ...
    @property
    def settings(self) -> Settings: ...
    @property
    def file(self) -> str | None: ...
    @property
    def waits_for_restart(self) -> Collection[str]: ...
    @property
    def trouble(self) -> str: ...
    def origins(self) -> Mapping[str, Origin]: ...

    async def change(
        self,
        tree: Tree,
        *,
        author: str,
        reason: str,
        origin: str,
        scope: str = "all",
        expected: int | None = None,
        dry_run: bool = False,
        unvalidated: bool = False,
        unset: Collection[str] = (),
        replace: bool = False,
    ) -> Changed: ...

    async def roll_back(
        self, *, to: int | None, author: str, reason: str, origin: str, whole: bool = False
    ) -> RolledBack: ...

    async def history(self, *, before: int | None, count: int) -> Sequence[Revision]: ...

    async def audit(self, *, count: int, before: str) -> Sequence[AuditLine]: ...

    async def tree_of(self, number: int) -> Tree: ...

    async def note_refused(self, *, text: str, author: str, origin: str) -> None: ...

    async def note_validated(self, tree: Tree, verdict: dict[str, Any], *, author: str) -> str: ...


class Impacts(Protocol):
    """Compares the time before a revision (None: the newest) with the time after it."""

    async def __call__(self, revision: int | None) -> Any: ...


class Replays(Protocol):
    """Says what proposed settings would have done to the recorded holds and waits."""

    async def __call__(self, tree: Tree) -> Any: ...


class RollsOut(Protocol):
    """Brings a change to the fleet in stages. Stages are (share, hold in seconds); answers are ready for JSON."""

    async def state(self) -> dict[str, Any] | None: ...

    async def start(
        self,
        tree: Tree,
        *,
        unset: Collection[str] = (),
        stages: tuple[tuple[float, float], ...] | None,
        author: str,
        reason: str,
        unvalidated: bool,
    ) -> dict[str, Any]: ...

    async def approve(self, *, author: str, reason: str) -> dict[str, Any]: ...

    async def pause(self, *, author: str, reason: str) -> dict[str, Any]: ...

    async def resume(self, *, author: str, reason: str) -> dict[str, Any]: ...

    async def abort(self, *, author: str, reason: str) -> dict[str, Any]: ...
