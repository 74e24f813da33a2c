"""The daemon's own log as a channel: one line an alert, one for all of a storm."""

from __future__ import annotations

import structlog

from gpulockd.alerting.messages import LONGEST_LINE, Message, Notice
from gpulockd.units import clean

MOST_LINES = 10
LOGGER = "gpu_lock_monitor"
"""What users of the source documents look for."""

_log = structlog.get_logger(__name__)


class LogChannel:
    """Writes alerts to the log. Nothing is held back, and more than ten at once are one line."""

    name = "log"
    kind = "log"
    timeout_s = 5.0
    apart_s = 0.0

    def takes(self, notice: Notice) -> bool:
        """Whatever there is."""
        return True

    async def send(self, message: Message) -> None:
        """Write it."""
        if len(message.notices) > MOST_LINES:
            write = _log.error if message.level == "critical" else _log.warning
            write(
                "alerts.many", count=len(message.notices), message=f"[告警] {message.subject}\n{message.text}".strip()
            )
            return
        for notice in message.notices:
            what = "test" if notice.test else notice.kind
            text = f"[告警] {notice.rule}: {notice.message}" + (f" ({notice.detail})" if notice.detail else "")
            write = _log.info if notice.kind == "resolved" else _log.warning
            if notice.level == "critical" and notice.kind != "resolved":
                write = _log.error
            told = clean(text, LONGEST_LINE)
            write(f"alerts.{what}", pool=notice.pool, rule=notice.rule, severity=notice.level, message=told)
