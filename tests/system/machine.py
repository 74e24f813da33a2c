"""A small machine run by real systemd, in systemd-nspawn: this host's /usr, everything else new and gone at its end.

Its law: no process of it outlives the block, and nothing of this host but the files bound read-only is seen inside.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
UP_WITHIN_S = 90.0
COMMAND_WITHIN_S = 60.0

NOT_WANTED = ("systemd-firstboot.service", "redis-server.service", "valkey-server.service", "systemd-timesyncd.service")
"""What this host's /usr would start besides."""

PROGRAM = "/opt/gpulockd/bin/gpulockd"
PYTHON = "/opt/gpulockd/bin/python"


def lacking() -> str | None:
    """Return why no such machine can be had here, or None."""
    if os.getuid() != 0:
        return "not root, so no systemd-nspawn"
    missing = [name for name in ("systemd-nspawn", "nsenter") if shutil.which(name) is None]
    if missing:
        return f"no {missing[0]} (apt-get install systemd-container util-linux)"
    if not os.access("/lib/systemd/systemd", os.X_OK):
        return "no systemd to boot (apt-get install systemd)"
    if not shutil.which("dbus-daemon"):
        return "no dbus-daemon (apt-get install dbus)"
    return None


@dataclass
class Machine:
    """A booted machine; `leader` is the pid of its init on this host."""

    leader: int
    folder: Path
    children: list[subprocess.Popen[str]] = field(default_factory=list)

    def command(self, *words: str) -> list[str]:
        """Return the command that runs `words` inside, as root."""
        inside = ["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", "HOME=/root"]
        return ["nsenter", "-t", str(self.leader), "-m", "-u", "-i", "-n", "-p", "-C", "--", *inside, *words]

    def run(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command inside and return what it said."""
        done = subprocess.run(self.command(*words), capture_output=True, text=True, timeout=COMMAND_WITHIN_S)
        assert not check or done.returncode == 0, (
            f"{words}: {done.returncode}\n{done.stdout}{done.stderr}{self.journal()}"
        )
        return done

    def said(self, *words: str) -> str:
        """Return the first line that a command inside prints."""
        return self.run(*words).stdout.strip()

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Start a command inside and leave it running."""
        made = subprocess.Popen(self.command(*words), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.children.append(made)
        return made

    def show(self, unit: str, what: str) -> str:
        """Return one property of a unit."""
        return self.said("systemctl", "show", "--value", "-p", what, unit)

    def stranger(self, pid: int) -> subprocess.Popen[str]:
        """Start a process inside that has the pid of one that has ended."""
        last = f"echo {pid - 1} > /proc/sys/kernel/ns_last_pid; sleep 600 & echo $!; wait"
        # With this host's files: inside, /proc/sys is read-only. The kernel means the pid namespace of who writes.
        command = ["nsenter", "-t", str(self.leader), "-p", "--", "sh", "-c", last]
        for _ in range(50):
            made = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
            self.children.append(made)
            assert made.stdout is not None
            if int(made.stdout.readline()) == pid:
                return made
        raise AssertionError(f"pid {pid} could not be had again")

    def write(self, path: str, text: str) -> None:
        """Write a file inside."""
        made = subprocess.run(
            self.command("sh", "-c", f"mkdir -p $(dirname {path}) && cat >{path}"),
            input=text,
            text=True,
            timeout=COMMAND_WITHIN_S,
        )
        assert made.returncode == 0

    def journal(self, unit: str = "gpulockd*") -> str:
        """Return what a unit has said."""
        command = self.command("journalctl", "--no-pager", "-o", "cat", "-n", "80", "-u", unit)
        return subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_WITHIN_S).stdout

    def until(self, holds: Callable[[], object], within_s: float = 60.0) -> None:
        """Wait until `holds()` is true, and say what systemd says if it does not become so."""
        deadline = time.monotonic() + within_s
        while not holds():
            assert time.monotonic() < deadline, f"not within {within_s:g} s\n{self.journal()}"
            time.sleep(0.05)


@contextlib.contextmanager
def booted() -> Iterator[Machine]:
    """Boot a machine in which this package can be installed: `PROGRAM` is its command, `PYTHON` runs with it."""
    folder = Path(tempfile.mkdtemp(prefix="gpulockd-machine-", dir="/tmp"))
    folder.chmod(0o755)
    name = f"gpulockd-{secrets.token_hex(4)}"
    command = [
        *("systemd-nspawn", "--directory=/", "--volatile=yes", "--boot", "--register=no", "--keep-unit"),
        *("--private-network", "--console=pipe", f"--machine={name}", *_binds(folder)),
        *("systemd.unit=multi-user.target", *(f"systemd.mask={unit}" for unit in NOT_WANTED)),
    ]
    with (folder / "console").open("wb") as console:
        nspawn = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=console, stderr=console)
    machine: Machine | None = None
    try:
        machine = Machine(_leader(nspawn, folder), folder)
        _await_up(machine)
        yield machine
    finally:
        _end(nspawn, machine)
        shutil.rmtree(folder, ignore_errors=True)


def _binds(folder: Path) -> list[str]:
    """Return what is seen of this host: the package, its dependencies and, where it is not in /usr, the Python."""
    base = Path(sys.base_prefix).resolve()
    python = f"{base}/bin/python{sys.version_info[0]}.{sys.version_info[1]}"
    bound = {str(ROOT): "/opt/gpulockd/tree", _site(): "/opt/gpulockd/lib", str(folder / "bin"): "/opt/gpulockd/bin"}
    if not base.is_relative_to("/usr"):
        bound[str(base)] = "/opt/python"
        python = python.replace(str(base), "/opt/python")
    programs = folder / "bin"
    programs.mkdir()
    for name, rest in (("gpulockd", "-m gpulockd "), ("python", "")):
        # A shared libpython is looked for where this one was built, which is not seen inside.
        paths = "LD_LIBRARY_PATH=/opt/python/lib PYTHONPATH=/opt/gpulockd/tree:/opt/gpulockd/lib"
        text = f'#!/bin/sh\nexport {paths}\nexec {python} -B {rest}"$@"\n'
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    return [f"--bind-ro={here}:{there}" for here, there in bound.items()]


def _site() -> str:
    found = importlib.util.find_spec("msgspec")
    assert found is not None and found.origin is not None
    return str(Path(found.origin).parent.parent)


def _leader(nspawn: subprocess.Popen[bytes], folder: Path) -> int:
    deadline = time.monotonic() + UP_WITHIN_S
    while time.monotonic() < deadline:
        if nspawn.poll() is not None:
            said = (folder / "console").read_text().strip().splitlines()
            pytest.skip(f"systemd-nspawn does not work here: {said[-1] if said else nspawn.returncode}")
        for child in psutil.Process(nspawn.pid).children():
            with contextlib.suppress(psutil.NoSuchProcess):
                if child.name() == "systemd":
                    return child.pid
        time.sleep(0.05)
    raise AssertionError("systemd-nspawn started no systemd")


def _await_up(machine: Machine) -> None:
    deadline = time.monotonic() + UP_WITHIN_S
    state = ""
    while time.monotonic() < deadline:
        state = machine.run("systemctl", "is-system-running", check=False).stdout.strip()
        if state in ("running", "degraded"):
            return
        time.sleep(0.1)
    raise AssertionError(f"the machine did not come up: {state}\n{(machine.folder / 'console').read_text()}")


def _end(nspawn: subprocess.Popen[bytes], machine: Machine | None) -> None:
    """Pull the plug: the kernel ends all processes of a pid namespace whose init is gone."""
    if machine is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(machine.leader, signal.SIGKILL)
    try:
        nspawn.wait(20)
    except subprocess.TimeoutExpired:
        nspawn.kill()
        nspawn.wait()
    for child in machine.children if machine is not None else ():
        child.kill()
        child.communicate()
