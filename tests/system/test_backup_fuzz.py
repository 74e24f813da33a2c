"""Backups that were changed, with a checksum that fits: restored, or refused in words with nothing written."""

from __future__ import annotations

import contextlib
import copy
import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpulockd.cli.backups import pack
from tests.daemons import Daemon
from tests.states import until_blocking
from tests.system.commands import call, one_daemon
from tests.system.test_backup import contents, said

pytestmark = pytest.mark.timeout(300)  # a busy machine takes seconds for each start of Python

MOST_EXAMPLES = 40

ODD: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 2**31, 2**63, 2**64, 10**400, 1.5, -0.0, 1e308, float("nan"), float("inf")),
    *("", "x", "***", "-1", "\x1b[2J", "fleet", "all", "0-0", "\U0001f600" * 400),
    *([], [[]], [None], ["all", "x"], {}, {"": {}}, {"all": 1}, {"pools": {"a b": {}}}, {"0": [1]}, {"x": None}),
)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Daemon, Path, list[dict[str, Any]]]]:
    """A daemon with a past, a folder, and the lines of its backup."""
    folder = tmp_path_factory.mktemp("fuzz")
    hook = {"notify": {"webhooks": {"chat": {"url": "https://127.0.0.1:9/secret"}}}}
    with one_daemon(config=hook) as running:
        assert call(running, "run", "--task", "ocr", "--", "true").returncode == 0
        assert said(running, "config", "set", "notify.webhooks.chat.url=https://127.0.0.1:9/live").returncode == 0
        file = folder / "good.gz"

        def counted() -> bool:
            if not _is_recorded(running):
                return False
            assert said(running, "backup", str(file), "--state-dir", str(running.state)).returncode == 0
            found = {json.loads(line).get("part") for line in gzip.decompress(file.read_bytes()).splitlines()}
            return found >= {"state", "revision", "audit", "book", "tasks", "hour", "day"}

        until_blocking(counted)
        yield running, folder, [json.loads(line) for line in gzip.decompress(file.read_bytes()).splitlines()[:-1]]


def _is_recorded(daemon: Daemon) -> bool:
    """Whether all that has happened is counted: what is written now, a restoration has written."""
    with redis.Redis.from_url(daemon.store_url) as store:
        (newest,) = store.xrevrange(f"gpulockd:{{{daemon.pool}}}:events", count=1)
        position = store.hget(f"gpulockd:{{{daemon.pool}}}:recorded", "position") or b"0"
        return int(position) >= int(newest[0].split(b"-")[0])


DEEPEST = 20
"""What an earlier change has nested deeper is left as it is."""


def _places(value: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """All ways to a value within."""
    rows = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in rows:
        yield (*way, name)
        if len(way) < DEEPEST:
            yield from _places(inner, (*way, name))


def _meddled(lines: list[dict[str, Any]], data: st.DataObject) -> list[dict[str, Any]]:
    made = copy.deepcopy(lines)
    parts = sorted({line.get("part", "head") for line in lines})
    for _ in range(data.draw(st.integers(1, 3))):
        part = data.draw(st.sampled_from(parts))
        line = data.draw(st.sampled_from([one for one in made if one.get("part", "head") == part]))
        places = [way for way in _places(line) if way != ("part",)]
        if not places:
            continue
        *above, name = data.draw(st.sampled_from(places))
        at: Any = line
        for step in above:
            at = at[step]
        what = data.draw(st.sampled_from(("put", "put", "put", "drop", "add")))
        if what == "drop":
            del at[name]
        elif what == "add" and isinstance(at, dict):
            at[data.draw(st.sampled_from(("", "x", "all", "-1", "99", "gpulockd_backup")))] = at[name]
        else:
            at[name] = copy.deepcopy(data.draw(st.sampled_from(ODD)))  # what comes next may change it
    return made


def _written(daemon: Daemon) -> dict[bytes, Any]:
    """What a restoration may write."""
    with redis.Redis.from_url(daemon.store_url) as store:
        names = [b"gpulockd:{fleet}:" + name for name in (b"config", b"revisions", b"audit", b"marks")]
        names += store.keys("*:recorded:[0-9]*") + store.keys("*:recorded:tasks*")
        return contents(store, names)


@settings(
    max_examples=MOST_EXAMPLES, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
@given(data=st.data())
def test_whatever_was_changed_is_restored_or_refused_in_words(
    scene: tuple[Daemon, Path, list[dict[str, Any]]], data: st.DataObject
) -> None:
    """Who restores has had a bad day already: no traceback, and never half of it."""
    daemon, folder, lines = scene
    forged, target = folder / "forged.gz", folder / "config.yml"
    target.unlink(missing_ok=True)
    head, *rest = _meddled(lines, data)
    named = head.pop(pack.NAMED, None)
    forged.write_bytes(pack.packed({} if named is None else {pack.NAMED: named, **head}, rest))
    before = _written(daemon)
    done = said(daemon, "restore", str(forged), "--config-to", str(target))
    assert done.returncode in (0, 1, 2), (done.returncode, done.stderr)
    if done.returncode:
        assert "gpulockd" in done.stderr and len(done.stderr) < 2000
        assert _written(daemon) == before and not target.exists()
        return
    with contextlib.suppress(FileNotFoundError):
        assert target.stat().st_size > 0
    for words in (("config", "history"), ("backup", str(folder / "after.gz"))):
        read = said(daemon, *words)
        assert read.returncode == 0, (words, read.stderr)
