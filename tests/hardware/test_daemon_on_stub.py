"""A whole daemon on cards of the library in our tests: what users see when the hardware misbehaves."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest

from tests.daemons import CALM, eventually, running_daemon
from tests.stub_nvml import Stub, StubCard, StubMig, build

pytest.importorskip("pynvml")

A, B = (f"GPU-{secrets.token_hex(4)}" for _ in range(2))  # a host has each card once, for all that run there
MIG = f"MIG-{secrets.token_hex(4)}"


@pytest.fixture
def stub(tmp_path: Path) -> Stub:
    """The library of a present driver."""
    return build(tmp_path / "nvml")


async def test_real_cards_are_offered_by_name_and_uuid(stub: Stub) -> None:
    """MIG instances are gpus like any other."""
    stub.set([StubCard(A), StubCard(B, name="NVIDIA A100", migs=(StubMig(1, MIG, gi=3),))])
    async with running_daemon(config=CALM, env=stub.env, simulate=0) as daemon:
        assert ", 2 GPUs, " in daemon.ready_line
        gpus = (await daemon.get("/api/v1/gpus")).json
        assert MIG in str(gpus) and A in str(gpus) and "NVIDIA A100" in str(gpus)


async def test_a_card_that_hangs_at_the_start_does_not_keep_the_daemon_from_starting_or_stopping(stub: Stub) -> None:
    """The other card works, and a service manager must not have to kill the daemon."""
    stub.set([StubCard(A, delay=600_000), StubCard(B)])
    async with running_daemon(config=CALM, env=stub.env, simulate=0) as daemon:
        assert ", 1 GPU, " in daemon.ready_line
        assert await daemon.stop() == 0


async def test_a_driver_that_comes_later_is_found(stub: Stub) -> None:
    """At boot the daemon may be earlier than the driver's modules: it serves, says why, and offers later."""
    stub.set([StubCard(A)], init=9)
    async with running_daemon(config=CALM, env=stub.env, simulate=0) as daemon:
        assert "not loaded" in daemon.ready_line
        stub.set(init=0)

        async def offered() -> bool:
            return A in str((await daemon.get("/api/v1/gpus")).json)

        await eventually(offered, within_s=60)
