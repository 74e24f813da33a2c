"""Machines with networks of their own, and the lines between them, which nftables cuts, thins and resets.

Each machine is a network namespace of the kernel. In the middle is the one of the store; a line to it is a pair of
virtual cards. What a rule drops is dropped where it arrives, as on a way that lost it, so the sender's kernel knows
nothing of it.

Its law: nothing outlives the run. No namespace has a name: the kernel takes it, with its lines and rules, as soon as
the process that stands for it is dead, and that one is killed with whoever started it. Nothing is changed in the
namespace of the machine itself, so no address and no rule can collide with its own.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from types import TracebackType
from typing import Literal, Self

from tests.states import until_blocking
from tests.system.workers_started import Crew, Started

STORE_ADDRESS = "198.18.0.1"
"""Of the addresses that are set apart for benchmarks of networks."""
STORE_PORT = 6379

Fate = Literal["arrives", "lost", "reset"] | int
"""What becomes of a packet: it arrives, is lost, is answered with a TCP reset, or is lost in so many of 100 cases."""

TOOLS = ("ip", "nft", "nsenter", "setpriv", "ss", "unshare")
_PROBE = "table inet probe { chain c { type filter hook input priority 0; numgen random mod 100 < 30 drop; }; }"


def _tool(name: str) -> str | None:
    """Where a program is; those of the administrator are not in everybody's path."""
    return shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")


def lacking() -> str:
    """Why there can be no such machines here; empty if there can."""
    if os.geteuid() != 0:
        return "network namespaces need root (the proxy's tests do without)"
    missing = [name for name in TOOLS if _tool(name) is None]
    if missing:
        return f"no {', '.join(missing)} (apt-get install nftables iproute2 util-linux)"
    try:
        _run("unshare", "--net", "--", "nft", _PROBE)
    except subprocess.CalledProcessError as refused:
        return f"the kernel gives no namespace with nftables: {refused.stderr.strip()[-200:]}"
    return ""


def _run(name: str, *words: str, given: str = "") -> str:
    """Run a tool; what it prints.

    :raises subprocess.CalledProcessError: if it fails
    """
    done = subprocess.run([_tool(name) or name, *words], input=given, capture_output=True, text=True, timeout=60)
    done.check_returncode()
    return done.stdout


class Namespace:
    """A network of its own, with nothing in it but its own loopback. `inside` before a command runs it there."""

    def __init__(self) -> None:
        command = [_tool("setpriv") or "", "--pdeathsig", "KILL", "--"]
        command += [_tool("unshare") or "", "--net", "--", "sleep", "infinity"]
        self._stands = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        until_blocking(self._is_apart)
        self.inside = (_tool("nsenter") or "", f"--net={self.path}", "--")
        self.run("ip", "link", "set", "lo", "up")

    @property
    def pid(self) -> int:
        """The process that stands for it."""
        return self._stands.pid

    @property
    def path(self) -> str:
        """Where the kernel shows it."""
        return f"/proc/{self.pid}/ns/net"

    def run(self, *words: str, given: str = "") -> str:
        """Run a tool in it."""
        return _run(self.inside[0], *self.inside[1:], _tool(words[0]) or "", *words[1:], given=given)

    def _is_apart(self) -> bool:
        assert self._stands.poll() is None, "the namespace could not be made"
        with contextlib.suppress(OSError):
            return os.readlink(self.path) != os.readlink("/proc/self/ns/net")
        return False

    def close(self) -> None:
        """Let the kernel take it, as soon as nobody is in it any more."""
        self._stands.kill()
        self._stands.wait()


class Host(Namespace):
    """A machine with a line to the store. `requests` go to the store and `replies` come back, each in its own way."""

    def __init__(self, middle: Namespace, number: int) -> None:
        super().__init__()
        self.address = f"198.18.0.{number + 1}"
        self._middle = middle
        self._number = number
        pair = f"host{number}"
        ends = ("netns", str(middle.pid), "type", "veth", "peer", "name", "store", "netns", str(self.pid))
        _run("ip", "link", "add", pair, *ends)
        middle.run("ip", "address", "add", f"{STORE_ADDRESS}/32", "peer", self.address, "dev", pair)
        middle.run("ip", "link", "set", pair, "up")
        self.run("ip", "address", "add", f"{self.address}/32", "peer", STORE_ADDRESS, "dev", "store")
        self.run("ip", "link", "set", "store", "up")

    def __repr__(self) -> str:
        return f"<Host {self.address} pid={self.pid}>"

    def line(self, *, requests: Fate = "arrives", replies: Fate = "arrives") -> None:
        """From now on this becomes of what is sent to the store, and of what the store sends."""
        _rules(self._middle, f"of_host{self._number}", self.address, requests)
        _rules(self, "of_store", STORE_ADDRESS, replies)

    def cut_off(self) -> None:
        """Nothing arrives, either way."""
        self.line(requests="lost", replies="lost")

    def restored(self) -> None:
        """Everything arrives."""
        self.line()

    def connections(self) -> int:
        """How many connections to the store it believes in."""
        return len(self.run("ss", "-Htn", "state", "established", "dst", STORE_ADDRESS).splitlines())

    def breaks(self) -> None:
        """End its connections to the store in its own kernel, which tells the store; over a cut line in vain, so that
        the store's ends stay half open. A kernel that cannot do so leaves them."""
        self.run("ss", "-HtnK", "dst", STORE_ADDRESS)


def _rules(where: Namespace, table: str, source: str, fate: Fate) -> None:
    """Let this become of what arrives in that namespace from that address."""
    if isinstance(fate, int):
        rule = f"ip saddr {source} numgen random mod 100 < {fate} drop"
    else:
        words = {"arrives": "accept", "lost": "drop", "reset": "meta l4proto tcp reject with tcp reset"}
        rule = f"ip saddr {source} {words[fate]}"
    made = f"table inet {table}\ndelete table inet {table}\n"
    made += f"table inet {table} {{ chain arriving {{ type filter hook input priority 0; {rule}; }}; }}\n"
    where.run("nft", "-f", "-", given=made)


class Network:
    """The store's namespace in the middle, and the machines around it. All are gone at the end."""

    def __init__(self, *, hosts: int) -> None:
        self._all = contextlib.ExitStack()
        self.middle = Namespace()
        self._all.callback(self.middle.close)
        self.middle.run("ip", "address", "add", f"{STORE_ADDRESS}/32", "dev", "lo")
        self.hosts: list[Host] = []
        for _ in range(hosts):
            self._connect()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._all.close()

    def _connect(self) -> None:
        host = Host(self.middle, len(self.hosts) + 1)
        self._all.callback(host.close)
        self.hosts.append(host)

    @property
    def listens(self) -> Sequence[str]:
        """Arguments of a server that listens to all machines, and to nobody else: no other network reaches it."""
        return ("--port", str(STORE_PORT), "--bind", STORE_ADDRESS, "--protected-mode", "no")

    @property
    def url(self) -> str:
        """That server, seen from a machine."""
        return f"redis://{STORE_ADDRESS}:{STORE_PORT}"


def started(crew: Crew, host: Namespace, *names: str) -> list[Started]:
    """Start programs that obey on that machine, and do not wait for them."""
    crew.prefix = host.inside
    return crew.start("obey", *names)
