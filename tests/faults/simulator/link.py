"""A program's end of the guard's socket, as `client/admitting.py` has it. A local socket loses nothing and is quick."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from gpulockd.daemon.admission import Admit, Hello, LeaseWords, Leave
from gpulockd.daemon.callers import Caller
from tests.faults.simulator.session import GUARD_SILENCE_S, Entry
from tests.faults.simulator.world import Coroutine, Task, sleep

if TYPE_CHECKING:
    from tests.faults.simulator.client import Client
    from tests.faults.simulator.daemon import Daemon

LATENCY_S = 0.0001
CONNECT_S = 1.0
RETRY_S, MOST_RETRY_S = 0.05, 1.0


class GuardAway(Exception):
    """The guard cannot be reached."""


class NotAdmitted(Exception):
    """The gpu was given to a later lease."""


class GuardLink:
    """One process's connection to the guard of its host."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self._daemon: Daemon | None = None
        self._caller: Caller | None = None
        self._greeted = False
        self._heard_at = self._asked_at = self._unread_at = -1e9
        self._admitted: dict[str, int] = {}
        self._named: dict[str, int] = {}
        self._asked: dict[str, tuple[int, Task, int, Entry, tuple[str, ...]]] = {}
        self._said: list[str] = []
        self._told: list[str] = []
        self._trying = False
        self._pause_s = RETRY_S
        self._absent_until = 0.0

    @property
    def is_alive(self) -> bool:
        """Whether the guard stands and has spoken lately."""
        return self._daemon is not None and self.client.clock() - self._heard_at <= GUARD_SILENCE_S

    def stands(self) -> Coroutine:
        """Whether the pool's last guard answers, though the ledger has given it up: it may be cut off."""
        client = self.client
        if self._daemon is None and client.clock() >= self._absent_until:
            self._connect()
            until_s = client.clock() + CONNECT_S
            while self._daemon is not None and not self.is_alive and client.clock() < until_s:
                yield sleep(CONNECT_S / 20)
            self._absent_until = client.clock() + MOST_RETRY_S
        return self.is_alive

    def vouches(self, entry: Entry) -> bool:
        """Whether it has let this lease in and stands."""
        return self._admitted.get(entry.id) == entry.token and self.is_alive

    def admit(self, entry: Entry, token: int, gpus: tuple[str, ...]) -> Callable[[Task], None]:
        """Wait to be let in; raises `GuardAway` or `NotAdmitted` in the task."""

        def wait(task: Task) -> None:
            client = self.client
            client.highest_token = max(client.highest_token, token)
            self._named[entry.id] = token
            if self._admitted.get(entry.id) == token:
                client.world.after(0.0, client.hear, task.wake, task.turn)
                return
            self._asked[entry.id] = token, task, task.turn, entry, gpus
            if self._greeted:
                self._say(Admit(session=entry.session, lease=_words(entry, token, gpus)))
            elif self._daemon is None:
                self._connect()

        return wait

    def leave(self, entry: Entry) -> None:
        """The body is over, or will not begin."""
        admitted, token = self._admitted.pop(entry.id, 0), self._named.pop(entry.id, 0)
        token = token or admitted
        self._asked.pop(entry.id, None)
        if token and self._daemon is not None:
            self._say(Leave(lease=entry.id, token=token, lost=bool(entry.lost)))

    def look(self) -> None:
        """Connect, if something is to be told."""
        if self._daemon is None and not self._trying:
            self._trying = True
            self.client.after(self._pause_s, self._try_again)

    def _try_again(self) -> None:
        self._trying = False
        untold = self.client.guarded and self.client.before != self._told
        if self._daemon is None and (untold or self.client.table):
            self._pause_s = min(2 * self._pause_s, MOST_RETRY_S)
            self._connect()
            if self._daemon is None:
                self.look()

    def _connect(self) -> None:
        client = self.client
        daemon = client.site.daemon
        if daemon is None or not daemon.alive or not daemon.serves:
            return self._drop()
        process = client.site.process_of(client)
        caller = Caller(process, 0, lambda words: self._heard(caller, words))
        self._caller, self._daemon, self._asked_at = caller, daemon, client.clock()
        daemon.callers.append((caller, self))
        entries = [e for e in client.table.values() if e.session == client.session]
        held = [e for e in entries if e.state == "held" and not e.lost]
        self._said = list(client.before)
        said = Hello(
            session=client.session,
            was=self._said,
            as_of=max(client.highest_token, *(e.token for e in entries), 0),
            held=[_words(e, e.token, e.gpus) for e in held],
            known=[e.id for e in entries if e not in held and e.state != "ending"],
        )
        client.after(CONNECT_S, self._expect, caller)
        return self._say(said)

    def _expect(self, caller: Caller) -> None:
        if self._caller is caller and not self._greeted:
            self._drop()

    def _say(self, said: Hello | Admit | Leave) -> None:
        daemon, caller = self._daemon, self._caller
        if daemon is not None and caller is not None:
            self.client.world.after(LATENCY_S, daemon.hear, daemon.take_line, caller, said)

    def _heard(self, caller: Caller, words: Mapping[str, Any]) -> None:
        """The daemon writes; what a stopped process has not read waits in its socket."""
        self.client.world.after(LATENCY_S, self.client.hear, self._take, caller, words)

    def _take(self, caller: Caller, words: Mapping[str, Any]) -> None:
        if self._caller is not caller:
            return
        if "hello" in words:
            self._greet(words)
        elif "refused" in words or ("admitted" in words and "token" in words):
            self._settle(words)
        elif "lost" in words:
            self._lose(str(words["lost"]), words["token"], str(words["reason"]))

    def _lose(self, id: str, token: int, reason: str) -> None:
        entry = self.client.table.get(id)
        if entry is not None and entry.state == "held" and token == entry.token:
            entry.lose(reason)
        elif entry is not None and entry.state == "asking" and token == self._named.get(id):
            self.leave(entry)
            entry.signal.kick()
        else:
            self._say(Leave(lease=id, token=token, lost=True))

    def _greet(self, words: Mapping[str, Any]) -> None:
        self._greeted, self._pause_s, self._heard_at = True, RETRY_S, self._asked_at
        self._told = self._said
        for id in words["admitted"]:
            entry = self.client.table.get(id)
            if entry is not None:
                self._admitted[id], entry.guard = entry.token, self
        for token, _, _, entry, gpus in self._asked.values():
            self._say(Admit(session=entry.session, lease=_words(entry, token, gpus)))

    def _settle(self, words: Mapping[str, Any]) -> None:
        id, token = str(words.get("admitted") or words.get("refused")), words["token"]
        asked = self._asked.get(id)
        if asked is None or asked[0] != token:
            if "admitted" in words:
                self._say(Leave(lease=id, token=token))
            return
        del self._asked[id]
        if "refused" in words:
            return asked[1].wake(asked[2], None, NotAdmitted())
        self._admitted[id] = token
        return asked[1].wake(asked[2])

    def is_on(self, daemon: Daemon) -> bool:
        """Whether this daemon is at the other end."""
        return self._daemon is daemon

    def daemon_said_alive(self) -> None:
        """The guard says that it runs, and when; a stopped process has it unread."""
        self._unread_at = self.client.clock()
        if not self.client.stopped:
            self.went_on()

    def went_on(self) -> None:
        """The process goes on; what is unread counts from when it was said."""
        self._heard_at = max(self._heard_at, self._unread_at)

    def hung_up(self, daemon: Daemon) -> None:
        """The guard's end is closed."""
        if self._daemon is daemon:
            self._drop()
            self.look()

    def _drop(self) -> None:
        if self._daemon is not None and self._caller is not None:
            self.client.world.after(LATENCY_S, self._daemon.hear, self._daemon.hung_up, self._caller)
        self._daemon = self._caller = None
        self._greeted, self._unread_at = False, -1e9
        self._admitted.clear()
        asked, self._asked = self._asked, {}
        for _, task, turn, _, _ in asked.values():
            self.client.world.after(0.0, self.client.hear, task.wake, turn, None, GuardAway())


def _words(entry: Entry, token: int, gpus: tuple[str, ...]) -> LeaseWords:
    assertion = msgspec.to_builtins(entry.brought(token, gpus, 0))
    return LeaseWords(id=entry.id, token=token, gpus=gpus, assertion=assertion)
