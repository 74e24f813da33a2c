"""Which cards a host has: real, simulated or none, and what people are told about it."""

from __future__ import annotations

import sys
import threading
import time
import types
from collections.abc import Callable
from typing import Any

import pytest

from gpulockd.errors import ConfigError
from gpulockd.hardware.cards import open_cards
from gpulockd.hardware.nvml import NvmlCards, NvmlUnavailable
from gpulockd.hardware.simulated import SimulatedCards

pynvml = pytest.importorskip("pynvml")


def _has_library() -> bool:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return False
    return True


without_driver = pytest.mark.skipif(_has_library(), reason="this host has an NVIDIA driver")


class FakeNvml(types.SimpleNamespace):
    """A binding with cards as data: a card is (uuid, name, MIG instances or None), or an NVML error number."""

    NVMLError = pynvml.NVMLError
    NVMLLibraryMismatchError = pynvml.NVMLLibraryMismatchError

    def __init__(self, cards: list[Any], init: Callable[[], None] = lambda: None) -> None:
        super().__init__(cards=cards, nvmlInit=init)

    def nvmlSystemGetDriverVersion(self) -> bytes:
        return b"570.1"

    def nvmlDeviceGetCount(self) -> int:
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Any:
        if isinstance(self.cards[index], int):
            raise pynvml.NVMLError(self.cards[index])
        return self.cards[index]

    def nvmlDeviceGetMigMode(self, card: Any) -> list[int]:
        if card[2] is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return [1, 1]

    def nvmlDeviceGetMaxMigDeviceCount(self, card: Any) -> int:
        return len(card[2])

    def nvmlDeviceGetMigDeviceHandleByIndex(self, card: Any, slot: int) -> Any:
        if card[2][slot] is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return card[2][slot]

    def nvmlDeviceGetUUID(self, card: Any) -> Any:
        return card[0]

    def nvmlDeviceGetName(self, card: Any) -> Any:
        return card[1]

    def nvmlDeviceGetMemoryInfo(self, card: Any) -> Any:
        if card[1] == "GB10":
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return types.SimpleNamespace(total=80 * 2**30)


@pytest.fixture
def binding(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """Put a binding in the place of the real one."""
    return lambda fake: monkeypatch.setitem(sys.modules, "pynvml", fake)


def _failing(code: int) -> Callable[[], None]:
    def init() -> None:
        raise pynvml.NVMLError(code)

    return init


@without_driver
async def test_a_host_without_driver_gets_two_simulated_cards_and_the_reason() -> None:
    """`make run` works on a laptop, and says that it is not real."""
    cards = await open_cards(None, "lab")
    assert cards.source == "simulated"
    assert [gpu.key for gpu in await cards.list()] == ["gpu_lock:0", "gpu_lock:1"]
    assert cards.describe() == (
        "no NVIDIA driver (NVML library not found): simulating 2 GPUs; use --simulate 0 to turn off"
    )


@without_driver
async def test_simulate_zero_never_simulates_and_names_the_cure() -> None:
    """A server in production must not offer cards that do not exist."""
    cards = await open_cards(0)
    assert cards.source == "nvml"
    with pytest.raises(NvmlUnavailable, match=r"NVML library not found.*--gpus all") as caught:
        await cards.list()
    assert caught.value.absent
    assert "NVML library not found" in cards.describe()


async def test_simulated_cards_keep_their_uuids_and_differ_between_pools() -> None:
    """A restarted daemon must offer the same cards; two pools must not share one."""
    first = await SimulatedCards("a", 3).list()
    assert first == await SimulatedCards("a", 3).list()
    uuids = {gpu.uuid for gpu in (*first, *await SimulatedCards("b", 3).list())}
    assert len(uuids) == 6
    assert all(uuid is not None and uuid.startswith("GPU-") for uuid in uuids)
    assert (first[2].index, first[2].name, first[2].memory_mib) == (2, "Simulated GPU", 24576)


async def test_the_number_of_simulated_cards_has_limits() -> None:
    """A slip of the finger must not fill the pool."""
    with pytest.raises(ConfigError, match=r"gpus\.simulate: 65"):
        await open_cards(65)
    assert (await open_cards(1)).describe() == "as configured: simulating 1 GPU"


async def test_mig_instances_are_gpus_and_numbers_are_consecutive(binding: Callable[[Any], None]) -> None:
    """A MIG card is as many GPUs as it has instances, holes between them left out; bytes become text."""
    mig = [("MIG-a", "A100 1g", None), None, ("MIG-b", "A100 1g", None)]
    binding(FakeNvml([(b"GPU-0", b"A100", mig), ("GPU-1", "GB10", None)]))
    cards = await open_cards(None)
    found = await cards.list()
    assert [(gpu.index, gpu.uuid, gpu.memory_mib) for gpu in found] == [
        (0, "MIG-a", 81920),
        (1, "MIG-b", 81920),
        (2, "GPU-1", None),
    ]
    assert cards.describe() == "3 GPUs (NVIDIA driver 570.1)"


async def test_a_lost_card_leaves_a_hole_in_the_numbers(binding: Callable[[Any], None]) -> None:
    """Were the next card to move up, its lock would guard another card."""
    binding(FakeNvml([pynvml.NVML_ERROR_GPU_IS_LOST, ("GPU-1", "H200", None)]))
    assert [gpu.key for gpu in await NvmlCards().list()] == ["gpu_lock:1"]


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, "upgraded.*restart gpulockd"),
        (pynvml.NVML_ERROR_UNKNOWN, "unknown error.*in a container"),
        (pynvml.NVML_ERROR_NO_PERMISSION, "no permission"),
        (pynvml.NVML_ERROR_IRQ_ISSUE, "reports"),
    ],
)
async def test_a_broken_driver_is_never_replaced_by_simulated_cards(
    binding: Callable[[Any], None], code: int, words: str
) -> None:
    """On a GPU host they would push the real cards out of the pool."""
    binding(FakeNvml([], _failing(code)))
    cards = await open_cards(None)
    assert cards.source == "nvml"
    with pytest.raises(NvmlUnavailable, match=words) as caught:
        await cards.list()
    assert caught.value.code == code


async def test_a_driver_that_comes_back_is_opened_again(binding: Callable[[Any], None]) -> None:
    """The daemon asks again later; it need not be restarted."""
    trouble = [pynvml.NVML_ERROR_UNKNOWN]

    def init() -> None:
        if trouble:
            raise pynvml.NVMLError(trouble.pop())

    binding(FakeNvml([("GPU-0", "H200", None)], init))
    cards = NvmlCards()
    with pytest.raises(NvmlUnavailable):
        await cards.list()
    assert len(await cards.list()) == 1


async def test_a_hung_driver_costs_one_deadline_and_one_thread(binding: Callable[[Any], None]) -> None:
    """A call into a hung driver never returns; the daemon must go on without it."""
    release = threading.Event()

    def hang() -> None:
        release.wait(100)

    binding(FakeNvml([("GPU-0", "H200", None)], hang))
    cards = NvmlCards(deadline_s=0.1)
    try:
        with pytest.raises(NvmlUnavailable, match=r"has not answered for 0\.1 s"):
            await cards.list()
        began = time.monotonic()
        for _ in range(300):  # a deadline for each would take half a minute
            with pytest.raises(NvmlUnavailable, match="still hangs"):
                await cards.list()
        assert time.monotonic() - began < 20
    finally:
        release.set()
