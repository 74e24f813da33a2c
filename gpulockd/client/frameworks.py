"""What runs this program, read without importing any of it: the Celery task, and whether its threads are real ones."""

from __future__ import annotations

import sys
from typing import Any

import msgspec

from gpulockd.errors import ConfigError
from gpulockd.model import Job


def named(job: Job, names_task: bool) -> Job:
    """Return the job under the name and request id of the Celery task that runs in this thread, where it has none.

    :param names_task: whether the caller has named its task
    """
    task, id = _celery_task()
    if not id or (names_task and job.task_id):
        return job
    names = {"task": job.task if names_task else str(task)[:200], "task_id": job.task_id or str(id)[:200]}
    return msgspec.structs.replace(job, **names)


def _celery_task() -> tuple[str, str]:
    state: Any = sys.modules.get("celery._state")
    # Half imported, by another thread, it may lack the name.
    task = getattr(state, "get_current_task", lambda: None)()
    return (task.name, task.request.id) if task is not None else ("", "")


def check_threads() -> None:
    """The portal and the keepalive are threads, and a body on the card never yields: greenlets would starve both.

    :raises ConfigError: if gevent or eventlet has put greenlets in the place of this process's threads
    """
    gevent: Any = sys.modules.get("gevent.monkey")
    eventlet: Any = sys.modules.get("eventlet.patcher")
    name = ""
    if gevent is not None and gevent.is_module_patched("threading"):
        name = "gevent"
    elif eventlet is not None and eventlet.is_monkey_patched("thread"):
        name = "eventlet"
    if name:
        raise ConfigError(
            f"gpu_lock cannot be used in a process patched by {name}: a body on the GPU never yields, so the keepalive "
            "of its lease would stop; start the worker with `--pool prefork` (or threads, or solo)"
        )
