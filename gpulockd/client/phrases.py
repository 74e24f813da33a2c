"""What users of the source documents grep for in the logs of their tasks, word for word, through the logger `locks`."""

from __future__ import annotations

import logging

log = logging.getLogger("locks")


def acquired(task: str) -> None:
    """The task has its lock."""
    if log.isEnabledFor(logging.INFO):
        log.info("任务 %s 成功获取GPU锁", task)


def released(task: str) -> None:
    """The task has given its lock back."""
    if log.isEnabledFor(logging.INFO):
        log.info("任务 %s 释放GPU锁", task)


def not_acquired(task: str, why: str) -> None:
    """The task has waited too long. A program that has set up no logging has the exception, which says it too."""
    if log.isEnabledFor(logging.WARNING) and log.hasHandlers():
        log.warning("任务 %s 无法获取GPU锁: %s", task, why)
