"""What a change of the configuration, and its undoing, have come to."""

from __future__ import annotations

from typing import Any

import msgspec

from gpulockd.ledger.revisions import Change, Revision

Tree = dict[str, Any]


class Shown(msgspec.Struct, frozen=True, kw_only=True):
    """The fleet's configuration as it stands: the revision in force, the last stable one, and the live document."""

    current: Revision | None = None
    stable: int | None = None
    live: Tree = {}


class Changed(msgspec.Struct, frozen=True, kw_only=True):
    """What a change has come to. `diff` empty: nothing differs, and no revision was made.

    `revision` is the one in force afterwards (for a dry run: as it is now), `live` the new live document,
    `waits_for_restart` what of the configuration works only after a restart, `validated` whether a trial has passed it.
    """

    revision: Revision | None
    diff: tuple[Change, ...] = ()
    live: Tree = {}
    waits_for_restart: tuple[str, ...] = ()
    validated: bool = False


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """What a rollout tries in a pool: a live document, the revision that it goes out from, and for whom.

    `below`: the share of the pool's clients; 1 and more: all of them, and the daemon itself.
    """

    live: Tree
    revision: int
    rollout: str
    below: float = 1.0

    @property
    def is_whole(self) -> bool:
        """Whether the whole pool goes by it."""
        return self.below >= 1.0


class RolledBack(msgspec.Struct, frozen=True, kw_only=True):
    """What a rollback has come to. `diff` empty: what was to be restored is in force, and no revision was made.

    `restored` is the revision whose values are in force again, `took_s` the time from the decision to the last check
    (in seconds), `checks` what was looked at afterwards: True, or why not. `left_alone` names the blocks that were
    otherwise then, and stay as they are.
    """

    revision: Revision | None
    restored: int | None
    diff: tuple[Change, ...]
    overall_status: str
    took_s: float
    verified: bool
    checks: dict[str, str | bool | float]
    left_alone: tuple[str, ...] = ()

    def __str__(self) -> str:
        is_new = "back at revision {}" if self.diff else "revision {} is in force already"
        alone = f", {', '.join(self.left_alone)} left as they are" if self.left_alone else ""
        how = "verified" if self.verified else "NOT verified"
        return f"{is_new.format(self.restored)}{alone}, {how}, {self.overall_status}, {self.took_s:g} s"
