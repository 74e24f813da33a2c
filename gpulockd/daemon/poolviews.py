"""What a change means in every pool of the fleet: whether it fits there, what differs, whether a trial passed it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from gpulockd.config.change import base_as_of, diff, live_diff, values_of
from gpulockd.config.live import ALL, Live, Tree, live_for
from gpulockd.errors import ConfigError
from gpulockd.ledger import revisions
from gpulockd.ledger.revisions import Ask, Change, Revision, UnknownRevision
from gpulockd.settings import Settings, merged, settings_from

Bases = Mapping[str, Mapping[int, Tree]]
"""What file and environment of each pool said, by revision."""


async def bases_of(ask: Ask, pools: Iterable[str]) -> dict[str, dict[int, Tree]]:
    """Read the bases of these pools.

    :raises StoreUnavailable: if no answer came
    """
    return {pool: await revisions.bases(ask, pool) for pool in pools}


async def revision_of(ask: Ask, number: int) -> Revision:
    """Return a revision by its number.

    :raises UnknownRevision: if it is not kept
    """
    page = await revisions.history(ask, before=number + 1, count=1)
    if not page or page[0].number != number:
        raise UnknownRevision(f"there is no revision {number}: `gpulockd config history` lists them", number=number)
    return page[0]


def settings_in(pool: str, live: Live, bases: Bases, number: int) -> Settings:
    """Return what a pool goes by under a live document, and its files as of a revision.

    :raises ConfigError: if they do not fit together; the text names the pool
    """
    base = base_as_of(bases.get(pool, {}), number) or {}
    try:
        return settings_from(merged(base, live_for(live, pool)))
    except ConfigError as wrong:
        raise ConfigError(f"{wrong.message} (in pool {pool})", path=getattr(wrong, "path", "")) from None


def what_differs(
    before: tuple[Live, int], after: tuple[Live, int], bases: Bases, pools: Iterable[str]
) -> tuple[Change, ...]:
    """Return what differs in the first of these pools in which something does; else what differs in the documents.

    :param before: a live document, and the revision as of which the files are meant; `after` likewise
    """
    for pool in pools:
        then, now = (values_of(settings_in(pool, live, bases, number)) for live, number in (before, after))
        found = diff(then, now)
        if found:
            return found
    return live_diff(before[0], after[0])


def check_scope(scope: str, pools: Iterable[str]) -> None:
    """:raises ConfigError: unless it is "all" or a pool of the fleet"""
    known = sorted(pools)
    if scope != ALL and scope not in known:
        raise ConfigError(f"pool {scope!r} is not in the fleet; it has {', '.join(known) or 'none'}, or 'all'")


def is_passed(verdict: Mapping[str, Any] | None) -> bool:
    """Whether a trial has passed what it tried."""
    return verdict is not None and verdict.get("passed") is True


async def validated_as(ask: Ask, documents: Iterable[Tree]) -> str:
    """Return the digest under which one of these documents has passed a trial, empty if none has.

    :raises StoreUnavailable: if no answer came
    """
    for document in documents:
        name = revisions.digest(document)
        if document and is_passed(await revisions.validated(ask, name)):
            return name
    return ""
