"""What the transport raises, redis-py's exceptions among it, as our errors: the only place that translates them."""

from __future__ import annotations

from types import TracebackType

from redis import exceptions as broken

from gpulockd.errors import ConfigError, GpuLockError, StoreUnavailable
from gpulockd.ledger import address
from gpulockd.ledger.wire.trouble import Broken, Late, Moved, Refused, Unwelcome


class mapped:
    """Turn what the transport raises inside the block into our errors.

    :raises StoreUnavailable: if the server cannot be reached, loads, is read-only or full
    :raises ConfigError: if it refuses our credentials
    """

    __slots__ = ("_url",)

    def __init__(self, url: str) -> None:
        self._url = url

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Exception):
            ours = our_error(error, address.without_secret(self._url))
            if ours is not None:
                raise ours from error


_AWAY = (broken.ConnectionError, broken.TimeoutError, broken.ReadOnlyError, broken.OutOfMemoryError)
_REFUSED = (broken.AuthenticationError, broken.AuthorizationError, broken.NoPermissionError)
_NOT_NOW = ("LOADING", "MASTERDOWN", "TRYAGAIN", "CLUSTERDOWN", "BUSY", "MISCONF", "NOREPLICAS", "OOM", "READONLY")
_SPOILT = "WRONGTYPE"
_OF_CLUSTERS = {
    "MOVED": "; it belongs to a cluster: write redis+cluster:// in the URL",
    "TRYAGAIN": "; the pool's keys are being moved to another server: if that stands still, look at CLUSTER NODES",
    "CLUSTERDOWN": "; a part of the cluster has no server, and no replica has taken its place: look at CLUSTER NODES",
    "ERR This instance has cluster support disabled": "; it is no cluster: write redis:// in the URL",
}
"""The beginning of an answer -> what to do about it."""
_NOT_YOU = ("NOAUTH", "NOPERM", "WRONGPASS")


_MOVING = (broken.ClusterDownError, broken.TryAgainError, broken.AskError)


def our_error(error: Exception, shown: str) -> GpuLockError | None:
    """What a caller of ours can act on; None for what is no trouble of the transport's."""
    if isinstance(error, Late):
        return StoreUnavailable(f"Redis at {shown} {error}")
    if isinstance(error, Moved):
        return StoreUnavailable(f"Redis at {shown} cannot be used: {error}")
    if isinstance(error, Refused):
        return _refusal(error, shown)
    return _error_of_redis_py(error, shown)


def _refusal(refused: Refused, shown: str) -> GpuLockError:
    if isinstance(refused, Unwelcome) or refused.code in _NOT_YOU:
        return ConfigError(f"Redis at {shown} refused: {refused}; check user, password and ACL")
    return _answered(str(refused), shown)


def _answered(text: str, shown: str) -> GpuLockError:
    """A key that is not what it should be is waited for too: holders go on, and whoever mends it mends all."""
    if text.startswith((*_NOT_NOW, _SPOILT)):
        return StoreUnavailable(f"Redis at {shown} cannot be used: {text}{_cure(text)}")
    return GpuLockError(f"Redis at {shown} answered: {text}{_cure(text)}")


def _error_of_redis_py(error: Exception, shown: str) -> GpuLockError | None:
    if isinstance(error, _REFUSED):
        return ConfigError(f"Redis at {shown} refused: {error}; check user, password and ACL")
    if isinstance(error, (*_AWAY, Broken)):
        return StoreUnavailable(
            f"Redis at {shown} cannot be used: {str(error) or type(error).__name__}; is it running?"
        )
    if isinstance(error, _MOVING):
        return _answered(f"{_code(error)}{error}", shown)
    if isinstance(error, broken.RedisClusterException):
        return StoreUnavailable(f"Redis Cluster at {shown} cannot be used: {error}")
    if isinstance(error, broken.ResponseError):
        return _answered(str(error), shown)
    if isinstance(error, broken.RedisError):
        return StoreUnavailable(f"Redis at {shown} answered what cannot be read: {error}")
    if isinstance(error, OSError | EOFError) and not isinstance(error, TimeoutError | GpuLockError):
        return StoreUnavailable(f"Redis at {shown} cannot be reached: {error}; is it running?")
    return None


def _code(error: Exception) -> str:
    """What redis-py has cut off the answer of a cluster."""
    if isinstance(error, broken.ClusterDownError):
        return "" if str(error).startswith("CLUSTERDOWN") else "CLUSTERDOWN "
    return "TRYAGAIN "


def _cure(answer: str) -> str:
    """What to do about an answer of a cluster, or one that is a fault of the ledger's own functions."""
    for code, cure in _OF_CLUSTERS.items():
        if answer.startswith(code):
            return cure
    if "user_function" not in answer:
        return ""
    return (
        "; what the store has of this pool was most likely written by another version of gpulockd: stop all programs "
        "of the pool and delete its keys (gpulockd:{POOL}:*), or give the daemon another state folder (--state-dir)"
    )
