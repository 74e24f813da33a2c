"""What an operator does with a gpu: take it out of the pool for a while, and put it back."""

from __future__ import annotations

from typing import Any

from gpulockd.ledger import answers as a
from gpulockd.ledger import verbs
from gpulockd.model import GPU_KEY_PREFIX, GpuRecord
from gpulockd.web import views
from gpulockd.web.auth import check_owner
from gpulockd.web.configuring import author_of
from gpulockd.web.problems import refusal
from gpulockd.web.table import Visit


async def drain(visit: Visit) -> views.Steered:
    """Let nobody begin on a gpu any more; who holds it keeps it to the end.

    :raises ProblemError: 404 if there is no such gpu, 403 unless the caller may do everything
    """
    return await _steer(visit, "drained", "drained")


async def resume(visit: Visit) -> views.Steered:
    """Put a gpu back into the pool that was drained, quarantined or lost. A card that still fails goes out again.

    :raises ProblemError: 404 if there is no such gpu, 403 unless the caller may do everything, 409 while it settles
    """
    return await _steer(visit, "ready", "resumed")


async def _steer(visit: Visit, state: str, word: str) -> views.Steered:
    check_owner(visit.caller, "")
    name = visit.request.path_params["id"]
    snapshot = await visit.backend.look(length=1)
    found = _found(snapshot.gpus, name)
    if found is None:
        raise refusal(404, "not_found", f"no GPU {name[:128]!r} is offered", "GET /api/v1/gpus lists them")
    if state == "ready" and found.state == "settling":
        what = f"{found.gpu} settles: its last run is being ended"
        raise refusal(409, "settling", what, "it comes back by itself, or is quarantined with the culprit's name")
    who = f"{word} by {author_of(visit)}"
    call = verbs.report(visit.backend.keys, session="", gpu=found.gpu.key, state=word, reason=who)
    answer: Any = await visit.backend.ask(call)
    if not isinstance(answer, a.Noted):
        raise refusal(404, "not_found", f"no GPU {name[:128]!r} is offered", "GET /api/v1/gpus lists them")
    return views.Steered(key=found.gpu.key, state=state, was=found.state)


def _found(gpus: tuple[GpuRecord, ...], name: str) -> GpuRecord | None:
    key = f"{GPU_KEY_PREFIX}{int(name)}" if name.isascii() and name.isdigit() and len(name) < 6 else name
    return next((g for g in gpus if g.offered and name and (g.gpu.key == key or g.gpu.uuid == name)), None)
