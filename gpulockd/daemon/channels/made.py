"""The channels that a configuration names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial

from gpulockd.alerting.messages import Message, Notice
from gpulockd.daemon.channels.apprise import AppriseChannel
from gpulockd.daemon.channels.email import EmailChannel
from gpulockd.daemon.channels.log import LogChannel
from gpulockd.daemon.channels.telling import Channel, ChannelError
from gpulockd.daemon.channels.webhook import WebhookChannel
from gpulockd.errors import ConfigError
from gpulockd.settings.alerting import NotifyBlock

RESERVED = ("log", "event")

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


class UnusableChannel:
    """A channel that cannot be made: it fails with the reason, and what is due to it waits until that is corrected."""

    timeout_s = 1.0
    apart_s = 0.0

    def __init__(self, name: str, kind: str, why: str) -> None:
        self.name = name
        self.kind = kind
        self._why = why

    def __repr__(self) -> str:
        return f"<UnusableChannel {self.name}>"

    def takes(self, notice: Notice) -> bool:
        """Whatever there is."""
        return True

    async def send(self, message: Message) -> None:
        """:raises ChannelError: always"""
        raise ChannelError(self._why)


def channels_of(notify: NotifyBlock) -> tuple[Channel, ...]:
    """Return all channels, the log first.

    :raises ConfigError: naming the first channel that cannot be used, and what it lacks
    """
    return tuple(make() for _, _, make in _all(notify))


def usable(notify: NotifyBlock) -> tuple[Channel, ...]:
    """Return all channels; one that cannot be used is there too, and says why. It is no reason to guard no GPUs."""
    made: list[Channel] = []
    for name, kind, make in _all(notify):
        try:
            made.append(make())
        except ConfigError as wrong:
            if name not in {channel.name for channel in made} and name not in RESERVED and _NAME.fullmatch(name):
                made.append(UnusableChannel(name, kind, wrong.message))
    return tuple(made)


def _all(notify: NotifyBlock) -> Iterator[tuple[str, str, Callable[[], Channel]]]:
    """Yield name and kind of each channel, and what makes it."""
    if notify.log:
        yield "log", "log", LogChannel
    seen: set[str] = set()
    kinds: tuple[tuple[str, Callable[..., Channel], Mapping[str, object]], ...] = (
        (WebhookChannel.kind, WebhookChannel, notify.webhooks),
        (EmailChannel.kind, EmailChannel, notify.emails),
        (AppriseChannel.kind, AppriseChannel, notify.apprise),
    )
    for kind, make, blocks in kinds:
        for name, block in blocks.items():
            yield name, kind, partial(_made, make, name, block, notify.aggregate, again=name in seen)
            seen.add(name)


def _made(make: Callable[..., Channel], name: str, block: object, apart_s: float, *, again: bool) -> Channel:
    if name in RESERVED or not _NAME.fullmatch(name):
        raise ConfigError(f"notify: a channel cannot be called {name!r}; use letters, digits or '_.-'")
    if again:
        raise ConfigError(f"notify: two channels are called {name}; give one of them another name")
    return make(name, block, apart_s)
