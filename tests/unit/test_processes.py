"""What a run is, decided from tables made by hand: pids that changed hands, dead parents, cards, spared processes."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpulockd.hardware.processes.identity import Process, Stat, parse_stat, stat_of
from gpulockd.hardware.processes.names import called, script_in
from gpulockd.hardware.processes.table import Table
from gpulockd.hardware.runs import run_of, strangers_on

LEASE = "5f1e"


def table_of(*rows: tuple[int, int, int], dead: tuple[int, ...] = ()) -> Table:
    """A table from (pid, parent, started_ticks)."""
    return {
        pid: Stat(pid, parent, started, "Z" if pid in dead else "S", 1, 0, "python") for pid, parent, started in rows
    }


def pids(processes: frozenset[Process]) -> list[int]:
    """The pids in order."""
    return sorted(process.pid for process in processes)


def test_a_run_is_the_holder_and_all_its_descendants() -> None:
    """A fork keeps the card in use, however deep."""
    table = table_of((1, 0, 0), (10, 1, 50), (11, 10, 60), (12, 11, 70), (20, 1, 55))
    assert pids(run_of([Process(10, 50)], table)) == [10, 11, 12]


def test_a_child_of_a_dead_member_stays_a_member() -> None:
    """Its parent is pid 1 by then, so only what an earlier scan saw tells."""
    table = table_of((1, 0, 0), (12, 1, 70), (13, 12, 90))
    assert pids(run_of([Process(10, 50)], table, known=[Process(12, 70)])) == [12, 13]


def test_a_holder_whose_pid_was_reused_has_no_run() -> None:
    """The stranger that has the pid now, and its children, are nobody's business."""
    table = table_of((1, 0, 0), (10, 1, 500), (11, 10, 510))
    assert run_of([Process(10, 50)], table, known=[Process(11, 60)]) == frozenset()


def test_a_child_that_is_older_than_its_parent_is_not_attributed() -> None:
    """The scan saw the child under a stranger whose pid a member got before the scan came to it."""
    table = table_of((1, 0, 0), (10, 1, 50), (30, 10, 80), (31, 30, 75))
    assert pids(run_of([Process(10, 50)], table)) == [10, 30]


def test_dead_processes_are_no_members() -> None:
    """A zombie uses no card and cannot be signalled."""
    table = table_of((10, 1, 50), (11, 10, 60), dead=(11,))
    assert pids(run_of([Process(10, 50)], table)) == [10]


def test_a_process_on_the_card_counts_by_its_lease() -> None:
    """A double fork between two scans is nobody's descendant, but its environment names the lease."""
    table = table_of((1, 0, 0), (10, 1, 50), (40, 1, 80), (41, 40, 90), (50, 1, 85), (60, 1, 86))
    tags = {Process(40, 80): LEASE, Process(50, 85): "other", Process(60, 86): LEASE}
    run = run_of([Process(10, 50)], table, lease_ids=[LEASE], card_pids=[40, 50], tags=tags)
    assert pids(run) == [10, 40, 41], "60 is not on the card, 50 has another lease"
    assert pids(strangers_on([40, 50, 999], run, table)) == [50]


def test_a_tag_of_an_earlier_process_says_nothing_of_its_pid() -> None:
    """Between the look at the environment and the decision a pid can change hands."""
    table = table_of((1, 0, 0), (10, 1, 50), (40, 1, 800))
    tags = {Process(40, 80): LEASE}
    assert pids(run_of([Process(10, 50)], table, lease_ids=[LEASE], card_pids=[40], tags=tags)) == [10]


def test_only_a_cgroup_that_is_named_counts() -> None:
    """Any other cgroup is a whole container or a whole login."""
    table = table_of((1, 0, 0), (10, 1, 50), (40, 1, 80), (41, 40, 90))
    assert pids(run_of([Process(10, 50)], table, cgroup_pids=[10, 40, 77])) == [10, 40, 41]


def test_the_spared_and_what_they_started_are_of_no_run() -> None:
    """A shell that holds a lease may have started the daemon, which must not end itself or its store."""
    table = table_of((10, 1, 50), (11, 10, 60), (12, 11, 70), (13, 10, 65))
    run = run_of([Process(10, 50)], table, known=[Process(12, 70)], spared=[Process(11, 60)])
    assert pids(run) == [10, 13]


def test_what_is_older_than_its_run_is_not_of_it_nor_are_its_children() -> None:
    """A shell that became the wrapper brings its background jobs; what is known or tagged counts at any age."""
    table = table_of((10, 1, 50), (11, 10, 60), (12, 11, 95), (13, 10, 90), (14, 13, 91), (20, 1, 70))
    assert pids(run_of([Process(10, 50)], table, since_ticks=90)) == [10, 13, 14]
    tags = {Process(20, 70): LEASE}
    run = run_of(
        [Process(10, 50)], table, [Process(11, 60)], lease_ids=[LEASE], card_pids=[20], tags=tags, since_ticks=90
    )
    assert pids(run) == [10, 11, 12, 13, 14, 20]


rows = st.lists(st.tuples(st.integers(2, 40), st.integers(1, 40), st.integers(0, 30)), max_size=40)


@given(rows, st.lists(st.tuples(st.integers(2, 40), st.integers(0, 30)), max_size=6))
def test_every_member_is_linked_to_a_root_by_living_parents(
    rows: list[tuple[int, int, int]], roots: list[tuple[int, int]]
) -> None:
    """Only processes of the run are ever signalled, whatever /proc shows, loops of parents included."""
    table = table_of(*rows)
    holders = [Process(pid, started) for pid, started in roots]
    run = run_of(holders, table)
    for member in run:
        assert table[member.pid].process == member
        parent = table.get(table[member.pid].parent)
        linked = parent is not None and parent.process in run and parent.started_ticks <= member.started_ticks
        assert member in holders or linked
    assert {holder for holder in holders if holder.pid in table and table[holder.pid].process == holder} <= run


def test_a_name_with_parentheses_is_read_right() -> None:
    """A program chooses its own name, and `) S 1` in it must not become a state and a parent."""
    line = b"42 (a) S 1 (b) x) R 7 42 42 0 -1 4194304 1 0 0 0 11 5 0 0 20 0 3 0 12345 1 1" + b" 0" * 20
    stat = parse_stat(line)
    assert (stat.pid, stat.name, stat.state, stat.parent) == (42, "a) S 1 (b) x", "R", 7)
    assert (stat.started_ticks, stat.threads, stat.cpu_ticks) == (12345, 3, 16)


def test_a_zombie_with_other_threads_is_not_dead() -> None:
    """The first thread may end before the others, and the process works on."""
    stat = stat_of(os.getpid())
    assert stat is not None
    assert not stat.is_dead
    assert Stat(2, 1, 3, "Z", 1, 0, "x").is_dead
    assert not Stat(2, 1, 3, "Z", 4, 0, "x").is_dead


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["/usr/bin/python3.11", "-u", "/srv/train.py", "--key", "secret"], "python3.11 train.py"),
        (["python", "-W", "error", "-m", "celery", "-A", "app"], "python -m celery"),
        (["python", "-c", "password = 'secret'"], "python"),
        (["/opt/ocr/serve", "--token=secret"], "serve"),
        (["node", "https://x/?token=secret"], "node"),
        (["bash", "/home/a/run.sh", "secret"], "bash run.sh"),
        (["-bash"], "bash"),
        (["[celeryd: worker secret]", ""], "celeryd"),
        (["postgres: alice secret"], "postgres"),
        (["\x1b[31mevil\x07"], "?31mevil?"),
        ([""], "kthread"),
        ([], "kthread"),
    ],
)
def test_people_see_program_and_script_and_no_argument(words: list[str], shown: str) -> None:
    """Arguments hold tokens, and a command line may hold anything, a terminal's escape codes too."""
    assert called(words, "kthread") == shown


@given(st.lists(st.text(max_size=80), max_size=8))
def test_a_name_is_always_short_and_printable(words: list[str]) -> None:
    """It goes into log lines, events and terminals."""
    shown = called(words, "name")
    assert shown.isprintable() and 0 < len(shown) <= 110
    assert script_in([]) is None
