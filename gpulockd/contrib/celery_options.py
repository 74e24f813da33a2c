"""What a Celery task says of the GPUs it needs: the words of `gpu={...}`, and the progress in a task's state."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Mapping
from typing import Any, Literal, Self

import msgspec

from gpulockd.client.lock import gpu_lock
from gpulockd.errors import ConfigError, ImpossibleRequest
from gpulockd.settings import GpuLockBlock
from gpulockd.units import parse_duration_s

MODES = ("block", "retry")

STAY_S = 3.0
COUNTDOWN_S = 5.0
LONGEST_S = 300.0
"""How long a retry may stay away (in seconds): the ledger keeps a place for ten minutes."""

LOCK_WORDS = frozenset(inspect.signature(gpu_lock).parameters) - {"nested"}
NEAR = 0.7
"""How alike two words must be (0 to 1) for one to be meant by the other."""

OWN_WORDS = frozenset({"mode", "stay", "countdown"})


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How a task comes to its GPUs. `stay_s` and `countdown_s` are in seconds; `words` are those of `gpu_lock`."""

    words: dict[str, Any]
    mode: Literal["block", "retry"] = "block"
    stay_s: float = STAY_S
    countdown_s: float = COUNTDOWN_S

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> Self:
        """Read what a task or a call says.

        :raises ConfigError: if a word is unknown or its value cannot be used
        """
        if not isinstance(said, Mapping):
            raise ConfigError(f'gpu={said!r}: give the arguments of gpu_lock, such as gpu={{"memory": "6GiB"}}')
        for word in said:
            if word not in LOCK_WORDS | OWN_WORDS:
                near = difflib.get_close_matches(str(word), LOCK_WORDS | OWN_WORDS, n=1, cutoff=NEAR)
                hint = f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(sorted(LOCK_WORDS))}"
                raise ConfigError(f"gpu={{...}} has no option {word!r}{hint}")
        mode = said.get("mode", "block")
        if mode not in MODES:
            raise ConfigError(f"gpu={{'mode': {mode!r}}}: say 'block' or 'retry'")
        return cls(
            words={word: value for word, value in said.items() if word in LOCK_WORDS},
            mode=mode,
            stay_s=_duration_s(said, "stay", STAY_S),
            countdown_s=_duration_s(said, "countdown", COUNTDOWN_S),
        )

    @property
    def max_wait_s(self) -> float:
        """How long to wait in all (in seconds), as far as is known while the store is away."""
        said = self.words.get("max_wait_time")
        return GpuLockBlock().max_wait_time if said is None else parse_duration_s(said, "max_wait_time")

    def lock(self, **names: str | None) -> gpu_lock:
        """The lock that these words describe.

        :param names: the task's name and id, where the words give none
        :raises ConfigError: if the words cannot be used
        """
        try:
            return gpu_lock(**{**names, **self.words})
        except (TypeError, ImpossibleRequest) as wrong:
            raise ConfigError(f"gpu={self.words!r}: {wrong}") from wrong


def _duration_s(said: Mapping[str, Any], word: str, default_s: float) -> float:
    value_s = parse_duration_s(said[word], word) if word in said else default_s
    if not 0.05 <= value_s <= LONGEST_S:
        raise ConfigError(f"gpu={{{word!r}: {said[word]!r}}}: say 0.05 to {LONGEST_S:.0f} seconds")
    return value_s


def progress_of(meta: object) -> tuple[float | None, str]:
    """Read percent (0 to 100, None if unknown) and message from the `meta` of a task's state, as people write it.

    Percent is `percent` or `progress`, or `current` of `total`; the message is `message` or `status`.
    """
    if not isinstance(meta, Mapping):
        return None, ""
    percent = next((meta[word] for word in ("percent", "progress") if _is_number(meta.get(word))), None)
    current, total = (meta[word] if _is_number(meta.get(word)) else 0.0 for word in ("current", "total"))
    if percent is None and _is_number(meta.get("current")) and float(total) > 0:
        percent = 100.0 * float(current) / float(total)
    message = next((str(meta[word]) for word in ("message", "status") if meta.get(word)), "")
    return (None if percent is None else min(100.0, max(0.0, float(percent)))), message


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
