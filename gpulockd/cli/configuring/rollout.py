"""`gpulockd config rollout|approve|pause|resume|abort`: a change that goes to the fleet in stages."""

from __future__ import annotations

from collections.abc import Sequence

from gpulockd.cli import http
from gpulockd.cli.configuring.telling import Record, ask_slowly, flat, printed, value_text
from gpulockd.cli.options import Parser
from gpulockd.cli.talk import OK
from gpulockd.units import format_duration

OVER = ("done", "returned")
PATH = "/api/v1/config/rollout"


def rollout(words: Sequence[str]) -> int:
    """Print the rollout under way, or the last one."""
    parser = Parser("config rollout", "The rollout under way, or the last one: stage, share, gates.")
    parser.json_flag()
    args = parser.parse_args(words)
    with http.find() as daemon:
        said = daemon.get(PATH)
    if args.json:
        printed(said)
    else:
        tell(said)
    return OK


def approve(words: Sequence[str]) -> int:
    """Let it take the step that waits for approval."""
    return _steer("approve", "Let the rollout take the step that waits for approval.", words)


def pause(words: Sequence[str]) -> int:
    """Let it stand where it is."""
    return _steer("pause", "Let the rollout stand where it is.", words)


def resume(words: Sequence[str]) -> int:
    """Let it go on."""
    return _steer("resume", "Let a paused rollout go on.", words)


def abort(words: Sequence[str]) -> int:
    """Take the candidate back everywhere."""
    return _steer("abort", "Take the candidate back everywhere; nothing of it stays in force.", words)


def _steer(verb: str, does: str, words: Sequence[str]) -> int:
    parser = Parser(f"config {verb}", does)
    parser.add_argument("--reason", metavar="TEXT", default="", help="why, for the audit log")
    parser.json_flag()
    args = parser.parse_args(words)
    with http.find() as daemon:
        said = ask_slowly(daemon, "POST", f"{PATH}/{verb}", {"reason": args.reason})
    if args.json:
        printed(said)
    else:
        tell(said)
    return OK


def tell(said: Record) -> None:
    """Print a rollout in words: where it stands, who is in, what is measured against which gates, what comes next."""
    found = said.get("rollout")
    if not found:
        print("no rollout yet")
        return
    print(f"rollout {found['id']} by {found['author']}" + (f" ({found['reason']})" if found["reason"] else ""))
    print(f"  {found['text']}")
    print(f"  sets: {_candidate(found)}")
    if found["phase"] not in OVER:
        _tell_stage(found)


def _candidate(found: Record) -> str:
    sets = [f"{path} = {value_text(value)}" for path, value in flat(found["set"]).items()]
    return ", ".join([*sets, *(f"{path} unset" for path in found["unset"])])


def _tell_stage(found: Record) -> None:
    with http.find() as daemon:
        limits = daemon.get("/api/v1/config")["settings"]["rollout"]
    print(f"  in: {found['who']}")
    print(f"  seen: {_seen(found, limits)}")
    closed = found["gate"]
    print(f"  gates: {'CLOSED: ' + closed if closed else 'all open'}")
    print(f"  next: {_next(found, limits)}")
    if found["missed"]:
        print(f"  {found['missed']} events were lost before anybody counted them")
    print(f"  driven by {found['driver'] or 'nobody at this moment'}; the others go by revision {found['revision']}")


def _seen(found: Record, limits: Record) -> str:
    if not found["attempts"]:
        return f"no attempts yet; {limits['least_samples']} are needed to judge"
    rates = [
        f"{found['success_rate']:.1%} got the lock (at least {limits['success_rate']:.0%})",
        f"{found['timeout_rate']:.1%} timed out (below {limits['timeout_rate']:.0%})",
        f"{found['failure_rate']:.1%} failed or timed out (below {limits['failure_rate']:.0%})",
    ]
    if found["redis_cpu"] is not None:
        rates.append(f"Redis {found['redis_cpu']:.0%} of a core (below {limits['redis_cpu']:.0%})")
    few = found["attempts"] < limits["least_samples"]
    judged = f", {limits['least_samples']} are needed to judge" if few else ""
    return f"{found['attempts']} attempts{judged}: {', '.join(rates)}"


def _next(found: Record, limits: Record) -> str:
    phase, at = found["phase"], found["stage"]
    stages = found["stages"]
    if phase == "awaiting":
        return "'gpulockd config approve' brings it to all, 'gpulockd config abort' takes it back"
    if phase == "paused":
        return "'gpulockd config resume' goes on, 'gpulockd config abort' takes it back"
    if phase != "holding":
        return "it moves at the next look, in some seconds"
    left_s = max(0.0, stages[at - 1]["hold_s"] - found["held_s"])
    then = "your approval" if limits["require_approval"] else "all"
    if at < len(stages):
        then = f"stage {at + 1} of {len(stages)}: {stages[at]['share']:.0%} for {format_duration(stages[at]['hold_s'])}"
    return f"in {format_duration(left_s)}, if all gates stay open: {then}"
