"""What every channel is: a name, what it is to be told, and how it sends. Secrets never leave it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Protocol
from urllib.parse import urlsplit

from gpulockd.alerting.messages import Message, Notice
from gpulockd.errors import ConfigError, GpuLockError
from gpulockd.settings.alerting import Channel as ChannelBlock
from gpulockd.units import clean

HIDDEN = "***"
LONGEST_FILE = 64 * 1024


class ChannelError(GpuLockError):
    """The message has not arrived: the channel tries again by itself; `gpulockd alerts test` tries it now."""


class Channel(Protocol):
    """A way of telling. `apart_s`: the least time between two messages; `timeout_s`: for one (both in seconds)."""

    name: str
    kind: str
    timeout_s: float
    apart_s: float

    def takes(self, notice: Notice) -> bool:
        """Whether that is for this channel."""

    async def send(self, message: Message) -> None:
        """Send it; the caller sets the deadline.

        :raises ChannelError: if it has not arrived; the text has no secret
        """


def takes(block: ChannelBlock, notice: Notice, escalated: bool) -> bool:
    """Whether a channel with these settings is to tell of a notice.

    :param escalated: nobody had reacted to the alert
    """
    loud = notice.level == "critical" or block.level == "warning"
    return loud and (escalated or not block.escalated)


def secret_of(value: str | None, file: str | None, what: str) -> str | None:
    """Return a secret, from its file if one is named.

    :raises ConfigError: if the file cannot be read
    """
    if file is None:
        return value
    try:
        with open(file, encoding="utf-8") as opened:
            return opened.read(LONGEST_FILE).strip()
    except (OSError, UnicodeDecodeError) as wrong:
        why = os.strerror(wrong.errno) if isinstance(wrong, OSError) and wrong.errno else "it is not text"
        raise ConfigError(f"{what}: {file} cannot be read: {why}") from None


def redacted(text: object, secrets: Iterable[str | None]) -> str:
    """Return a text as it may be logged: without these secrets and without control characters, at most 300 long."""
    shown = str(text)
    for secret in sorted({one for one in secrets if one}, key=len, reverse=True):
        shown = shown.replace(secret, HIDDEN)
    return clean(shown, 300)


def shown_url(url: str) -> str:
    """Return scheme and host of a URL; the rest of a hook's address is its secret."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}" if parts.scheme and host else "(no URL)"
