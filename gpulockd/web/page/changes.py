"""The configuration on the page: the revision in force, what it changed, whether that helped, and the way back."""

from __future__ import annotations

import msgspec

from gpulockd.config.impact import Impact, Summary
from gpulockd.config.sides import Side
from gpulockd.web.backend import Backend
from gpulockd.web.config_views import ChangeView, OriginView, RevisionView, change_view, origin_view, revision_view
from gpulockd.web.configures import Configures
from gpulockd.web.differing import differences
from gpulockd.web.page.words import age, percent
from gpulockd.web.secrets import hidden

MOST_REVISIONS = 8

LONG_TEXT = 80
"""What is longer is folded."""

MOST_TEXT = 4000
"""What is longer is cut (in characters): the command line has all of it."""


class Figure(msgspec.Struct, frozen=True):
    """One line of the impact: before, after, how it changed, and whether that is good, bad or neither.

    Where too little was measured to compare there is no change.
    """

    name: str
    before: str
    after: str
    change: str
    mood: str


class Changes(msgspec.Struct, frozen=True, kw_only=True):
    """The section. `back_to`: the revision that a rollback would restore; None: that one is in force."""

    revision: RevisionView | None
    stable: int | None
    back_to: int | None
    back_diff: tuple[ChangeView, ...]
    history: tuple[RevisionView, ...]
    figures: tuple[Figure, ...]
    of: int | None
    samples: str
    advice: tuple[str, ...]
    settings: tuple[OriginView, ...]
    waits_for_restart: tuple[str, ...]
    trouble: str


async def changes(backend: Backend) -> Changes | None:
    """Return the section; None while no service has the configuration.

    :raises GpuLockError: if the store is away, or a revision cannot be read
    """
    found = backend.configuring
    if found is None:
        return None
    state = found.state
    current = state.current
    back_to = state.stable if current is not None and state.stable not in (None, current.number) else None
    impact = await backend.impact(None) if backend.impact is not None else None
    measured = impact if isinstance(impact, Impact) and impact.revision is not None else None
    return Changes(
        revision=None if current is None else revision_view(current),
        stable=state.stable,
        back_to=back_to,
        back_diff=await _back(found, back_to, 0 if current is None else current.number),
        history=tuple(revision_view(one) for one in await found.history(before=None, count=MOST_REVISIONS)),
        figures=() if measured is None else figures(measured),
        of=None if measured is None else measured.revision,
        samples="" if measured is None else f"{measured.before.attempts} before, {measured.after.attempts} after",
        advice=() if measured is None else measured.impact_summary.advice,
        settings=tuple(origin_view(path, origin) for path, origin in sorted(found.origins().items())),
        waits_for_restart=tuple(found.waits_for_restart),
        trouble=found.trouble,
    )


async def _back(found: Configures, back_to: int | None, number: int) -> tuple[ChangeView, ...]:
    if back_to is None:
        return ()
    older, newer = await found.tree_of(number), await found.tree_of(back_to)
    return tuple(change_view(one) for one in differences(older, newer))


def figures(found: Impact) -> tuple[Figure, ...]:
    """Return what is compared, the weightiest first."""
    before, after = found.before, found.after
    said = found.impact_summary if found.impact_summary.enough_samples else Summary()
    return (
        _figure("wait p95", _wait(before.wait_p95), _wait(after.wait_p95), said.wait_p95_change, down=True),
        _figure(
            "mean wait", _wait(before.avg_wait_time), _wait(after.avg_wait_time), said.wait_time_improvement, down=True
        ),
        _figure(
            "timed out", percent(before.timeout_rate), percent(after.timeout_rate), said.timeout_rate_change, down=True
        ),
        _figure("success", percent(before.success_rate), percent(after.success_rate), said.success_rate_change),
        _figure("GPU busy", percent(before.busy_share), percent(after.busy_share), said.busy_share_change),
        _figure("holds/h", _rate(before), _rate(after), said.holds_per_hour_change),
    )


def _figure(name: str, before: str, after: str, change: str | None, *, down: bool = False) -> Figure:
    """:param down: less of it is better"""
    text = change or ""
    rises, falls = text.endswith("↑"), text.endswith("↓")
    mood = "" if not (rises or falls) else "good" if falls == down else "bad"
    return Figure(name, before, after, text or "–", mood)


def _wait(seconds: float | None) -> str:
    return "–" if seconds is None else age(seconds)


def _rate(side: Side) -> str:
    return "–" if side.holds_per_hour is None else f"{side.holds_per_hour:g}"


class Text(msgspec.Struct, frozen=True):
    """A value in words. `summary`: what stands for a long one until somebody unfolds it; `left`: how much is cut."""

    text: str
    summary: str = ""
    left: int = 0


def value_of(value: object) -> Text:
    """Return a setting's value, folded if it is long: one list of rules would bury the page."""
    text = value_text(value)
    if len(text) <= LONG_TEXT:
        return Text(text)
    summary = f"{len(value)} entries" if isinstance(value, list | tuple | dict) else f"{text[: LONG_TEXT // 2]}…"
    return Text(text[:MOST_TEXT], summary, max(0, len(text) - MOST_TEXT))


def value_text(value: object) -> str:
    """Return a setting's value as a person would write it."""
    if value is None:
        return "unset"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else msgspec.json.encode(hidden("", value)).decode()
