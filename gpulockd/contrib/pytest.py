"""A pytest plugin: the fixture `gpu`, one GPU for each test worker.

It is the lease of the process that runs the tests: under pytest-xdist each worker has one of its own, from the first
test that asks for it until the worker ends. Where a run has more workers than GPUs, each test takes its turn instead:
a worker that keeps its GPU until all tests are done would wait for one that waits for it.

Nothing of ours is loaded before a test asks for a GPU; only a worker of xdist counts the GPUs when it starts.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import pytest

if TYPE_CHECKING:  # loaded when a test asks for a GPU
    from gpulockd import BlockingLease

HELD = pytest.StashKey["BlockingLease"]()
CROWDED = pytest.StashKey[bool]()

DEFAULT_WAIT = "10m"


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options of this plugin, on the command line and in the ini file."""
    group = parser.getgroup("gpulockd", "GPUs for tests")
    group.addoption("--gpu-wait", metavar="TIME", help="how long a test waits for its GPU, such as 90 or 10m")
    group.addoption("--gpu-missing", choices=("skip", "fail"), help="what tests do where nobody has GPUs to ask for")
    parser.addini("gpu_wait", "how long a test waits for its GPU", default=DEFAULT_WAIT)
    parser.addini("gpu_missing", "what tests do where nobody has GPUs to ask for: skip or fail", default="skip")
    parser.addini("gpu_memory", "a memory budget on a shared card, such as 4GiB; default: the whole card", default="")


def _said(config: pytest.Config, name: str) -> str:
    return str(config.getoption(name) or config.getini(name))


def _scope(fixture_name: str, config: pytest.Config) -> Literal["session", "function"]:
    """A GPU for the whole session, unless there are more workers than can have one at once."""
    return "function" if is_crowded(config, int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))) else "session"


def is_crowded(config: pytest.Config, workers: int) -> bool:
    """Whether a run of so many workers has more of them than GPUs. A pool that cannot be seen crowds nobody."""
    if workers < 2 or config.getini("gpu_memory"):
        return False
    if CROWDED not in config.stash:
        gpus = import_module("gpulockd.contrib.looking").offered_gpus()
        config.stash[CROWDED] = gpus is not None and workers > gpus
    return config.stash[CROWDED]


@pytest.fixture(scope=_scope)
def gpu(request: pytest.FixtureRequest) -> Iterator[BlockingLease]:
    """The lease of this test worker's GPU. While it is held, `CUDA_VISIBLE_DEVICES` shows that GPU only."""
    config = request.config
    errors = import_module("gpulockd.errors")
    with ExitStack() as stack:
        try:
            lease: BlockingLease = stack.enter_context(_lock(config))
        except errors.StoreUnavailable as away:
            _missing(config, str(away))
        except errors.GpuLockTimeout as busy:
            pytest.fail(f"no GPU for the tests: {busy}; wait longer (--gpu-wait) or start fewer workers", pytrace=False)
        except errors.GpuLockError as refused:
            pytest.fail(f"no GPU for the tests: {refused}", pytrace=False)
        stack.enter_context(_environment(lease.env))
        config.stash[HELD] = lease
        stack.callback(config.stash.__delitem__, HELD)
        yield lease


def _lock(config: pytest.Config) -> Any:
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    return import_module("gpulockd").gpu_lock(
        memory=config.getini("gpu_memory") or None,
        max_wait_time=_said(config, "gpu_wait"),
        task=f"pytest {config.rootpath.name}",
        task_id=worker or None,
    )


def _missing(config: pytest.Config, why: str) -> NoReturn:
    text = f"no GPU for the tests: {why}"
    how = _said(config, "gpu_missing")
    if how == "fail":
        pytest.fail(text, pytrace=False)
    pytest.skip(text)


class _environment:
    """The environment with these variables in it, and afterwards as it was."""

    def __init__(self, variables: dict[str, str]) -> None:
        self._variables = variables
        self._before: dict[str, str | None] = {}

    def __enter__(self) -> None:
        self._before = {name: os.environ.get(name) for name in self._variables}
        os.environ.update(self._variables)

    def __exit__(self, *_: object) -> None:
        for name, value in self._before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test whose worker has lost its GPU meanwhile must not use it."""
    lease = item.config.stash.get(HELD, None)
    if lease is not None and lease.lost.is_set() and "gpu" in getattr(item, "fixturenames", ()):
        pytest.fail(f"the GPU of this test worker was taken away: {lease.lost_reason}", pytrace=False)
