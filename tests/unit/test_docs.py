"""The docs as a whole: they build without a complaint, load nothing from outside, and their reference is up to date."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OUTSIDE = re.compile(r"""<(?:script|link|img|iframe|source)[^>]*(?:src|href)=["'](?:https?:)?//[^"']*""")


def test_the_reference_is_that_of_the_present_code() -> None:
    """If this fails, run `python scripts/reference.py`."""
    words = [sys.executable, "scripts/reference.py", "--check"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.timeout(300)
def test_the_docs_build_without_a_complaint_and_load_nothing_from_outside(tmp_path: Path) -> None:
    """A link that leads nowhere, or a page that needs the network to be read, is worse than none."""
    if importlib.util.find_spec("mkdocs") is None:
        pytest.skip("mkdocs is not installed (make venv)")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert {"start.html", "reference-config.html"} <= {page.name for page in pages}
    assert not [found for page in pages for found in OUTSIDE.findall(page.read_text())]
    sheets = [sheet.read_text() for sheet in tmp_path.rglob("*.css")]
    assert not [found for sheet in sheets for found in re.findall(r"url\(['\"]?(?:https?:)?//|@import", sheet)]


def test_every_page_is_in_the_contents() -> None:
    """A page that no menu names is read by nobody."""
    contents = (ROOT / "mkdocs.yml").read_text()
    assert not [page.name for page in (ROOT / "docs").glob("*.md") if f": {page.name}\n" not in contents]
