"""The lines that users of the source documents grep for stand in the logs of a task, word for word."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator

import pytest
import structlog

from gpulockd import GpuLockTimeout, gpu_lock
from gpulockd.client import phrases
from gpulockd.daemon import logs
from tests.pools import client_here, offer, simulated
from tests.servers import Server


@pytest.fixture
def here(server: Server, pool: str) -> Iterator[None]:
    """This process as a client of a pool with one GPU."""
    offer(server, pool, simulated(1))
    with client_here(server.url, pool):
        yield


async def test_a_task_says_that_it_has_and_gives_back_its_lock(here: None, caplog: pytest.LogCaptureFixture) -> None:
    """With plain `logging.basicConfig(level=logging.INFO)` they read `INFO:locks:...`."""
    caplog.set_level(logging.INFO)
    caplog.handler.setFormatter(logging.Formatter(logging.BASIC_FORMAT))
    async with gpu_lock("gpu_lock:0", task="whisper"):
        pass
    lines = caplog.text.splitlines()
    assert "INFO:locks:任务 whisper 成功获取GPU锁" in lines
    assert "INFO:locks:任务 whisper 释放GPU锁" in lines


async def test_a_task_that_waited_too_long_says_so(here: None, caplog: pytest.LogCaptureFixture) -> None:
    """Who does not wait at all asks often, and is not told each time."""
    caplog.set_level(logging.INFO)
    async with gpu_lock("gpu_lock:0", task="first"):
        for wait in (0, 0.2):
            with pytest.raises(GpuLockTimeout):
                await gpu_lock("gpu_lock:0", task="second", max_wait_time=wait, nested="wait").acquire()
    said = [record for record in caplog.records if "无法获取GPU锁" in record.message]
    assert [(record.name, record.levelname) for record in said] == [("locks", "WARNING")]


def test_nothing_is_put_together_that_nobody_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The way to a lock is short."""
    monkeypatch.setattr(phrases.log, "info", lambda *_: pytest.fail("nobody reads it"))
    phrases.log.setLevel(logging.ERROR)
    try:
        phrases.acquired("a")
        phrases.released("a")
    finally:
        phrases.log.setLevel(logging.NOTSET)


@pytest.mark.parametrize("as_json", [True, False])
def test_a_name_cannot_forge_a_line_of_the_log(as_json: bool) -> None:
    """A task's name is another user's text: no line break and no escape reaches the terminal."""
    root, out = logging.getLogger(), io.StringIO()
    handlers, level, raising = root.handlers[:], root.level, logging.raiseExceptions
    try:
        logs.set_up(stream=out, json=as_json)
        name = "a\x1b[2Jb\nERROR forged\u202e"
        structlog.get_logger("gpu_lock_monitor").warning("limit.soft", task=name, message=f"{name} is late")
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        logging.raiseExceptions = raising
        structlog.reset_defaults()
    said = out.getvalue()
    assert said.count("\n") == 1
    assert "\x1b[2J" not in said
    assert as_json or "\u202e" not in said
