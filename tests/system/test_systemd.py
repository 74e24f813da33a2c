"""The service under real systemd, in a machine of its own: killed, hung, without its store, reloaded, removed."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from tests.system import machine
from tests.system.machine import PROGRAM, PYTHON, Machine

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(machine.lacking() is not None, reason=machine.lacking() or ""),
]

NEXT_GRANT_WITHIN_S = 10.0
"""After the daemon is back, for what a holder that died meanwhile has left: two seconds on a quiet machine (it is
printed); a session alone would take 20 s."""

CONFIG = "gpus: {simulate: 2}\n"

HOLDER = """
import os, sys, time
from gpulockd import gpu_lock
with gpu_lock(*sys.argv[2:], task=sys.argv[1]) as lease:
    print(os.getpid(), time.monotonic(), flush=True)
    sys.stdin.readline()
    print("lost" if lease.lost.is_set() else "kept", flush=True)
"""

ASK = """
import http.client, json, sys
c = http.client.HTTPConnection(sys.argv[1], 8788, timeout=30)
c.request("GET", sys.argv[2])
print(c.getresponse().read().decode())
"""

SHORT_WATCHDOG = "[Service]\nWatchdogSec=6\n"


@pytest.fixture(scope="module")
def box() -> Iterator[Machine]:
    """A machine in which the service has been installed and runs."""
    with machine.booted() as made:
        made.write("/etc/gpulockd/config.yml", CONFIG)
        made.write("/etc/systemd/system/gpulockd.service.d/watchdog.conf", SHORT_WATCHDOG)
        made.run(PROGRAM, "install-service", "--program", PROGRAM)
        yield made


def _api(box: Machine, path: str, host: str = "127.0.0.1") -> Any:
    return json.loads(box.said(PYTHON, "-c", ASK, host, path))


def _main_pid(box: Machine, unit: str = "gpulockd") -> int:
    return int(box.show(unit, "MainPID"))


def _restarts(box: Machine) -> int:
    return int(box.show("gpulockd", "NRestarts"))


def _active(box: Machine, unit: str = "gpulockd") -> bool:
    return box.show(unit, "ActiveState") == "active"


def _back(box: Machine, before: int) -> None:
    """Wait until systemd has started the daemon again and it says that it is ready."""
    box.until(lambda: _main_pid(box) not in (0, before) and _active(box))


def _ask_for(box: Machine, task: str, *keys: str) -> subprocess.Popen[str]:
    """Start a holder that is neither root nor the daemon's user, but of the group."""
    user = ("setpriv", "--reuid=65534", "--regid=gpulockd", "--clear-groups")
    return box.start(*user, PYTHON, "-c", HOLDER, task, *keys)


def _hold(box: Machine, task: str, *keys: str) -> tuple[subprocess.Popen[str], int]:
    """Let somebody hold a gpu; return who, and their pid inside."""
    holder = _ask_for(box, task, *keys)
    assert holder.stdout is not None
    return holder, int(holder.stdout.readline().split()[0])


def _let_go(holder: subprocess.Popen[str]) -> str:
    """End the holder's body and return what it says of its lease."""
    return holder.communicate("\n", timeout=60)[0].strip()


def _tasks(box: Machine) -> list[str]:
    return sorted(lease["task"] for lease in _api(box, "/api/v1/leases")["leases"])


def test_the_daemon_has_one_right_and_answers_on_all_its_sockets(box: Machine) -> None:
    """A user of its own, CAP_KILL, and no network but the sockets that systemd opened for it."""
    status = dict(
        line.split(":\t", 1)
        for line in box.run("cat", f"/proc/{_main_pid(box)}/status").stdout.splitlines()
        if ":\t" in line
    )
    cap_kill = f"{1 << 5:016x}"
    assert [status[name] for name in ("CapEff", "CapPrm", "CapAmb", "CapBnd")] == [cap_kill] * 4
    assert status["NoNewPrivs"] == "1" and status["Seccomp"] == "2"
    assert status["Uid"].split()[0] == box.said("id", "-u", "gpulockd")
    assert len(_api(box, "/api/v1/gpus")["gpus"]) == 2
    if "::1" in box.run("cat", "/proc/net/if_inet6", check=False).stdout or _active(box, "gpulockd-http6.socket"):
        assert len(_api(box, "/api/v1/gpus", "::1")["gpus"]) == 2
    assert box.run(PROGRAM, "status").returncode == 0


def test_a_killed_daemon_comes_back_to_the_same_store_and_the_holder_keeps_its_gpu(box: Machine) -> None:
    """A crash of the daemon is nothing to those who hold."""
    store, daemon, restarts = _main_pid(box, "gpulockd-store"), _main_pid(box), _restarts(box)
    holder, _ = _hold(box, "over-a-crash")
    box.run("systemctl", "kill", "-s", "KILL", "gpulockd")
    _back(box, daemon)
    assert _restarts(box) == restarts + 1
    assert _main_pid(box, "gpulockd-store") == store
    assert _tasks(box) == ["over-a-crash"]
    assert _let_go(holder) == "kept"


def test_a_hung_daemon_is_started_again(box: Machine) -> None:
    """A stopped process answers nobody and never ends by itself."""
    daemon, restarts = _main_pid(box), _restarts(box)
    box.run("kill", "-STOP", str(daemon))
    _back(box, daemon)
    assert _restarts(box) == restarts + 1
    box.until(lambda: "Watchdog timeout" in box.journal("gpulockd"))


def test_a_program_that_connects_while_the_daemon_is_away_is_answered_by_the_next_one(box: Machine) -> None:
    """Systemd listens; nobody sees a refused connection."""
    box.run("systemctl", "stop", "gpulockd")
    assert not _active(box)
    assert len(_api(box, "/api/v1/gpus")["gpus"]) == 2
    assert _active(box)


def test_a_killed_store_is_started_by_systemd_and_loses_nothing(box: Machine) -> None:
    """The daemon adopts the new one at once, and the holder asserts nothing anew."""
    store, daemon = _main_pid(box, "gpulockd-store"), _main_pid(box)
    holder, _ = _hold(box, "over-a-store")
    box.run("systemctl", "kill", "-s", "KILL", "gpulockd-store")
    box.until(lambda: _main_pid(box, "gpulockd-store") not in (0, store) and _active(box, "gpulockd-store"))
    box.until(lambda: _api(box, "/api/v1/leases").get("leases") is not None)
    assert _tasks(box) == ["over-a-store"]
    assert _main_pid(box) == daemon
    assert _let_go(holder) == "kept"
    cgroup = box.said("sh", "-c", f"cat /proc/{_main_pid(box, 'gpulockd-store')}/cgroup")
    assert "gpulockd-store.service" in cgroup


def test_the_pidfds_of_those_inside_are_in_systemds_keeping(box: Machine) -> None:
    """They are what the next daemon has of them after a crash."""
    box.until(lambda: box.show("gpulockd", "NFileDescriptorStore") == "0")
    holder, _ = _hold(box, "kept")
    box.until(lambda: box.show("gpulockd", "NFileDescriptorStore") == "1")
    assert _let_go(holder) == "kept"
    box.until(lambda: box.show("gpulockd", "NFileDescriptorStore") == "0")


@pytest.mark.parametrize("how", ["KILL", "STOP"])
def test_a_holder_that_dies_while_the_daemon_is_away_is_followed_and_a_stranger_with_its_pid_is_left_alone(
    box: Machine, how: str
) -> None:
    """Killed or hung: the next one waits for the daemon and two seconds, and a pid says nothing of who it is."""
    stays, _ = _hold(box, "stays", "gpu_lock:1")
    dies, pid = _hold(box, "dies", "gpu_lock:0")
    daemon = _main_pid(box)
    waiter = _ask_for(box, "next", "gpu_lock:0")
    box.until(lambda: _api(box, "/api/v1/queue")["queue"])
    box.run("kill", f"-{how}", str(daemon))
    box.run("kill", "-KILL", str(pid))
    dies.wait(30)
    stranger = box.stranger(pid)
    _back(box, daemon)
    back_s = int(box.show("gpulockd", "ActiveEnterTimestampMonotonic")) / 1e6
    assert waiter.stdout is not None
    _, granted_s = waiter.stdout.readline().split()
    print(f"granted {float(granted_s) - back_s:.2f} s after the daemon was back")
    assert float(granted_s) - back_s <= NEXT_GRANT_WITHIN_S
    assert _tasks(box) == ["next", "stays"]
    assert stranger.poll() is None
    assert (_let_go(stays), _let_go(waiter)) == ("kept", "kept")
    stranger.kill()


def test_a_reload_leaves_the_daemon_running(box: Machine) -> None:
    """`systemctl reload` must not end what holds the queue."""
    daemon = _main_pid(box)
    box.run("systemctl", "reload", "gpulockd")
    assert _main_pid(box) == daemon
    box.until(lambda: "reload" in box.journal("gpulockd"))
    assert _active(box)


def test_a_token_that_systemd_holds_is_the_one_that_counts(box: Machine) -> None:
    """Secrets come from one place that only root reads, not from the daemon's own files."""
    box.write("/etc/gpulockd/credentials/api.token", "a-token-of-systemd\n")
    box.run("systemctl", "restart", "gpulockd")
    write = "import http.client, sys; c = http.client.HTTPConnection('127.0.0.1', 8788, timeout=30); "
    write += "c.request('DELETE', '/api/v1/leases/gpu_lock:0', headers={'Authorization': 'Bearer ' + sys.argv[1]}); "
    write += "print(c.getresponse().status)"
    assert box.said(PYTHON, "-c", write, "a-wrong-token") == "401"
    assert box.said(PYTHON, "-c", write, "a-token-of-systemd") != "401"


def test_what_cannot_be_used_is_said_and_not_tried_for_ever(box: Machine) -> None:
    """A wrong configuration needs a person: MONITOR_SERVICE_DOWN, and a unit that has failed."""
    box.write("/etc/gpulockd/config.yml", "gpus: {simulat: 2}\n")
    box.run("systemctl", "restart", "gpulockd", check=False)
    box.until(lambda: box.show("gpulockd", "ActiveState") == "failed")
    box.until(lambda: "MONITOR_SERVICE_DOWN gpulockd " in box.journal("gpulockd-failed@gpulockd"))
    box.write("/etc/gpulockd/config.yml", CONFIG)
    box.run("systemctl", "start", "gpulockd")


def test_a_backup_is_taken_every_night(box: Machine) -> None:
    """Nobody remembers to; and the unit must see store and file, though it has no right and no network."""
    assert _active(box, "gpulockd-backup.timer") and box.show("gpulockd-backup.timer", "Persistent") == "yes"
    box.run("systemctl", "start", "gpulockd-backup.service")
    found = json.loads(box.said(PROGRAM, "backup", "--list", "--json", "--state-dir", "/var/lib/gpulockd"))
    assert found and found[0]["trouble"] is None and found[0]["revision"] is not None
    assert box.said("stat", "-c", "%a %U", found[0]["file"]) == "600 gpulockd"
    assert '"simulate":2' in box.said("zcat", found[0]["file"])
    assert _active(box)


def test_removal_ends_everything_and_leaves_the_state(box: Machine) -> None:
    """Whoever installs it again finds the queue's history and the token."""
    done = box.run(PROGRAM, "install-service", "--uninstall")
    assert "removing: /etc/systemd/system/gpulockd.service" in done.stdout
    assert box.run("pgrep", "-u", "gpulockd", check=False).stdout == ""
    assert box.run("systemctl", "cat", "gpulockd", check=False).returncode != 0
    assert "store" in box.run("ls", "/var/lib/gpulockd").stdout
