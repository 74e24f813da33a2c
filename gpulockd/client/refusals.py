"""The texts of refusals: who holds what, and the cure."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from gpulockd.client.advising import outer_run
from gpulockd.client.whoami import counts_alike, started_ticks, this_process
from gpulockd.errors import EndedOutside, GpuLockTimeout, StoreUnavailable
from gpulockd.ledger import answers as a
from gpulockd.ledger import verbs
from gpulockd.model import Gpu, Process, Snapshot, TicketRecord, Wants
from gpulockd.units import format_duration

if TYPE_CHECKING:  # the waiting itself is told about, never called
    from gpulockd.client.waiting import Waiting

WHY_FROZEN = {
    "new_store": "the store has just started, and holders from before may still run",
    "store_changed": "the store was restarted, and holders from before may still run",
    "data_lost": "the store lost its data, and holders from before may still run",
}


def impossible_text(answer: a.Impossible, wants: Wants, pool: str) -> str:
    """Why the pool can never grant these wants, and what it could."""
    detail = answer.detail
    plural = "" if detail == "1" else "s"
    known = {
        "not_offered": f"nobody offers GPUs in pool {pool!r}, so only 'gpu_lock()' and single keys work here; "
        "start `gpulockd serve`",
        "no_such_gpu": f"pool {pool!r} has no {detail}; `gpulockd status` lists its GPUs",
        "too_many_gpus": f"{wants} cannot be had: pool {pool!r} has {detail} GPU{plural}; ask for fewer",
        "too_much_memory": f"{wants} cannot be had: the largest card asked for has {_gib(detail)}; ask for less",
        "no_memory": f"{detail} has no memory to share; ask for it without memory=",
        "too_many_wants": f"more than {detail} different kinds of request wait in pool {pool!r}; ask for rounder sizes",
    }
    return known.get(answer.kind, f"{wants}: {answer.kind} {detail}")


def ended_outside(id: str, reason: str) -> EndedOutside:
    """Why a ticket is no place any more, though nobody here has ended it."""
    if reason == "foreign":
        return EndedOutside(f"the ticket {id} belongs to another session; ask with an id of your own", reason=reason)
    return EndedOutside(f"the wait was ended from outside ({reason}); ask again", reason=reason)


def _gib(mib: str) -> str:
    return f"{int(mib) / 1024:g} GiB" if mib.isdigit() else "no memory"


def deadlock_text(wants: Wants) -> str:
    """The one call to make instead of asking for more while holding."""
    return (
        f"this program already runs inside a lease that does not cover {wants}, and would wait for itself; "
        f"ask for everything in the outer call, {outer_run(wants)}"
    )


def holder_text(lease: TicketRecord) -> str:
    """A holder in few words: "ocr-batch #8812 (pid 48177, 7:08, 88 %)"."""
    facts = []
    if lease.process is not None and lease.process.pid:  # one that is held by a connection or for a time has none
        facts.append(pid_text(lease.process))
    facts.append(format_duration(lease.held_ms / 1000))
    if lease.percent is not None:
        facts.append(f"{lease.percent:.0f} %")
    name = lease.job.task or "somebody"
    if lease.job.task_id:
        name += f" {lease.job.task_id}"
    return f"{name} ({', '.join(facts)})"


def pid_text(process: Process) -> str:
    """A process's pid, marked where it is this one, and where it is only what the process calls itself elsewhere."""
    if process.pid == os.getpid() and process == this_process():
        return f"pid {process.pid}, this process"
    is_ours = process.seen or not process.started_ticks or counts_alike(process)
    if is_ours or started_ticks(process.pid) == process.started_ticks:
        return f"pid {process.pid}"
    return f"its own pid {process.pid} on {process.host}"


def in_the_way(snapshot: Snapshot, wants: Wants) -> list[str]:
    """Who and what keeps these wants from beginning: "GPU 0 held by ocr-batch (pid 48177, 7:08)"."""
    texts = []
    for record in snapshot.gpus:
        if wants.keys and record.gpu.key not in wants.keys:
            continue
        if record.state != "ready":
            cure = f" ({resume_of(record.gpu)})" if record.state == "drained" else ""
            texts.append(f"{record.gpu} is {record.state}{cure}")
        holders = [lease for lease in snapshot.leases if record.gpu.key in lease.gpus and lease.state != "member"]
        texts += [f"{record.gpu} held by {holder_text(lease)}" for lease in holders]
    return texts


def resume_of(gpu: Gpu) -> str:
    """What ends a drain: "'gpulockd gpu resume 0' ends that"."""
    return f"'gpulockd gpu resume {gpu.key if gpu.index is None else gpu.index}' ends that"


async def timeout_error(waiting: Waiting) -> GpuLockTimeout:
    """The error of a wait that is over: how long it was, who holds what, and the place in the queue."""
    line, wants = waiting.line, waiting.ask.wants
    waited = f" after {format_duration(waiting.waited_s)}" if waiting.patience.max_wait_s > 0 else ""
    text, offered = f"{wants} not free{waited}", tuple[Gpu, ...]()
    try:
        answer, _ = await line.ask(verbs.snapshot(line.session.keys, length=1))
    except StoreUnavailable:
        answer = a.NO_BOOKS
    if isinstance(answer, a.Pictured):
        offered = tuple(record.gpu for record in answer.snapshot.gpus if record.offered)
        reasons = in_the_way(answer.snapshot, wants)
        if answer.snapshot.frozen_ms:
            reasons.insert(0, f"the pool grants nothing for {format_duration(answer.snapshot.frozen_ms / 1000)} more")
        text += ": " + "; ".join(reasons[:4]) if reasons else ""
        if len(reasons) > 4:
            text += f"; and {len(reasons) - 4} more"
    if waiting.place is not None:
        text += f"; place {waiting.place} of {waiting.queued}"
    limit_s = waiting.patience.max_wait_s
    return GpuLockTimeout(
        text,
        waited_s=waiting.waited_s,
        max_wait_s=limit_s,
        place=waiting.place,
        queued=waiting.queued,
        offered=offered,
    )


def frozen_text(answer: a.Waiting, pool: str) -> str:
    """Why nobody is granted anything now, and for how long."""
    why = WHY_FROZEN.get(answer.why, answer.why)
    return f"pool {pool} grants nothing for {answer.frozen_ms / 1000:.1f} s: {why}"
