"""The row of the rollout: one driver at a time, one writer after another, a clock that counts what was watched."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gpulockd.ledger import revisions as r
from tests.lua.fleet import Fleet
from tests.servers import Server

TERM_MS = 3_000


@pytest.fixture
def fleet(server: Server) -> Iterator[Fleet]:
    """A fleet without a rollout."""
    with Fleet(server.url) as fleet:
        yield fleet


async def drive(fleet: Fleet, driver: str, term_ms: int = TERM_MS) -> r.RolloutRow:
    """One call of a daemon that wants to drive."""
    return await r.drive(fleet.ask, driver=driver, term_ms=term_ms)


async def test_one_daemon_drives_until_its_term_ends_without_a_word(fleet: Fleet) -> None:
    """Two drivers would take two steps at once; none at all would stop the rollout for ever."""
    assert (await drive(fleet, "a")).driver == "a"
    for _ in range(5):
        fleet.wall_ms += 900
        assert (await drive(fleet, "b")).driver == "a"
        assert (await drive(fleet, "a")).driver == "a"
    fleet.wall_ms += 900
    assert (await drive(fleet, "b")).left_ms == TERM_MS - 900
    for _ in range(2):
        fleet.wall_ms += 900
        assert (await drive(fleet, "b")).driver == "a"
    fleet.wall_ms += 900
    row = await drive(fleet, "b")
    assert (row.driver, row.left_ms) == ("b", TERM_MS)


async def test_a_jump_of_the_clock_takes_nobody_the_wheel(fleet: Fleet) -> None:
    """A host whose time is set right is no reason for a second driver."""
    await drive(fleet, "a")
    for jump_ms in (86_400_000, -86_400_000):
        fleet.wall_ms += jump_ms
        row = await drive(fleet, "b")
        assert (row.driver, row.left_ms, row.elapsed_ms) == ("a", TERM_MS - TERM_MS // 3, TERM_MS // 3)


async def test_time_in_which_nobody_drove_does_not_count(fleet: Fleet) -> None:
    """24 hours of watching are not a night in which all daemons were off."""
    await drive(fleet, "a")
    for _ in range(4):
        fleet.wall_ms += 500
        await drive(fleet, "a")
    fleet.wall_ms += 3_600_000
    assert (await drive(fleet, "a")).elapsed_ms == 4 * 500 + TERM_MS // 3


async def test_who_gives_the_wheel_back_leaves_it_free(fleet: Fleet) -> None:
    """A daemon that stops need not be waited for."""
    await drive(fleet, "a")
    assert (await drive(fleet, "b", 0)).driver == "a"
    assert (await drive(fleet, "a", 0)).driver == ""
    assert (await drive(fleet, "b")).driver == "b"


async def test_the_state_is_written_by_its_driver_or_a_person_and_never_over_another(fleet: Fleet) -> None:
    """A person's "abort" must not be lost under a step that was decided before it."""
    await drive(fleet, "a")
    row = await r.write_rollout(fleet.ask, expected=0, state={"stage": 1}, driver="a")
    assert isinstance(row, r.RolloutRow) and (row.version, row.state) == (1, {"stage": 1})
    assert fleet.heard() == ["rollout 1"]
    strange = await r.write_rollout(fleet.ask, expected=1, state={"stage": 9}, driver="b")
    assert isinstance(strange, r.RolloutConflict) and strange.row.driver == "a"
    aborted = await r.write_rollout(fleet.ask, expected=1, state={"stage": 0})
    assert isinstance(aborted, r.RolloutRow) and aborted.version == 2
    late = await r.write_rollout(fleet.ask, expected=1, state={"stage": 2}, driver="a")
    assert isinstance(late, r.RolloutConflict) and late.row.state == {"stage": 0}
    ended = await r.write_rollout(fleet.ask, expected=2, state=None, driver="a")
    assert isinstance(ended, r.RolloutRow) and ended.state is None and ended.driver == "a"
    assert (await r.read_rollout(fleet.ask)).version == 3
