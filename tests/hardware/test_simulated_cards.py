"""Simulated cards: what is on them is real, so that tests and demos without a card mean something."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from gpulockd.hardware.readings import CardTrouble
from gpulockd.hardware.simulated import SimulatedCards, occupy, vacate
from gpulockd.hardware.troubles import CardHangs, CardLost
from tests.states import until


@pytest.fixture
def program() -> Iterator[subprocess.Popen[bytes]]:
    """A program that does nothing."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield process
    process.kill()
    process.wait()


async def uuid_of(cards: SimulatedCards, index: int = 0) -> str:
    """The UUID of a card."""
    return str((await cards.list())[index].uuid)


async def test_a_program_on_a_card_is_seen_until_it_ends(tmp_path: Path, program: subprocess.Popen[bytes]) -> None:
    """Its memory is free when it is dead, a zombie or not, and not a moment earlier."""
    cards = SimulatedCards("lab", 2, folder=str(tmp_path))
    uuid, other = await uuid_of(cards), await uuid_of(cards, 1)
    occupy(str(tmp_path), 0, 4000, kind="mps", pid=program.pid)
    occupy(str(tmp_path), 0, 1000)
    assert [(one.pid, one.kind, one.used_mib) for one in await cards.processes(uuid)] == sorted(
        [(program.pid, "mps", 4000), (os.getpid(), "compute", 1000)]
    )
    reading = await cards.read(uuid)
    assert (reading.used_mib, reading.free_mib, reading.utilization) == (5000, 24576 - 5000, 1.0)
    assert (await cards.read(other)).used_mib == 0
    os.kill(program.pid, signal.SIGSTOP)
    assert len(await cards.processes(uuid)) == 2
    program.kill()  # it is not waited for: a zombie
    while len(await cards.processes(uuid)) != 1:  # noqa: ASYNC110 - no event tells of it
        await anyio.sleep(0.01)
    vacate(str(tmp_path), 0)
    assert await cards.processes(uuid) == ()
    assert (await cards.read(uuid)).free_mib == 24576
    cards.close()


async def test_a_pid_that_changed_hands_is_not_on_the_card(tmp_path: Path) -> None:
    """Whoever gets the pid of a dead holder must not be taken for it."""
    cards = SimulatedCards("lab", 1, folder=str(tmp_path))
    occupy(str(tmp_path), 0, 100)
    file = tmp_path / "gpu0" / "processes" / str(os.getpid())
    started, rest = file.read_text().split(maxsplit=1)
    file.write_text(f"{int(started) + 1} {rest}")
    assert await cards.processes(await uuid_of(cards)) == ()
    assert not file.exists()
    with pytest.raises(ProcessLookupError):
        occupy(str(tmp_path), 0, 100, pid=2**22 + 1)
    cards.close()


async def test_hidden_memory_and_the_need_of_a_reset_are_told(tmp_path: Path) -> None:
    """What a container hides, and what only a reset cures, can be tried without a card."""
    cards = SimulatedCards("lab", 1, folder=str(tmp_path))
    uuid = await uuid_of(cards)
    assert (await cards.read(uuid)).recovery == "none"
    (tmp_path / "gpu0").mkdir(exist_ok=True)
    (tmp_path / "gpu0" / "hidden").write_text("9000\n")
    (tmp_path / "gpu0" / "recovery").write_text("gpu_reset\n")
    reading = await cards.read(uuid)
    assert (reading.used_mib, reading.recovery, await cards.processes(uuid)) == (9000, "gpu_reset", ())
    cards.close()


async def test_a_card_can_be_lost_and_come_back(tmp_path: Path) -> None:
    """As a real one: it refuses, is not listed, and the numbers of the others stay."""
    cards = SimulatedCards("lab", 2, folder=str(tmp_path))
    uuid = await uuid_of(cards)
    (tmp_path / "gpu0").mkdir()
    (tmp_path / "gpu0" / "lost").touch()
    with pytest.raises(CardLost, match="fallen off the bus"):
        await cards.read(uuid)
    assert [gpu.index for gpu in await cards.list()] == [1]
    (tmp_path / "gpu0" / "lost").unlink()
    assert (await cards.read(uuid)).uuid == uuid
    with pytest.raises(CardLost, match="no longer has"):
        await cards.processes("GPU-never-was")
    cards.close()


async def test_a_card_that_hangs_costs_one_deadline(tmp_path: Path) -> None:
    """As a real one: refused at once while it hangs, well when it answers again, and the others never notice."""
    cards = SimulatedCards("lab", 2, folder=str(tmp_path), deadline_s=0.3)
    uuid, other = await uuid_of(cards), await uuid_of(cards, 1)
    (tmp_path / "gpu0").mkdir()
    hang = tmp_path / "gpu0" / "hang"
    hang.touch()
    with pytest.raises(CardHangs, match=r"has not answered for 0\.3 s"):
        await cards.read(uuid)
    with pytest.raises(CardHangs, match="still hangs"):
        await cards.read(uuid)
    await answers(cards, other)
    hang.unlink()
    await answers(cards, uuid)
    cards.close()


async def answers(cards: SimulatedCards, uuid: str) -> None:
    """Ask until the card answers: on a busy machine a healthy one may be late as well."""
    with anyio.fail_after(30):
        while True:
            try:
                assert (await cards.read(uuid)).uuid == uuid
                return
            except CardHangs:
                await anyio.sleep(0.01)


async def test_xids_are_reported_once(tmp_path: Path) -> None:
    """Whoever writes the file stands in for a breaking card."""
    cards = SimulatedCards("lab", 2, folder=str(tmp_path))
    uuid = await uuid_of(cards, 1)
    told: list[CardTrouble] = []
    (tmp_path / "gpu1").mkdir()
    async with anyio.create_task_group() as tasks:
        await tasks.start(cards.watch, told.append)
        (tmp_path / "gpu1" / "xid").write_text("31\n79\n")
        await until(lambda: len(told) == 2)
        await anyio.sleep(1.0)
        tasks.cancel_scope.cancel()
    assert told == [CardTrouble(uuid=uuid, kind="xid", code=31), CardTrouble(uuid=uuid, kind="xid", code=79)]
    cards.close()
