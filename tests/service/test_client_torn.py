"""A block whose begin or end is torn by a signal handler that raises: at every line once, and at random moments."""

from __future__ import annotations

import contextlib
import random
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest

from gpulockd import gpu_lock
from gpulockd.compat import yivideo
from tests.pools import client_here, offer, simulated, snapshot
from tests.servers import Server
from tests.states import until_blocking

TORN_FILES = ("lock.py", "using.py", "taking.py", "nesting.py", "lease.py", "blocking.py", "holds.py")
MOST_STEPS = 2_000


class TornError(Exception):
    """What a signal handler raises."""


class Tearing:
    """Raises at the n-th step (a call, or a line) that this thread makes in the client's code."""

    def __init__(self, step: int) -> None:
        self.left = step
        self.has_torn = False

    def __enter__(self) -> None:
        sys.settrace(self._trace)

    def __exit__(self, *about: object) -> None:
        sys.settrace(None)

    def _trace(self, frame: FrameType, event: str, _: object) -> Callable[..., Any] | None:
        if (
            frame.f_code.co_filename.rpartition("/")[2] not in TORN_FILES
            or "/gpulockd/" not in frame.f_code.co_filename
        ):
            return None
        if event in ("call", "line"):
            self.left -= 1
            if self.left < 0:
                self.has_torn = True
                sys.settrace(None)
                raise TornError
        return self._trace


def entered_and_left(lock: gpu_lock) -> None:
    """A block."""
    with lock:
        pass


def entered_and_joined(lock: gpu_lock) -> None:
    """A block in a block of the same lease."""
    with lock, gpu_lock():
        pass


@pytest.mark.parametrize(
    ("block", "kind"),
    [(entered_and_left, gpu_lock), (entered_and_joined, gpu_lock), (entered_and_left, yivideo.gpu_lock)],
)
def test_an_error_at_any_line_leaves_no_lock(
    server: Server, pool: str, block: Callable[[gpu_lock], None], kind: type[gpu_lock]
) -> None:
    """Invariant 12: before the first line of `__exit__` no `try` catches it."""
    offer(server, pool, simulated(1))
    with client_here(server.url, pool):
        lock = kind(max_wait_time=20)  # one that goes on: its own end would give everything back
        block(lock)
        torn = 0
        for step in range(MOST_STEPS):
            tearing = Tearing(step)
            with contextlib.suppress(TornError), tearing:
                block(lock)
            until_blocking(lambda: not snapshot(server, pool).leases)
            if not tearing.has_torn:
                break
            torn += 1
        assert 30 < torn < MOST_STEPS
        block(lock)
        assert not snapshot(server, pool).leases


def test_a_torn_inner_block_leaves_the_outer_ones_lease_alone(server: Server, pool: str) -> None:
    """What is done twice must count once: the outer body is in there."""
    offer(server, pool, simulated(1))
    with client_here(server.url, pool):
        for step in range(MOST_STEPS):
            tearing = Tearing(step)
            with gpu_lock() as lease:
                with contextlib.suppress(TornError):
                    with gpu_lock() as inner:
                        assert inner.token == lease.token
                        tearing.__enter__()
                sys.settrace(None)
                with gpu_lock() as again:
                    assert again.token == lease.token
                (record,) = snapshot(server, pool).leases
                assert record.token == lease.token
            assert not snapshot(server, pool).leases
            if not tearing.has_torn:
                break
        assert 5 < step < MOST_STEPS - 1


@contextlib.contextmanager
def alarms() -> Iterator[None]:
    """SIGALRM raises, wherever it comes."""

    def limit(*_: object) -> None:
        raise TornError

    before = signal.signal(signal.SIGALRM, limit)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.filterwarnings("ignore:(?s).*TornError:pytest.PytestUnraisableExceptionWarning")  # in a destructor
def test_a_signal_at_any_moment_leaves_no_lock(server: Server, pool: str) -> None:
    """So arrive Ctrl-C and Celery's soft time limit, at any bytecode of entering, of the body, and of leaving."""
    offer(server, pool, simulated(1))
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    with client_here(server.url, pool), alarms():
        lock = gpu_lock(max_wait_time=20)
        entered_and_left(lock)
        for _ in range(200):
            # CPython's own locks may complain when a signal handler raises inside them.
            with contextlib.suppress(TornError, RuntimeError):
                signal.setitimer(signal.ITIMER_REAL, chance.uniform(2e-5, 4e-3))
                entered_and_left(lock)
                entered_and_left(lock)
                signal.setitimer(signal.ITIMER_REAL, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)
            until_blocking(lambda: not snapshot(server, pool).leases)


def test_leaving_by_hand_is_as_before(server: Server, pool: str) -> None:
    """Exit stacks fetch it from the class, frameworks from the object, some long after entering, some never."""
    offer(server, pool, simulated(1))
    with client_here(server.url, pool):
        with contextlib.ExitStack() as stack:
            stack.enter_context(gpu_lock())
            assert snapshot(server, pool).leases
        assert not snapshot(server, pool).leases
        lock = gpu_lock()
        lock.__enter__()
        assert snapshot(server, pool).leases
        lock.__exit__(None, None, None)
        assert not snapshot(server, pool).leases
        leave = lock.__exit__
        lock.__enter__()
        leave(None, None, None)
        assert not snapshot(server, pool).leases
        lease = gpu_lock().__enter__()
        assert snapshot(server, pool).leases
        lease.release()
        assert not snapshot(server, pool).leases
