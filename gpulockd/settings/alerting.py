"""What is an alert, and who is told of it."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import msgspec

from gpulockd.settings.kinds import Count, Line, Seconds, SecondsOrZero, UpToADay, Whole

AlertLevel = Literal["warning", "critical"]
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
