"""The tests of the tests of the configuration: each planted bug makes the scenario of a test fail."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from tests.lua import test_publish, test_revisions, test_rollout_row
from tests.lua.both import Both, Disagreement
from tests.lua.fleet import Fleet
from tests.lua.harness import planted
from tests.servers import Server

Scenario = Callable[[Fleet], Awaitable[None]]

FLEET_BUGS: dict[str, tuple[Scenario, str, str, str]] = {
    "revise without compare": (
        test_revisions.test_of_two_changes_made_from_the_same_revision_one_is_a_conflict,
        "fleet/revise", "if (current or '') ~= expected then return fleet.told('conflict', current) end", "",
    ),
    "a repeated revise makes a second revision": (
        test_revisions.test_a_revision_is_what_was_said_and_is_told_once,
        "fleet/revise", "redis.call('HGET', names.config, 'id') == id", "false",
    ),
    "a revision is not written to the audit": (
        test_revisions.test_a_revision_is_what_was_said_and_is_told_once,
        "fleet/revise", "fleet.note(ARGV[6], number)", "",
    ),
    "a revision is told to nobody": (
        test_revisions.test_a_revision_is_what_was_said_and_is_told_once,
        "fleet/revise", "fleet.ring('revised', number)", "",
    ),
    "an earlier revision becomes the stable one": (
        test_revisions.test_a_mark_says_how_a_revision_turned_out,
        "fleet/mark", "(before == '' or number - before > 0)", "true",
    ),
    "what is not stable stays the stable one": (
        test_revisions.test_a_mark_says_how_a_revision_turned_out,
        "fleet/mark", "elseif stable == '0' and before == number then", "elseif false then",
    ),
    "restore over existing state": (
        test_revisions.test_a_store_that_went_another_way_stays_as_it_is,
        "fleet/restore", "if number - current <= 0 or not goes_on then", "if number - current <= 0 then",
    ),
    "what stands is restored again": (
        test_revisions.test_a_store_that_lost_everything_gets_it_back_from_a_daemon,
        "fleet/restore", "if number - current <= 0 or not goes_on then", "if not goes_on then",
    ),
    "a copy is not taken where somebody has just begun": (
        test_revisions.test_the_daemon_that_knows_the_most_wins_whoever_comes_first,
        "fleet/restore", "current == '0' or", "",
    ),
    "the driver is stolen before its term ends": (
        test_rollout_row.test_one_daemon_drives_until_its_term_ends_without_a_word,
        "fleet/drive", "or row.left_ms() == 0", "or row.left_ms() < row.term_ms",
    ),
    "the driver is stolen by a jump of the clock": (
        test_rollout_row.test_a_jump_of_the_clock_takes_nobody_the_wheel,
        "fleet/_rollout", "math.max(0, math.min(wall_ms - row.last_ms, step_ms))", "math.max(0, wall_ms - row.last_ms)",
    ),
    "the driver keeps the wheel for ever": (
        test_rollout_row.test_one_daemon_drives_until_its_term_ends_without_a_word,
        "fleet/drive", "or row.left_ms() == 0", "",
    ),
    "time in which nobody drove counts": (
        test_rollout_row.test_time_in_which_nobody_drove_does_not_count,
        "fleet/_rollout", "math.max(0, math.min(wall_ms - row.last_ms, step_ms))", "math.max(0, wall_ms - row.last_ms)",
    ),
    "the rollout is written without compare": (
        test_rollout_row.test_the_state_is_written_by_its_driver_or_a_person_and_never_over_another,
        "fleet/rollout", "or ARGV[2] ~= row.version", "",
    ),
    "the rollout is written by who does not drive": (
        test_rollout_row.test_the_state_is_written_by_its_driver_or_a_person_and_never_over_another,
        "fleet/rollout", "driven_by_another or ", "",
    ),
}  # fmt: skip

POOL_BUGS: dict[str, tuple[Callable[[Both], None], str, str, str]] = {
    "publish with an older version accepted": (
        test_publish.test_an_older_version_changes_nothing_and_is_told_the_present_one,
        "publish", "if version < present or (version == present and stands ~= defaults) then", "if false then",
    ),
    "an offer under way brings the old defaults back": (
        test_publish.test_an_offer_keeps_what_was_published_later_than_its_daemon_knows,
        "_published", "if known ~= '' and tonumber(known) < version then return end", "",
    ),
    "a daemon that was replaced publishes": (
        test_publish.test_only_the_daemon_that_offers_the_pool_publishes,
        "publish", "meta.offered ~= '1' or (meta.offer_session ~= ARGV[1] and not orphaned)", "false",
    ),
    "versions begin anew after a loss": (
        test_publish.test_versions_go_on_over_a_loss_of_all_data,
        "_published", "tonumber(known ~= '' and known or 0)", "0",
    ),
}  # fmt: skip


@pytest.mark.parametrize("bug", FLEET_BUGS)
async def test_a_planted_bug_of_the_fleet_is_caught(server: Server, bug: str) -> None:
    """A test that cannot fail proves nothing."""
    scenario, file, old, new = FLEET_BUGS[bug]
    with Fleet(server.url, planted(old, new, file)) as fleet:
        with pytest.raises((AssertionError, LookupError)):
            await scenario(fleet)


@pytest.mark.parametrize("bug", POOL_BUGS)
@pytest.mark.leaves_keys
def test_a_planted_bug_of_the_publishing_is_caught(server: Server, pool: str, bug: str) -> None:
    """A test that cannot fail proves nothing."""
    scenario, file, old, new = POOL_BUGS[bug]
    with Both(server.url, pool, planted(old, new, file)) as both:
        both.stage()
        with pytest.raises((AssertionError, Disagreement)):
            scenario(both)


@pytest.mark.parametrize("told_twice", [False, True])
@pytest.mark.leaves_keys
def test_an_event_that_is_told_twice_is_caught(server: Server, pool: str, *, told_twice: bool) -> None:
    """So is one that an offer has swallowed."""
    passage = "redis.call('HGET', names.offer, 'told') ~= text(version)"
    bug = planted(passage, "true" if told_twice else "present < version", "publish")
    with Both(server.url, pool, bug) as both:
        both.stage()
        with pytest.raises(AssertionError):
            test_publish.test_the_event_is_told_once_for_a_version(both, offered_before=True)
