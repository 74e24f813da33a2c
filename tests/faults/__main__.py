"""`python -m tests.faults [--row N] [--table FILE]`: tries every row of the matrix, and says what held.

The rows' tests run as they always do, each in its own processes; a row holds if all of its tests passed here. A row of
which a test was skipped says so, with the reason.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import pytest

from tests.faults.matrix import ROWS, Row

TESTS = Path(__file__).resolve().parent.parent
LONGEST = ("--timeout", "600", "-o", "faulthandler_timeout=590")
"""Stories of faults take a minute or two on a busy machine; only one that stands still is to be cut off."""

BEGIN, END = "<!-- faults: begin -->", "<!-- faults: end -->"


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How one test went. `measured` is what it recorded under that name."""

    how: str
    took_s: float
    why: str = ""
    measured: str = ""


def outcomes_of(file: Path) -> dict[str, list[Outcome]]:
    """What the runner wrote, by `folder/file::test`; a test of several cases has several outcomes."""
    found: dict[str, list[Outcome]] = {}
    # The file is the runner's own and of a moment ago.
    for case in ElementTree.parse(file).iter("testcase"):
        where = case.attrib["classname"].removeprefix("tests.").replace(".", "/")
        name = f"{where}.py::{case.attrib['name'].partition('[')[0]}"
        bad = case.find("failure") if case.find("failure") is not None else case.find("error")
        skipped = case.find("skipped")
        how = "broken" if bad is not None else "skipped" if skipped is not None else "held"
        why = "" if skipped is None else skipped.attrib.get("message", "")
        measured = [p.attrib["value"] for p in case.iter("property") if p.attrib["name"] == "measured"]
        made = Outcome(how=how, took_s=float(case.attrib["time"]), why=why, measured="; ".join(measured))
        found.setdefault(name, []).append(made)
    return found


def verdict(row: Row, outcomes: dict[str, list[Outcome]]) -> tuple[str, str]:
    """Return how a row went in one word, and what was measured or why not."""
    if not row.tests:
        return ("measured", row.measured) if row.measured else ("not tried", row.open)
    found = [outcome for test in row.tests for outcome in outcomes.get(test, [])]
    if any(test not in outcomes for test in row.tests):
        return "broken", "a test of it did not run"
    measured = "; ".join(outcome.measured for outcome in found if outcome.measured)
    if any(outcome.how == "broken" for outcome in found):
        return "broken", measured
    if all(outcome.how == "skipped" for outcome in found):
        return "skipped", found[0].why
    return "held", measured


def table(rows: tuple[Row, ...], outcomes: dict[str, list[Outcome]]) -> str:
    """The rows as Markdown."""
    lines = ["| # | fault | promise | here | measured |", "|--:|---|---|---|---|"]
    for row in rows:
        how, what = verdict(row, outcomes)
        lines.append(f"| {row.number} | {row.fault} | {row.promise} | {how} | {what.replace('|', '/')} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run the rows, and all that tries to break it; 1 if any of it failed."""
    asked = argparse.ArgumentParser(prog="python -m tests.faults", description="break it on purpose, row by row")
    asked.add_argument("--row", type=int, action="append", help="only this one; again for more")
    asked.add_argument("--table", type=Path, help="write the table between the marks of this file")
    asked.add_argument("--workers", default="3", help="how many tests at a time")
    asked.add_argument("--soak", action="store_true", help="the rows that are not for every run, too")
    said = asked.parse_args()
    rows = tuple(row for row in ROWS if (not said.row or row.number in said.row))
    tried = [row for row in rows if row.tests and (said.soak or said.row or row.tried == "always")]
    tests = sorted({f"{TESTS.name}/{test}" for row in tried for test in row.tests})
    if not said.row:  # with all that is here: judge, security, fuzz, mutants
        tests = [f"{TESTS.name}/faults", *(test for test in tests if not test.startswith(f"{TESTS.name}/faults/"))]
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        words = ["-q", "-rs", "-n", said.workers, "--dist", "loadfile", "-o", "junit_family=xunit1", *LONGEST]
        code = pytest.main([*words, f"--junitxml={report}", *tests])
        outcomes = outcomes_of(report)
    text = table(rows, outcomes)
    broken = [row for row in tried if verdict(row, outcomes)[0] == "broken"]
    print(text)
    others = "" if broken or not code else "; a test that is in no row failed"
    print(f"{len(tried)} rows tried in {time.monotonic() - began_s:.0f} s, {len(broken)} broken{others}")
    if said.table is not None and not broken:
        whole = said.table.read_text()
        said.table.write_text(re.sub(f"{BEGIN}.*{END}", f"{BEGIN}\n{text}{END}", whole, flags=re.DOTALL))
    return 1 if broken or code else 0


if __name__ == "__main__":
    sys.exit(main())
