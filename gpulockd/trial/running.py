"""Runs a trial: two hosts at once, rounds in turn, so that both configurations see the same machine."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack

import msgspec

from gpulockd.settings import Tree
from gpulockd.trial.host import Host, TrialBroke
from gpulockd.trial.load import Load, Start
from gpulockd.trial.measured import Measured, measured
from gpulockd.trial.party import Party
from gpulockd.trial.verdict import Mode, Verdict, judge
from gpulockd.trial.worker import Outcome, Round

WORKER = "gpulockd.trial.worker"
WORKERS = 3
LEAD_S = 0.2
"""Rounds begin so long after they were told, so that all workers know of them."""
SETTLED_S = 0.5
LOST_S = 120.0
"""A round may take so much longer than usual (in seconds) before the trial is given up."""


class Site:
    """A host with its workers, and what was measured there so far."""

    def __init__(self, host: Host, workers: Sequence[Party]) -> None:
        self.host = host
        self._workers = workers
        self._outcomes: list[Outcome] = []
        self._cpu_s = 0.0
        self._wall_s = 0.0

    async def do(self, starts: Sequence[Start], least_s: float) -> None:
        """Let the workers do a round, which is measured for at least `least_s` seconds.

        :raises PartyLost: if a worker has ended or says nothing
        """
        began_s, cpu_s = time.monotonic(), self.host.store_cpu_s()
        await self.tell(starts)
        await self.hear(least_s)
        await asyncio.sleep(max(0.0, began_s + least_s - time.monotonic()))
        self._wall_s += time.monotonic() - began_s
        self._cpu_s += self.host.store_cpu_s() - cpu_s

    async def tell(self, starts: Sequence[Start], *, for_s: float = 0.0) -> None:
        """Let the workers begin a round; with `for_s` each task is repeated for so many seconds."""
        begin_s, number = time.monotonic() + LEAD_S, len(self._workers)
        for i, worker in enumerate(self._workers):
            await worker.tell(Round(begin_s, list(starts[i::number]), begin_s + for_s if for_s else 0.0))

    async def hear(self, least_s: float) -> None:
        """Wait until the workers have said how the round went, which takes about `least_s` seconds."""
        for worker in self._workers:
            self._outcomes += msgspec.convert(await worker.said(least_s + LOST_S), list[Outcome])

    def measured(self) -> Measured:
        """What was measured so far."""
        return measured(self._outcomes, cpu_s=self._cpu_s, wall_s=self._wall_s)


async def open_site(
    stack: AsyncExitStack, name: str, tree: Tree, *, gpus: int, mode: Mode, workers: int = WORKERS
) -> Site:
    """Start a host with `gpus` simulated GPUs and its workers, which end with `stack`."""
    host = await stack.enter_async_context(Host(name, tree, gpus=gpus, polling=mode == "polling"))
    parties = await asyncio.gather(*(host.party(WORKER) for _ in range(workers)))
    host.cut()
    return Site(host, parties)


async def take_turns(
    one: Site, other: Site, *, load: Load, mode: Mode, seed: int, say: Callable[[str], None] = lambda _: None
) -> None:
    """Let two sites do the same rounds in turn. Who is first changes: a machine that slows down favours neither."""
    await asyncio.sleep(SETTLED_S)
    dice = random.Random(seed)
    for number in range(load.rounds):
        say(f"round {number + 1} of {load.rounds}")
        for site in (one, other) if number % 2 == 0 else (other, one):
            await site.do(load.starts(number, seed), load.round_s(polling=mode == "polling"))
            # Keepalives wake who polls; rounds that kept step with them would measure those.
            await asyncio.sleep(dice.uniform(0.0, 1.0) if mode == "polling" else 0.0)


async def compare(
    baseline: Tree,
    candidate: Tree,
    *,
    load: Load,
    mode: Mode,
    changed: Sequence[str],
    seed: int,
    say: Callable[[str], None] = lambda _: None,
) -> Verdict:
    """Run the same load under both configurations and judge.

    :param changed: the paths in which they differ
    :param say: told how far it is
    :raises TrialBroke: if the trial could not run
    """
    async with AsyncExitStack() as stack:
        one = await open_site(stack, "the baseline", baseline, gpus=load.gpus, mode=mode)
        other = await open_site(stack, "the candidate", candidate, gpus=load.gpus, mode=mode)
        await take_turns(one, other, load=load, mode=mode, seed=seed, say=say)
        before, after = one.measured(), other.measured()
    if not before.success_rate:
        why = "; ".join(before.troubles) or "nobody said why"
        raise TrialBroke(f"no task got a GPU under the baseline, so there is nothing to compare with: {why}")
    return judge(before, after, mode=mode, changed=changed)
