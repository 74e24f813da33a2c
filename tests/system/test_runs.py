"""Real processes that fork, double-fork, lose their parents, refuse to die and get each other's pids."""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import anyio
import pytest

from gpulockd.hardware.processes.ending import end_run
from gpulockd.hardware.processes.following import Runs
from gpulockd.hardware.processes.identity import (
    HiddenProcess,
    Process,
    alive,
    has_ended,
    identify,
    open_pidfd,
    process_of,
    send,
    stat_of,
)
from gpulockd.hardware.processes.names import describe
from gpulockd.hardware.processes.peer import Peer, peer_of, users_of
from gpulockd.hardware.processes.table import Memories, read_file_of, read_table, take_table, user_of
from gpulockd.hardware.processes.watch import Watch
from gpulockd.hardware.runs import run_of
from tests.states import until

ROOT = Path(__file__).resolve().parents[2]

COMMON = """
import ctypes, json, os, signal, socket, subprocess, sys, threading, time
def say(*words): os.write(1, (' '.join(map(str, words)) + '\\n').encode())  # whole lines, whoever else writes
def rest(): time.sleep(600)
def child(body):
    pid = os.fork()
    if pid == 0:
        try: body()
        finally: os._exit(0)
    return pid
"""


MARK = {"GPULOCKD_TEST_OF_RUNS": str(os.getpid())}


def _can_unshare() -> bool:
    if os.geteuid() != 0:
        return False
    tried = subprocess.run(["unshare", "--pid", "--fork", "--mount-proc", "true"], capture_output=True, timeout=60)
    return tried.returncode == 0


needs_namespaces = pytest.mark.skipif(not _can_unshare(), reason="needs root and pid namespaces (unshare --pid)")


def marked() -> list[Process]:
    """All living processes that descend from programs of this test run, by their environment."""
    (mark,) = (f"{name}={value}".encode() for name, value in MARK.items())
    return [
        stat.process
        for stat in read_table().values()
        if not stat.is_dead and mark in read_file_of(stat.process, "environ").split(b"\0")
    ]


class Program:
    """A real Python program and what it prints, line by line."""

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self.popen = popen
        self._read = b""

    def line(self) -> str:
        """Its next line."""
        assert self.popen.stdout is not None
        while b"\n" not in self._read:
            ready, _, _ = select.select([self.popen.stdout], [], [], 60)
            assert ready, "the program says nothing"
            more = self.popen.stdout.read(4096)
            if not more:
                break
            self._read += more
        line, _, self._read = self._read.partition(b"\n")
        return line.decode().strip()

    def process(self) -> Process:
        """The process whose pid it prints next."""
        found = identify(int(self.line()))
        assert found is not None
        return found

    @property
    def myself(self) -> Process:
        """The program's own process."""
        found = identify(self.popen.pid)
        assert found is not None
        return found


@contextmanager
def program(body: str, *before: str, env: dict[str, str] | None = None) -> Iterator[Program]:
    """Run a program in a session of its own; at the end everything that it started and that is known here is killed."""
    command = [*before, sys.executable, "-c", COMMON + textwrap.dedent(body)]
    popen = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        bufsize=0,
        start_new_session=True,
        cwd=ROOT,
        env={**os.environ, **(env or {}), **MARK},
    )
    assert popen.stdout is not None
    try:
        yield Program(popen)
    finally:
        popen.kill()
        popen.wait(60)
        popen.stdout.close()
        for process in marked():
            send(process, signal.SIGKILL)


def test_the_start_time_tells_a_process_through_exec_in_another_thread() -> None:
    """An exec in any thread keeps pid and start time, so a holder that execs is the same holder."""
    with program("""
        say(os.getpid())
        time.sleep(0.3)
        threading.Thread(target=lambda: os.execv('/bin/sleep', ['sleep', '600'])).start()
        rest()
    """) as started:
        process = started.process()
        deadline = time.monotonic() + 30
        while (stat := stat_of(process.pid)) is not None and stat.name != "sleep":
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert stat is not None
        assert stat.process == process and alive(process)


def test_a_process_lives_until_its_last_thread_ends() -> None:
    """The first thread's end shows as a zombie in /proc while the others, and the card, go on."""
    number = {"x86_64": 60, "aarch64": 93}.get(os.uname().machine)
    if number is None:
        pytest.skip("the number of the system call `exit` is known for x86_64 and aarch64 only")
    with program(f"""
        def go_on():
            while open('/proc/self/stat').read().rpartition(')')[2].split()[0] != 'Z': time.sleep(0.01)
            say('on')
            rest()
        threading.Thread(target=go_on).start()
        say(os.getpid())
        ctypes.CDLL(None).syscall({number}, 0)
    """) as started:
        process = started.process()
        assert started.line() == "on"
        stat = stat_of(process.pid)
        assert stat is not None and stat.state == "Z", "the kernel shows a zombie"
        assert not stat.is_dead
        assert alive(process)
        assert run_of([process], read_table()) == {process}
        assert send(process, signal.SIGKILL)
        started.popen.wait(30)
        assert not alive(process)


def test_a_zombie_is_dead_though_nobody_has_waited_for_it() -> None:
    """A careless parent must not keep a GPU for its dead child."""
    with program("pid = child(lambda: None); say(pid); rest()") as started:
        pid = int(started.line())
        deadline = time.monotonic() + 30
        while (stat := stat_of(pid)) is not None and stat.state != "Z":
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert stat is not None and stat.is_dead
        assert not alive(stat.process)
        pidfd = open_pidfd(stat.process)
        assert pidfd is not None
        assert has_ended(pidfd) and process_of(pidfd) == stat.process
        os.close(pidfd)


def test_what_is_no_process_is_none() -> None:
    """Pid 0, negative pids, threads and pids beyond the last are never taken for one."""
    assert identify(0) is None and identify(-1) is None and identify(2**22 + 5) is None
    other = next((int(task) for task in os.listdir("/proc/self/task") if int(task) != os.getpid()), None)
    if other is not None:
        assert identify(other) is None
    myself = identify(os.getpid())
    assert myself is not None
    assert not send(Process(myself.pid, myself.started_ticks - 1), signal.SIGKILL), "another incarnation"


REUSE = """
    sys.path.insert(0, os.getcwd())
    import asyncio
    from gpulockd.hardware.processes.ending import end_run
    from gpulockd.hardware.processes.identity import Process, alive, identify, open_pidfd, process_of, send
    from gpulockd.hardware.processes.watch import Watch

    first = subprocess.Popen(['sleep', '600'])
    old = identify(first.pid)
    kept = open_pidfd(old)
    first.kill(); first.wait(); time.sleep(0.1)
    for _ in range(200):
        open('/proc/sys/kernel/ns_last_pid', 'w').write(str(old.pid - 1))
        second = subprocess.Popen(['sleep', '600'])
        if second.pid == old.pid:
            break
        second.kill(); second.wait()
    new = identify(second.pid)

    async def main():
        died = []
        with Watch(died.append) as watch:
            watch.add(old)
            await watch.wait([old])
        async def members():
            return frozenset({old})
        ended = await end_run(members, 0.2, kill_s=0.2)
        return died == [old], sorted(p.pid for p in ended.asked | ended.killed | ended.left)

    told, touched = asyncio.run(main())
    say(json.dumps({
        'same_pid': new.pid == old.pid, 'new_differs': new != old, 'old_alive': alive(old), 'sent': send(old, 9),
        'opened': open_pidfd(old), 'kept_is': process_of(kept), 'told': told, 'touched': touched,
        'stranger_lives': alive(new) and second.poll() is None}))
    second.kill(); second.wait()
"""


@needs_namespaces
def test_a_stranger_that_got_the_pid_is_never_signalled() -> None:
    """A daemon that remembers pids alone kills whoever has them next."""
    with program(REUSE, "unshare", "--pid", "--fork", "--mount-proc") as started:
        said = json.loads(started.line())
    assert said == {
        "same_pid": True,
        "new_differs": True,
        "old_alive": False,
        "sent": False,
        "opened": None,
        "kept_is": None,
        "told": True,
        "touched": [],
        "stranger_lives": True,
    }


REUSED_PEER = """
    sys.path.insert(0, os.getcwd())
    from gpulockd.hardware.processes.peer import peer_of

    def leave_socket_to_child():
        caller = socket.socket(socket.AF_UNIX); caller.connect(PATH)
        if KEPT: child(rest)
        os._exit(0)

    door = socket.socket(socket.AF_UNIX); door.bind(PATH); door.listen()
    pid = child(leave_socket_to_child)
    os.waitpid(pid, 0); time.sleep(0.1)
    heard, told = os.pipe()
    def stranger():
        if KEPT: os.setuid(65534)
        os.write(told, b'.')
        rest()
    for _ in range(200):
        open('/proc/sys/kernel/ns_last_pid', 'w').write(str(pid - 1))
        got = child(stranger)
        os.read(heard, 1)
        if got == pid:
            break
        os.kill(got, 9); os.waitpid(got, 0)
    connected, _ = door.accept()
    say(got == pid, peer_of(connected, ask_pidfd=ASK))
"""


@needs_namespaces
@pytest.mark.parametrize("ask_pidfd", [True, False], ids=["pidfd", "credentials"])
@pytest.mark.parametrize("kept", [False, True], ids=["closed", "kept-by-a-child"])
def test_a_stranger_with_the_pid_of_a_dead_peer_is_not_taken_for_it(
    tmp_path: Path, ask_pidfd: bool, kept: bool
) -> None:
    """Otherwise a program could have another user's process bound to its lease, and ended with it."""
    body = f"PATH, KEPT, ASK = {str(tmp_path / 's')!r}, {kept}, {ask_pidfd}\n" + textwrap.dedent(REUSED_PEER)
    with program(body, "unshare", "--pid", "--fork", "--mount-proc") as started:
        assert started.line() == "True None"


@needs_namespaces
def test_a_hidden_process_is_an_error_and_never_a_death() -> None:
    """With hidepid=2 every program of another user would look dead, and its GPU would be given away."""
    other = """
    victim = subprocess.Popen(['sleep', '600'])
    sys.path.insert(0, os.getcwd())
    from gpulockd.hardware.processes.identity import HiddenProcess, Process, alive, identify
    if os.fork() == 0:
        os.setgroups([]); os.setgid(65534); os.setuid(65534)
        for look in (lambda: identify(victim.pid), lambda: alive(Process(victim.pid, 1))):
            try: say('seen', look())
            except HiddenProcess as error: say('hidden', error.pid == victim.pid)
        os._exit(0)
    os.wait(); victim.kill()
    """
    mount = 'mount -t proc -o hidepid=2 proc /proc && exec "$@"'
    with program(other, "unshare", "--pid", "--fork", "--mount", "sh", "-c", mount, "sh") as started:
        assert [started.line(), started.line()] == ["hidden True", "hidden True"]
    assert "hidepid" in str(HiddenProcess(pid=1))


def listening(path: Path) -> socket.socket:
    """A listening unix socket."""
    door = socket.socket(socket.AF_UNIX)
    door.bind(str(path))
    door.listen()
    door.settimeout(60)
    return door


def called_by(door: socket.socket, ask_pidfd: bool) -> Peer | None:
    """Who connects next."""
    connected, _ = door.accept()
    with connected:
        return peer_of(connected, ask_pidfd=ask_pidfd)


CONNECT = "s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[-1] if len(sys.argv) > 1 else PATH)\n"


@pytest.mark.parametrize("ask_pidfd", [True, False], ids=["pidfd", "credentials"])
def test_the_kernel_says_who_connected(tmp_path: Path, ask_pidfd: bool) -> None:
    """Identity never comes from the message; both ways, since Debian 12's kernel has no pidfd of a peer."""
    with listening(tmp_path / "s") as door, program(f"PATH = {str(tmp_path / 's')!r}\n{CONNECT}rest()") as started:
        peer = called_by(door, ask_pidfd)
        assert peer is not None
        assert peer.process == started.myself and peer.pid == started.popen.pid
        assert (peer.uid, peer.gid) == (os.getuid(), os.getgid())
        assert not has_ended(peer.pidfd)
        assert not os.get_inheritable(peer.pidfd)
        started.popen.kill()
        started.popen.wait(30)
        assert has_ended(peer.pidfd)
        peer.close()


@pytest.mark.parametrize("ask_pidfd", [True, False], ids=["pidfd", "credentials"])
def test_a_peer_that_has_gone_is_nobody(tmp_path: Path, ask_pidfd: bool) -> None:
    """Its child may hold the socket still, and its pid may be anybody's."""
    with listening(tmp_path / "s") as door:
        with program(f"PATH = {str(tmp_path / 's')!r}\n{CONNECT}say('hi')") as started:
            assert started.line() == "hi"
            started.popen.wait(30)
            assert called_by(door, ask_pidfd) is None
        with program(f"PATH = {str(tmp_path / 's')!r}\n{CONNECT}say(child(rest))") as started:
            keeper = started.process()
            started.popen.wait(30)
            assert called_by(door, ask_pidfd) is None
            assert alive(keeper)


@needs_namespaces
@pytest.mark.parametrize("ask_pidfd", [True, False], ids=["pidfd", "credentials"])
def test_a_peer_in_a_container_has_the_pid_that_the_daemon_sees(tmp_path: Path, ask_pidfd: bool) -> None:
    """It calls itself pid 1; NVML, signals and /proc of the host need the host's number."""
    body = f"PATH = {str(tmp_path / 's')!r}\n{CONNECT}say(os.getpid()); rest()"
    with listening(tmp_path / "s") as door, program(body, "unshare", "--pid", "--fork", "--mount-proc") as started:
        peer = called_by(door, ask_pidfd)
        assert started.line() == "1"
        assert peer is not None and peer.pid > 1
        assert peer.process in run_of([started.myself], read_table()), "a child of the container's starter"
        assert send(peer.process, signal.SIGKILL), "even a container's pid 1"
        peer.close()


@needs_namespaces
def test_a_peer_outside_the_daemons_namespace_is_refused_with_the_cure(tmp_path: Path) -> None:
    """A daemon in a container of its own cannot watch programs outside it, and must not pretend to."""
    body = f"""
    sys.path.insert(0, os.getcwd())
    from gpulockd.hardware.processes.peer import InvisiblePeer, peer_of
    door = socket.socket(socket.AF_UNIX); door.bind({str(tmp_path / "s")!r}); door.listen(); say('ready')
    for ask in (True, False):
        one, _ = door.accept()
        try: say('seen', peer_of(one, ask_pidfd=ask))
        except InvisiblePeer as error: say('invisible', error.uid, error)
    """
    with program(body, "unshare", "--pid", "--fork", "--mount-proc") as started:
        assert started.line() == "ready"
        for _ in range(2):
            with socket.socket(socket.AF_UNIX) as mine:
                mine.connect(str(tmp_path / "s"))
                said = started.line()
            assert said.startswith(f"invisible {os.getuid()} ") and "--pid=host" in said


def test_the_users_of_a_process_are_all_four() -> None:
    """A program that gave up its rights after connecting keeps one of the four only."""
    assert users_of(os.getpid()) == {os.getuid(), os.geteuid()}
    assert users_of(2**22 + 5) == frozenset()


async def test_hundreds_of_deaths_are_each_told_once() -> None:
    """One loop, no thread each; also those that were dead before they were added."""
    told: list[Process] = []
    count = 200
    with program(f"""
        pids = [child(rest) for _ in range({count})]
        say(*pids)
        [os.waitpid(pid, 0) for pid in pids]
        rest()
    """) as started:
        processes = [found for pid in started.line().split() if (found := identify(int(pid)))]
        assert len(processes) == count
        for process in processes[:20]:
            send(process, signal.SIGKILL)
        before = len(os.listdir("/proc/self/fd"))
        with Watch(told.append) as watch:
            for process in processes:
                watch.add(process)
                watch.add(process)
            assert len(watch) == count and told == [], "nothing is told inside add"
            for process in processes[20:-1]:
                send(process, signal.SIGKILL)
            with anyio.fail_after(60):
                await watch.wait(processes[:-1])
            assert sorted(told) == sorted(processes[:-1])
            assert processes[-1] in watch and alive(processes[-1])
            watch.discard(processes[-1])
            assert len(watch) == 0
        assert len(os.listdir("/proc/self/fd")) == before


async def test_waiting_ends_for_the_discarded_and_can_be_cancelled() -> None:
    """A guard that forgets a process must not wait for it for ever."""
    with program("say(child(rest), child(rest)); rest()") as started:
        one, two = (found for pid in started.line().split() if (found := identify(int(pid))))
        with Watch() as watch:
            watch.add(one)
            watch.add(two)
            with anyio.move_on_after(0.05) as soon:
                await watch.wait([one])
            assert soon.cancelled_caught
            async with asyncio.TaskGroup() as tasks:
                waiting = tasks.create_task(watch.wait([one, two]))
                await asyncio.sleep(0)
                watch.discard(one)
                assert not waiting.done()
                watch.discard(two)
            await watch.wait([one])


async def test_a_pidfd_that_was_kept_finds_its_process_again() -> None:
    """The service manager keeps them for a daemon that died."""
    with program("rest()") as started:
        process = started.myself
        pidfd = open_pidfd(process)
        assert pidfd is not None
        assert process_of(pidfd) == process
        told: list[Process] = []
        with Watch(told.append) as watch:
            watch.add(process, pidfd)
            assert watch.pidfd(process) == pidfd
            started.popen.kill()
            with anyio.fail_after(30):
                await watch.wait([process])
            assert told == [process] and watch.pidfd(process) is None
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(pidfd)


async def test_children_of_a_killed_holder_stay_members() -> None:
    """kill -9 of a training script leaves its loaders on the card, in a session of their own or not."""
    told: list[tuple[str, Process]] = []
    with program("""
        def loader():
            os.setsid()
            say(child(rest))
            rest()
        say(child(loader))
        rest()
    """) as started:
        holder = started.myself
        members = {holder, started.process(), started.process()}
        with Runs(lambda lease, process: told.append((lease, process))) as runs:
            runs.hold("lease", holder)
            await runs.scan()
            assert runs.members("lease") == members
            started.popen.kill()
            started.popen.wait(30)
            await until(lambda: told == [("lease", holder)])
            await runs.scan()
            assert runs.members("lease") == members - {holder}
            assert runs.holds_another("lease") == frozenset()


async def test_a_daemon_that_starts_again_adopts_the_members_it_wrote_down() -> None:
    """The holder has died meanwhile, and one of its children has too; only the record still links the others."""
    told: list[tuple[str, Process]] = []
    with program("one, two = child(rest), child(rest); say(one); say(two); rest()") as started:
        holder, one, two = started.myself, started.process(), started.process()
        started.popen.kill()
        started.popen.wait(30)
        send(two, signal.SIGKILL)
        await until(lambda: not alive(two))
        with Runs(lambda lease, process: told.append((lease, process))) as runs:
            runs.hold("lease", holder)
            runs.adopt("lease", one)
            runs.adopt("lease", two)
            await until(lambda: {("lease", holder), ("lease", two)} == set(told))
            await runs.scan()
            assert runs.members("lease") == {one}
            assert len(told) == 2


async def test_a_double_fork_is_found_on_the_card_by_its_lease() -> None:
    """Born and orphaned between two scans, it is nobody's descendant; its environment still names the lease."""
    lease = "a1b2"
    with program("""
        def double():
            os.setsid()
            say(subprocess.Popen(['sleep', '600'], env={**os.environ, 'GPULOCKD_LEASE': 'a1b2'}).pid)
        os.waitpid(child(double), 0)
        say('orphaned')
        rest()
    """) as started:
        holder, escaped = started.myself, started.process()
        assert started.line() == "orphaned"
        with Runs() as runs:
            runs.hold(lease, holder)
            await runs.scan()
            assert runs.members(lease) == {holder}, "descent alone does not tell"
            await runs.scan(lambda _: [holder.pid])
            assert escaped not in runs.members(lease), "not on the card, not of the run"
            await runs.scan(lambda _: [holder.pid, escaped.pid])
            assert escaped in runs.members(lease)
            runs.drop(lease)
            assert runs.members(lease) == frozenset()


async def test_a_member_that_is_younger_than_the_table_stays() -> None:
    """A holder may join while a scan runs; that the table lacks it says nothing of its life."""
    with program("rest()") as started, Runs() as runs:
        runs.hold("lease", started.myself)
        late: list[Process] = []

        def cards(lease: str) -> list[int]:
            late.append(stack.enter_context(program("rest()")).myself)
            runs.hold(lease, late[0])
            return []

        with ExitStack() as stack:
            await runs.scan(cards)  # asks the cards after it has taken the table
            assert runs.members("lease") == {started.myself, late[0]}


async def test_a_look_at_the_members_finds_their_descendants() -> None:
    """It is cheap enough for several a second, so a child is known soon, also on a host with very many processes."""
    with program("""
        def shell():
            os.setsid()
            say(child(rest))
            rest()
        say(child(shell))
        rest()
    """) as started:
        holder = started.myself
        members = {holder, started.process(), started.process()}
        with program("say(child(rest)); rest()") as stranger, Runs() as runs:
            runs.hold("lease", holder)
            assert stranger.process() not in members
            await runs.look()
            assert runs.members("lease") == members
            started.popen.kill()
            started.popen.wait(30)
            await until(lambda: holder not in runs.members("lease"))
            await runs.look()
            assert runs.members("lease") == members - {holder}


async def test_following_finds_children_without_being_asked() -> None:
    """While a run is held it is looked through each second; a new holder makes a scan due at once."""
    with program("say(child(lambda: (time.sleep(0.5), say(child(rest)), rest()))); rest()") as started:
        holder, child = started.myself, started.process()
        with Runs() as runs:
            async with asyncio.TaskGroup() as tasks:
                following = tasks.create_task(runs.follow(interval_s=0.2))
                await asyncio.sleep(0)
                runs.hold("lease", holder)
                await until(lambda: child in runs.members("lease"))
                grandchild = await asyncio.to_thread(started.process)
                await until(lambda: grandchild in runs.members("lease"))
                following.cancel()


async def test_ending_asks_first_and_kills_what_stays() -> None:
    """Who obeys has its grace to save its work; who ignores it, was stopped or was born late is killed."""
    with program("""
        def stubborn():
            signal.signal(signal.SIGTERM, lambda *_: say('asked', child(rest)))
            os.write(told, b'.')
            while True: rest()
        def obedient():
            signal.signal(signal.SIGTERM, lambda *_: (say('saved'), os._exit(0)))
            os.write(told, b'.')
            rest()
        heard, told = os.pipe()
        one, two = child(stubborn), child(obedient)
        os.read(heard, 1), os.read(heard, 1)
        os.kill(two, signal.SIGSTOP)
        say(one); say(two)
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
        rest()
    """) as started:
        holder, stubborn, obedient = started.myself, started.process(), started.process()
        with program("rest()") as innocent, Runs() as runs:
            runs.hold("lease", holder)

            async def members() -> Collection[Process]:
                await runs.scan()
                return runs.members("lease")

            with anyio.fail_after(60):
                ended = await end_run(members, grace_s=4.0)
            assert ended.is_over and not ended.forbidden
            assert {holder, stubborn, obedient} <= ended.asked
            said = {started.line(), started.line()}
            late = next(int(line.split()[1]) for line in said if line.startswith("asked"))
            assert "saved" in said, "a stopped process was continued, so that it could obey"
            assert stubborn in ended.killed and obedient not in ended.killed
            assert identify(late) is None or late in {process.pid for process in ended.asked | ended.killed}
            assert alive(innocent.myself)


async def test_a_run_that_answers_by_new_processes_is_asked_a_few_times_and_then_killed() -> None:
    """Each of them is asked, and chasing them as fast as they come would be a storm of signals and looks."""
    with program("""
        def again(*_):
            say('asked')
            if os.fork(): os._exit(0)
        signal.signal(signal.SIGTERM, again)
        say('go')
        while True: time.sleep(600)
    """) as started:
        assert started.line() == "go"
        looks = 0

        async def members() -> Collection[Process]:
            nonlocal looks
            looks += 1
            return marked()

        with anyio.fail_after(60):
            ended = await end_run(members, grace_s=5.0)
        assert ended.is_over and ended.killed
        assert 2 <= len(ended.asked) <= 26, "once each, and not more often than five times a second"
        assert looks <= 150
        assert marked() == []


async def test_a_fork_in_the_middle_of_the_killing_does_not_escape() -> None:
    """Killed while it forks, a process loses its child to pid 1; stopped first, it keeps it."""
    with program("""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        for n in range(10**6):
            if n == 6: say('go')
            if os.fork() == 0: break
            time.sleep(0.01)
        time.sleep(1200)
    """) as started:
        assert started.line() == "go"
        holder = started.myself
        with Runs() as runs:
            runs.hold("lease", holder)

            async def members() -> Collection[Process]:
                await runs.scan()
                return runs.members("lease")

            with anyio.fail_after(60):
                ended = await end_run(members, grace_s=0.2)
        assert ended.is_over and holder in ended.killed and len(ended.killed) > 5
        assert marked() == []


async def test_a_member_with_another_lease_is_asked_last() -> None:
    """Its other lease is lost with it, so it may leave first."""
    with program("""
        def noted(name, work_s):
            signal.signal(signal.SIGTERM, lambda *_: (time.sleep(work_s), say(name), os._exit(0)))
            os.write(told, b'.')
            rest()
        heard, told = os.pipe()
        one, two = child(lambda: noted('keeper', 0)), child(lambda: noted('plain', 0.5))
        os.read(heard, 1), os.read(heard, 1)
        say(one); say(two)
        rest()
    """) as started:
        holder, keeper, plain = started.myself, started.process(), started.process()
        with Runs() as runs:
            runs.hold("lease", holder)
            runs.hold("other", keeper)
            await runs.scan()
            last = runs.holds_another("lease")
            assert last == {keeper}
            assert runs.leases_of(keeper) == {"lease", "other"}

            async def members() -> Collection[Process]:
                await runs.scan()
                return runs.members("lease")

            with anyio.fail_after(60):
                ended = await end_run(members, 20.0, last)
            assert ended.is_over and {holder, keeper, plain} == ended.asked
            assert [started.line(), started.line()] == ["plain", "keeper"]


async def test_a_holder_that_leaves_within_the_grace_is_not_killed() -> None:
    """It said `leave`, so it is no member any more, and works on without the GPU."""
    with program("signal.signal(signal.SIGTERM, lambda *_: say('leaving')); say('go')\nwhile True: rest()") as started:
        assert started.line() == "go"
        holder = started.myself
        left = False

        async def members() -> Collection[Process]:
            return [] if left else [holder]

        async with asyncio.TaskGroup() as tasks:
            ending = tasks.create_task(end_run(members, 60.0))
            assert await asyncio.to_thread(started.line) == "leaving"
            left = True
            ended = await ending
        assert ended.is_over and ended.asked == {holder} and not ended.killed
        assert alive(holder)
        stat = stat_of(holder.pid)
        assert stat is not None and stat.state != "T", "it was not left stopped"


async def test_who_leaves_between_the_stop_and_the_kill_goes_on() -> None:
    """Its `leave` may arrive while it is stopped already; nobody else would ever continue it."""
    with program("say('go')\nwhile True: time.sleep(0.05)") as started:
        assert started.line() == "go"
        holder = started.myself
        stopped = False

        async def members() -> Collection[Process]:
            nonlocal stopped
            stat = stat_of(holder.pid)
            stopped = stopped or (stat is not None and stat.state == "T")
            return [] if stopped else [holder]

        ended = await end_run(members, 0)
        assert stopped and ended.is_over and not ended.asked and not ended.killed
        await until(lambda: (stat := stat_of(holder.pid)) is not None and stat.state != "T")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to start a daemon without the right to kill")
def test_a_run_of_another_user_without_the_right_to_kill_is_said() -> None:
    """Without CAP_KILL the GPU is quarantined, and the text must name the reason."""
    body = """
    victim = subprocess.Popen(['sleep', '600'])
    sys.path.insert(0, os.getcwd())
    import asyncio
    from gpulockd.hardware.processes.ending import end_run
    from gpulockd.hardware.processes.identity import identify
    import anyio._backends._asyncio
    if os.fork() == 0:
        os.setgroups([]); os.setgid(65534); os.setuid(65534)
        process = identify(victim.pid)
        async def members(): return [process]
        ended = asyncio.run(end_run(members, 0.2, kill_s=0.2))
        say(ended.is_over, len(ended.killed), ended.left == ended.forbidden == {process})
        os._exit(0)
    os.wait(); victim.kill()
    """
    with program(body) as started:
        assert started.line() == "False 0 True"


async def test_one_that_cannot_die_is_named() -> None:
    """A frozen process stands for one in a driver call that never returns: KILL stays pending."""
    folder = Path("/sys/fs/cgroup/freezer")
    if os.geteuid() != 0 or not folder.is_dir() or not os.access(folder, os.W_OK):
        pytest.skip("needs root and the freezer cgroup (version 1)")
    box = folder / f"p-{os.getpid()}"
    box.mkdir()
    try:
        with program("rest()") as started:
            holder = started.myself
            (box / "cgroup.procs").write_text(str(holder.pid))
            (box / "freezer.state").write_text("FROZEN")
            await until(lambda: (box / "freezer.state").read_text().strip() == "FROZEN")

            async def members() -> Collection[Process]:
                return run_of([holder], await take_table())

            with anyio.fail_after(60):
                ended = await end_run(members, 0.3, kill_s=0.3)
            assert ended.left == {holder} and not ended.forbidden and holder in ended.killed
            (box / "freezer.state").write_text("THAWED")
            await until(lambda: not alive(holder))
    finally:
        (box / "freezer.state").write_text("THAWED")
        with suppress(OSError):
            box.rmdir()


async def test_ending_never_touches_the_one_that_ends() -> None:
    """A daemon that was started from a shell that holds a lease is a descendant of the holder."""
    myself = identify(os.getpid())
    assert myself is not None

    async def members() -> Collection[Process]:
        return [myself]

    ended = await end_run(members, 0.1, kill_s=0.1)
    assert not ended.asked and not ended.killed and ended.is_over


async def test_a_process_is_described_without_its_arguments(tmp_path: Path) -> None:
    """Logs and events are read by others than those who may see a token."""
    script = tmp_path / "train.py"
    script.write_text("import time; print('go', flush=True); time.sleep(600)")
    command = [sys.executable, str(script), "--token", "secret"]
    popen = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert popen.stdout is not None and popen.stdout.readline() == "go\n"
        process = identify(popen.pid)
        assert process is not None and user_of(process) == os.getuid()
        said = await describe(process, Memories(deadline_s=60))
        assert said.endswith(f" train.py (pid {popen.pid}, user {_me()})") and "secret" not in said
        said = await describe(process, Memories(deadline_s=0))
        assert said.startswith("python") and "train.py" not in said, "one that does not answer has the kernel's name"
        assert await Memories(deadline_s=0).leases([process]) == {}
    finally:
        popen.kill()
        popen.communicate()
    assert await describe(process, Memories()) == f"(pid {process.pid}, gone)"


def _me() -> str:
    import pwd

    return pwd.getpwuid(os.getuid()).pw_name
