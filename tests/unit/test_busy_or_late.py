"""Who did not want to wait is told that all is busy; who waited in vain, that it took too long."""

from __future__ import annotations

import pytest

from gpulockd.errors import GpuLockTimeout
from gpulockd.web.problems import of_error


@pytest.mark.parametrize(
    ("waited_s", "max_wait_s", "status", "kind"),
    [(0.0, 0.0, 409, "busy"), (7.0, 0.0, 409, "busy"), (0.1, 0.1, 408, "timeout"), (0.0, 0.1, 408, "timeout")],
)
def test_a_store_that_is_slow_makes_no_wait_of_a_question(
    waited_s: float, max_wait_s: float, status: int, kind: str
) -> None:
    """`run --no-wait` has an exit code of its own for that, which scripts go by, on slow hosts too."""
    problem = of_error(GpuLockTimeout("all are held", waited_s=waited_s, max_wait_s=max_wait_s))
    assert (problem.status, problem.kind) == (status, kind)
