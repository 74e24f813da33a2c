"""The language of conditions: what it means, what it refuses, and that nothing else gets through it."""

from __future__ import annotations

import operator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpulockd.alerting.expression import ConditionError, parse
from gpulockd.alerting.facts import FACTS, KINDS
from gpulockd.alerting.rules import OWN_RULES, rules_of
from gpulockd.settings.alerting import AlertsBlock

NUMBERS = ("redis_cpu", "queue_length", "oldest_wait")
TRUTHS = ("deadlock_detected", "monitor_health")
SIGNS = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
}


def holds(text: str, **facts: Any) -> bool | None:
    """Whether a condition is true of these facts."""
    return parse(text, KINDS).holds(facts)


@pytest.mark.parametrize(
    ("text", "facts", "expected"),
    [
        ("timeout_rate > 0.1", {"timeout_rate": 0.11}, True),
        ("timeout_rate > 0.1", {"timeout_rate": 0.1}, False),
        ("timeout_rate > 10%", {"timeout_rate": 0.11}, True),
        ("success_rate < 0.9", {"success_rate": 1.0}, False),
        ("deadlock_detected == true", {"deadlock_detected": True}, True),
        ("monitor_health == false", {"monitor_health": True}, False),
        ("deadlock_detected", {"deadlock_detected": True}, True),
        ("not monitor_health", {"monitor_health": True}, False),
        ("oldest_wait >= 1h30m", {"oldest_wait": 5400.0}, True),
        ("oldest_wait > 250ms", {"oldest_wait": 0.2}, False),
        ("300 < oldest_wait", {"oldest_wait": 301.0}, True),
        ("queue_length > 5 and oldest_wait > 5m", {"queue_length": 6.0, "oldest_wait": 299.0}, False),
        ("queue_length > 5 or oldest_wait > 5m", {"queue_length": 6.0, "oldest_wait": 299.0}, True),
        ("(queue_length > 5 || oldest_wait > 5m) && !deadlock_detected", {"queue_length": 6.0, "oldest_wait": 0.0,
         "deadlock_detected": False}, True),
        ("NOT (timeout_rate > 0.1) AND TRUE", {"timeout_rate": 0.0}, True),
        ("not not deadlock_detected", {"deadlock_detected": True}, True),
        ("queue_length > gpus", {"queue_length": 3.0, "gpus": 2.0}, True),
        ("(queue_length > 1) == deadlock_detected", {"queue_length": 2.0, "deadlock_detected": True}, True),
        # what is not known
        ("timeout_rate > 0.1", {}, None),
        ("timeout_rate > 0.1 or deadlock_detected", {"deadlock_detected": True}, True),
        ("timeout_rate > 0.1 or deadlock_detected", {"deadlock_detected": False}, None),
        ("timeout_rate > 0.1 and deadlock_detected", {"deadlock_detected": False}, False),
        ("not (timeout_rate > 0.1)", {}, None),
    ],
)  # fmt: skip
def test_a_condition_means_what_it_says(text: str, facts: dict[str, Any], expected: bool | None) -> None:
    """A rule that means something else is worse than none."""
    assert holds(text, **facts) is expected


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("timeout_rat > 0.1", "column 1: unknown name 'timeout_rat'; did you mean 'timeout_rate'"),
        ("timeout_rate > ", "column 16: the condition ends where a name or a value must stand"),
        ("timeout_rate = 0.1", "column 14: '=' has no meaning here; compare with '=='"),
        ("timeout_rate & monitor_health", "column 14: '&' has no meaning here; write 'and'"),
        ("timeout_rate", "column 1: this is a value and no condition"),
        ("timeout_rate and deadlock_detected", "column 1: 'and' joins conditions"),
        ("deadlock_detected > true", "column 19: true and false have no order"),
        ("deadlock_detected == 1", "column 22: true or false cannot be compared"),
        ("timeout_rate > 5m", "column 16: this must be a part of one"),
        ("queue_length > 10%", "column 16: this must be a number"),
        ("oldest_wait > 10%", "column 15: this must be a duration"),
        ("0 < timeout_rate < 1", "column 18: one comparison at a time"),
        ("(timeout_rate > 0.1", "column 20: ')' is missing for the '(' in column 1"),
        ("timeout_rate > 0.1)", "column 19: ')' is too much"),
        ("not timeout_rate", "column 5: 'not' needs a condition"),
        ("1 > 0", "column 1: the condition names no fact"),
        ("", "column 1: the condition ends"),
        ("timeout_rate > 10", "column 16: timeout_rate is a part of one and never more than 1 (100%)"),
        ("95 > success_rate", "did you mean 95%?"),
        ("timeout_rate > 1e999", "column 16: '1e999' is too large"),
        ("(" * 200 + "deadlock_detected" + ")" * 200, "levels of parentheses"),
        ("__import__('os').system('id')", "has no meaning here"),
        ("__import__(os)", "unknown name '__import__'"),
        ("timeout_rate.real > 0", "'.' has no meaning here"),
        ("x" * 501, "at most 500 characters"),
        ("深 > 1", "column 1: '深' has no meaning here"),
    ],
)
def test_what_is_wrong_is_named_by_its_column(text: str, says: str) -> None:
    """Who writes a rule at night must not guess what is wrong with it."""
    with pytest.raises(ConditionError) as refused:
        parse(text, KINDS)
    assert says in refused.value.message, refused.value.message


def comparisons() -> st.SearchStrategy[tuple[str, str]]:
    """A comparison in our words, and in Python's."""
    constants = st.sampled_from([("0.1", "0.1"), ("3", "3.0"), ("0", "0.0"), ("1e2", "100.0"), (".5", "0.5")])
    numbers = st.tuples(st.sampled_from(NUMBERS), st.sampled_from(sorted(SIGNS)), constants)
    truths = st.tuples(st.sampled_from(TRUTHS), st.sampled_from(["==", "!="]), st.booleans())
    return st.one_of(
        numbers.map(lambda t: (f"{t[0]}{t[1]} {t[2][0]}", f"({t[0]} {t[1]} {t[2][1]})")),
        truths.map(lambda t: (f"{t[0]} {t[1]} {str(t[2]).lower()}", f"({t[0]} {t[1]} {t[2]})")),
        st.sampled_from(TRUTHS).map(lambda name: (name, name)),
    )


def joined(inner: st.SearchStrategy[tuple[str, str]]) -> st.SearchStrategy[tuple[str, str]]:
    """Conditions made of others."""
    words = st.sampled_from([("and", "and"), ("&&", "and"), ("or", "or"), ("||", "or")])

    def join(parts: tuple[tuple[str, str], tuple[str, str], tuple[str, str]]) -> tuple[str, str]:
        left, word, right = parts
        return f"{left[0]} {word[0]} {right[0]}", f"{left[1]} {word[1]} {right[1]}"

    return st.one_of(
        st.tuples(inner, words, inner).map(join),
        inner.map(lambda t: (f"({t[0]})", f"({t[1]})")),
        inner.map(lambda t: (f"not ({t[0]})", f"not ({t[1]})")),
    )


@given(
    st.recursive(comparisons(), joined, max_leaves=6),
    st.fixed_dictionaries({name: st.sampled_from([0.0, 0.1, 0.5, 3.0, 100.0]) for name in NUMBERS}),
    st.fixed_dictionaries({name: st.booleans() for name in TRUTHS}),
)
def test_it_agrees_with_python_where_python_can_say_the_same(
    condition: tuple[str, str], numbers: dict[str, float], truths: dict[str, bool]
) -> None:
    """Precedence and grouping are easy to get wrong."""
    ours, theirs = condition
    expected = bool(eval(theirs, {"__builtins__": {}}, {**numbers, **truths}))
    if len(ours) <= 500:
        assert holds(ours, **numbers, **truths) is expected


ALPHABET = st.sampled_from(
    [*"()<>=!&|%.,'\"\\ \n\t0159e", "and ", "or ", "not ", "true", "timeout_rate", "5m", "é", "\x00"]
)


@given(st.one_of(st.text(max_size=60), st.lists(ALPHABET, max_size=40).map("".join)))
def test_any_text_is_read_or_refused_with_a_column_and_nothing_else_happens(text: str) -> None:
    """Conditions come from a file and from the API."""
    try:
        condition = parse(text, KINDS)
    except ConditionError as wrong:
        refused = wrong
    else:
        assert condition.holds({}) in (None, True, False)
        everything: dict[str, Any] = {name: False if fact.kind == "boolean" else 0.5 for name, fact in FACTS.items()}
        assert condition.holds(everything) in (True, False)
        return
    assert refused.message.startswith(f"column {refused.column}: ")
    assert 1 <= refused.column <= len(text) + 1


def test_the_five_rules_of_the_documents_stand_word_for_word() -> None:
    """Who came from there finds what was promised there."""
    said = [
        (rule.name, rule.condition.text, rule.level, rule.message) for rule in rules_of(AlertsBlock(own_rules=False))
    ]
    assert said == [
        ("GPU_LOCK_TIMEOUT_RATE_HIGH", "timeout_rate > 0.1", "warning", "GPU锁超时率过高"),
        ("GPU_LOCK_SUCCESS_RATE_LOW", "success_rate < 0.9", "warning", "GPU锁成功率过低"),
        ("GPU_LOCK_DEADLOCK_DETECTED", "deadlock_detected == true", "critical", "检测到GPU死锁"),
        ("MONITOR_SERVICE_DOWN", "monitor_health == false", "critical", "GPU锁监控服务异常"),
        ("HEARTBEAT_FAILURE_RATE_HIGH", "heartbeat_failure_rate > 0.05", "warning", "心跳失败率过高"),
    ]
    assert {rule.name for rule in rules_of(AlertsBlock())} == {name for name, *_ in said} | {r.name for r in OWN_RULES}
