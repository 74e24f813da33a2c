"""What is promised names its tests, and those are there and run: in `docs/guarantees.md` and in the museum of bugs.

A test is named `folder/file.py::test`, or `::test` of the file named before it in the same row; a file or a folder
alone stands for all that is in it. A measurement is named `python -m bench WHAT`.
"""

from __future__ import annotations

import ast
import functools
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests"
GUARANTEES, MUSEUM = ROOT / "docs/guarantees.md", ROOT / "docs/museum.md"
CLAIMS = [f"A-{number}" for number in range(150, 161)]
HEADS = ("tested by", "found by", "source")
"""What stands above a column of proofs."""

RUN = (
    *tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]["testpaths"],
    "tests/faults",
)
"""What `make test` and `make faults` run."""

NOT_RUN = {"performance", "stress"}
"""Marks of tests that `make test` leaves out."""


class Sentence(msgspec.Struct, frozen=True):
    """A row of a table: its cells, the last of which is the proof."""

    page: str
    line: int
    cells: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def proof(self) -> str:
        return self.cells[-1]


def sentences(page: Path) -> Iterator[Sentence]:
    """The rows of a page's tables of proofs."""
    head = ""
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if not line.startswith("|"):
            head = ""
            continue
        cells = tuple(cell.strip() for cell in line.strip().strip("|").split(" | "))
        if head in HEADS and not set(line) <= set("|-: "):
            yield Sentence(page.name, number, cells)
        head = head or cells[-1]


@functools.cache
def found_in(file: Path) -> dict[str, frozenset[str]]:
    """The tests of a file or folder, each with its marks."""
    if file.is_dir():
        return {name: marks for path in file.rglob("test_*.py") for name, marks in found_in(path).items()}
    nodes = ast.walk(ast.parse(file.read_text()))
    return {
        node.name: frozenset(
            mark for how in node.decorator_list for mark in re.findall(r"mark\.(\w+)", ast.unparse(how))
        )
        for node in nodes
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    }


def wrong_in(proof: str) -> list[str]:
    """What is wrong with a proof: what it names is not there, or is not run, or it names nothing."""
    words = re.findall(r"`((?:[\w./]+\.py|tests/\w+/)?(?:::\w+)?|python -m bench \w+)`", proof)
    wrong = [] if any(words) else ["it names nothing that could be run"]
    file = TESTS / "nowhere"
    for word in filter(None, words):
        where, _, test = word.partition("::")
        if where.startswith("python -m bench "):
            if not (ROOT / "bench" / f"{where.split()[-1]}.py").exists():
                wrong.append(f"{word}: there is no such measurement")
            continue
        file = TESTS / where.removeprefix("tests/") if where else file
        found = found_in(file) if file.exists() and str(file.relative_to(ROOT)).startswith(RUN) else {}
        if not found or (test and test not in found):
            wrong.append(f"{word}: there is no such test")
        elif test and found[test] & NOT_RUN:
            wrong.append(f"{word}: `make test` leaves it out")
    return wrong


PROMISES = list(sentences(GUARANTEES))
BUGS = list(sentences(MUSEUM))


@pytest.mark.parametrize("sentence", PROMISES + BUGS, ids=str)
def test_a_sentence_names_tests_that_are_run(sentence: Sentence) -> None:
    """A sentence without a test is a wish, and a bug without one comes back."""
    assert not wrong_in(sentence.proof), sentence.cells[0]


def test_the_tables_were_read() -> None:
    """A head that was worded otherwise would let a whole table go unread."""
    assert len(PROMISES) > 60
    assert len(BUGS) > 30
    heads = re.findall(r"^\|(.*)\|\n\|[-: |]+\|$", GUARANTEES.read_text(), re.MULTILINE)
    promising = [head for head in heads if head.strip().startswith("promise")]
    assert promising
    assert all(head.split(" | ")[-1].strip() == "tested by" for head in promising)


def test_every_claim_of_the_documents_is_measured_or_not_claimed() -> None:
    """Figures that were written down before anybody measured are earned again, or left alone."""
    rows = [sentence.cells for sentence in PROMISES if sentence.cells[0].split(" ")[0] in CLAIMS]
    assert [cells[0].split(" ")[0] for cells in rows] == CLAIMS
    for cells in rows:
        assert re.match(r"(measured|not claimed): ", cells[1]), cells


def test_the_killers_of_mutants_are_there() -> None:
    """A mutant is dead only as long as its test lives."""
    killers = re.findall(r"`(test_\w+)`", (ROOT / "docs/mutation.md").read_text())
    assert len(killers) > 8
    assert not [killer for killer in killers if killer not in found_in(TESTS)]


@pytest.mark.parametrize(
    "proof",
    [
        "",
        "`session.ttl`",
        "`system/test_guard.py::test_that_is_nowhere`",
        "`system/test_nowhere.py`",
        "`::test_of_nothing`",
        "`tests/nowhere/`",
        "`python -m bench nowhere`",
        "`faults/test_guarantees.py::test_the_tables_were_read`, `::test_that_is_nowhere`",
    ],
)
def test_a_proof_that_is_none_is_seen(proof: str) -> None:
    """A check that passes everything checks nothing."""
    assert wrong_in(proof)
