"""The fence as a pure thing: who may be on a gpu together, and what an old token may still do."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from gpulockd.daemon.fence import Admitted, Fence, Lease, Party, Refused, Waits, unlisted

GPUS = ("gpu_lock:0", "gpu_lock:1", "gpu_lock:2")


def lease(id: str, token: int, *gpus: str, exclusive: bool = True) -> Lease:
    return Lease(id=id, token=token, gpus=gpus, exclusive=exclusive, parties=[Party(ticket=id, session=f"s-{id}")])


def test_the_next_waits_until_the_one_before_has_left() -> None:
    """Without this a holder whose ledger was emptied meets the next one on the card."""
    fence = Fence()
    first, second = lease("a", 1, "gpu_lock:0"), lease("b", 2, "gpu_lock:0")
    fence.enter(first)
    assert fence.ask(second) == Waits((first,))
    assert fence.leave("a", "a") is first
    fence.remove("a")
    assert fence.ask(second) == Admitted()


def test_a_lower_token_is_refused_though_the_later_one_has_left() -> None:
    """A process that was stopped since its grant must not begin after a whole other hold."""
    fence = Fence()
    fence.enter(lease("b", 2, "gpu_lock:0"))
    fence.remove("b")
    assert isinstance(fence.ask(lease("a", 1, "gpu_lock:0")), Refused)
    assert fence.ask(lease("c", 3, "gpu_lock:0")) == Admitted()


def test_a_lease_that_was_left_does_not_begin_again_but_a_later_grant_of_its_ticket_does() -> None:
    """Its release is on the way to the ledger: so a late "lapsed", answered with a leave, let two in (a schedule)."""
    fence = Fence()
    fence.enter(lease("a", 5, "gpu_lock:0"))
    assert fence.leave("a", "a") is not None
    fence.remove("a")
    assert fence.ask(lease("a", 5, "gpu_lock:0")) == Refused("it was left")
    assert fence.ask(lease("a", 6, "gpu_lock:0")) == Admitted()
    fence.enter(lease("b", 7, "gpu_lock:1"))
    fence.remove("b", never=True)
    assert fence.ask(lease("b", 7, "gpu_lock:1")) == Admitted()


def test_budgets_share_a_gpu_and_a_whole_card_waits_for_all_of_them() -> None:
    """Sharing is decided by the ledger's budgets; the fence keeps only whole cards apart."""
    fence = Fence()
    one, two = (lease(id, token, "gpu_lock:0", exclusive=False) for id, token in (("a", 1), ("b", 2)))
    fence.enter(one)
    assert fence.ask(two) == Admitted()
    fence.enter(two)
    assert fence.ask(lease("c", 3, "gpu_lock:0")) == Waits((one, two))
    assert fence.ask(lease("d", 3, "gpu_lock:1")) == Admitted()


def test_a_lease_is_over_only_when_its_last_party_has_gone() -> None:
    """A child that joined its parent's lease is still on the card when the parent leaves."""
    fence = Fence()
    fence.enter(lease("a", 1, "gpu_lock:0"))
    assert fence.join("a", Party(ticket="child", session="s2"))
    assert fence.leave("a", "a") is None
    left = fence.leave("a", "child", "dead")
    assert left is not None
    assert left.id == "a"


def test_a_hello_ends_what_it_does_not_list_but_nothing_later() -> None:
    """A lost `leave` must heal, and a list that was made before a grant must not end it."""
    fence = Fence()
    for id, token in (("old", 5), ("new", 9)):
        one = lease(id, token, f"gpu_lock:{token}")
        one.parties[0].session = "s"
        fence.enter(one)
    assert [party.ticket for _, party in unlisted(fence, "s", [], as_of=7)] == ["old"]
    assert unlisted(fence, "s", ["old"], as_of=7) == []
    assert unlisted(fence, "another", [], as_of=99) == []


@settings(max_examples=300)
@given(st.lists(st.tuples(st.integers(0, 2), st.booleans(), st.integers(0, 9), st.sampled_from("alr")), max_size=40))
def test_never_two_that_exclude_each_other(steps: list[tuple[int, bool, int, str]]) -> None:
    """Whatever is asked, left and asked again in any order."""
    fence, asked = Fence(), []
    for number, (gpu, exclusive, which, what) in enumerate(steps):
        if what == "a":
            asked.append(lease(f"t{number}", number + 1, GPUS[gpu], GPUS[(gpu + which) % 3], exclusive=exclusive))
        candidates = asked[which % len(asked) :] if asked else []
        for one in candidates[:1]:
            if what == "l" and fence.leave(one.id, one.id) is not None:
                fence.remove(one.id)
            elif fence.ask(one) == Admitted():
                fence.enter(one)
        inside = list(fence.leases.values())
        for i, one in enumerate(inside):
            assert not any(one.in_the_way_of(other) for other in inside[i + 1 :])
