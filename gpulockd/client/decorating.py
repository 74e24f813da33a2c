"""`@gpu_lock()`: holding the lease while a function runs."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:  # names of types only
    from gpulockd.client.lock import gpu_lock

F = TypeVar("F", bound=Callable[..., Any])


def decorated(func: F, lock: gpu_lock) -> F:
    """Return `func` so that each call holds `lock`: a function or method, `def` or `async def`.

    :raises TypeError: for generators, whose end nobody sees, and for classes
    """
    if inspect.isclass(func) or not callable(func):
        raise TypeError("@gpu_lock() decorates a function or a method; put it on the method that uses the GPU")
    if inspect.isgeneratorfunction(func) or inspect.isasyncgenfunction(func):
        raise TypeError(
            f"@gpu_lock() cannot hold a lock for the generator {func.__qualname__!r}, whose end nobody sees; "
            "use 'with gpu_lock():' around the loop that consumes it"
        )
    if inspect.iscoroutinefunction(func):

        @functools.wraps(func)
        async def run_async(*args: Any, **kwargs: Any) -> Any:
            async with lock:
                return await func(*args, **kwargs)

        return run_async  # type: ignore[return-value] # same signature as `func`

    @functools.wraps(func)
    def run(*args: Any, **kwargs: Any) -> Any:
        with lock:
            return func(*args, **kwargs)

    return run  # type: ignore[return-value] # same signature as `func`
