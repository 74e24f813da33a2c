"""Rows of the matrix about wall clocks that jump by an hour under a store, a daemon and programs that go on."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

from tests.faults.scene import Scene, hands_over, holds, own_store, scene
from tests.system.workers_started import BRISK

Record = Callable[[str, object], None]

JUMPS_S = (3600, -3600, 0)
HERE = Path(__file__).parent


class WallClock:
    """The wall clock of the processes that run with `env`."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "offset"
        library = folder / "clock_shim.so"
        subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", library, HERE / "clock_shim.c"], check=True, timeout=60)
        self.env = {"LD_PRELOAD": str(library), "WALL_CLOCK_OFFSET": str(self._file)}
        self.move(0)

    def move(self, offset_s: int) -> None:
        """Let it be so far from the true time (in seconds)."""
        other = self._file.with_suffix(".new")
        other.write_text(str(offset_s))
        other.replace(self._file)

    def check(self) -> None:
        """See that it moves."""
        self.move(JUMPS_S[0])
        said = subprocess.check_output(
            [sys.executable, "-c", "import time; print(time.time())"], env=os.environ | self.env, timeout=60
        )
        self.move(0)
        assert float(said) - time.time() > JUMPS_S[0] / 2


@pytest.fixture
def clock(tmp_path: Path) -> WallClock:
    """A clock of the test's own."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler (apt-get install gcc)")
    clock = WallClock(tmp_path)
    clock.check()
    return clock


async def test_a_jump_of_the_stores_clock_costs_no_lease(
    tmp_path: Path, clock: WallClock, monkeypatch: pytest.MonkeyPatch, record_property: Record
) -> None:
    """A store counts by its wall clock, and somebody sets it: nobody's hour has passed."""
    with monkeypatch.context() as patch:
        for name, value in clock.env.items():
            patch.setenv(name, value)
        store = own_store()
        server = store.__enter__()
    try:
        async with scene(server, tmp_path) as here:
            with here.raw() as raw:
                clock.move(JUMPS_S[0])
                assert raw.time()[0] - time.time() > JUMPS_S[0] / 2, "the clock did not jump"
                clock.move(0)
            await _jump_while_one_holds_and_one_waits(here, clock, record_property)
    finally:
        store.__exit__(None, None, None)


async def test_a_jump_of_the_hosts_clock_costs_no_lease(
    tmp_path: Path, clock: WallClock, record_property: Record
) -> None:
    """Belief, deadlines and limits are counted on clocks that nobody sets."""
    with own_store() as server:
        async with scene(server, tmp_path, env=clock.env) as here:
            await _jump_while_one_holds_and_one_waits(here, clock, record_property)


async def _jump_while_one_holds_and_one_waits(here: Scene, clock: WallClock, record_property: Record) -> None:
    holder, waiter = await here.workers("holder", "waiter")
    slowest_s = 0.0
    await holds(holder, "start")
    before = "start"
    for jump_s in JUMPS_S:
        key = f"{jump_s:+d}"
        await here.stands_in_line(waiter, key)
        clock.move(jump_s)
        await anyio.sleep(1.2 * BRISK.ttl)
        assert not here.notes("lost", "refused")
        assert not waiter.find("enter", key)
        slowest_s = max(slowest_s, await hands_over(holder, waiter, before, key))
        holder, waiter, before = waiter, holder, key
    record_property("measured", f"+1 h, −1 h and back; handed on within {slowest_s:.2f} s each time")
    await here.ends(holder, before)
