"""The fleet's configuration: who may change it, what is kept of it, and what a store that lost it takes back."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from gpulockd.errors import ConfigError
from gpulockd.ledger import revisions as r
from gpulockd.ledger.keys import FLEET_NAMES, FLEET_PERMANENT, PoolKeys
from tests.lua.fleet import Fleet
from tests.servers import Server


@pytest.fixture
def fleet(server: Server) -> Iterator[Fleet]:
    """A fleet that nobody has used."""
    with Fleet(server.url) as fleet:
        yield fleet


async def revise(fleet: Fleet, expected: int | None, poll_interval: float, **more: Any) -> r.Revision | r.Conflict:
    """One change of the poll interval."""
    live = {"all": {"gpu_lock": {"poll_interval": poll_interval}}, "pools": {}}
    diff = (r.Change(path="gpu_lock.poll_interval", before=None, after=poll_interval),)
    given: dict[str, Any] = {"author": "ana", "reason": f"poll {poll_interval}", "origin": "api"} | more
    return await r.revise(fleet.ask, expected=expected, live=live, diff=diff, **given)


async def revised(fleet: Fleet, expected: int | None, poll_interval: float, **more: Any) -> r.Revision:
    """As `revise`, of which no conflict is expected."""
    made = await revise(fleet, expected, poll_interval, **more)
    assert isinstance(made, r.Revision), made
    return made


async def many(fleet: Fleet, count: int) -> None:
    """Make `count` revisions, from 0 on."""
    for n in range(count):
        await revised(fleet, n - 1 if n else None, 1.0 + n)


async def test_the_first_start_is_revision_0_and_stable_whoever_comes_second(fleet: Fleet) -> None:
    """Two daemons that start at once must not make two beginnings."""
    zero = await r.first(fleet.ask, author="daemon a")
    again = await r.first(fleet.ask, author="daemon b")
    assert (zero.number, zero.stable, zero.stable_at_ms, zero.author) == (0, True, fleet.wall_ms, "daemon a")
    assert again == zero
    state = await r.read(fleet.ask)
    assert (state.current, state.stable, state.live) == (zero, 0, {})
    await revised(fleet, 0, 0.5)
    assert (await r.first(fleet.ask, author="daemon c")).number == 1


async def test_a_revision_is_what_was_said_and_is_told_once(fleet: Fleet) -> None:
    """History and audit are only worth something if they say who, what, when and why."""
    await r.first(fleet.ask, author="daemon")
    fleet.heard()
    fleet.wall_ms += 5_000
    made = await revised(fleet, 0, 0.5, pool="gpu-1", validated="abc", id="one")
    assert (made.number, made.at_ms, made.author, made.reason) == (1, fleet.wall_ms, "ana", "poll 0.5")
    assert (made.origin, made.pool, made.validated, made.of, made.stable) == ("api", "gpu-1", "abc", None, False)
    assert made.diff == (r.Change(path="gpu_lock.poll_interval", before=None, after=0.5),)
    assert made.live == {"all": {"gpu_lock": {"poll_interval": 0.5}}, "pools": {}}
    assert await revised(fleet, 0, 0.5, id="one") == made  # the answer was lost, and it is asked again
    assert fleet.heard() == ["revised 1"]
    assert (await r.read(fleet.ask)).current == made
    assert await r.history(fleet.ask) == [made, (await r.history(fleet.ask, before=1))[0]]
    last = (await r.audits(fleet.ask))[0]
    assert (last.author, last.what, last.text, last.revision, last.at_ms) == (
        "ana", "revised", "poll 0.5", 1, fleet.wall_ms,
    )  # fmt: skip


async def test_of_two_changes_made_from_the_same_revision_one_is_a_conflict(fleet: Fleet) -> None:
    """Otherwise the later one undoes the earlier without knowing of it."""
    await r.first(fleet.ask, author="daemon")
    both = await asyncio.gather(revise(fleet, 0, 0.5), revise(fleet, 0, 0.7))
    assert [type(made) for made in both] == [r.Revision, r.Conflict]
    conflict = both[1]
    assert isinstance(conflict, r.Conflict) and conflict.current == both[0]
    assert isinstance(await revise(fleet, None, 0.9), r.Conflict)
    assert [revision.number for revision in await r.history(fleet.ask)] == [1, 0]
    assert len(await r.audits(fleet.ask)) == 2


async def test_a_mark_says_how_a_revision_turned_out(fleet: Fleet) -> None:
    """The rollback goes to the last stable one, so that one must be right."""
    await many(fleet, 4)
    fleet.heard()
    fleet.wall_ms += 1_000
    two = await r.mark(fleet.ask, 2, stable=True, outcome='ran "well"')
    assert (two.stable, two.stable_at_ms, two.outcome) == (True, fleet.wall_ms, 'ran "well"')
    assert await r.mark(fleet.ask, 2, stable=True) == two
    assert fleet.heard() == ["marked 2"]
    await r.mark(fleet.ask, 1, stable=True)
    assert (await r.read(fleet.ask)).stable == 2
    bad = await r.mark(fleet.ask, 2, stable=False, outcome="rolled back")
    assert (bad.stable, bad.stable_at_ms, bad.outcome) == (False, 0, "rolled back")
    assert (await r.read(fleet.ask)).stable == 1
    with pytest.raises(r.UnknownRevision, match="no revision 9"):
        await r.mark(fleet.ask, 9, stable=True)


async def test_the_last_thousand_revisions_and_the_stable_one_are_kept(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store must not grow for ever, and the way back must not be forgotten."""
    await many(fleet, 1003)
    numbers = [revision.number for revision in await r.history(fleet.ask, count=1000)]
    assert numbers == list(range(1002, 2, -1))
    assert [revision.number for revision in await r.history(fleet.ask, before=5, count=10)] == [4, 3, 0]
    assert [revision.number for revision in await r.history(fleet.ask, before=1, count=10)] == [0]
    assert [revision.number for revision in await r.history(fleet.ask, before=5, count=1)] == [4]
    await r.mark(fleet.ask, 1001, stable=True)
    assert [revision.number for revision in await r.history(fleet.ask, before=5, count=10)] == [4, 3]
    assert fleet.raw.hlen(fleet.base + "revisions") == fleet.raw.hlen(fleet.base + "marks") == 1000


async def test_the_audit_is_read_in_pages_and_only_grows(fleet: Fleet) -> None:
    """Who changed the locks of a cluster last March must be found."""
    for n in range(5):
        await r.audit(fleet.ask, text=f"line {n}", author="ana", origin="cli", revision=n or None)
    page = await r.audits(fleet.ask, count=2)
    assert [line.text for line in page] == ["line 4", "line 3"]
    rest = await r.audits(fleet.ask, before=page[-1].id)
    assert [(line.text, line.revision) for line in rest] == [("line 2", 2), ("line 1", 1), ("line 0", None)]


async def test_the_base_of_a_pool_is_kept_with_the_revision(fleet: Fleet) -> None:
    """A rollback must also undo what was changed in a file."""
    assert await r.set_base(fleet.ask, "gpu-1", {}) is None
    await many(fleet, 2)
    assert await r.set_base(fleet.ask, "gpu-1", {"gpu_lock": {"poll_interval": 2.0}}) == 1
    assert await r.bases(fleet.ask, "gpu-1") == {1: {"gpu_lock": {"poll_interval": 2.0}}}
    assert await r.bases(fleet.ask, "gpu-2") == {}


async def test_a_verdict_is_found_by_what_the_document_says(fleet: Fleet) -> None:
    """Validated is a document, not the file it came from."""
    tree = {"gpu_lock": {"max_wait_time": 300, "poll_interval": 0.5}}
    same = {"gpu_lock": {"poll_interval": 0.5, "max_wait_time": 300.0}}
    assert r.digest(tree) == r.digest(same) != r.digest({"gpu_lock": {"poll_interval": 0.5}})
    assert await r.validated(fleet.ask, r.digest(tree)) is None
    await r.note_validated(fleet.ask, r.digest(tree), {"verdict": "passed", "success": 1.0}, author="ana")
    assert await r.validated(fleet.ask, r.digest(same)) == {
        "verdict": "passed", "success": 1.0, "at_ms": fleet.wall_ms,
    }  # fmt: skip
    assert (await r.audits(fleet.ask))[0].what == "validated"


async def kept(fleet: Fleet) -> dict[str, Any]:
    """What a daemon has kept."""
    state = await r.read(fleet.ask)
    assert state.current is not None
    return {
        "revisions": await r.history(fleet.ask),
        "current": state.current.number,
        "stable": state.stable,
        "live": state.live,
        "audits": (await r.audits(fleet.ask))[::-1],
        "rollout": await r.read_rollout(fleet.ask),
        "pool": "gpu-1",
        "bases": await r.bases(fleet.ask, "gpu-1"),
    }


async def test_a_store_that_lost_everything_gets_it_back_from_a_daemon(fleet: Fleet) -> None:
    """FLUSHALL must not set a fleet back to the configuration of its first day."""
    await many(fleet, 3)
    await r.mark(fleet.ask, 1, stable=True, outcome="well")
    await r.set_base(fleet.ask, "gpu-1", {"gpu_lock": {"poll_interval": 2.0}})
    await r.write_rollout(fleet.ask, expected=0, state={"stage": 1})
    before, history, lines = await kept(fleet), await r.history(fleet.ask), await r.audits(fleet.ask)
    state, bases = await r.read(fleet.ask), await r.bases(fleet.ask, "gpu-1")
    fleet.lose_all()
    fleet.heard()
    assert await r.restore(fleet.ask, **before)
    assert fleet.heard() == ["restored 2"]
    assert await r.read(fleet.ask) == state
    assert await r.history(fleet.ask) == history
    assert await r.bases(fleet.ask, "gpu-1") == bases
    assert (await r.read_rollout(fleet.ask)).state == {"stage": 1}
    said = await r.audits(fleet.ask)
    assert [line.text for line in said[1:]] == [line.text for line in lines] and said[0].what == "restored"
    assert not await r.restore(fleet.ask, **before)
    assert len(await r.audits(fleet.ask)) == len(said)


async def test_the_daemon_that_knows_the_most_wins_whoever_comes_first(fleet: Fleet) -> None:
    """A daemon that was away for a day, or has just been installed, must not set the others back."""
    await many(fleet, 2)
    older = await kept(fleet)
    await revised(fleet, 1, 0.5)
    newer = await kept(fleet)
    for early in ("first", "older"):
        fleet.lose_all()
        if early == "first":
            await r.first(fleet.ask, author="just installed")
        else:
            assert await r.restore(fleet.ask, **older)
        assert await r.restore(fleet.ask, **newer)
        assert not await r.restore(fleet.ask, **older)
        assert (await r.read(fleet.ask)).live == newer["live"]


async def test_what_the_same_history_lacks_is_added_though_its_revisions_stand(fleet: Fleet) -> None:
    """One daemon brings the revisions back; the files of the others, and what only they have heard, must come too."""
    await many(fleet, 2)
    await r.set_base(fleet.ask, "gpu-1", {"gpu_lock": {"poll_interval": 2.0}})
    early = await kept(fleet) | {"pool": "gpu-2", "bases": {}}
    await r.audit(fleet.ask, text="said late", author="ana", origin="cli")
    late = await kept(fleet)
    fleet.lose_all()
    assert await r.restore(fleet.ask, **early)
    assert await r.bases(fleet.ask, "gpu-1") == {}
    await revised(fleet, 1, 3.0)
    for _ in range(2):
        assert not await r.restore(fleet.ask, **late)
    assert await r.bases(fleet.ask, "gpu-1") == late["bases"]
    texts = [line.text for line in await r.audits(fleet.ask)]
    assert sorted(texts) == sorted({*texts}), "no line comes twice"
    assert {line.text for line in late["audits"]} < {*texts}
    assert (await r.read(fleet.ask)).live["all"]["gpu_lock"]["poll_interval"] == 3.0


async def test_lines_that_a_store_lost_from_the_end_of_its_audit_come_back_in_their_places(fleet: Fleet) -> None:
    """A store that has gone back by an hour must not have forgotten who did what in that hour."""
    await many(fleet, 2)
    copies: dict[str, Any] = {key: fleet.raw.dump(fleet.base + key) for key in sorted(fleet.keys())}
    await revised(fleet, 1, 3.0)
    await r.audit(fleet.ask, text="noted", author="ana", origin="cli")
    before, lines = await kept(fleet), await r.audits(fleet.ask)
    fleet.lose_all()
    for key, copy in copies.items():
        fleet.raw.restore(fleet.base + key, 0, copy)
    assert await r.restore(fleet.ask, **before)
    found = await r.audits(fleet.ask)
    assert found[1:] == lines, "to the letter, with the same ids"
    page = await r.audits(fleet.ask, down_to=lines[1].id)
    assert page == found[:3]


async def test_a_files_revision_has_its_base_in_the_same_step(fleet: Fleet) -> None:
    """Noted a moment later, it could be noted of somebody else's revision, and the file's own could not be undone."""
    await many(fleet, 2)
    made = await revised(fleet, 1, 3.0, origin="file", pool="gpu-1", base={"gpu_lock": {"max_wait_time": 5.0}})
    assert await r.bases(fleet.ask, "gpu-1") == {made.number: {"gpu_lock": {"max_wait_time": 5.0}}}
    lost = await revise(fleet, 1, 4.0, pool="gpu-1", base={})
    assert isinstance(lost, r.Conflict)
    assert list(await r.bases(fleet.ask, "gpu-1")) == [made.number]


async def test_a_store_that_went_another_way_stays_as_it_is(fleet: Fleet) -> None:
    """What a person has said since the loss is newer than any copy."""
    await many(fleet, 3)
    await revised(fleet, 2, 9.0)
    copy = await kept(fleet)
    fleet.lose_all()
    await many(fleet, 2)
    assert not await r.restore(fleet.ask, **copy)
    assert (await r.read(fleet.ask)).live["all"]["gpu_lock"]["poll_interval"] == 2.0
    with pytest.raises(r.UnknownRevision):
        await r.restore(fleet.ask, revisions=[], current=3, stable=None)


async def test_every_key_of_the_fleet_is_on_the_permanent_list(fleet: Fleet) -> None:
    """Invariant 11: what stays is known."""
    await many(fleet, 2)
    await r.set_base(fleet.ask, "gpu-1", {})
    await r.note_validated(fleet.ask, "digest", {})
    await r.drive(fleet.ask, driver="a", term_ms=3_000)
    assert fleet.keys() == {*FLEET_NAMES, "bases:gpu-1"} <= {*FLEET_PERMANENT, "bases:gpu-1"}


def test_no_pool_is_called_as_the_fleet_is() -> None:
    """Its keys would be the fleet's."""
    with pytest.raises(ConfigError, match="fleet's own"):
        PoolKeys("fleet")
