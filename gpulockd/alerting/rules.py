"""What is worth an alert: the five rules of the source documents, and ours beside them."""

from __future__ import annotations

import re
from typing import Any, Literal

import msgspec

from gpulockd.alerting.expression import Condition, ConditionError, parse
from gpulockd.alerting.facts import KINDS
from gpulockd.errors import ConfigError
from gpulockd.settings.alerting import AlertRule, AlertsBlock

Level = Literal["warning", "critical"]

MONITOR_DOWN = "MONITOR_SERVICE_DOWN"
PATH = "alerts.rules"
"""Where the configuration has them."""

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """A condition that must be true for `for_s` (in seconds) before it is an alert."""

    name: str
    condition: Condition
    level: Level
    message: str
    for_s: float = 0.0


OWN: tuple[tuple[str, str, Level, str], ...] = (
    ("GPU_QUARANTINED", "gpus_quarantined > 0", "warning", "something stays on a GPU, so it is not offered"),
    ("GPU_LOST", "gpus_lost > 0", "critical", "a card has failed"),
    ("LEASE_OVERDUE", "leases_warned > 0", "warning", "a lease is older than its warning age"),
)
"""What the rules of the documents do not see; they stand unless `alerts.own_rules` is false."""


def rule(name: str, condition: str, level: Any, message: str, for_s: float = 0.0) -> Rule:
    """Return a rule.

    :param for_s: how long its condition must be true (in seconds)
    :raises ConfigError: naming the rule, and the column where its condition is wrong
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"alerts: rule {name[:64]!r}: a name is 1 to 64 letters, digits or '_.-'", path=PATH, involved=(PATH,)
        )
    if level not in ("warning", "critical"):
        raise ConfigError(
            f"alerts: rule {name}: level {level!r} is neither 'warning' nor 'critical'", path=PATH, involved=(PATH,)
        )
    try:
        read = parse(condition, KINDS)
    except ConditionError as wrong:
        raise ConfigError(
            f"alerts: rule {name}: condition {condition!r}: {wrong.message}", path=PATH, involved=(PATH,)
        ) from None
    return Rule(name=name, condition=read, level=level, message=message or name, for_s=for_s)


def rules_of(block: AlertsBlock) -> tuple[Rule, ...]:
    """Return the rules of a configuration, and ours that none of them replaces by its name.

    :raises ConfigError: for a condition that cannot be read, or a name that stands twice
    """
    listed = tuple(_said(one) for one in block.rules)
    names = {one.name for one in listed}
    if len(names) < len(listed):
        twice = next(one.name for i, one in enumerate(listed) if one.name in {other.name for other in listed[:i]})
        raise ConfigError(
            f"alerts: rule {twice} stands twice; give one of them another name", path=PATH, involved=(PATH,)
        )
    return listed + (tuple(one for one in OWN_RULES if one.name not in names) if block.own_rules else ())


def _said(one: AlertRule) -> Rule:
    return rule(one.name, one.condition, one.level, one.message, one.for_s)


OWN_RULES = tuple(rule(*words) for words in OWN)
