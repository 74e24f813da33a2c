"""The daemon has failed: told over the channels of its configuration by whom systemd starts for that (OnFailure=).

It uses neither daemon nor store, since either may be what has failed.
"""

from __future__ import annotations

import os
import socket

import anyio

from gpulockd.alerting.messages import Message, Notice, message_of
from gpulockd.alerting.rules import MONITOR_DOWN
from gpulockd.clock import wall_ms
from gpulockd.daemon import configuration
from gpulockd.daemon.channels.made import channels_of
from gpulockd.daemon.channels.telling import Channel
from gpulockd.errors import GpuLockError
from gpulockd.settings import Settings


def tell(config: str | None, unit: str) -> dict[str, str]:
    """Send MONITOR_SERVICE_DOWN over every channel; return what went wrong with each ("" nothing).

    :param config: the configuration file, None: the usual places
    :param unit: what has failed
    :raises ConfigError: if the channels cannot be read
    """
    settings = configuration.load(config).settings
    return anyio.run(_tell, channels_of(settings.notify), message_of([_notice(settings, unit)]))


def _notice(settings: Settings, unit: str) -> Notice:
    rule = next((one for one in settings.alerts.rules if one.name == MONITOR_DOWN), None)
    now_ms = wall_ms()
    return Notice(
        id=f"down-{os.urandom(8).hex()}",
        kind="raised",
        at_ms=now_ms,
        pool=settings.pool or os.environ.get("GPULOCKD_POOL") or "default",
        rule=MONITOR_DOWN,
        level="critical",
        message=rule.message if rule is not None else "the daemon has failed",
        detail=f"{unit} has failed on {socket.gethostname()}; journalctl -u {unit}",
        raised_ms=now_ms,
        escalated=True,
    )


async def _tell(channels: tuple[Channel, ...], message: Message) -> dict[str, str]:
    told: dict[str, str] = {}

    async def one(channel: Channel) -> None:
        try:
            with anyio.fail_after(channel.timeout_s):
                await channel.send(message)
        except TimeoutError:
            told[channel.name] = f"no answer within {channel.timeout_s:g} s"
        except GpuLockError as trouble:
            told[channel.name] = trouble.message
        else:
            told[channel.name] = ""

    async with anyio.create_task_group() as tasks:
        for channel in channels:
            tasks.start_soon(one, channel)
    return told
