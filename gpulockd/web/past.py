"""What was: holds and waits, read from the pool's events as far as they reach back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from gpulockd.events import Event, LockAcquired, LockExpired, LockReleased, LockRevoked
from gpulockd.ledger.happened import lately
from gpulockd.ledger.tally import HOLDS, outcome
from gpulockd.model import GPU_KEY_PREFIX, Snapshot, TicketRecord
from gpulockd.units import parse_duration_s
from gpulockd.web import past_views as views
from gpulockd.web.table import Visit
from gpulockd.web.views import task_id_of

DEFAULT_S = 3600.0
MOST_ROWS = 2000
USUAL_ROWS = 200

HOW: dict[type[Event], str] = {LockReleased: "released", LockExpired: "expired", LockRevoked: "revoked"}


async def history(visit: Visit) -> views.PastView:
    """The holds and waits of the last `since`, of a task or on a gpu.

    :raises ProblemError: 422 for a number that is none
    """
    backend, asked = visit.backend, visit.request.query_params
    since_s = parse_duration_s(asked.get("since", DEFAULT_S), "since")
    length = visit.number("length", USUAL_ROWS, MOST_ROWS)
    snapshot = await backend.look(length=1)
    begin_ms = max(0, snapshot.at_ms - round(since_s * 1000))
    found = await lately(backend.ask, backend.keys, since_ms=begin_ms)
    wanted = _wanted(asked.get("task"), asked.get("gpu"))
    holds = [*holds_of(found.events), *(_going_on(lease, snapshot) for lease in snapshot.leases if _holds(lease))]
    waits = list(waits_of(found.events))
    holds = sorted((hold for hold in holds if wanted(hold.task, hold.task_id, hold.gpus)), key=lambda h: -h.began)
    waits = sorted((wait for wait in waits if wanted(wait.task, wait.task_id, wait.gpus)), key=lambda w: -w.ended)
    return views.PastView(
        pool=snapshot.pool,
        from_=found.from_ms / 1000,
        to=snapshot.at_ms / 1000,
        holds=tuple(holds[:length]),
        waits=tuple(waits[:length]),
        more=len(holds) > length or len(waits) > length,
    )


def holds_of(events: Iterable[Event]) -> Iterator[views.PastHold]:
    """Yield the holds that have ended with these events."""
    for event in events:
        if isinstance(event, HOLDS) and event.held_ms is not None and not event.is_probe:
            yield views.PastHold(
                lease=event.lease or "",
                token=event.token,
                task=event.task or "",
                task_id=event.task_id or "",
                gpus=event.gpus,
                began=(event.at_ms - event.held_ms) / 1000,
                ended=event.at_ms / 1000,
                waited_s=None if event.waited_ms is None else event.waited_ms / 1000,
                held_s=event.held_ms / 1000,
                how=HOW[type(event)],
                reason=event.reason,
            )


def waits_of(events: Iterable[Event]) -> Iterator[views.PastWait]:
    """Yield the waits that were over with these events; what was granted at once has waited for nothing."""
    for event in events:
        ended = outcome(event)
        if ended is None or (isinstance(event, LockAcquired) and not event.waited_ms):
            continue
        waited_ms = event.waited_ms or 0
        yield views.PastWait(
            lease=event.lease or "",
            task=event.task or "",
            task_id=event.task_id or "",
            gpus=event.gpus,
            began=(event.at_ms - waited_ms) / 1000,
            ended=event.at_ms / 1000,
            waited_s=waited_ms / 1000,
            outcome=ended,
            reason=event.reason,
        )


def _holds(lease: TicketRecord) -> bool:
    return lease.state == "held"


def _going_on(lease: TicketRecord, snapshot: Snapshot) -> views.PastHold:
    return views.PastHold(
        lease=lease.id,
        token=lease.token,
        task=lease.job.task,
        task_id=task_id_of(lease),
        gpus=lease.gpus,
        began=(snapshot.at_ms - lease.held_ms) / 1000,
        ended=None,
        waited_s=lease.waited_ms / 1000,
        held_s=lease.held_ms / 1000,
        how=None,
        reason=None,
    )


def _wanted(task: str | None, gpu: str | None) -> Callable[[str, str, tuple[str, ...]], bool]:
    key = f"{GPU_KEY_PREFIX}{gpu}" if gpu and gpu.isascii() and gpu.isdigit() else gpu

    def is_wanted(name: str, id: str, gpus: tuple[str, ...]) -> bool:
        return (not task or task in (name, id)) and (not key or key in gpus)

    return is_wanted
