"""Durations, memory sizes and keys as users write them, turned into numbers with a unit in the name; and what others
have written, as a screen may show it."""

from __future__ import annotations

import re

from gpulockd.errors import ConfigError, ImpossibleRequest

_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_DURATION_UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_MEMORY = re.compile(r"(\d+(?:\.\d+)?)\s*(KiB|MiB|GiB|TiB|KB|MB|GB|TB|K|M|G|T)", re.IGNORECASE)
_MEMORY_UNIT_MIB = {"k": 1 / 1024, "m": 1.0, "g": 1024.0, "t": 1024.0 * 1024.0}
_KEY = re.compile(r"[A-Za-z0-9_.:/-]{1,128}")

_SPACES = "\u00a0\u2009\u202f"

LONGEST_TEXT = 64
"""No size and no duration is longer; a pattern would be tried at each of its digits."""

MEMORY_STEP_MIB = 256
"""Memory wants are rounded up to this step (in MiB), so that few distinct wants exist."""

FEWEST_PLAIN_MIB = 64
"""A plain number below this is meant as GiB by whoever writes it, and would share the card with everybody (in MiB)."""


def parse_duration_s(value: str | float | int, name: str = "duration") -> float:
    """Return `value` in seconds: a number of seconds, or text such as "250ms", "5m", "1h30m".

    :param name: what the value is called in the error message
    :raises ConfigError: if it is not a duration, is negative, or is not finite
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ConfigError(f"{name}: {value!r} is not a duration; write seconds or '250ms', '5m', '1h30m'")
    if isinstance(value, str):
        text = value.strip() if len(value) <= LONGEST_TEXT else ""
        parts = _DURATION_PART.findall(text)
        if parts and "".join(number + unit for number, unit in parts) == text:
            value = sum(float(number) * _DURATION_UNIT_S[unit] for number, unit in parts)
        else:
            try:
                value = float(text)
            except ValueError:
                said = f"{str(value)[:60]!r} is not a duration"
                raise ConfigError(f"{name}: {said}; write seconds or '250ms', '5m', '1h30m'") from None
    if not 0.0 <= value < 1e10:
        raise ConfigError(f"{name}: a duration is between 0 and 300 years")
    return float(value)


def parse_memory_mib(value: str | float | int, name: str = "memory") -> int:
    """Return `value` in MiB, rounded up to 256 MiB: text such as "8GiB" or "6G", or a number of MiB.

    One letter and the two-letter forms mean powers of 1024, as in GPU tools.

    :raises ImpossibleRequest: if it is not a positive size, or a plain number below 64
    """
    mib, is_plain = 0.0, not isinstance(value, str)
    if isinstance(value, str):
        text = value.strip() if len(value) <= LONGEST_TEXT else ""
        found = _MEMORY.fullmatch(text)
        if found is not None:
            mib = float(found[1]) * _MEMORY_UNIT_MIB[found[2][0].lower()]
        elif text.isdigit():
            mib, is_plain = float(text), True
        value = value[:LONGEST_TEXT]
    elif isinstance(value, int | float) and not isinstance(value, bool):
        mib = float(min(value, 2**40))  # a float does not hold every int
    if not 0.0 < mib < 2**40:
        raise ImpossibleRequest(f"{name}: {value!r} is not a memory size; write '8GiB', '512MiB' or a number of MiB")
    if is_plain and mib < FEWEST_PLAIN_MIB:
        said = f"{name}={value}" if name.isidentifier() else f"{name} {value}"
        raise ImpossibleRequest(f"{said} means {mib:g} MiB; write '{mib:g}GiB' (or '{mib:g}MiB', if that is meant)")
    return -(-int(-(-mib // 1)) // MEMORY_STEP_MIB) * MEMORY_STEP_MIB


def check_key(value: object) -> str:
    """Return `value` if it can be the key of a lock slot, such as "gpu_lock:0".

    :raises ImpossibleRequest: if it is not text of letters, digits and `_ . : / -`
    """
    if not isinstance(value, str) or _KEY.fullmatch(value) is None:
        raise ImpossibleRequest(
            f"{value!r} is not a lock key; use 1 to 128 letters, digits or '_.:/-', such as 'gpu_lock:0'"
        )
    return value


def format_duration(seconds: float) -> str:
    """Return seconds as people read them: "0.4 s", "12 s", "7:08", "2:03:20"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    hours, rest = divmod(whole, 3600)
    minutes, secs = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{secs:02d}" if hours else f"{minutes}:{secs:02d}"


def clean(text: str, most: int | None = None) -> str:
    """Return one line of text in which nothing moves a cursor, rings, colours, hides or turns other text.

    :param most: how many characters it may have; an ellipsis stands for what was cut
    """
    if most is not None and len(text) > most:
        text = text[: most - 1] + "…"
    return text if text.isprintable() else "".join(one if one.isprintable() or one in _SPACES else " " for one in text)


def sendable(text: str) -> str:
    """Return a text as it can be sent: bytes of a file's name that are no UTF-8 become "?"."""
    return text.encode(errors="replace").decode()


def check_plain(text: str, name: str) -> str:
    """Return a text that others are shown.

    :param name: what the value is called in the error message
    :raises ConfigError: if it has characters that control a terminal or hide others
    """
    wrong = next((one for one in text if not one.isprintable()), None)
    if wrong is not None:
        raise ConfigError(f"{name}: it contains {wrong!r}; use characters that can be seen")
    return text
