"""What is an alert, and who is told of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import SplitResult, urlsplit

import msgspec

from gpulockd.errors import ConfigError
from gpulockd.settings.kinds import Count, Line, Seconds, SecondsOrZero, UpToADay, Whole

AlertLevel = Literal["warning", "critical"]
WEB_PORTS = {"http": 80, "https": 443}
"""The kinds of address that a webhook may have, and the port of each."""

NOT_SHOWN = "***"
"""What may stand for an address that is kept as it was."""

Port = Annotated[int, Whole(1, 65_535)]


class AlertRule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One rule: `condition` true for as long as `for` (in seconds) is an alert of this `level`."""

    name: Line
    condition: Line
    level: AlertLevel = "warning"
    message: Line = ""
    for_s: SecondsOrZero = msgspec.field(name="for", default=0.0)


RULES = (
    AlertRule(
        name="GPU_LOCK_TIMEOUT_RATE_HIGH",
        condition="timeout_rate > 0.1",
        level="warning",
        message="GPU锁超时率过高",
    ),
    AlertRule(
        name="GPU_LOCK_SUCCESS_RATE_LOW",
        condition="success_rate < 0.9",
        level="warning",
        message="GPU锁成功率过低",
    ),
    AlertRule(
        name="GPU_LOCK_DEADLOCK_DETECTED",
        condition="deadlock_detected == true",
        level="critical",
        message="检测到GPU死锁",
    ),
    AlertRule(
        name="MONITOR_SERVICE_DOWN",
        condition="monitor_health == false",
        level="critical",
        message="GPU锁监控服务异常",
    ),
    AlertRule(
        name="HEARTBEAT_FAILURE_RATE_HIGH",
        condition="heartbeat_failure_rate > 0.05",
        level="warning",
        message="心跳失败率过高",
    ),
)
"""The five rules that users of the source documents know."""


class AlertsBlock(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When there is an alert (times in seconds). A plain list under `alerts:` is its rules.

    Rates are taken over `window`, and only from `least_samples` on. An alert is over once its condition was false for
    `resolve_after`; one that nobody acknowledges for `escalate_after` is told of again (0: never). `own_rules`: those
    of gpulockd stand beside `rules`.
    """

    short_form: ClassVar[str] = "rules"
    """The field that a list in place of the block stands for."""

    rules: tuple[AlertRule, ...] = RULES
    own_rules: bool = True
    window: Seconds = 900.0
    least_samples: Count = 20
    resolve_after: SecondsOrZero = 60.0
    escalate_after: SecondsOrZero = 900.0


class Channel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What each way of telling has: the least `level` that it tells, whether only what was `escalated`, and how long
    one message may take (in seconds)."""

    level: AlertLevel = "warning"
    escalated: bool = False
    timeout: UpToADay = 10.0


class WebhookBlock(Channel, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A URL that is sent JSON by POST, signed with `secret`. What ends with `_file` names a file that has the value."""

    url: Line | None = None
    url_file: Line | None = None
    secret: Line | None = None
    secret_file: Line | None = None


class EmailBlock(Channel, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A server that is sent mail by SMTP. `tls`: starttls, implicit (from the first byte), or none."""

    host: Line | None = None
    port: Port = 587
    tls: Literal["starttls", "implicit", "none"] = "starttls"
    username: Line | None = None
    password: Line | None = None
    password_file: Line | None = None
    sender: Line | None = None
    to: tuple[Line, ...] = ()


class AppriseBlock(Channel, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Addresses of the package apprise (extra `notify`): chats, SMS and others."""

    urls: tuple[Line, ...] = ()
    urls_file: Line | None = None


class NotifyBlock(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who is told of an alert: the log, and channels that users name.

    A channel sends the first message at once, and then one every `aggregate` at most (in seconds); what it could not
    send it tries again until `give_up` (in seconds).
    """

    log: bool = True
    aggregate: SecondsOrZero = 60.0
    give_up: Seconds = 86_400.0
    webhooks: dict[str, WebhookBlock] = msgspec.field(default_factory=dict)
    emails: dict[str, EmailBlock] = msgspec.field(default_factory=dict)
    apprise: dict[str, AppriseBlock] = msgspec.field(default_factory=dict)


def web_address(url: str) -> SplitResult | None:
    """Return the parts of a webhook's address; None if that is none."""
    if not url.isascii() or not url.isprintable() or " " in url:
        return None
    try:
        parts = urlsplit(url)
        return parts if parts.scheme in WEB_PORTS and parts.hostname and parts.port != 0 else None
    except ValueError:
        return None


def check_addresses(tree: dict[str, Any]) -> None:
    """Refuse addresses of channels that could never be told. A daemon does not look at them when it starts: one wrong
    channel is no reason to guard no GPUs.

    :param tree: settings as plain values, checked; it may be a part of them
    :raises ConfigError: naming the first address that is none
    """
    for path, text in _addresses(tree.get("notify") or {}):
        raise ConfigError(f"{path}: {text}", path=path, involved=(path,))


def _addresses(notify: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for name, block in (notify.get("webhooks") or {}).items():
        url = block.get("url")
        if url and url != NOT_SHOWN and web_address(url) is None:
            yield f"notify.webhooks.{name}.url", "it is no address of a receiver; write it whole, as https://host/path"
    for name, block in (notify.get("apprise") or {}).items():
        if any("://" not in url for url in block.get("urls") or () if url != NOT_SHOWN):
            yield f"notify.apprise.{name}.urls", "one of them is no address; write it whole, as 'kind://…'"
