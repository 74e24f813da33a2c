"""Celery: `GpuTask`, a base class whose tasks hold a GPU while they run.

    @app.task(bind=True, base=GpuTask, gpu={"memory": "6GiB", "priority": 5})
    def transcribe(self, path):
        self.lease.gpu.device                      # "cuda:0"
        self.lease.progress(45.0, "segment 9")     # or self.update_state(state="PROGRESS", meta={"percent": 45})

    transcribe.apply_async(["a.wav"], gpu={"priority": 20})

The plain decorator serves as well: `@app.task` over `@gpu_lock()`. Nothing is opened at import; each child of the
prefork pool has its own session from its first task on.
"""

from __future__ import annotations

import functools
import inspect
import logging
import math
import time
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from gpulockd.client.lease import BlockingLease
from gpulockd.client.lock import current_lease, gpu_lock
from gpulockd.client.parking import Parked
from gpulockd.client.wishes import Turn
from gpulockd.contrib.celery_options import Options, progress_of
from gpulockd.contrib.extras import extra
from gpulockd.errors import ConfigError, GpuLockError, StoreUnavailable

with extra("celery"):
    from celery import Task, signals  # type: ignore[import-untyped] # it ships no types
    from celery.exceptions import Retry  # type: ignore[import-untyped]

log = logging.getLogger("gpulockd")

OPTIONS_HEADER = "gpu"
PLACE_HEADER = "gpu_place"
SINCE_HEADER = "gpu_since"

GREEN_POOLS = ("gevent", "eventlet")


class GpuTask(Task):  # type: ignore[misc] # Celery's class has no types
    """A task that holds GPUs while its body runs.

    `gpu`: the arguments of `gpu_lock`, and besides

    - `mode`: "block" (default) waits in the worker's slot, "retry" gives the slot back and keeps the place in the queue
    - `countdown`: how long a retry stays away (seconds or "5s")
    - `stay`: how long a retry stays in the queue, if it is first in it (seconds or "3s")

    They stand on the task, and over them what one call says: `apply_async(gpu={...})` or `headers={"gpu": {...}}`.

    :raises ConfigError: where the task is defined, if an option cannot be used
    """

    abstract = True
    gpu: ClassVar[Mapping[str, Any]] = {}

    def __init_subclass__(cls, **words: Any) -> None:
        super().__init_subclass__(**words)
        Options.of(cls.gpu).lock()
        if "run" in cls.__dict__:
            cls.run = _holding(cls.__dict__["run"])

    @property
    def lease(self) -> BlockingLease:
        """The lease of the body that runs in this thread.

        :raises GpuLockError: outside of a body
        """
        lease = current_lease()
        if not isinstance(lease, BlockingLease):
            raise GpuLockError(f"task {self.name} holds no GPU here: use self.lease inside the task's body")
        return lease

    def apply_async(
        self, args: Any = None, kwargs: Any = None, *positional: Any, gpu: Mapping[str, Any] | None = None, **words: Any
    ) -> Any:
        """As Celery's, with `gpu`: options for this call alone.

        :raises ConfigError: at once, if an option cannot be used
        """
        if gpu is not None:
            if not isinstance(gpu, Mapping):
                raise ConfigError(f'gpu={gpu!r}: give options for this call, such as gpu={{"priority": 20}}')
            Options.of({**self.gpu, **gpu}).lock()
            words["headers"] = {**(words.get("headers") or {}), OPTIONS_HEADER: dict(gpu)}
        return super().apply_async(args, kwargs, *positional, **words)

    def update_state(
        self, task_id: str | None = None, state: str | None = None, meta: Any = None, **words: Any
    ) -> None:
        """As Celery's; the percentage and the message in `meta` are told to gpulockd too.

        :raises LeaseLost: if the lease has ended: stop using the GPU
        """
        super().update_state(task_id, state, meta, **words)
        percent, message = progress_of(meta)
        lease = current_lease()
        if task_id not in (None, self.request.id) or not isinstance(lease, BlockingLease):
            return
        if percent is not None or message:
            try:
                lease.progress(percent, message)
            except StoreUnavailable as away:
                log.warning("gpulockd: progress of %s was not noted: %s", self.name, away)

    # How it comes to its lease.

    def _gpu_headers(self) -> Mapping[str, Any]:
        """What came with this very message; empty where the task was called as a function."""
        return self.request.headers or {}

    def _gpu_options(self) -> Options:
        said = self._gpu_headers().get(OPTIONS_HEADER) or {}
        if not isinstance(said, Mapping):
            raise ConfigError(f'the header "gpu" is {said!r}: send options there, such as {{"priority": 20}}')
        return Options.of({**self.gpu, **said})

    def _gpu_lock(self, options: Options) -> gpu_lock:
        lock = options.lock(task=self.name, task_id=self.request.id)
        if self._comes_back(options):
            headers = self._gpu_headers()
            lock.turn = Turn(
                parked=str(headers.get(PLACE_HEADER) or ""),
                stay_s=options.stay_s,
                waited_s=max(0.0, time.time() - since_of(headers)),
            )
        return lock

    def _comes_back(self, options: Options) -> bool:
        """Whether to give the slot back instead of waiting: only a message can be sent again."""
        return options.mode == "retry" and not self.request.called_directly and not self.request.is_eager

    def _has_begun(self) -> None:
        """Its place is used up: should the body call `self.retry`, the next run waits anew."""
        headers = self._gpu_headers()
        self.request.headers = {name: headers[name] for name in headers if name not in (PLACE_HEADER, SINCE_HEADER)}

    def _come_back(self, options: Options, why: GpuLockError) -> Retry:
        """Send the task again, under its id and with its place; as Celery's retry, but none of its retries is used up.

        Should the broker be away, its error ends the task.
        """
        headers = dict(self._gpu_headers())
        headers[SINCE_HEADER] = since_s = since_of(headers)
        if isinstance(why, StoreUnavailable) and time.time() - since_s > options.max_wait_s:
            raise why
        if isinstance(why, Parked):
            headers[PLACE_HEADER] = why.ticket
        message = self.signature_from_request(
            self.request, headers=headers, countdown=options.countdown_s, retries=self.request.retries
        )
        message.apply_async()
        return Retry(message=why.message, when=options.countdown_s, sig=message)


def since_of(headers: Mapping[str, Any]) -> float:
    """Return since when a message says that its task waits (unix seconds); now, if it says nothing that can be."""
    now_s = time.time()
    try:
        since_s = float(headers.get(SINCE_HEADER) or now_s)
    except (TypeError, ValueError, OverflowError):
        return now_s
    return min(max(0.0, since_s), now_s) if math.isfinite(since_s) else now_s


def _holding(run: Any) -> Callable[..., Any]:
    """Return `run` so that each call holds the task's gpus."""
    is_bound = not isinstance(run, staticmethod)
    body = run if is_bound else run.__func__

    @functools.wraps(body)
    def held(self: GpuTask, *args: Any, **kwargs: Any) -> Any:
        options, begun = self._gpu_options(), False
        try:
            with self._gpu_lock(options):
                begun = True
                self._has_begun()
                return body(self, *args, **kwargs) if is_bound else body(*args, **kwargs)
        except (Parked, StoreUnavailable) as away:
            if begun or not self._comes_back(options):
                raise
            why = away
        raise self._come_back(options, why)

    # Celery checks arguments by the signature of what it calls, `self` included.
    if not is_bound:
        mine = inspect.signature(body)
        first = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
        held.__signature__ = mine.replace(parameters=[first, *mine.parameters.values()])  # type: ignore[attr-defined]
    return held


@signals.worker_init.connect(weak=False)  # type: ignore[untyped-decorator]
def _warn_of_green_pool(sender: Any = None, **_: Any) -> None:
    """Such a worker may have other tasks to run, so it starts; each GPU task in it is refused at once."""
    pool = getattr(sender, "pool_cls", "")
    said = pool if isinstance(pool, str) else str(getattr(pool, "__module__", ""))
    for name in (green for green in GREEN_POOLS if green in said):
        log.error(
            "gpulockd: this worker's pool is %s, in which no task can hold a GPU: each will fail; run the GPU tasks in "
            "a worker with `--pool prefork` (or threads, or solo) and a queue of its own",
            name,
        )
