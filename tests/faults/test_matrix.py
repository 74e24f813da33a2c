"""The tables of faults and attacks name tests that there are, and the pages say what the tables say."""

from __future__ import annotations

import ast
import functools
from pathlib import Path

import pytest

from tests.faults.matrix import ROWS
from tests.faults.security import ATTACKS, PAGE, written

TESTS = Path(__file__).resolve().parents[1]


@functools.cache
def named_in(file: str) -> frozenset[str]:
    """The tests of a file, by their names."""
    path = TESTS / file
    if not path.exists():
        return frozenset()
    found = ast.walk(ast.parse(path.read_text()))
    return frozenset(node.name for node in found if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def missing(tests: tuple[str, ...]) -> list[str]:
    """Those of the named tests that are nowhere."""
    split = [test.split("::") for test in tests]
    return [f"{file}::{name}" for file, name in split if name not in named_in(file)]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: str(row.number))
def test_a_fault_names_tests_that_there_are(row: object) -> None:
    """A promise whose test was renamed is a promise without a test."""
    assert not missing(getattr(row, "tests", ()))
    assert getattr(row, "tests", ()) or getattr(row, "measured", "") or getattr(row, "open", "")


@pytest.mark.parametrize("row", ATTACKS, ids=lambda row: f"S{row.number}")
def test_an_attack_names_tests_that_there_are(row: object) -> None:
    """As for faults."""
    assert not missing(getattr(row, "tests", ()))
    assert getattr(row, "tests", ()) or getattr(row, "why_not", "")


def test_no_row_is_left_out() -> None:
    """The numbers are those of the lists that we have promised to go through."""
    assert [row.number for row in ROWS] == list(range(1, 73))
    assert [row.number for row in ATTACKS] == list(range(1, 35))


def test_the_page_has_the_present_table() -> None:
    """Run `python -m tests.faults.security --write` after a change."""
    page = PAGE.read_text()
    assert written(page) == page
