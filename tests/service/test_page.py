"""The page as a real daemon serves it: its files, its headers, its parts, and what it says when something is away."""

from __future__ import annotations

import hashlib
import html
import re
import subprocess
import sys
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gpulockd.web.page.parts import MAKERS
from gpulockd.web.page.static import FILES
from tests.daemons import ROOT, STEADY, Daemon, eventually, running_daemon, standing_still

STATIC = ROOT / "gpulockd/web/static"


@pytest.fixture
async def daemon() -> AsyncIterator[Daemon]:
    """A daemon with two simulated GPUs."""
    async with running_daemon(config=STEADY) as made:
        yield made


async def test_the_page_needs_nothing_from_elsewhere_and_no_exception(daemon: Daemon) -> None:
    """A script or style that stands in the page could come from a task's name."""
    page = await daemon.get("/")
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'self';") and "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy and "form-action 'none'" in policy
    assert page.headers["cache-control"] == "no-store"
    assert page.headers["x-content-type-options"] == "nosniff"
    assert page.headers["referrer-policy"] == "no-referrer"
    text = page.body.decode()
    assert not re.search(r"<[^>]+\s(style|on\w+)=", text)
    assert "<style" not in text
    assert re.findall(r"<script(?![^>]* src=)", text) == []
    sources = re.findall(r'(?:src|href)="([^"#]+)"', text)
    assert sources and all(re.fullmatch(r"/(static/[\w.]+\?v=[0-9a-f]{16}|api/v1/[\w.]+)?", one) for one in sources)
    assert set(re.findall(r"/static/([\w.]+)", text)) == set(FILES)


async def test_files_have_their_types_and_are_kept_by_their_content(daemon: Daemon) -> None:
    """A browser that keeps an old script beside a new page shows nonsense."""
    for name, file in FILES.items():
        plain = await daemon.get(f"/static/{name}")
        assert plain.status == 200 and plain.body == (STATIC / name).read_bytes()
        assert plain.headers["content-type"].split(";")[0] == file.media
        assert plain.headers["x-content-type-options"] == "nosniff"
        assert plain.headers["cache-control"] == "no-cache"
        known = await daemon.get(f"/static/{name}", headers={"if-none-match": plain.headers["etag"]})
        assert (known.status, known.body) == (304, b"")
        assert "immutable" in (await daemon.get(file.url)).headers["cache-control"]
        assert "immutable" not in (await daemon.get(f"/static/{name}?v=0123456789abcdef")).headers["cache-control"]
    for path in ("/static/", "/static/VENDORED.md", "/static/../page/html.py", "/static/%2e%2e/auth.py"):
        assert (await daemon.get(path)).status == 404


async def test_parts_come_alone_for_a_page_that_is_open(daemon: Daemon) -> None:
    """A grant must not cost the whole page."""
    found = (await daemon.get("/?parts=queue,head")).body.decode()
    assert re.findall(r'<section id="part-(\w+)"', found) == ["queue", "head"]
    whole = (await daemon.get("/")).body.decode()
    assert re.findall(r'<section id="part-(\w+)"', whole) == list(MAKERS)
    assert "last 20 min" in (await daemon.get("/?parts=timeline&span=20")).body.decode()
    for wrong in ("7", "20.", "", "-10"):
        assert (await daemon.get(f"/?span={wrong}")).status == 422
    for wrong in ("nowhere", "", "queue,", "queue,%3Cscript%3E"):
        answer = await daemon.get(f"/?parts={wrong}")
        assert (answer.status, answer.json["kind"]) == (422, "invalid")
        assert "queue" in answer.json["hint"]


async def test_what_programs_say_of_themselves_is_escaped_everywhere(daemon: Daemon) -> None:
    """A task name is another user's text, and it stands in cards, queue, timeline, tables and events."""
    name = "</title>{{ 7*7 }}<script>alert(1)</script>\"'><svg onload=alert(1)>&amp;"
    holding = await daemon.open("POST", "/api/v1/leases", {"task": name, "task_id": f"id {name}", "gpus": [0]})
    lease = await holding.until("granted")
    waiting = await daemon.open("POST", "/api/v1/leases", {"task": name, "gpus": [0]})
    await waiting.until("waiting")
    await daemon.ask("POST", "/api/v1/config", {"set": {"gpu_lock": {"max_wait_time": 99}}, "reason": name})
    text = ""

    async def is_everywhere() -> bool:
        nonlocal text
        text = (await daemon.get("/")).body.decode()
        parts = ("cards", "queue", "timeline", "events", "changes")
        sections = [text[text.index(f'id="part-{part}"') :].split("</section>")[0] for part in parts]
        return all(name in html.unescape(section) for section in sections)

    await eventually(is_everywhere)
    assert lease["lease"] in text
    assert "<script>" not in text and "<svg onload" not in text and text.count("</title>") == text.count("<title>")
    await waiting.aclose()
    await holding.aclose()


async def test_no_character_hides_or_turns_the_text_beside_it(daemon: Daemon) -> None:
    """A name with a right-to-left override could make another line of the page say the opposite."""
    name = "a\x1b[31mred\u202ednuora\u2066x\x07"
    await daemon.ask("POST", "/api/v1/config", {"set": {"gpu_lock": {"max_wait_time": 98}}, "reason": name})
    text = (await daemon.get("/")).body.decode()
    assert "dnuora" in text
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069]", text)


async def test_the_page_comes_while_the_store_is_away_and_says_so() -> None:
    """That is when somebody looks at it."""
    async with running_daemon(config={"session": STEADY["session"] | {"rpc_deadline": 0.5}}) as daemon:
        with standing_still(daemon):
            page = await daemon.get("/")
        assert page.status == 200
        text = page.body.decode()
        assert "The store does not answer" in text and "■ stalled" in text
        assert text.count("not available:") >= len(MAKERS) - 2


def test_the_wheel_has_the_page(tmp_path: Path) -> None:
    """An installed daemon without its templates would answer 500."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=100)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"gpulockd/web/static/{name}" for name in (*FILES, "VENDORED.md", "uplot.LICENSE")} <= names
    templates = {path.name for path in (ROOT / "gpulockd/web/page/templates").glob("*.html")}
    assert {f"gpulockd/web/page/templates/{name}" for name in templates} <= names
    assert {f"{name}.html" for name in (*MAKERS, "page", "macros")} == templates


def test_what_is_vendored_is_what_was_published() -> None:
    """Nobody reads minified code; its digest is what we know of it."""
    rows = re.findall(r"^\| `([\w.]+)` .* `([0-9a-f]{64})` \|$", (STATIC / "VENDORED.md").read_text(), re.MULTILINE)
    assert {name for name, _ in rows} == {"uplot.js", "uplot.css", "uplot.LICENSE"}
    for name, digest in rows:
        assert hashlib.sha256((STATIC / name).read_bytes()).hexdigest() == digest, name
