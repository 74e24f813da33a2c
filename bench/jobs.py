"""`bench jobs`: hundreds of `gpulockd run` from a shell loop on four cards, and how long short commands take.

What a job does on its card is a lock of the kernel on a file, so two on one card are seen whatever the ledger says.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence

import msgspec

from bench.host import Host
from bench.tables import Aim, percentile, show_aims, table

JOBS, QUICK_JOBS, CARDS = 500, 60, 4
ROUNDS, QUICK_ROUNDS = 40, 10
STATUS_LIMIT_MS, RUN_LIMIT_MS = 80.0, 150.0
JOBS_WITHIN_S = 900.0

JOB = """
exec 9>"$WITNESS/$CUDA_VISIBLE_DEVICES"
flock --nonblock 9 || echo overlap >> "$WITNESS/overlaps"
sleep 0.02
echo "$GPULOCKD_TOKEN" >> "$WITNESS/done"
"""

SHORT: dict[str, tuple[str, ...]] = {
    "python -c pass": ("-c", "pass"),
    "gpulockd version": ("-m", "gpulockd", "version"),
    "gpulockd status": ("-m", "gpulockd", "status"),
    "gpulockd progress": ("-m", "gpulockd", "progress", "1", "--lease", "0"),
    "gpulockd acquire": ("-m", "gpulockd", "acquire", "-q", "--ttl", "50ms"),
    "gpulockd run -- true": ("-m", "gpulockd", "run", "-q", "--", "true"),
}


class Short(msgspec.Struct, frozen=True, kw_only=True):
    """Times of one command as a whole process (in ms)."""

    command: str
    least_ms: float
    p50_ms: float
    p90_ms: float


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured, and what we promise ourselves. `failed` and `overlaps` must be 0."""

    jobs: int
    ran: int
    failed: int
    overlaps: int
    took_s: float
    short: list[Short]
    aims: list[Aim]


def measure(*, quick: bool) -> Result:
    """Start the jobs, then time the short commands on free cards."""
    jobs = QUICK_JOBS if quick else JOBS
    with Host(cards=CARDS) as host:
        short = [_timed(host, name, words, QUICK_ROUNDS if quick else ROUNDS) for name, words in SHORT.items()]
        witness = host.folder / "witness"
        witness.mkdir()
        began = time.monotonic()
        failed = _loop(host, jobs, str(witness))
        took_s = time.monotonic() - began
        done, overlaps = ((witness / name) for name in ("done", "overlaps"))
        ran = len(set(done.read_text().split())) if done.exists() else 0
        met = len(overlaps.read_text().splitlines()) if overlaps.exists() else 0
    return Result(
        jobs=jobs, ran=ran, failed=failed, overlaps=met, took_s=round(took_s, 1), short=short,
        aims=_aims({one.command: one for one in short}, jobs - ran, failed + met),
    )  # fmt: skip


def _loop(host: Host, jobs: int, witness: str) -> int:
    """Start all jobs at once from a shell, wait for them, and return how many have failed."""
    job = host.folder / "job.sh"
    job.write_text(JOB)
    run = f"{sys.executable} -m gpulockd run -q --wait 30m -- sh {job}"
    loop = f'for i in $(seq {jobs}); do {run} & all="$all $!"; done; for j in $all; do wait $j || echo failed; done'
    env = host.env(WITNESS=witness)
    said = subprocess.run(
        ["bash", "-c", loop], check=False, env=env, stdout=subprocess.PIPE, text=True, timeout=JOBS_WITHIN_S
    )
    return len(said.stdout.splitlines())


def _timed(host: Host, name: str, words: Sequence[str], rounds: int) -> Short:
    took_ms = []
    for _ in range(rounds):
        began = time.perf_counter()
        words_run = [sys.executable, *words]
        subprocess.run(words_run, check=False, env=host.env(), stdin=subprocess.DEVNULL, capture_output=True)
        took_ms.append((time.perf_counter() - began) * 1000)
    p50_ms, p90_ms = (round(percentile(took_ms, share), 1) for share in (0.5, 0.9))
    return Short(command=name, least_ms=round(min(took_ms), 1), p50_ms=p50_ms, p90_ms=p90_ms)


def _aims(short: dict[str, Short], missing: int, wrong: int) -> list[Aim]:
    return [
        Aim(text="jobs that did not run", value=missing, limit=0),
        Aim(text="jobs that failed, or were two on one card", value=wrong, limit=0),
        Aim(
            text="`gpulockd status`, whole process, p50, ms",
            value=short["gpulockd status"].p50_ms,
            limit=STATUS_LIMIT_MS,
        ),
        Aim(
            text="`gpulockd run -- true` on a free card, whole process, p50, ms",
            value=short["gpulockd run -- true"].p50_ms,
            limit=RUN_LIMIT_MS,
        ),
    ]


def show(result: Result) -> str:
    """The numbers as Markdown."""
    rows = [("command, whole process", "least, ms", "p50, ms", "p90, ms")]
    rows += [(one.command, f"{one.least_ms:.1f}", f"{one.p50_ms:.1f}", f"{one.p90_ms:.1f}") for one in result.short]
    told = f"{result.ran} of {result.jobs} jobs from a shell loop ran on {CARDS} cards within {result.took_s:g} s"
    return (
        "\n\n".join(
            [f"{told}; {result.failed} failed, {result.overlaps} overlaps", table(rows), show_aims(result.aims)]
        )
        + "\n"
    )
