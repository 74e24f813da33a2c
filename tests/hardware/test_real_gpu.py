"""The same questions to a real card, with a real CUDA context on it: `make test-gpu`. Skipped where there is none.

What it measures (how long a killed program's memory takes to be free) is printed, never judged.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import anyio
import pytest

from gpulockd.daemon.cardlooks import CardLooks
from gpulockd.daemon.judge_cards import hidden_mib
from gpulockd.hardware.nvml import NvmlCards
from gpulockd.hardware.readings import CardProcess, CardTrouble, Reading
from gpulockd.hardware.troubles import NvmlUnavailable, ProcessesUnknown
from gpulockd.model import Gpu

pytest.importorskip("pynvml")

TAKEN_MIB = 2048
WITHIN_S = 60.0

ON_THE_CARD = f"""
import ctypes, time
try:
    cuda = ctypes.CDLL("libcuda.so.1")
except OSError:
    raise SystemExit(print("no libcuda.so.1: give the container the capability 'compute'", flush=True))
def must(code):
    assert code == 0, f"CUDA says {{code}}"
device, context, memory = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_uint64()
must(cuda.cuInit(0))
must(cuda.cuDeviceGet(ctypes.byref(device), 0))
must(cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device))
must(cuda.cuCtxSetCurrent(context))
must(cuda.cuMemAlloc_v2(ctypes.byref(memory), ctypes.c_size_t({TAKEN_MIB} << 20)))
print("on", flush=True)
time.sleep(600)
"""


@asynccontextmanager
async def real_cards() -> AsyncIterator[tuple[NvmlCards, Gpu]]:
    """The cards of this host, and its first one; skip the test if there is none."""
    cards = NvmlCards()
    try:
        try:
            gpus = await cards.list()
        except NvmlUnavailable as none:
            pytest.skip(f"no NVIDIA GPU on this host: {none.why}")
        if not gpus:
            pytest.skip("no NVIDIA GPU on this host: the driver knows none")
        yield cards, gpus[0]
    finally:
        cards.close()


@contextmanager
def program_on(gpu: Gpu) -> Iterator[subprocess.Popen[str]]:
    """A program that has 2 GiB of the card."""
    command = [sys.executable, "-c", ON_THE_CARD]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | {"CUDA_VISIBLE_DEVICES": str(gpu.uuid)}
    ) as program:
        try:
            assert program.stdout is not None
            said = program.stdout.readline().strip()
            if said.startswith("no libcuda"):
                pytest.skip(said)
            assert said == "on", "CUDA does not work on this host; its error stands above"
            yield program
        finally:
            program.kill()


async def test_a_real_card_tells_what_the_pool_needs() -> None:
    """The numbers mean the same as those of the library in our tests."""
    async with real_cards() as (cards, gpu):
        assert gpu.uuid is not None
        assert gpu.uuid.startswith(("GPU-", "MIG-"))
        reading = await cards.read(gpu.uuid)
        print(reading, cards.describe())
        assert reading.used_mib is None or reading.total_mib is None or reading.used_mib <= reading.total_mib
        assert reading.utilization is None or 0 <= reading.utilization <= 1
        assert reading.recovery in (None, "none")
        await cards.reopen()
        assert (await cards.read(gpu.uuid)).total_mib == reading.total_mib


async def test_the_watch_over_a_real_card_begins_and_ends() -> None:
    """A healthy card reports nothing; the waiting for it must end with the daemon."""
    told: list[CardTrouble] = []
    async with real_cards() as (cards, _), anyio.create_task_group() as tasks:
        await tasks.start(cards.watch, told.append)
        await anyio.sleep(2)
        tasks.cancel_scope.cancel()
    assert not told


async def test_a_killed_programs_memory_is_free_before_its_card_counts_as_empty() -> None:
    """The next holder must not begin while the last one's memory is still being given back."""
    async with real_cards() as (cards, gpu):
        uuid = str(gpu.uuid)
        looks = CardLooks(cards, lambda: (gpu,))
        before = await cards.read(uuid)
        if before.used_mib is None:
            pytest.skip("this card has no memory of its own")
        with program_on(gpu) as program:
            during = await cards.read(uuid)
            shown = await shown_on(cards, uuid)
            print("on it:", shown, during)
            assert (during.used_mib or 0) >= before.used_mib + TAKEN_MIB
            visible = any(process.pid == program.pid for process in shown)
            if not visible:
                look = (await looks.take())[uuid]
                assert shown or hidden_mib(look), "a container's daemon sees no pids, but memory in use"
            program.kill()
            began_s = time.monotonic()
            gone_s: float | None = None
            with anyio.fail_after(WITHIN_S):
                while not freed(await cards.read(uuid), before):
                    if gone_s is None and not await shown_on(cards, uuid):
                        gone_s = time.monotonic() - began_s
                    await anyio.sleep(0.01)
            print(f"pid gone after {gone_s or 0:.3f} s, memory free after {time.monotonic() - began_s:.3f} s")
        assert not any(process.pid == program.pid for process in await shown_on(cards, uuid))


async def shown_on(cards: NvmlCards, uuid: str) -> tuple[CardProcess, ...]:
    """The processes that the driver shows; none where it does not tell."""
    with contextlib.suppress(ProcessesUnknown):
        return await cards.processes(uuid)
    return ()


def freed(now: Reading, before: Reading) -> bool:
    """Whether the card has as much memory as before, but for what the driver keeps warm."""
    return (now.used_mib or 0) <= (before.used_mib or 0) + 256
