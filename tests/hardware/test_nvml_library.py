"""Every path to NVML with the real bindings and a real shared library: good cards, broken ones, old drivers, none."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from tests.daemons import eventually
from tests.hardware.asking import Asker, asked
from tests.states import until
from tests.stub_nvml import RECOVERY_CHANGED, Stub, StubCard, StubMig, StubProcess, build

pytest.importorskip("pynvml")

A, B, C = "GPU-aaaaaaaa", "GPU-bbbbbbbb", "GPU-cccccccc"


@pytest.fixture
def stub(tmp_path: Path) -> Stub:
    """The library of a present driver."""
    return build(tmp_path / "nvml")


async def test_a_reading_tells_all_that_a_card_has(stub: Stub) -> None:
    """The page, the metrics and the settling all see the same numbers, in our units."""
    stub.set([StubCard(A, used=20_000, util=87, temp=61, power=412_500, recovery=0)])
    async with asked(stub.env) as ask:
        (gpu,) = await ask("list")
        assert (gpu["key"], gpu["uuid"], gpu["name"], gpu["memory_mib"]) == ("gpu_lock:0", A, "NVIDIA H200", 81920)
        reading = await ask("read", A)
        assert reading.pop("at_ms") > 1_600_000_000_000
        assert reading == {
            "uuid": A,
            "total_mib": 81920,
            "used_mib": 20_000,
            "free_mib": 61_420,
            "reserved_mib": 500,
            "utilization": 0.87,
            "temperature_c": 61.0,
            "power_w": 412.5,
            "recovery": "none",
        }
        assert await ask("describe") == "1 GPU (NVIDIA driver 570.1)"


async def test_processes_of_all_kinds_are_named_once(stub: Stub) -> None:
    """A process that draws and computes has one memory; a client of MPS stands in a list of its own."""
    processes = (
        StubProcess(11, 700),
        StubProcess(12, 50, "graphics"),
        StubProcess(11, 700, "graphics"),
        StubProcess(13, -1, "mps"),
    )
    stub.set([StubCard(A, processes=processes), StubCard(B)])
    async with asked(stub.env) as ask:
        assert await ask("processes", A) == [
            {"pid": 11, "used_mib": 700},
            {"pid": 12, "kind": "graphics", "used_mib": 50},
            {"pid": 13, "kind": "mps"},
        ]
        assert await ask("processes", B) == []


async def test_a_list_that_grows_while_it_is_read_is_read_again(stub: Stub) -> None:
    """Programs start at any moment; the daemon must not take that for a broken driver."""
    stub.set([StubCard(A, grow=3, processes=tuple(StubProcess(100 + i) for i in range(40)))])
    async with asked(stub.env) as ask:
        assert len(await ask("processes", A)) == 40


async def test_memory_without_visible_processes_is_told_as_such(stub: Stub) -> None:
    """Inside a container the driver shows memory in use and nobody there: that is not an empty card."""
    stub.set([StubCard(A, used=30_000)])
    async with asked(stub.env) as ask:
        assert await ask("processes", A) == []
        assert (await ask("read", A))["used_mib"] == 30_000


async def test_mig_instances_are_gpus_with_their_own_memory_and_processes(stub: Stub) -> None:
    """Each instance is locked by itself; heat and power are those of the card that they share."""
    migs = (StubMig(0, "MIG-a", gi=1, used=100), StubMig(2, "MIG-b", gi=2, used=200))
    stub.set(
        [
            StubCard(A, temp=44, power=99_000, recovery=0, migs=migs, processes=(StubProcess(7, 150, slot=2),)),
            StubCard(B),
        ]
    )
    async with asked(stub.env) as ask:
        assert [(gpu["index"], gpu["uuid"]) for gpu in await ask("list")] == [(0, "MIG-a"), (1, "MIG-b"), (2, B)]
        reading = await ask("read", "MIG-b")
        assert (reading["total_mib"], reading["used_mib"], reading["temperature_c"]) == (10240, 200, 44.0)
        assert (reading["power_w"], reading["recovery"]) == (99.0, "none")
        assert "utilization" not in reading
        assert [process["pid"] for process in await ask("processes", "MIG-b")] == [7]
        assert await ask("processes", "MIG-a") == []
        # The instance is destroyed and another is made in its slot: its handle must not stand for the new one.
        stub.set([StubCard(A, migs=(StubMig(0, "MIG-a", gi=1), StubMig(2, "MIG-new", gi=2))), StubCard(B)])
        assert (await ask("read", "MIG-b"))["error"] == "CardLost"
        assert (await ask("read", "MIG-new"))["uuid"] == "MIG-new"


async def test_a_lost_card_is_told_apart_from_its_healthy_neighbours(stub: Stub) -> None:
    """One card that falls off the bus must not take the others out of the pool, and comes back by itself."""
    stub.set([StubCard(A), StubCard(B)])
    async with asked(stub.env) as ask:
        assert len(await ask("list")) == 2
        stub.set([StubCard(A, error=15), StubCard(B)])
        refused = await ask("read", A)
        assert (refused["error"], refused["code"]) == ("CardLost", 15)
        assert "fallen off the bus" in refused["message"]
        assert (await ask("processes", A))["error"] == "CardLost"
        assert (await ask("read", B))["uuid"] == B
        assert [gpu["key"] for gpu in await ask("list")] == ["gpu_lock:1"]
        stub.set([StubCard(A, error=16), StubCard(B)])
        assert "must be reset" in (await ask("read", A))["message"]
        stub.set([StubCard(A), StubCard(B)])
        assert (await ask("read", A))["uuid"] == A
        assert (await ask("read", "GPU-never-was"))["error"] == "CardLost"


async def test_a_card_that_is_only_back_for_who_begins_anew_is_found_by_beginning_anew(stub: Stub) -> None:
    """NVML does not see a card again that was lost while it was open; the daemon need not be restarted for it."""
    stub.set([StubCard(A, sticky=True), StubCard(B)])
    async with asked(stub.env) as ask:
        await ask("list")
        await ask("watch")
        stub.set(init=999)
        assert (await ask("list"))["code"] == 999
        stub.set([StubCard(A, sticky=True, error=15), StubCard(B)], init=0)  # NVML is initialized twice by now
        assert (await ask("read", A))["error"] == "CardLost"
        stub.set([StubCard(A, sticky=True), StubCard(B)])
        assert (await ask("read", A))["error"] == "CardLost"
        assert await ask("reopen") is None
        assert (await ask("read", A))["uuid"] == A
        assert (await ask("read", B))["uuid"] == B


async def test_cards_are_followed_by_uuid_when_their_order_changes(stub: Stub) -> None:
    """After a reboot, or a card pulled out, the numbers mean other cards; the UUID never does."""
    stub.set([StubCard(A, used=1), StubCard(B, used=2), StubCard(C, used=3)])
    async with asked(stub.env) as ask:
        await ask("list")
        stub.set([StubCard(C, used=3), StubCard(B, used=2)])
        assert (await ask("read", C))["used_mib"] == 3
        assert (await ask("read", B))["used_mib"] == 2
        assert (await ask("read", A))["error"] == "CardLost"


async def test_xids_reach_the_daemon_once_each_and_name_their_card(stub: Stub) -> None:
    """A card that breaks under its holder is known at once, not at the next look."""
    stub.set([StubCard(A), StubCard(B)])
    stub.happen(0, 31)
    async with asked(stub.env) as ask:
        await ask("watch")
        await asyncio.sleep(0.3)  # what happened before the watching is never told
        while not ask.troubles:  # the registration takes a moment; what happens before it is not kept
            stub.happen(1, 79)
            await asyncio.sleep(0.2)
        assert {(t["uuid"], t["kind"], t["code"]) for t in ask.troubles} == {(B, "xid", 79)}
        seen = len(ask.troubles)
        stub.happen(0, 13)
        stub.happen(0, 1, type=RECOVERY_CHANGED)
        await until(lambda: {"uuid": A, "kind": "recovery"} in ask.troubles)
        assert {"uuid": A, "kind": "xid", "code": 13} in ask.troubles[seen:]


async def test_an_xid_of_a_mig_instance_is_told_of_that_instance(stub: Stub) -> None:
    """A program in one instance must not cost the others their gpus; what is the whole card's is told of each."""
    stub.set([StubCard(A, migs=(StubMig(0, "MIG-a", gi=1), StubMig(1, "MIG-b", gi=2)))])
    async with asked(stub.env) as ask:
        await ask("watch")
        while not ask.troubles:
            stub.happen(0, 94, gi=2, ci=0)
            await asyncio.sleep(0.2)
        assert {t["uuid"] for t in ask.troubles} == {"MIG-b"}
        stub.happen(0, 79)
        await until(lambda: {t["uuid"] for t in ask.troubles if t["code"] == 79} == {"MIG-a", "MIG-b"})


async def test_a_card_that_hangs_holds_up_neither_the_others_nor_the_loop_nor_the_end(stub: Stub) -> None:
    """A call into a hung driver never returns: each card has a thread, and no thread keeps the process from ending."""
    stub.set([StubCard(A, delay=60_000), StubCard(B)])
    async with asked(stub.env, deadline_s=1.0) as ask:
        await eventually(lambda: are_listed(ask, B))
        stub.set([StubCard(A), StubCard(B)])
        await eventually(lambda: are_listed(ask, A, B))
        stub.set([StubCard(A, delay=60_000), StubCard(B)])
        hung = ask.begin("read", A)
        for _ in range(5):
            assert (await in_time(ask, "read", B))["uuid"] == B
        assert not hung.done() or (await hung)["error"] == "CardHangs"
        assert "has not answered for 1 s" in (await hung)["message"]
        assert "still hangs" in (await ask("processes", A))["message"]
        assert (await in_time(ask, "processes", B)) == []
        assert [gpu["uuid"] for gpu in await ask("list")] == [A, B]  # what is known of a card stays known
        assert "hang" in (await ask("reopen"))["message"]
        assert (await in_time(ask, "read", B))["uuid"] == B
        assert await ask.ends() == 0


async def are_listed(ask: Asker, *uuids: str) -> bool:
    """Whether these cards are known, and no others."""
    said = await ask("list")
    return "error" not in said and [gpu["uuid"] for gpu in said] == [*uuids]


async def in_time(ask: Asker, verb: str, uuid: str) -> Any:
    """What a healthy card says. On a busy machine it too may answer too late, so it is asked again."""
    said: Any = None
    for _ in range(20):
        said = await ask(verb, uuid)
        if "error" not in said or said["error"] != "CardHangs":
            break
    return said


async def test_a_card_that_hung_answers_again_when_its_call_returns(stub: Stub) -> None:
    """A card reset takes many seconds; afterwards nobody has to restart the daemon."""
    stub.set([StubCard(A, delay=60_000)])
    async with asked(stub.env, deadline_s=2.0) as ask:
        assert (await ask("read", A))["error"] == "CardHangs"
        stub.set([StubCard(A)])
        while "error" in (reading := await ask("read", A)):
            assert reading["error"] == "CardHangs"
            await asyncio.sleep(0.05)
        assert reading["uuid"] == A


async def test_an_old_driver_is_asked_the_older_calls(tmp_path: Path) -> None:
    """Hosts keep a driver for years; what it cannot tell is None, and what it can is told."""
    stub = build(tmp_path / "nvml", "OLD")
    stub.set([StubCard(A, used=1000, reserved=500, no_util=True, power=-1, recovery=0, processes=(StubProcess(5),))])
    async with asked(stub.env) as ask:
        reading = await ask("read", A)
        # It counts what it keeps for itself as used, and says nothing of it.
        assert (reading["used_mib"], reading["free_mib"], reading["temperature_c"]) == (1500, 80_420, 30.0)
        assert not {"reserved_mib", "utilization", "power_w", "recovery"} & set(reading)
        assert await ask("processes", A) == [{"pid": 5, "used_mib": 512}]
        await ask("watch")
        assert (await ask("read", A))["uuid"] == A


@pytest.mark.parametrize("why", ["ANCIENT", "refuses", "garbled"])
async def test_a_driver_that_does_not_tell_processes_is_not_an_empty_card(tmp_path: Path, why: str) -> None:
    """Granting a card because its processes cannot be seen would put two programs on it."""
    stub = build(tmp_path / "nvml", *(["ANCIENT"] if why == "ANCIENT" else []))
    stub.set([StubCard(A, no_processes=why == "refuses", processes=(StubProcess(4_000_000_000),))])
    async with asked(stub.env) as ask:
        assert (await ask("processes", A))["error"] == "ProcessesUnknown"


async def test_a_card_that_shares_the_hosts_memory_has_none_of_its_own(stub: Stub) -> None:
    """Small boards report no memory of the card; they are offered all the same."""
    stub.set([StubCard(A, total=-1, no_events=True)])
    async with asked(stub.env) as ask:
        (gpu,) = await ask("list")
        assert gpu["memory_mib"] is None
        assert "total_mib" not in await ask("read", A)
        await ask("watch")
        assert (await ask("read", A))["temperature_c"] == 30.0


@pytest.mark.parametrize(("code", "words"), [(9, "not loaded"), (4, "no permission"), (999, "unknown error")])
async def test_a_driver_that_fails_is_asked_again_and_found_when_it_is_back(stub: Stub, code: int, words: str) -> None:
    """A module that is not loaded yet, or devices that a container lost: the daemon waits for them."""
    stub.set([StubCard(A)], init=code)
    async with asked(stub.env) as ask:
        refused = await ask("list")
        assert (refused["error"], refused["code"]) == ("NvmlUnavailable", code)
        assert words in refused["message"]
        stub.set(init=0)
        assert len(await ask("list")) == 1
        assert (await ask("read", A))["uuid"] == A


async def test_a_library_that_was_upgraded_under_the_daemon_is_loaded_anew(stub: Stub) -> None:
    """After a driver upgrade the old library in this process never fits again; the file on the disk does."""
    stub.set([StubCard(A)])
    async with asked(stub.env) as ask:
        await ask("list")
        await ask("watch")
        build(stub.folder, library="580.2").set([StubCard(A), StubCard(B)], kernel="580.2", init=18)
        assert (await ask("list"))["code"] == 18
        stub.set([StubCard(A), StubCard(B)], kernel="580.2", init=0)
        assert len(await ask("list")) == 2
        assert await ask("describe") == "2 GPUs (NVIDIA driver 580.2)"
        assert (await ask("read", B))["uuid"] == B
        while not ask.troubles:  # the ears are set up anew as well
            stub.happen(1, 48)
            await asyncio.sleep(0.2)
        assert ask.troubles[0] == {"uuid": B, "kind": "xid", "code": 48}


async def test_a_library_too_old_for_the_kernel_says_so(stub: Stub) -> None:
    """With no newer library on the disk there is nothing to load; the reason names what to do."""
    stub.set([StubCard(A)], kernel="580.2")
    async with asked(stub.env) as ask:
        refused = await ask("list")
        assert refused["code"] == 18
        assert "upgraded" in refused["message"]


async def test_a_host_without_the_library_says_so(tmp_path: Path) -> None:
    """The reason on a host without any driver is another one than on a host whose driver is broken."""
    async with asked({}) as ask:
        refused = await ask("list")
        if isinstance(refused, list) or refused["code"] != 12:
            pytest.skip("this host has an NVIDIA driver")
        assert (refused["code"], refused["error"]) == (12, "NvmlUnavailable")
        assert json.dumps(refused).count("NVML library not found") == 1
