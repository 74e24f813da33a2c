"""Handlers of the configuration: what is in force and why, changes, history, audit, rollback, validation, impact."""

from __future__ import annotations

from typing import Any

import msgspec

from gpulockd.config.results import RolledBack
from gpulockd.web import config_views as views
from gpulockd.web.assigning import Wanted, document, live_part, wanted
from gpulockd.web.auth import Caller
from gpulockd.web.configures import Configures
from gpulockd.web.differing import differences
from gpulockd.web.problems import refusal
from gpulockd.web.secrets import hidden
from gpulockd.web.table import Visit

LONGEST_PAGE = 200
FARTHEST = 10**9
LONGEST_REASON = 500


def configures(visit: Visit) -> Configures:
    """:raises ProblemError: 503 while the daemon has no configuration service yet"""
    found = visit.backend.configuring
    if found is None:
        raise refusal(503, "not_ready", "the configuration service does not run yet", "ask again in a moment")
    return found


def check_operator(caller: Caller) -> None:
    """:raises ProblemError: 403 unless the caller may change the configuration"""
    if not caller.trusted:
        detail = f"{caller.user or 'this user'} may not change the configuration"
        raise refusal(403, "forbidden", detail, "ask as root or as the daemon's user, or over TCP with the token")


def author_of(visit: Visit) -> str:
    """Who changes something: the user at the unix socket, or "token"; "loopback" where `web.writes` trusts all."""
    if visit.caller.user:
        return reason_of(visit.caller.user)
    return "token" if "authorization" in visit.request.headers else "loopback"


def reason_of(text: str) -> str:
    """Return a reason as one line of at most 500 characters, without what a terminal would obey."""
    return "".join(c for c in " ".join(text.split()) if c.isprintable())[:LONGEST_REASON]


def commanded(found: Configures) -> frozenset[str]:
    """Return the settings that the daemon's command line says."""
    return frozenset(path for path, origin in found.origins().items() if origin.layer == "command line")


async def show_config(visit: Visit) -> views.ConfigView:
    """The settings in force here, where each comes from, and the live document."""
    found = configures(visit)
    state = found.state
    return views.ConfigView(
        pool=visit.backend.pool,
        revision=views.revision_view(state.current) if state.current is not None else None,
        stable=state.stable,
        file=found.file,
        settings=views.settings_view(found.settings),
        live=hidden("", state.live),
        origins=tuple(views.origin_view(path, origin) for path, origin in sorted(found.origins().items())),
        waits_for_restart=tuple(found.waits_for_restart),
        trouble=found.trouble,
    )


async def change_config(visit: Visit) -> views.ConfigChanged:
    """Change the live configuration, or say what a change would do.

    :raises ProblemError: 403 for other users, 422 for what no setting takes, 409 for a conflict or a change that had
        to be validated
    """
    check_operator(visit.caller)
    change: views.ConfigChange = visit.body
    return await _changed(visit, wanted(change, configures(visit).settings, commanded(configures(visit))), change)


async def change_gpu_lock(visit: Visit) -> views.GpuLockChanged:
    """Change keys of the block gpu_lock: the body is those keys.

    :raises ProblemError: as `change_config`
    """
    check_operator(visit.caller)
    found = configures(visit)
    if not visit.body:
        raise refusal(422, "invalid", "the body names no key of gpu_lock", 'send for example {"poll_interval": 1.0}')
    wish = document({f"gpu_lock.{name}": value for name, value in visit.body.items()})
    done = await _changed(visit, wish, views.ConfigChange())
    block = msgspec.to_builtins(found.settings.gpu_lock)
    return views.GpuLockChanged(gpu_lock=block, **msgspec.structs.asdict(done))


async def _changed(visit: Visit, wish: Wanted, change: views.ConfigChange) -> views.ConfigChanged:
    done = await configures(visit).change(
        wish.tree,
        unset=wish.unset,
        replace=change.replace,
        author=author_of(visit),
        reason=reason_of(change.reason),
        origin=change.origin,
        scope=change.scope,
        expected=change.expect,
        dry_run=change.dry_run,
        unvalidated=change.unvalidated,
    )
    replay = None
    if change.dry_run and done.diff and visit.backend.replay is not None:
        replay = msgspec.to_builtins(await visit.backend.replay(wish.tree))
    return views.changed_view(done, dry_run=change.dry_run, replay=replay)


async def config_history(visit: Visit) -> views.ConfigHistory:
    """One page of the revisions, the newest first; `before` is the number that the page ends at."""
    found = configures(visit)
    before = visit.number("before", FARTHEST, FARTHEST)
    count = visit.number("count", 50, LONGEST_PAGE)
    revisions = await found.history(before=None if before == FARTHEST else before, count=max(1, count))
    state = found.state
    return views.ConfigHistory(
        current=state.current.number if state.current is not None else None,
        stable=state.stable,
        revisions=tuple(views.revision_view(revision) for revision in revisions[:count]),
    )


async def config_audit(visit: Visit) -> views.ConfigAudit:
    """One page of the audit log, the newest line first; `before` is the id that the page ends at."""
    count = visit.number("count", 100, LONGEST_PAGE)
    before = visit.request.query_params.get("before", "")
    if not all(part.isascii() and part.isdigit() and len(part) < 19 for part in before.split("-", 1) if before):
        raise refusal(422, "invalid", f"before={before[:40]!r}", "say the id of an audit line, such as 17000-0")
    lines = await configures(visit).audit(count=max(1, count), before=before)
    return views.ConfigAudit(audit=tuple(views.audit_view(line) for line in lines[:count]))


async def config_diff(visit: Visit) -> views.ConfigDiff:
    """What differs between two revisions; by default the last stable one and the one in force.

    :raises UnknownRevision: if one of them is not known (any more)
    """
    found = configures(visit)
    state = found.state
    current = state.current.number if state.current is not None else 0
    older = visit.number("older", state.stable if state.stable is not None else current, FARTHEST)
    newer = visit.number("newer", current, FARTHEST)
    changes = differences(await found.tree_of(older), await found.tree_of(newer))
    return views.ConfigDiff(older=older, newer=newer, diff=tuple(views.change_view(change) for change in changes))


async def roll_config_back(visit: Visit) -> views.ConfigRolledBack:
    """Restore the last stable revision, or the one that is named, and look how the system is afterwards.

    :raises ProblemError: 403 for other users
    :raises UnknownRevision: if the one that is named is not known (any more)
    """
    check_operator(visit.caller)
    wish: views.RollbackWish = visit.body
    done = await configures(visit).roll_back(
        to=wish.to, author=author_of(visit), reason=reason_of(wish.reason), origin=wish.origin, whole=wish.all
    )
    message = _rolled_back(done)
    return views.ConfigRolledBack(
        success=done.verified,
        message=message,
        changed=bool(done.diff),
        revision=views.revision_view(done.revision) if done.revision is not None else None,
        restored=done.restored,
        diff=tuple(views.change_view(change) for change in done.diff),
        overall_status=done.overall_status,
        verified=done.verified,
        took_s=done.took_s,
        checks=dict(done.checks),
        left_alone=done.left_alone,
        text=_rollback_text(message, done),
    )


def _rolled_back(done: RolledBack) -> str:
    well = done.verified and done.overall_status == "healthy"
    health = "the system is well" if well else f"but the system is {done.overall_status}; see checks"
    if not done.diff:
        return f"no change: revision {done.restored} is in force already; {health}"
    number = f" as revision {done.revision.number}" if done.revision is not None else ""
    return f"revision {done.restored} is in force again{number}; {health}"


def _rollback_text(message: str, done: RolledBack) -> str:
    """All lines that a person reads of it; overall_status is the last one."""
    lines = [f"{message} ({done.took_s:.1f} s)"]
    lines += [f"  {views.told(views.change_view(change))}" for change in done.diff]
    if done.left_alone:
        lines.append(f"left as they are: {', '.join(done.left_alone)}")
    for name, value in done.checks.items():
        lines.append(f"check {name}: {_said(value)}")
    return "\n".join([*lines, f"overall_status: {done.overall_status}"])


def _said(value: object) -> str:
    """Return what a check found, for people: a number is a share."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.0%}" if isinstance(value, float) else str(value)


async def note_validation(visit: Visit) -> views.ValidationNoted:
    """Remember what a benchmark said of a candidate.

    :raises ProblemError: 403 for other users, 422 for a candidate that no setting takes
    """
    check_operator(visit.caller)
    note: views.ValidationNote = visit.body
    found = configures(visit)
    passed = note.verdict.get("passed", False)
    if not isinstance(passed, bool):
        raise refusal(422, "invalid", "verdict.passed is neither true nor false", "send true only for what has passed")
    candidate = live_part(document(note.tree).tree, found.settings, commanded(found))
    digest = await found.note_validated(candidate, note.verdict, author=author_of(visit))
    return views.ValidationNoted(digest=digest, validated=passed)


async def config_impact(visit: Visit) -> Any:
    """Compare the time before the last change with the time after it; null before any change.

    :raises ProblemError: 404 for a revision that is not known, or did not change this pool
    """
    text = visit.request.query_params.get("revision")
    number = visit.number("revision", 0, FARTHEST) if text is not None else None
    if visit.backend.impact is None:
        raise refusal(503, "not_ready", "nothing compares before and after yet", "ask again in a moment")
    try:
        found = await visit.backend.impact(number)
    except KeyError:
        hint = "GET /api/v1/config/history lists them"
        raise refusal(404, "not_found", f"revision {number} did not change this pool", hint) from None
    diff = tuple(one | {side: hidden(one["path"], one[side]) for side in ("before", "after")} for one in found.diff)
    return msgspec.structs.replace(found, diff=diff)
