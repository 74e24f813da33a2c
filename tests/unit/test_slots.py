"""Which server of a cluster has which keys: what is computed and what is learned, without a server."""

from __future__ import annotations

import pytest

from gpulockd.ledger import address
from gpulockd.ledger.keys import FleetKeys, PoolKeys
from gpulockd.ledger.wire import slots
from gpulockd.ledger.wire.slots import Node, Slots
from gpulockd.ledger.wire.trouble import Broken

ONE, TWO, THREE = Node("10.0.0.1", 7000), Node("10.0.0.2", 7000), Node("10.0.0.3", 7000)
ANSWER = [
    [0, 8191, [b"10.0.0.1", 7000, b"id-1", []], [b"10.0.0.3", 7000, b"id-3", []]],
    [8192, 16383, [b"10.0.0.2", 7000, b"id-2", []]],
]
"""What `CLUSTER SLOTS` says of two masters, the first with a replica."""


@pytest.mark.parametrize(
    ("key", "slot"),
    [
        (b"123456789", 12739),
        (b"{123456789}:meta", 12739),
        (b"gpulockd:{123456789}:{other}", 12739),
        (b"{}123456789", slots.slot_of(b"{}123456789")),
        (b"foo", 12182),
    ],
)
def test_a_key_lies_where_the_specification_says(key: bytes, slot: int) -> None:
    """A slot of our own reckoning would send every command to the wrong server."""
    assert slots.slot_of(key) == slot


def test_a_function_lies_with_its_first_key_and_a_command_with_its_own() -> None:
    """All keys of a pool have one tag, the fleet's another."""
    of_pool = slots.slot_of(b"{default}")
    assert slots.slot_of_command((b"FCALL", "f", b"2", *PoolKeys("default").wire, b"gpulockd:{default}:x")) == of_pool
    assert slots.slot_of_command(("XRANGE", "gpulockd:{default}:events", "-", "+")) == of_pool
    assert {slots.slot_of(key) for key in FleetKeys("default").wire} == {slots.slot_of(b"fleet")}


def test_what_one_server_has_told_is_known() -> None:
    """Nobody is asked for what is known already."""
    known = Slots([THREE])
    assert known.owner(1) is None
    known.learn(ANSWER, THREE)
    assert (known.owner(0), known.owner(8191), known.owner(8192)) == (ONE, ONE, TWO)
    known.moved(1, TWO)
    assert (known.owner(0), known.owner(1)) == (ONE, TWO)


def test_a_server_without_a_name_is_the_one_that_was_asked() -> None:
    """A server that does not know its own address says none."""
    known = Slots([THREE])
    known.learn([[0, 16383, [b"", 7001, b"id", []]]], THREE)
    assert known.owner(5) == Node(THREE.host, 7001)
    known.learn([[0, 16383, [None, 7002, b"id", []]]], THREE)
    assert known.owner(5) == Node(THREE.host, 7002)


def test_who_failed_and_who_named_it_are_asked_last() -> None:
    """A server that is cut off from the others goes on naming a master that is dead."""
    known = Slots([THREE])
    known.learn(ANSWER, THREE)
    known.doubt(ONE)
    assert known.owner(0) is None
    assert known.to_ask()[0] == TWO
    assert set(known.to_ask()) == {ONE, TWO, THREE}


@pytest.mark.parametrize(
    ("refusal", "node"),
    [
        ("MOVED 3999 10.0.0.2:7000", TWO),
        ("ASK 3999 gpu-store.example.org:7000", Node("gpu-store.example.org", 7000)),
        ("MOVED 3999 fe80::1:7000", Node("fe80::1", 7000)),
        ("MOVED 3999 :7000", ONE),
    ],
)
def test_a_refusal_says_who_has_the_keys(refusal: str, node: Node) -> None:
    """Addresses may be names, of either kind, or be left out."""
    assert slots.sent_to(refusal, ONE) == node


def test_a_refusal_without_an_address_is_trouble_of_the_connection() -> None:
    """It is tried again then, as any other trouble of the kind."""
    with pytest.raises(Broken):
        slots.sent_to("MOVED 3999", ONE)


def test_a_cluster_is_named_by_several_of_its_servers() -> None:
    """One of them may be dead when a program starts; user, password and options are those of all."""
    url = "redis+cluster://me:se%2Ccret@10.0.0.1:7000,10.0.0.2,[fe80::1]:7001/0?health_check_interval=3"
    assert address.hosts(address.check_url(url)) == [("10.0.0.1", 7000), ("10.0.0.2", 6379), ("fe80::1", 7001)]
    one = "redis://me:se%2Ccret@[fe80::1]:7001/0?health_check_interval=3"
    assert address.url_of_node(url, "fe80::1", 7001) == one
