"""`bench soak`, `make soak`: an hour of life with deaths in it; what must stay flat stays flat, and no two ever meet.

One daemon with eight simulated cards and a private store, programs that ask for everything that can be asked for
(`bench/soak_worker.py`), and every few seconds one of them is killed or stopped for a while. What is read each few
seconds: resident memory, descriptors and threads of the daemon, memory and keys of the store. The first quarter is
warming up; the second is compared with the last.

For half as long each come afterwards real programs whose store and daemon are killed too (`tests.faults.evil`), and
simulated schedules (`tests.faults.simulator`); both end with 1 if a rule was broken, and say how to repeat it.
"""

from __future__ import annotations

import contextlib
import os
import random
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import msgspec
import psutil
import redis

from bench.host import LOST_S, Host, Party
from bench.tables import Aim, show_aims, table

CARDS, PROGRAMS, SLOW_S = 8, 12, 0.3
MINUTES, QUICK_MINUTES = 60.0, 2.0
KILL_EVERY_S = (2.0, 8.0)
STOP_S = (0.1, 3.0)
SAMPLES = 120
MIB = 1 << 20

JUDGED = {
    "random faults": ("tests.faults.evil",),
    "simulator": ("tests.faults.simulator", "--workers", "0"),
}
"""What judges itself: module and words."""


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """What was there at one moment; sizes in MiB."""

    at_s: float
    daemon_mib: float
    descriptors: int
    threads: int
    store_mib: float
    keys: int


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What the soak saw. `lost`: leases that were taken from living programs; `samples` in the order of time."""

    minutes: float
    seed: int
    turns: int
    kills: int
    stops: int
    overlaps: list[str]
    lost: list[str]
    samples: list[Sample]
    keys_left: list[str]
    broken: list[str]
    told: list[str]
    aims: list[Aim]


class Crowd:
    """The programs, as they come and go, and what they have said."""

    def __init__(self, host: Host, folder: Path, seed: int) -> None:
        self._host, self._folder = host, folder
        self._dice = random.Random(seed)
        self._seed = seed
        self.parties: list[Party] = []
        self.turns = self.kills = self.stops = 0
        self.overlaps: list[str] = []
        self.lost: list[str] = []
        for _ in range(PROGRAMS):
            self.join()

    def join(self) -> None:
        """One program more."""
        self._seed += 1
        words = ("-m", "bench.soak_worker", str(self._folder), str(self._seed), str(SLOW_S))
        self.parties.append(self._host.party(*words))

    def hear(self, within_s: float) -> None:
        """Read what they say for so long."""
        until = time.monotonic() + within_s
        while (left_s := until - time.monotonic()) > 0:
            outs = {party.process.stdout: party for party in self.parties if party.process.stdout is not None}
            ready, _, _ = select.select(list(outs), [], [], left_s)
            for out in ready:
                self._take(os.read(out.fileno(), 65536), outs[out])

    def _take(self, said: bytes, party: Party) -> None:
        if not said:
            raise RuntimeError(f"a program has ended by itself: {party.process.wait(LOST_S)}")
        for line in said.decode(errors="replace").splitlines():
            word, _, rest = line.partition(" ")
            self.turns += word == "turn"
            if word == "overlap":
                self.overlaps.append(rest)
            elif word == "lost":
                self.lost.append(rest)

    def disturb(self) -> None:
        """Kill one and start another, or stop one for a while."""
        victim = self._dice.choice(self.parties)
        if self._dice.random() < 0.5:
            self.parties.remove(victim)
            victim.close()
            self.kills += 1
            self.join()
            return
        victim.process.send_signal(signal.SIGSTOP)
        self.stops += 1
        subprocess.Popen(  # wakes it also when this process is busy or gone
            ["sh", "-c", f"sleep {self._dice.uniform(*STOP_S):.2f}; kill -CONT {victim.process.pid}"],
            start_new_session=True,
        ).returncode = 0

    def pause_s(self) -> float:
        """How long until the next disturbance (in seconds)."""
        return self._dice.uniform(*KILL_EVERY_S)

    def close(self) -> None:
        """End them all."""
        for party in self.parties:
            with contextlib.suppress(ProcessLookupError):
                party.process.send_signal(signal.SIGCONT)
            party.close()


def measure(*, quick: bool, minutes: float | None = None, seed: int | None = None) -> Result:
    """Soak for `minutes`."""
    span_min = minutes or (QUICK_MINUTES if quick else MINUTES)
    seed = random.randrange(1 << 30) if seed is None else seed
    print(f"soak: {span_min:g} min, seed {seed}", file=sys.stderr, flush=True)
    with Host(cards=CARDS) as host:
        folder = host.folder / "witness"
        folder.mkdir()
        crowd = Crowd(host, folder, seed)
        try:
            samples = _soak(host, crowd, span_min * 60)
        finally:
            crowd.close()
        host.until(lambda: not host.get("/api/v1/leases")["leases"] and not host.get("/api/v1/queue")["queue"])
        left = _keys_left(host)
    found = Result(
        minutes=span_min, seed=seed, turns=crowd.turns, kills=crowd.kills, stops=crowd.stops,
        overlaps=crowd.overlaps, lost=crowd.lost, samples=samples, keys_left=left, broken=[], told=[], aims=[],
    )  # fmt: skip
    for name, words in JUDGED.items():
        code, said = _judged(*words, "--seconds", str(span_min * 30))
        found.told.extend(f"{name}: {line}" for line in said)
        if code:
            found.broken.append(name)
    return msgspec.structs.replace(found, aims=aims_of(found))


def _judged(module: str, *words: str) -> tuple[int, list[str]]:
    """Run what judges itself. Returns its exit status, and what it said: violations, how to repeat them, a summary."""
    ran = subprocess.run([sys.executable, "-m", module, *words], stdout=subprocess.PIPE, check=False, text=True)
    return ran.returncode, [line for line in ran.stdout.splitlines() if not line.startswith("REPRO: GPULOCKD_SEED")]


def _soak(host: Host, crowd: Crowd, span_s: float) -> list[Sample]:
    daemon, store = psutil.Process(host.pid), host.store
    ask = redis.Redis(unix_socket_path=str(next((host.folder / "run").glob("store.sock"))))
    begun, samples = time.monotonic(), []
    disturb_at = sample_at = begun
    while (now := time.monotonic()) < begun + span_s:
        if now >= disturb_at:
            crowd.disturb()
            disturb_at = now + crowd.pause_s()
        if now >= sample_at:
            samples.append(_sample(now - begun, daemon, store, ask))
            sample_at = now + span_s / SAMPLES
        crowd.hear(min(0.5, span_s / SAMPLES))
    ask.close()
    return samples


def _sample(at_s: float, daemon: psutil.Process, store: psutil.Process, ask: redis.Redis) -> Sample:
    return Sample(
        at_s=round(at_s, 1),
        daemon_mib=round(daemon.memory_info().rss / MIB, 2),
        descriptors=daemon.num_fds(),
        threads=daemon.num_threads(),
        store_mib=round(store.memory_info().rss / MIB, 2),
        keys=int(str(ask.dbsize())),
    )


def _keys_left(host: Host) -> list[str]:
    """Keys without a TTL that are still there when nobody is left, but for those that a pool always has."""
    from gpulockd.ledger.keys import PERMANENT

    ask = redis.Redis(unix_socket_path=str(host.folder / "run/store.sock"), decode_responses=True)
    left = []
    for key in map(str, ask.scan_iter(count=1000)):
        name = key.partition("}:")[2]
        if "{fleet}" not in key and name not in PERMANENT and ask.ttl(key) == -1:
            left.append(key)
    ask.close()
    own = {"sessions", "session", "session_tickets", "due"}  # the daemon's own session is there
    return sorted(key for key in left if key.partition("}:")[2].partition(":")[0] not in own)


def aims_of(found: Result) -> list[Aim]:
    """What must hold."""
    quarter = len(found.samples) // 4
    before, after = found.samples[quarter : 2 * quarter], found.samples[-quarter:]

    def grown(name: str) -> float:
        return float(median(getattr(s, name) for s in after) - median(getattr(s, name) for s in before))

    # The event stream, tombstones (10 min) and the statistics' minutes fill until they are trimmed or end.
    return [
        Aim(text="faults or schedules that break a rule", value=len(found.broken), limit=0),
        Aim(text="two in a body", value=len(found.overlaps), limit=0),
        Aim(text="keys left when nobody is", value=len(found.keys_left), limit=0),
        Aim(text="daemon memory, 2nd to last quarter, MiB", value=grown("daemon_mib"), limit=2.0),
        Aim(text="descriptors", value=grown("descriptors"), limit=4),
        Aim(text="threads", value=grown("threads"), limit=2),
    ]


def show(found: Result) -> str:
    """What was seen, as Markdown."""
    picked = found.samples[:: max(1, len(found.samples) // 8)]
    rows = [("minute", "daemon MiB", "descriptors", "threads", "store MiB", "keys")]
    rows += [
        (
            f"{s.at_s / 60:.1f}",
            f"{s.daemon_mib:.1f}",
            str(s.descriptors),
            str(s.threads),
            f"{s.store_mib:.1f}",
            str(s.keys),
        )
        for s in [*picked, found.samples[-1]]
    ]
    said = (
        f"{found.minutes:g} min, seed {found.seed}: {found.turns:,} turns of {PROGRAMS} programs on {CARDS} cards, "
        f"{found.kills} killed, {found.stops} stopped for a while; {len(found.lost)} leases lost by living programs"
    )
    trouble = "".join(f"\n- {line}" for line in found.told)
    trouble += "".join(f"\n- overlap: {line}" for line in found.overlaps[:10])
    trouble += "".join(f"\n- key left: {key}" for key in found.keys_left[:10])
    trouble += "".join(f"\n- lost: {line}" for line in found.lost[:10])
    return f"{said}\n\n{table(rows)}\n\n{show_aims(found.aims)}\n{trouble}\n"
