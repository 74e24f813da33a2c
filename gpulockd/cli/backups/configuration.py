"""The configuration of a backup, brought back: as one revision, and with all older ones where the store has lost them.

Its law: what does not fit in every pool is refused before anything is written; the revision in force meanwhile is never
overwritten, but followed by another one, so `config rollback` undoes it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec

from gpulockd.cli.backups.pack import Backup, Record
from gpulockd.cli.backups.unsaid import Way, filled
from gpulockd.cli.talk import NEGATIVE, USAGE, CommandError
from gpulockd.config.change import live_diff, refuse_restarts, spoken
from gpulockd.config.live import tidy
from gpulockd.daemon.poolviews import bases_of, settings_in, what_differs
from gpulockd.errors import ConfigError
from gpulockd.ledger import revisions
from gpulockd.ledger.revisions import AuditLine, Change, Conflict, Revision, State
from gpulockd.ledger.store import Store
from gpulockd.settings import flat

MOST_LINES = 10_000
"""So many lines of the audit are brought back."""

ORIGIN = "restore"


@dataclass
class Plan:
    """What a restoration comes to.

    `lost`: the store has no history of its own, so all revisions come back; `missing`: secrets that neither the backup
    nor the store says; `live`: the document that is wanted.
    """

    state: State
    live: dict[str, Any]
    diff: tuple[Change, ...]
    missing: list[Way] = field(default_factory=list)
    lost: bool = False
    older: list[Revision] = field(default_factory=list)
    number: int = 0
    stable: int | None = None

    @property
    def does_nothing(self) -> bool:
        """Whether the store has it all."""
        return not self.lost and self.live == self.state.live

    @property
    def before(self) -> int | None:
        """The number of the revision in force before."""
        return None if self.state.current is None else self.state.current.number


async def planned(store: Store, backup: Backup) -> Plan | None:
    """Return what would be done; None if the backup has no configuration.

    :raises CommandError: if it does not fit here
    """
    kept = backup.one("state")
    if kept is None:
        return None
    state = await revisions.read(store.ask)
    older = [_revision(line) for line in reversed(backup.all("revision"))]
    live, missing = filled(kept["live"], kept["hidden"], state.live)
    lost = _is_lost(state, kept, older)
    pools = sorted(await store.pools())
    try:
        for tree in (live.get("all", {}), *live.get("pools", {}).values()):
            refuse_restarts({*flat(tree)})
        bases = await bases_of(store.ask, pools)
        number = 0 if state.current is None else state.current.number
        for pool in pools:
            settings_in(pool, live, bases, number)
        diff = what_differs((state.live, number), (live, number), bases, pools) or live_diff(state.live, live)
    except ConfigError as wrong:
        hint = f"{_ways(missing)}: a secret that the backup leaves out; set it first" if missing else ""
        what = f"the configuration of {backup.path} does not fit here: {wrong.message}"
        raise CommandError(what, hint or "change config.yml of that pool, or restore --only history", USAGE) from None
    return Plan(
        state=state,
        live=tidy(live),
        diff=diff,
        missing=missing,
        lost=lost,
        older=older,
        number=int(kept["current"]),
        stable=kept["stable"],
    )


async def done(store: Store, backup: Backup, plan: Plan, *, author: str, reason: str) -> Revision | None:
    """Bring it back; return the revision made, None if nothing was to be done.

    :raises CommandError: if somebody else has changed the configuration meanwhile
    """
    if plan.does_nothing:
        return None
    expected = plan.before
    if plan.lost:
        taken = await revisions.restore(
            store.ask,
            revisions=plan.older,
            current=plan.number,
            stable=plan.stable,
            live=plan.live,
            author=author,
            audits=[_audit(line) for line in reversed(backup.all("audit")[:MOST_LINES])],
            source=f"the backup {backup.path}",
        )
        if not taken:
            raise _meanwhile()
        expected = plan.number
    made = await revisions.revise(
        store.ask,
        expected=expected,
        author=author,
        reason=reason,
        origin=ORIGIN,
        live=plan.live,
        diff=plan.diff,
        said=spoken(plan.diff),
    )
    if isinstance(made, Conflict):
        raise _meanwhile()
    return made


def _is_lost(state: State, kept: Record, older: list[Revision]) -> bool:
    """Whether the store has nothing, only its first revision, or one from which the kept ones go on."""
    if not any(revision.number == kept["current"] for revision in older):
        return False
    if state.current is None:
        return True
    if state.current.number >= kept["current"]:
        return False
    return state.current.number == 0 or any(revision.id == state.current.id for revision in older)


def _revision(line: Record) -> Revision:
    """A revision of the backup, without the secrets that it leaves out."""
    plain = dict(line)
    plain["live"], _ = filled(plain["live"], plain.pop("hidden", []), {})
    return msgspec.convert(plain, Revision)


def _audit(line: Record) -> AuditLine:
    return msgspec.convert(line, AuditLine)


def _ways(ways: list[Way]) -> str:
    return ", ".join(".".join(way[1:] if way[:1] == ["all"] else way) for way in ways)


def missing_words(plan: Plan) -> str:
    """The settings whose secrets are not known any more, for people."""
    return _ways(plan.missing)


def _meanwhile() -> CommandError:
    return CommandError(
        "the configuration was changed meanwhile", "look at 'gpulockd config history', and try again", NEGATIVE
    )
