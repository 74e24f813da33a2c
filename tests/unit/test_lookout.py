"""Who looks for the processes of held leases, and when there is nobody to be found: real processes, a real record."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import anyio

from gpulockd.daemon.admission import Admit, LeaseWords
from gpulockd.daemon.callers import Caller
from gpulockd.daemon.guarding import Guard
from gpulockd.daemon.lookout import Lookout
from gpulockd.hardware.processes.births import Births
from gpulockd.hardware.processes.identity import Process, identify
from tests.states import until
from tests.unit.test_guarding import guard_in

HOLDER = """
import subprocess, sys
for line in sys.stdin:
    print(subprocess.Popen(["sleep", "60"]).pid, flush=True)
"""
TAG = "GPULOCKD_LEASE"


@contextmanager
def started(*command: str, **env: str) -> Iterator[subprocess.Popen[str]]:
    """A process with pipes, killed at the end with its group."""
    process = subprocess.Popen(
        command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | env, start_new_session=True
    )
    try:
        yield process
    finally:
        os.killpg(process.pid, 9)
        process.communicate()


def process_of(pid: int) -> Process:
    """The process that has this pid now."""
    found = identify(pid)
    assert found is not None
    return found


def let_in(guard: Guard, pid: int, lease: str, gpu: str) -> None:
    """Let a process hold a gpu."""
    caller = Caller(process_of(pid), os.getuid(), lambda _: None)
    words = LeaseWords(id=lease, token=1, gpus=(gpu,))
    answer = guard.admit(caller, Admit(session=f"of-{lease}", lease=words))
    assert answer == {"admitted": lease, "token": 1}


def is_member(guard: Guard, lease: str, process: Process) -> bool:
    """Whether the guard knows that a process is of a run."""
    return process in guard.runs.members(lease)


def gives_birth(holder: subprocess.Popen[str]) -> Process:
    """Let a holder start a child."""
    assert holder.stdin is not None
    assert holder.stdout is not None
    holder.stdin.write("\n")
    holder.stdin.flush()
    return process_of(int(holder.stdout.readline()))


async def test_children_are_found_whenever_they_are_born(tmp_path: Path) -> None:
    """After any pause: a lookout that rests while nothing is born must not sleep through the first one."""
    with guard_in(tmp_path) as guard, started(sys.executable, "-c", HOLDER) as holder:
        let_in(guard, holder.pid, "lease", "gpu_lock:0")
        lookout = Lookout(guard)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lookout.follow)
            for pause_s in (0.0, 1.5, 0.3):
                await anyio.sleep(pause_s)
                child = gives_birth(holder)
                await until(partial(is_member, guard, "lease", child))
                assert (child.pid, child.started_ticks) in guard.fence.leases["lease"].members
            tasks.cancel_scope.cancel()


async def test_who_is_on_the_card_by_the_lease_it_was_started_in_is_found_when_the_card_shows_it(
    tmp_path: Path,
) -> None:
    """No birth tells of it: it was there before, and has come on the card now."""
    shown: list[int] = []
    with (
        guard_in(tmp_path) as guard,
        started(sys.executable, "-c", HOLDER) as holder,
        started("sleep", "60", **{TAG: "lease"}) as kin,
        started("sleep", "60") as stranger,
    ):
        let_in(guard, holder.pid, "lease", "gpu_lock:0")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(Lookout(guard, lambda _lease: shown).follow)
            await until(lambda: guard.runs.members("lease") == {process_of(holder.pid)})
            shown += [kin.pid, stranger.pid]
            await until(lambda: process_of(kin.pid) in guard.runs.members("lease"))
            assert process_of(stranger.pid) not in guard.runs.members("lease")
            tasks.cancel_scope.cancel()


async def test_a_look_at_some_runs_leaves_the_others_alone(tmp_path: Path) -> None:
    """Young leases are looked at often; an old one with hundreds of processes is not looked at along with them."""
    with (
        guard_in(tmp_path) as guard,
        started(sys.executable, "-c", HOLDER) as old,
        started(sys.executable, "-c", HOLDER) as young,
    ):
        let_in(guard, old.pid, "old", "gpu_lock:0")
        let_in(guard, young.pid, "young", "gpu_lock:1")
        await until(lambda: guard.runs.members("old") and guard.runs.members("young"))
        children = gives_birth(old), gives_birth(young)
        await guard.runs.look(leases=["young"])
        assert is_member(guard, "young", children[1])
        assert not is_member(guard, "old", children[0])
        await guard.runs.look()
        assert is_member(guard, "old", children[0])


def test_a_birth_is_told() -> None:
    """Nobody looks for children while this stands still."""
    births = Births()
    before = births.mark()
    with started("sleep", "60"):
        assert before is None or births.mark() != before


def test_where_births_are_not_counted_nobody_relies_on_it() -> None:
    """Some containers show a /proc of their own, whose last pid stands still: so the number is tried first."""
    assert Births(lambda: 4711).mark() is None
    assert Births(lambda: None).mark() is None
