"""What a backup takes: read from the store by the ledger's own verbs, so it needs no daemon and disturbs nobody."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import msgspec

from gpulockd import __version__
from gpulockd.cli.backups.pack import Record
from gpulockd.cli.backups.unsaid import unsaid
from gpulockd.config.change import SECRET_BLOCKS, block_of
from gpulockd.daemon.configuration import load_layers
from gpulockd.errors import ConfigError
from gpulockd.ledger import answers as a
from gpulockd.ledger import revisions
from gpulockd.ledger.address import without_secret
from gpulockd.ledger.alerts import alert_read
from gpulockd.ledger.happened import Happened, happened
from gpulockd.ledger.keys import PoolKeys
from gpulockd.ledger.load import load_name
from gpulockd.ledger.publishing import Published, published
from gpulockd.ledger.recorded import (
    BOOK,
    DAY_MS,
    HOUR_MS,
    KEPT_DAYS,
    TASKS,
    Stored,
    day_name,
    hour_name,
    read_book,
    recorded,
)
from gpulockd.ledger.store import Store
from gpulockd.web.secrets import HIDDEN, hidden

PAGE = 1000
PARTS_AT_ONCE = 24
ALERT_LINES = 1000


async def taken(store: Store, pool: str, *, config: str | None, secrets: bool) -> tuple[Record, list[Record]]:
    """Return the first line of a backup and all others.

    :param config: the configuration file; None: the one that is found
    :param secrets: whether they are said; else a mark stands in their place
    :raises StoreUnavailable: if the store does not answer
    """
    lines = [_file(config, secrets=secrets)]
    lines += [line async for line in _configuration(store, pool, secrets=secrets)]
    lines += [line async for line in _past(store, PoolKeys(pool))]
    current = next((line["current"] for line in lines if line["part"] == "state"), None)
    head = {
        "made_by": __version__,
        "at": round(time.time(), 3),
        "host": socket.gethostname(),
        "pool": pool,
        "store": without_secret(store.url),
        "revision": current,
        "secrets": secrets,
    }
    return head, lines


def _file(named: str | None, *, secrets: bool) -> Record:
    """The configuration file: its text, or without secrets what it says."""
    try:
        layers = load_layers(named, {name: os.environ[name] for name in _NAMES if name in os.environ})
        if layers.file is None:
            return {"part": "file", "path": None}
        with open(layers.file, encoding="utf-8") as file:
            text = file.read()
    except ConfigError as wrong:
        return {"part": "file", "path": named, "trouble": wrong.message}
    except OSError as wrong:
        return {"part": "file", "path": named, "trouble": str(wrong.strerror)}
    if secrets:
        return {"part": "file", "path": layers.file, "text": text}
    tree, ways = unsaid(layers.file_tree)
    return {"part": "file", "path": layers.file, "tree": tree, "hidden": ways}


_NAMES = ("GPULOCKD_CONFIG", "XDG_CONFIG_HOME", "HOME")
"""What says where the file is; what else the environment sets is no part of it."""


async def _configuration(store: Store, pool: str, *, secrets: bool) -> AsyncIterator[Record]:
    state = await revisions.read(store.ask)
    if state.current is not None:
        yield {
            "part": "state",
            "current": state.current.number,
            "id": state.current.id,
            "stable": state.stable,
            **_tree("live", state.live, secrets=secrets),
        }
    async for revision in _revisions(store):
        yield {"part": "revision", **_revision(revision, secrets=secrets)}
    for name in sorted({pool, *await store.pools()}):
        for number, tree in sorted((await revisions.bases(store.ask, name)).items()):
            yield {"part": "base", "pool": name, "revision": number, **_tree("tree", tree, secrets=secrets)}
    said = await store.ask(published(PoolKeys(pool)))
    if isinstance(said, Published):
        yield {"part": "published", "pool": pool, "version": said.version, "defaults": said.defaults}
    row = await revisions.read_rollout(store.ask)
    if row.state is not None:
        known = row.state if secrets else hidden("", row.state)
        yield {"part": "rollout", "version": row.version, "elapsed_ms": row.elapsed_ms, "state": known}
    async for line in _audits(store):
        yield {"part": "audit", **line}
    stands = await store.ask(alert_read(history=ALERT_LINES))
    for one in reversed(stands.history):
        yield {"part": "alert", "alert": json.loads(one)}


async def _revisions(store: Store) -> AsyncIterator[revisions.Revision]:
    """All that are kept, the latest first."""
    before: int | None = None
    while page := await revisions.history(store.ask, before=before, count=100):
        for revision in page:
            yield revision
        before = page[-1].number


def _revision(revision: revisions.Revision, *, secrets: bool) -> Record:
    plain: Record = msgspec.to_builtins(revision)
    if secrets:
        return plain
    diff = [_change(change) for change in plain["diff"]]
    return {**plain, **_tree("live", revision.live, secrets=False), "diff": diff}


def _change(change: Record) -> Record:
    """A change as it may be shown; one of a block that may hold secrets says only that it was one."""
    if block_of(change["path"]) in SECRET_BLOCKS:
        return {**change, **{side: None if change[side] is None else HIDDEN for side in ("before", "after")}}
    return {**change, **{side: hidden(change["path"], change[side]) for side in ("before", "after")}}


def _tree(name: str, tree: dict[str, Any], *, secrets: bool) -> Record:
    if secrets:
        return {name: tree, "hidden": []}
    marked, ways = unsaid(tree)
    return {name: marked, "hidden": ways}


async def _audits(store: Store) -> AsyncIterator[Record]:
    """The audit, the latest line first."""
    before = ""
    while page := await revisions.audits(store.ask, count=PAGE, before=before):
        for line in page:
            yield msgspec.to_builtins(line)
        before = page[-1].id


async def _past(store: Store, keys: PoolKeys) -> AsyncIterator[Record]:
    """The statistics and the events of a pool."""
    stored = await store.ask(recorded(keys, parts=(BOOK, TASKS)))
    if not isinstance(stored, Stored):
        return
    position, _ = read_book(stored.hashes[0])
    if position is not None:
        yield {"part": "book", "position": position, "book": json.loads(stored.hashes[0]["book"])}
        yield {"part": "tasks", "tasks": _plain(stored.hashes[1])}
    for names in _batches(_spans(stored.wall_ms)):
        found = await store.ask(recorded(keys, parts=[(name, "") for name, _, _ in names]))
        hashes = found.hashes if isinstance(found, Stored) else ()
        for (_, part, number), fields in zip(names, hashes, strict=False):
            if fields:
                yield {"part": part, "number": number, "fields": _plain(fields)}
    async for event in _events(store, keys):
        yield {"part": "event", "event": event}


def _spans(wall_ms: int) -> Iterator[tuple[str, str, int]]:
    """The hours and days that statistics may have: the key's name, the part of the backup, the number."""
    hour = wall_ms // HOUR_MS
    for number in range(hour - 24 * KEPT_DAYS - 1, hour + 1):
        yield hour_name(number), "hour", number
        yield load_name(number), "load", number
    day = wall_ms // DAY_MS
    for number in range(day - KEPT_DAYS - 1, day + 1):
        yield day_name(number), "day", number


def _batches(spans: Iterator[tuple[str, str, int]]) -> Iterator[list[tuple[str, str, int]]]:
    found = list(spans)
    for first in range(0, len(found), PARTS_AT_ONCE):
        yield found[first : first + PARTS_AT_ONCE]


async def _events(store: Store, keys: PoolKeys) -> AsyncIterator[Record]:
    """The events that the stream still has, the latest first."""
    before: int | None = None
    while True:
        page: Happened | a.Unopened = await store.ask(happened(keys, before=before, page=PAGE))
        if not isinstance(page, Happened) or not page.events:
            return
        found = [json.loads(event) for event in page.events]
        for event in found:
            yield event
        before = int(found[-1]["seq"])


def _plain(fields: dict[str, bytes]) -> Record:
    return {name: json.loads(value) for name, value in fields.items()}
