"""The daemon's dealings with systemd, one at a time, in small services of their own: pidfds that outlive a crash, and a
watchdog that is fed by progress only.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.system import machine
from tests.system.machine import PYTHON, Machine

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(machine.lacking() is not None, reason=machine.lacking() or ""),
]

UNIT = f"""
[Service]
Type=notify
NotifyAccess=main
ExecStart={PYTHON} /etc/probe/%N.py
Restart=always
RestartSec=100ms
FileDescriptorStoreMax=16
WatchdogSec=6
User=probe
AmbientCapabilities=CAP_KILL
CapabilityBoundingSet=CAP_KILL
NoNewPrivileges=yes
RuntimeDirectory=%N
RuntimeDirectoryPreserve=yes
"""

KEEPER = """
# Keeps the pidfd of the process that it is told of; at its next start it ends what it finds.
import json, os, signal, time
from gpulockd.daemon import fdstore
from gpulockd.daemon.notify import notify

def ended(pidfd):
    pid = fdstore.pid_of(pidfd)
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except ProcessLookupError:
        return [pid, "was gone"]
    return [pid, "ended"]

found = {name: ended(pidfd) for name, pidfd in fdstore.receive().pidfds()}
for name in found:
    fdstore.forget(name)
if os.path.exists("/run/wanted"):
    with open("/run/wanted") as file:
        wanted = json.load(file)
    for name, pid in {} if found else wanted.items():
        assert fdstore.keep(name, os.pidfd_open(pid))
with open("/run/keeper/found.new", "w") as file:
    json.dump([time.monotonic_ns(), found], file)
os.replace("/run/keeper/found.new", "/run/keeper/found")
notify("READY=1")
while True:
    notify("WATCHDOG=1")
    time.sleep(0.5)
"""

WORKER = """
# Two services, of which one stops going round once it is told to.
import os
import anyio
from gpulockd.daemon import logs, notify, watchdog

async def turn(pulse, until):
    while not os.path.exists(until):
        pulse.beat()
        await anyio.sleep(0.1)
    await anyio.sleep_forever()

async def main():
    logs.set_up()
    pulses = watchdog.Pulses()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(turn, pulses.add("timer", within_s=3.0), "/run/stuck")
        tasks.start_soon(turn, pulses.add("recorder", within_s=3.0), "/run/never")
        notify.notify("READY=1")
        await tasks.start(watchdog.run, pulses, notify.watchdog_interval_s())

anyio.run(main)
"""


@pytest.fixture(scope="module")
def box() -> Iterator[Machine]:
    """A machine with the two small services."""
    with machine.booted() as made:
        made.run("useradd", "--system", "probe")
        for name, text in (("keeper", KEEPER), ("worker", WORKER)):
            made.write(f"/etc/probe/{name}.py", text)
            made.write(f"/etc/systemd/system/{name}.service", UNIT)
        made.run("systemctl", "daemon-reload")
        yield made


def _found(box: Machine) -> Any:
    return json.loads(box.run("cat", "/run/keeper/found").stdout)


def _victim(box: Machine) -> int:
    """Start a process of another user and return its pid inside."""
    made = box.start("setpriv", "--reuid=65534", "--clear-groups", "sh", "-c", "echo $$; exec sleep 600")
    assert made.stdout is not None
    return int(made.stdout.readline())


def _lives(box: Machine, pid: int) -> bool:
    return box.run("kill", "-0", str(pid), check=False).returncode == 0


def test_pidfds_survive_a_kill_of_their_keeper_and_never_mean_a_stranger(box: Machine) -> None:
    """After a crash the daemon ends exactly the processes that it had admitted, whoever has their pids by then."""
    lives, dies = _victim(box), _victim(box)
    box.write("/run/wanted", json.dumps({"lives": lives, "dies": dies}))
    box.run("systemctl", "start", "keeper")
    assert _found(box)[1] == {}
    assert box.show("keeper", "NFileDescriptorStore") == "2"
    started = _found(box)[0]
    box.run("kill", "-KILL", str(dies))
    box.until(lambda: not _lives(box, dies))
    stranger = box.stranger(dies)
    box.run("systemctl", "kill", "-s", "KILL", "keeper")
    box.until(lambda: _found(box)[0] != started)  # its pid may come again, as the stranger's does
    assert _found(box)[1] == {"lives": [lives, "ended"], "dies": [-1, "was gone"]}
    box.until(lambda: not _lives(box, lives))  # its parent outside has to reap it
    assert _lives(box, dies) and stranger.poll() is None
    box.until(lambda: box.show("keeper", "NFileDescriptorStore") == "0")


def test_a_service_that_stops_going_round_costs_the_daemon_its_life(box: Machine) -> None:
    """The loop turns and the other service works, so a watchdog that is fed by a clock would see nothing."""
    box.run("systemctl", "start", "worker")
    first = box.show("worker", "MainPID")
    box.until(lambda: int(box.show("worker", "WatchdogTimestampMonotonic")) > 0)
    box.write("/run/stuck", "")
    box.until(lambda: box.show("worker", "MainPID") not in ("0", first))
    box.until(lambda: "Watchdog timeout" in box.journal("worker"))
    said = box.journal("worker")
    assert "recorder" not in said.split("no progress: ", 1)[1].splitlines()[0]
    box.run("rm", "/run/stuck")
    box.run("systemctl", "stop", "worker")
