"""Manners that keep attackers out, read from the source itself."""

from __future__ import annotations

import ast
import functools
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "gpulockd"

EVERYWHERE = {
    "B101": "an assert tells the type checker what the code around it has made sure of",
    "B404": "processes are what this is about",
    "B603": "lists of arguments, and no shell",
    "B606": "as B603",
    "B311": "spreads retries and invents loads; ids and tokens come from `secrets`",
    "B105": "names of things and texts for people, no passwords",
}
"""Findings of bandit that stand in many files, and why they may."""

FINDINGS = {
    ("gpulockd/cli/install_service.py", "B108"): "the folders that the unit hides from the service",
    ("gpulockd/places.py", "B108"): "only a folder of one's own counts there (S26)",
    ("gpulockd/web/auth.py", "B104"): "compares with it, and does not listen there",
    ("gpulockd/web/listening.py", "B103"): "every user may ask; the kernel says who it is",
}
"""Other findings of bandit, and why they are none."""

CODE = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "pickle",
    "cPickle",
    "marshal",
    "shelve",
    "dill",
    "cloudpickle",
    "yaml",
}
"""Names that would turn data into code."""


@functools.cache
def nodes() -> tuple[tuple[str, ast.AST], ...]:
    """Every node of the package, with its file."""
    files = {str(file.relative_to(ROOT)): file.read_text() for file in sorted(PACKAGE.rglob("*.py"))}
    return tuple((name, node) for name, text in files.items() for node in ast.walk(ast.parse(text)))


def test_nothing_turns_data_into_code() -> None:
    """What comes in may be anybody's."""
    found = []
    for file, node in nodes():
        if isinstance(node, ast.Import):
            found += [(file, alias.name) for alias in node.names if alias.name.partition(".")[0] in CODE]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in CODE:
            found.append((file, node.module or ""))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in CODE:
            found.append((file, node.func.id))
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("YAML"):
            kinds = [ast.unparse(word.value) for word in node.keywords if word.arg == "typ"]
            assert not any("unsafe" in kind for kind in kinds), file
    assert not found


def test_lua_is_loaded_by_one_module_from_files_only() -> None:
    """A script that is put together from what somebody said is that somebody's script."""
    words: set[str] = set()
    for file, node in nodes():
        if isinstance(node, ast.Constant) and isinstance(node.value, str | bytes):
            said = node.value if isinstance(node.value, str) else node.value.decode(errors="replace")
            if said in ("EVAL", "EVALSHA", "EVAL_RO", "SCRIPT", "FUNCTION", "FUNCTION LOAD"):
                words.add(f"{file}: {said}")
        if isinstance(node, ast.JoinedStr):
            assert "redis.call" not in ast.unparse(node), file
    assert {word.partition(":")[0].rpartition("/")[0] for word in words} <= {"gpulockd/ledger", "gpulockd/ledger/wire"}
    assert not [word for word in words if ": EVAL" in word or ": SCRIPT" in word]


def test_one_place_starts_a_shell() -> None:
    """A line for the shell is code; the one that there is, is an operator's own."""
    places = set()
    for file, node in nodes():
        if file.startswith(("gpulockd/daemon/", "gpulockd/web/", "gpulockd/client/", "gpulockd/ledger/")):
            shell = isinstance(node, ast.Constant) and node.value in ("/bin/sh", "/bin/bash", "sh", "bash")
            asks = isinstance(node, ast.keyword) and node.arg == "shell"
            if shell or asks:
                places.add(file)
    assert places == {"gpulockd/daemon/verifying.py"}


@pytest.mark.timeout(300)
def test_every_finding_of_bandit_has_a_reason() -> None:
    """A new one is looked at before it is built in."""
    pytest.importorskip("bandit", reason="bandit is not installed: pip install bandit")
    words = [sys.executable, "-m", "bandit", "-q", "-f", "json", "-r", "gpulockd"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=280)
    report = json.loads(done.stdout)
    assert not report["errors"]
    found = {(one["filename"], one["test_id"]) for one in report["results"] if one["test_id"] not in EVERYWHERE}
    assert found == set(FINDINGS)
