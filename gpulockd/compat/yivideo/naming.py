"""What a decorated call is called. Which run of its task it is, the client reads from Celery itself."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any


def takes_self(func: Callable[..., Any]) -> bool:
    """Whether the function's first parameter is `self`: a method, or a task that Celery binds."""
    try:
        names = tuple(inspect.signature(func).parameters)
    except (TypeError, ValueError):  # some callables in C tell nothing
        return False
    return names[:1] == ("self",)


def task_of(func: Callable[..., Any], owner: object) -> str:
    """Return the task's name: what its owner is called, else the function.

    :param owner: what the call was given as `self`, None if the function takes none. Only that may give the name: the
        name of a file that is an argument is not the task's
    """
    name = getattr(owner, "name", None)
    return name if isinstance(name, str) and name else getattr(func, "__name__", "task")
