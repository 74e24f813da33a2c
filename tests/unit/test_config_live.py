"""The live document: scopes, taking out, and pins that give way to newer wishes."""

from __future__ import annotations

from gpulockd.config.live import changed, live_for, pinned, unpinned

POLL = {"gpu_lock": {"poll_interval": 0.5}}
NOTHING: dict[str, object] = {"all": {}, "pools": {}}


def test_what_one_pool_says_goes_over_what_all_say() -> None:
    """A host that is different stays different when the fleet changes."""
    live = changed({}, POLL, scope="all")
    live = changed(live, {"gpu_lock": {"poll_interval": 3.0}}, scope="a")
    assert live_for(live, "a") == {"gpu_lock": {"poll_interval": 3.0}}
    assert live_for(live, "b") == POLL


def test_a_change_leaves_the_other_leaves_alone() -> None:
    """One value is changed without naming the rest."""
    live = changed({"all": {"gpu_lock": {"max_wait_time": 9.0}}}, POLL, scope="all")
    assert live["all"] == {"gpu_lock": {"max_wait_time": 9.0, "poll_interval": 0.5}}


def test_replace_and_unset_take_out() -> None:
    """What was set live can be given back to the file."""
    live = changed({}, {"gpu_lock": {"poll_interval": 0.5, "max_wait_time": 9.0}}, scope="all")
    assert changed(live, {}, scope="all", unset=("gpu_lock.max_wait_time",))["all"] == POLL
    assert changed(live, {}, scope="all", unset=("gpu_lock",)) == NOTHING
    assert changed(live, POLL, scope="all", replace=True)["all"] == POLL


def test_unset_means_whole_names_only() -> None:
    """`gpu_lock` is no part of `gpu_lock_monitor`."""
    live = changed({}, {"gpu_lock_monitor": {"enabled": False}}, scope="all")
    assert changed(live, {}, scope="all", unset=("gpu_lock",)) == live


def test_documents_that_say_the_same_are_equal() -> None:
    """A change that changes nothing makes no revision."""
    live = changed({}, POLL, scope="a")
    assert changed(live, POLL, scope="a") == live
    assert changed(live, {}, scope="a", unset=("gpu_lock",)) == NOTHING


def test_a_pin_is_lifted_where_the_file_says_something_new_and_only_there() -> None:
    """A rollback must not silence the file for ever."""
    live = pinned({}, "a", {"gpu_lock.poll_interval": 2.0, "gpu_lock.max_wait_time": 9.0})
    left = unpinned(live, "a", {"gpu_lock.poll_interval"})
    assert live_for(left, "a") == {"gpu_lock": {"max_wait_time": 9.0}}
    assert left["pins"] == {"a": ["gpu_lock.max_wait_time"]}
    assert unpinned(live, "b", {"gpu_lock.poll_interval"}) == live


def test_what_was_set_on_purpose_is_no_pin() -> None:
    """The file's change does not undo what somebody has set through the API."""
    live = pinned(changed({}, POLL, scope="a"), "a", {"gpu_lock.max_wait_time": 9.0})
    assert live_for(unpinned(live, "a", {"gpu_lock.poll_interval"}), "a")["gpu_lock"]["poll_interval"] == 0.5
    set_again = changed(live, {"gpu_lock": {"max_wait_time": 8.0}}, scope="a")
    assert live_for(unpinned(set_again, "a", {"gpu_lock.max_wait_time"}), "a")["gpu_lock"]["max_wait_time"] == 8.0


def test_what_is_set_for_all_goes_over_pins_but_not_over_wishes_of_a_pool() -> None:
    """After a rollback the next change of the fleet counts everywhere."""
    live = pinned({}, "a", {"gpu_lock.poll_interval": 2.0})
    live = changed(live, {"gpu_lock": {"poll_interval": 4.0}}, scope="b")
    live = changed(live, POLL, scope="all")
    assert live_for(live, "a") == POLL
    assert live_for(live, "b") == {"gpu_lock": {"poll_interval": 4.0}}
    assert "pins" not in live
