"""How a verdict looks on a terminal."""

from __future__ import annotations

from gpulockd.cli.talk import paint, table
from gpulockd.trial.measured import Measured
from gpulockd.trial.verdict import Criterion, Verdict

HEAD = ("", "TASKS", "SUCCESS", "TIMEOUTS", "MEAN WAIT", "P95", "LONGEST", "REDIS CPU")
WORDS = {"passed": "passed", "failed": "FAILED", "not_exercised": "not exercised", "does_not_apply": "does not apply"}
COLOURS = {"passed": "green", "failed": "red", "not_exercised": "yellow", "does_not_apply": None}
MODES = {
    "events": "programs woken by notifications",
    "polling": "programs polling, cut off from notifications",
}


def text_of(verdict: Verdict, baseline: str, candidate: str) -> str:
    """Return tables of what was measured and judged, and the verdict below."""
    rows = [_row(f"baseline {baseline}", verdict.baseline), _row(f"candidate {candidate}", verdict.candidate)]
    parts = [
        f"mode: {verdict.mode} ({MODES[verdict.mode]})",
        f"differ in: {', '.join(verdict.changed)}",
        table(HEAD, rows),
        table(
            ("CRITERION", "OUTCOME", "FOUND"),
            [(_name(criterion), WORDS[criterion.outcome], criterion.text) for criterion in verdict.criteria],
            [COLOURS[criterion.outcome] for criterion in verdict.criteria],
        ),
    ]
    troubles = verdict.candidate.troubles or verdict.baseline.troubles
    lines = [*(f"error: {trouble}" for trouble in troubles), *(f"note: {note}" for note in verdict.notes)]
    if lines:
        parts.append("\n".join(lines))
    return "\n\n".join([*parts, paint(verdict.summary, "green" if verdict.passed else "red")])


def _name(criterion: Criterion) -> str:
    return criterion.name.replace("_", " ")


def _row(name: str, found: Measured) -> tuple[str, ...]:
    return (
        name,
        str(found.tasks),
        f"{found.success_rate:.1%}",
        f"{found.timeout_rate:.1%}",
        f"{found.avg_wait_time:.2f} s",
        f"{found.p95_wait_time:.2f} s",
        f"{found.longest_wait_time:.2f} s",
        f"{found.redis_cpu:.2%}",
    )
