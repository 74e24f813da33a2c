"""A lease that was acquired without a block and that nobody can release any more: said, as an open file is, and kept.

Its law: only what is dropped while it is held costs anything. A finaliser that ran at every end could swallow what a
signal handler raises there.
"""

from __future__ import annotations

import functools
import os
import sys
import warnings
import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # names of types only
    from gpulockd.client.lease import Lease
    from gpulockd.client.session import Session


def watch(lease: Lease) -> None:
    """Warn (`ResourceWarning`) should nobody have a reference to this lease any more while it is held."""
    entry = lease._entry
    say = functools.partial(_say_if_held, lease._session, entry.id)
    entry.watch = weakref.ref(lease, lambda _: say())


def _say_if_held(session: Session, id: str) -> None:
    """A run's member, what was given to another process, and what a fork has copied are nobody's to give back here."""
    entry = session.table.get(id)
    if entry is None or entry.state != "held" or entry.lost.is_set() or session.pid != os.getpid():
        return
    if not sys.is_finalizing():
        gpus = ", ".join(str(gpu) for gpu in entry.gpus)
        warnings.warn(
            f"the lease on {gpus} (token {entry.token}) of task {entry.ask.job.task!r} was dropped without release(), "
            "so it is held until this process ends: call release(), or write a block (`with gpu_lock():`), which does",
            ResourceWarning,
            stacklevel=2,
        )
