"""The package apprise as a channel: chats, SMS and whatever else it knows. It is loaded with the first message."""

from __future__ import annotations

import importlib
from typing import Any

import anyio
import anyio.to_thread

from gpulockd.alerting.messages import Message, Notice
from gpulockd.daemon.channels.telling import ChannelError, secret_of, takes
from gpulockd.errors import ConfigError
from gpulockd.settings.alerting import AppriseBlock

CURE = "pip install 'gpulockd[notify]'"


class AppriseChannel:
    """All addresses of one name. apprise does not say why one failed, so the message counts as a whole."""

    kind = "apprise"

    def __init__(self, name: str, block: AppriseBlock, apart_s: float) -> None:
        """:raises ConfigError: if it has no address"""
        where = f"notify.apprise.{name}"
        self.name = name
        self.timeout_s = block.timeout
        self.apart_s = apart_s
        self._block = block
        self._limiter = anyio.CapacityLimiter(1)
        listed = secret_of(None, block.urls_file, where) or ""
        self._urls = (*block.urls, *(line.strip() for line in listed.splitlines() if line.strip()))
        if not self._urls:
            raise ConfigError(f"{where}.urls: list at least one address, as 'mailto://…'")

    def __repr__(self) -> str:
        return f"<AppriseChannel {self.name} {len(self._urls)} addresses>"

    def takes(self, notice: Notice) -> bool:
        """Whether that is for this channel."""
        return takes(self._block, notice, notice.escalated)

    async def send(self, message: Message) -> None:
        """Give it to apprise.

        :raises ChannelError: if an address could not be told, or the package is not installed
        """
        told = await anyio.to_thread.run_sync(self._notify, message, abandon_on_cancel=True, limiter=self._limiter)
        if not told:
            raise ChannelError(f"apprise could not tell all {len(self._urls)} addresses of notify.apprise.{self.name}")

    def _notify(self, message: Message) -> bool:
        try:
            package: Any = importlib.import_module("apprise")
        except ImportError:
            raise ChannelError(f"the package apprise is not installed; {CURE}") from None
        teller = package.Apprise()
        for url in self._urls:
            if not teller.add(url):
                raise ChannelError(f"apprise does not know one of the addresses of notify.apprise.{self.name}")
        kind = package.NotifyType.FAILURE if message.level == "critical" else package.NotifyType.WARNING
        return bool(teller.notify(title=message.subject, body=message.text, notify_type=kind))
