"""The place of a drill: a private daemon with two simulated cards, its store, the programs, and a hand on all of it."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import sys
import time
from typing import Any

from gpulockd.cli import http
from gpulockd.daemon.storesocket import StoreSocket
from gpulockd.settings import Tree
from gpulockd.trial import host
from gpulockd.trial.drill.wire import Wire
from gpulockd.trial.host import Host, TrialBroke
from gpulockd.trial.party import Party, PartyLost

KEY, OTHER = "gpu_lock:0", "gpu_lock:1"
LOOK_S = 0.02
STARTS_WITHIN_S = 60.0


class Holder:
    """A program of the drill, and what it has said."""

    def __init__(self, party: Party, site: Site) -> None:
        self._party = party
        self._site = site

    def __repr__(self) -> str:
        return f"<Holder pid={self.pid}>"

    @property
    def pid(self) -> int:
        """Its process."""
        return self._party.pid

    async def ask(self, key: str = KEY, limits: dict[str, float] | None = None) -> None:
        """Let it ask for a GPU; its limits in seconds."""
        await self._party.tell({"do": "enter", "key": key, "limits": limits or {}})

    async def leave(self) -> None:
        """Let it leave the body."""
        await self._party.tell({"do": "leave"})

    async def entered(self, within_s: float) -> float:
        """When it began its body (on CLOCK_MONOTONIC, in seconds).

        :raises PartyLost: if it does not within `within_s`, or says something else
        """
        said = await self._said("entered", within_s)
        self._site.note(said)
        return float(said["at_s"])

    async def left(self, within_s: float) -> float:
        """When it had left, on the same clock."""
        return float((await self._said("left", within_s))["at_s"])

    async def silent(self, for_s: float) -> bool:
        """Whether it says nothing for so long: a holder that goes on, or a waiter that waits."""
        try:
            said = await self._party.said(for_s)
        except PartyLost:
            return self._party.is_running
        self._site.troubles.append(f"{said['said']} though it should not: {said.get('why', '')}".rstrip(": "))
        if said["said"] == "entered":
            self._site.note(said)
        return False

    def send(self, number: int) -> None:
        """Send a signal."""
        os.kill(self.pid, number)

    async def _said(self, word: str, within_s: float) -> dict[str, Any]:
        said: dict[str, Any] = await self._party.said(within_s)
        if said["said"] != word:
            raise PartyLost(f"a program said {said['said']} instead of {word}: {said.get('why', '')}".rstrip(": "))
        return said


class Site(Host):
    """A host on which everything can be killed, stopped, cut and emptied."""

    def __init__(self, tree: Tree, *, keep: bool = False) -> None:
        super().__init__("the drill", tree, gpus=2)
        self.troubles: list[str] = []
        self.pool = ""
        self._keep = keep
        self._tokens: dict[str, int] = {}
        self._wire = Wire(self._folders.store_socket, str(self.folder / "wire.sock"))
        self._spare: list[Holder] = []

    async def holder(self) -> Holder:
        """A program that holds nothing: one that was given back, or a new one."""
        if self._spare:
            return self._spare.pop()
        command = [sys.executable, "-m", "gpulockd.trial.drill.holder", str(self.folder)]
        env = host.plain_environment() | {
            "GPULOCKD_SOCKET": self.socket,
            "GPULOCKD_REDIS_URL": f"unix://{self._wire.path}",
            "GPULOCKD_POOL": self.pool,
        }
        party = await Party.start(command, env, before=host.dies_with(os.getpid()))
        self._parties.append(party)
        await party.said(STARTS_WITHIN_S)
        return Holder(party, self)

    def give_back(self, *holders: Holder) -> None:
        """Say that these programs hold nothing and wait for nothing."""
        self._spare += holders

    async def begin(self, holders: int) -> None:
        """Open the way to the store, and start so many programs."""
        self.pool = str(self.ask("/api/v1/pools")["pools"][0]["pool"])
        await self._wire.listen()
        self.give_back(*await asyncio.gather(*(self.holder() for _ in range(holders))))

    def note(self, said: dict[str, Any]) -> None:
        """Look at an entry as a witness: alone on its GPU, with a token beyond all before."""
        if not said["alone"]:
            self.troubles.append(f"two programs were on {said['key']} at once")
        if said["token"] <= self._tokens.get(said["key"], 0):
            self.troubles.append(f"the token of {said['key']} did not grow: {said['token']}")
        self._tokens[said["key"]] = said["token"]

    async def queued(self, count: int = 1) -> None:
        """Wait until so many stand in the queue."""
        deadline_s = time.monotonic() + STARTS_WITHIN_S
        while int((await asyncio.to_thread(self.ask, "/api/v1/queue"))["queued"]) < count:
            if time.monotonic() > deadline_s:
                raise PartyLost(f"nobody came into the queue within {STARTS_WITHIN_S:g} s")
            await asyncio.sleep(LOOK_S)

    async def change(self, path: str, body: object) -> dict[str, Any]:
        """Send a change to the API."""

        def send() -> dict[str, Any]:
            with http.Daemon(self.socket) as daemon:
                return daemon.ask("POST", path, body)

        return await asyncio.to_thread(send)

    def signal_daemon(self, number: int) -> None:
        """Send a signal to the daemon."""
        if self._daemon is not None and self._daemon.poll() is None:
            self._daemon.send_signal(number)

    async def kill_daemon(self) -> None:
        """End the daemon at once; its store runs on."""
        self.signal_daemon(signal.SIGKILL)
        assert self._daemon is not None
        await asyncio.to_thread(self._daemon.wait)

    async def start_daemon(self) -> float:
        """Start it again; when it was ready (on CLOCK_MONOTONIC, in seconds)."""
        self._daemon = self._start_daemon()
        await self._ready(self._daemon)
        return time.monotonic()

    def kill_store(self) -> None:
        """End the store at once; the daemon starts another one."""
        pid = StoreSocket(self._folders.store_socket).server_pid()
        if pid <= 0:
            raise TrialBroke("the store of the drill is in another pid namespace")
        os.kill(pid, signal.SIGKILL)

    def empty_store(self) -> None:
        """Take everything out of the store, as an accident would."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
            door.settimeout(STARTS_WITHIN_S)
            door.connect(self._folders.store_socket)
            door.sendall(b"FLUSHALL\r\n")
            if door.recv(64)[:1] != b"+":
                raise TrialBroke("the store of the drill would not be emptied")

    def cut(self) -> None:
        """Break the programs' connections to the store; the daemon keeps its own."""
        self._wire.cut()

    def mend(self) -> None:
        """Let the programs reach the store again."""
        self._wire.mend()

    async def _end(self) -> None:
        self.signal_daemon(signal.SIGCONT)
        for party in self._parties:
            party.kill()
        await self._wire.aclose()
        await super()._end()

    def _remove(self) -> None:
        if not self._keep:
            shutil.rmtree(self.folder, ignore_errors=True)
