"""What the routes of the configuration take and answer. Values are in seconds where they are durations."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal

import msgspec

from gpulockd.config.results import Changed
from gpulockd.ledger.revisions import AuditLine, Change, Revision
from gpulockd.settings import Settings
from gpulockd.web.configures import Origin
from gpulockd.web.secrets import hidden

Number = Annotated[int, msgspec.Meta(ge=0, le=10**9)]
"""The number of a revision."""

Duration = float | str
"""Seconds, or text such as "250ms", "5m", "1h30m"."""


class ChangeView(msgspec.Struct, frozen=True, kw_only=True):
    """One setting before and after; null: not set."""

    path: str
    before: Any
    after: Any


class RevisionView(msgspec.Struct, frozen=True, kw_only=True):
    """A numbered state of the configuration. `pool` empty: all of the fleet; `of`: what a rollback restored."""

    number: int
    at_ms: int
    author: str
    reason: str
    origin: str
    pool: str
    diff: tuple[ChangeView, ...]
    stable: bool
    outcome: str
    validated: bool
    of: int | None


class OriginView(msgspec.Struct, frozen=True, kw_only=True):
    """A setting, its value, and which layer says so: default, file, environment, command line or live."""

    path: str
    value: Any
    layer: str
    where: str


class ConfigView(msgspec.Struct, frozen=True, kw_only=True):
    """The configuration in force here. `trouble`: why the file's last change was not taken."""

    pool: str
    revision: RevisionView | None
    stable: int | None
    file: str | None
    settings: dict[str, Any]
    live: dict[str, Any]
    origins: tuple[OriginView, ...]
    waits_for_restart: tuple[str, ...]
    trouble: str


class ConfigChange(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A change of the live configuration.

    `set` is blocks or dotted names; `assign` dotted names with values as text; `unset` names that go back to file and
    environment; `profile` a bundle of the configuration. `scope` is "all" or a pool; `expect` the revision that the
    change was made for; `replace` makes it all that is live.
    """

    set: dict[str, Any] = {}
    assign: dict[str, str] = {}
    unset: tuple[str, ...] = ()
    profile: str | None = None
    scope: str = "all"
    reason: str = ""
    expect: Number | None = None
    replace: bool = False
    dry_run: bool = False
    unvalidated: bool = False
    origin: Literal["api", "cli", "page"] = "api"


class GpuLockChange(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Keys of the block gpu_lock; those that are left out stay."""

    poll_interval: Duration | None = None
    max_wait_time: Duration | None = None
    lock_timeout: Duration | None = None
    exponential_backoff: bool | None = None
    max_poll_interval: Duration | None = None


class ConfigChanged(msgspec.Struct, frozen=True, kw_only=True):
    """What a change did, or would do (`dry_run`). `replay`: what it would have done to what was recorded."""

    success: bool = True
    message: str
    changed: bool
    dry_run: bool
    revision: RevisionView | None
    diff: tuple[ChangeView, ...]
    waits_for_restart: tuple[str, ...]
    validated: bool
    replay: Any = None


class GpuLockChanged(ConfigChanged, frozen=True, kw_only=True):
    """The same, with the block gpu_lock as it is now."""

    gpu_lock: dict[str, Any]


class ConfigHistory(msgspec.Struct, frozen=True, kw_only=True):
    """Revisions, the newest first."""

    current: int | None
    stable: int | None
    revisions: tuple[RevisionView, ...]


class AuditView(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the audit log."""

    id: str
    at_ms: int
    author: str
    origin: str
    revision: int | None
    what: str
    text: str


class ConfigAudit(msgspec.Struct, frozen=True, kw_only=True):
    """The audit log, the newest line first."""

    audit: tuple[AuditView, ...]


class ConfigDiff(msgspec.Struct, frozen=True, kw_only=True):
    """What differs between two revisions, as this pool's daemon goes by them."""

    older: int
    newer: int
    diff: tuple[ChangeView, ...]


class RollbackWish(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which revision to restore; null: the last stable one. `all`: also the blocks that a rollback leaves alone."""

    to: Number | None = None
    all: bool = False
    reason: str = ""
    origin: Literal["api", "cli", "page"] = "api"


class ConfigRolledBack(msgspec.Struct, frozen=True, kw_only=True):
    """What a rollback restored, and how the system was afterwards (`took_s` in seconds).

    `left_alone`: blocks that were otherwise then and stay as they are. `text`: all of it, as the command prints it.
    """

    success: bool
    message: str
    changed: bool
    revision: RevisionView | None
    restored: int | None
    diff: tuple[ChangeView, ...]
    overall_status: str
    verified: bool
    took_s: float
    checks: dict[str, Any]
    left_alone: tuple[str, ...] = ()
    text: str


class ValidationNote(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a benchmark said of a candidate: its tree of settings, and the verdict."""

    tree: dict[str, Any]
    verdict: dict[str, Any]


class ValidationNoted(msgspec.Struct, frozen=True, kw_only=True):
    """The candidate's digest, by which a later change is known as validated."""

    digest: str
    validated: bool


def change_view(change: Change) -> ChangeView:
    """Return one difference without secrets."""
    before, after = hidden(change.path, change.before), hidden(change.path, change.after)
    return ChangeView(path=change.path, before=before, after=after)


def revision_view(revision: Revision) -> RevisionView:
    """Return a revision without secrets."""
    return RevisionView(
        number=revision.number,
        at_ms=revision.at_ms,
        author=revision.author,
        reason=revision.reason,
        origin=revision.origin,
        pool=revision.pool,
        diff=tuple(change_view(change) for change in revision.diff),
        stable=revision.stable,
        outcome=revision.outcome,
        validated=bool(revision.validated),
        of=revision.of,
    )


def origin_view(path: str, origin: Origin) -> OriginView:
    """Return where a value comes from."""
    return OriginView(path=path, value=hidden(path, origin.value), layer=origin.layer, where=origin.where)


def audit_view(line: AuditLine) -> AuditView:
    """Return one line of the audit log."""
    return AuditView(
        id=line.id,
        at_ms=line.at_ms,
        author=line.author,
        origin=line.origin,
        revision=line.revision,
        what=line.what,
        text=line.text,
    )


def settings_view(settings: Settings) -> dict[str, Any]:
    """Return all settings as plain values without secrets."""
    shown = hidden("", msgspec.to_builtins(settings))
    assert isinstance(shown, dict)
    return shown


def changed_view(changed: Changed, *, dry_run: bool, replay: Any = None) -> ConfigChanged:
    """Return what a change did, with a message of one line."""
    diff = tuple(change_view(change) for change in changed.diff)
    return ConfigChanged(
        message=_message(changed, diff, dry_run=dry_run),
        changed=bool(diff) and not dry_run,
        dry_run=dry_run,
        revision=revision_view(changed.revision) if changed.revision is not None else None,
        diff=diff,
        waits_for_restart=tuple(changed.waits_for_restart),
        validated=bool(changed.validated),
        replay=replay,
    )


def _message(changed: Changed, diff: Iterable[ChangeView], *, dry_run: bool) -> str:
    said = ", ".join(told(change) for change in diff)
    number = changed.revision.number if changed.revision is not None else None
    if not said:
        return f"no change: revision {number} says that already" if number is not None else "no change"
    return f"would change {said}" if dry_run else f"revision {number}: {said}"


def told(change: ChangeView) -> str:
    """A difference in one line: "gpu_lock.poll_interval: 2 -> 1"."""
    return f"{change.path}: {_text(change.before)} -> {_text(change.after)}"


def _text(value: Any) -> str:
    if value is None:
        return "(unset)"
    return f"{value:g}" if isinstance(value, float) else msgspec.json.encode(value).decode().strip('"')
