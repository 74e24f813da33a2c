"""The page in a real browser: it follows what happens, acts only when asked twice, and needs nothing from outside.

The browser is Debian's Chromium, driven through Playwright's own protocol.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import anyio.from_thread
import pytest

from tests.daemons import Daemon, Reply, Wire, running_daemon
from tests.states import until_blocking

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium (apt-get install chromium)"),
    pytest.mark.timeout(180),
]

SEEN_MS = 30_000
DESK, PHONE = (1366, 768), (390, 844)
RULES = [{"name": "CROWDED", "condition": "queue_length >= 0", "level": "warning", "message": "队列过长"}]
CONFIG = {"gpu_lock_monitor": {"monitor_interval": 0.3}, "alerts": RULES}

NO_TIMERS = "window.setInterval = () => 0;"
"""Takes the page its regular looks, so that only the stream can bring something."""


class Stage:
    """A daemon and what a test does with it from a thread without a loop."""

    def __init__(self, portal: Any, daemon: Daemon) -> None:
        self._portal = portal
        self.daemon = daemon

    def ask(self, method: str, path: str, body: Any = None) -> Reply:
        """Ask over the unix socket, as the daemon's own user."""
        reply: Reply = self._portal.call(self.daemon.ask, method, path, body)
        return reply

    @contextmanager
    def held(self, task: str, **wish: Any) -> Iterator[str]:
        """Hold a lease for the block; its id."""
        wire: Wire = self._portal.call(self.daemon.open, "POST", "/api/v1/leases", {"task": task, **wish})
        granted = self._portal.call(wire.until, "granted")
        try:
            yield str(granted["lease"])
        finally:
            self._portal.call(wire.aclose)
            until_blocking(lambda: task not in self.tasks())

    @contextmanager
    def waiting(self, task: str, **wish: Any) -> Iterator[None]:
        """Wait in the queue for the block."""
        wire: Wire = self._portal.call(self.daemon.open, "POST", "/api/v1/leases", {"task": task, **wish})
        self._portal.call(wire.until, "waiting")
        try:
            yield
        finally:
            self._portal.call(wire.aclose)
            until_blocking(lambda: task not in [one["task"] for one in self.ask("GET", "/api/v1/queue").json["queue"]])

    def has_counted(self) -> None:
        """Wait until the daemon has counted the wait of somebody who holds or has held."""
        until_blocking(lambda: b'id="waits-table"' in self.ask("GET", "/").body)

    def tasks(self) -> list[str]:
        """Who holds something."""
        return [lease["task"] for lease in self.ask("GET", "/api/v1/leases").json["leases"]]

    def stop(self) -> None:
        """Stop the daemon."""
        self._portal.call(self.daemon.stop)


@contextmanager
def stage() -> Iterator[Stage]:
    """A daemon with two simulated GPUs, a rule that is always true, and quick looks."""
    with anyio.from_thread.start_blocking_portal() as portal:
        with portal.wrap_async_context_manager(running_daemon(config=CONFIG)) as daemon:
            yield Stage(portal, daemon)


@pytest.fixture(scope="module")
def lit() -> Iterator[Stage]:
    """One daemon for all tests that leave it as it was."""
    with stage() as made:
        yield made


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One browser; Playwright's loop stays in this thread until the module ends, so its tests are plain functions."""
    with playwright.sync_playwright() as driver:
        # As root Chromium has no sandbox; the page is our own.
        flags = ["--no-sandbox", "--disable-dev-shm-usage"]
        made = driver.chromium.launch(executable_path=CHROMIUM, args=flags, timeout=3 * SEEN_MS)
        yield made
        made.close()


class Tab:
    """An open page, and what it has said and fetched."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.complaints: list[str] = []
        self.fetched: list[str] = []
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self.fetched.append(request.url))

    def _hear(self, said: Any) -> None:
        if said.type in ("error", "warning"):
            self.complaints.append(said.text)

    def sees(self, selector: str, text: str | re.Pattern[str]) -> None:
        """Wait until the page says that."""
        playwright.expect(self.page.locator(selector)).to_contain_text(text, timeout=SEEN_MS)

    def misses(self, selector: str, text: str) -> None:
        """Wait until the page says that no more."""
        playwright.expect(self.page.locator(selector)).not_to_contain_text(text, timeout=SEEN_MS)

    def has_focus(self, selector: str) -> None:
        """Wait until the focus is on that, or in it."""
        inside = f"{selector}:is(:focus, :focus-within)"
        playwright.expect(self.page.locator(inside)).to_have_count(1, timeout=SEEN_MS)

    def push(self, within: str, name: str) -> None:
        """Push a button that asks first."""
        self.page.locator(within).get_by_role("button", name=name).first.click(timeout=SEEN_MS)

    def confirm(self, answer: str) -> None:
        """Answer the question that it asks."""
        self.page.locator("#ask").get_by_role("button", name=answer, exact=True).click(timeout=SEEN_MS)

    def give_token(self, token: str) -> None:
        """Give the token that is asked for."""
        self.page.locator("#token-text").fill(token, timeout=SEEN_MS)
        self.page.locator("#token").get_by_role("button", name="Use it").click()


@contextmanager
def tab(browser: Any, lit: Stage, size: tuple[int, int] = DESK, init: str = "", **context: Any) -> Iterator[Tab]:
    """The page in a browser profile of its own; afterwards it has fetched nothing from elsewhere."""
    made = browser.new_context(viewport={"width": size[0], "height": size[1]}, **context)
    try:
        page = made.new_page()
        if init:
            page.add_init_script(init)
        opened = Tab(page)
        page.goto(lit.daemon.url + "/")
        if context.get("java_script_enabled", True):
            opened.sees("#live", "live")
        yield opened
        assert all(url.startswith(lit.daemon.url + "/") for url in opened.fetched), opened.fetched
        assert made.cookies() == []
    finally:
        made.close()


def test_a_grant_shows_at_once_by_the_stream_alone(browser: Any, lit: Stage) -> None:
    """Who waits for a card looks at the page, not at its reload button."""
    with tab(browser, lit, init=NO_TIMERS) as seen:
        with lit.held("ocr-live", gpus=[0]):
            seen.sees("#gpu-0 .job", "ocr-live")
            seen.sees("#gpu-0 .state", "● held")
            seen.sees("#part-events", "GPU 0 → ocr-live")
            with lit.waiting("next-in-line", gpus=[0]):
                seen.sees("#part-queue", "next-in-line")
                seen.sees("#part-queue .why", "GPU 0 held by ocr-live for ")
                seen.sees("#part-queue .why [data-up]", re.compile(r"\d s$"))
        seen.sees("#gpu-0 .state", "○ free")
        seen.misses("#part-queue", "next-in-line")
        assert seen.complaints == []


def test_release_by_button_asks_and_takes_the_right_token_only(browser: Any, lit: Stage) -> None:
    """A slip of the mouse must not cost somebody's night of training, and a stranger has no token."""
    with tab(browser, lit) as seen, lit.held("to-release", gpus=[1]) as lease:
        seen.sees("#gpu-1 .job", "to-release")
        seen.push("#gpu-1", "release")
        seen.sees("#ask-text", "Take GPU 1 away from to-release?")
        seen.confirm("Cancel")
        assert lit.tasks() == ["to-release"]
        seen.push("#gpu-1", "release")
        seen.confirm("release")
        seen.give_token("not-the-token")
        seen.sees("#token", "That token was refused.")
        assert lit.tasks() == ["to-release"]
        seen.give_token(lit.daemon.token)
        seen.sees("#gpu-1 .state", "free")
        assert "to-release" not in lit.tasks()
        assert any(url.endswith(f"/api/v1/leases/{lease}") for url in seen.fetched)
        assert not any(lit.daemon.token in url for url in seen.fetched)
        assert seen.page.evaluate("Object.values(sessionStorage)") == [lit.daemon.token]
        assert seen.page.evaluate("Object.values(localStorage)") == []
        # The one refusal that was provoked; a browser tells of it whatever the page does.
        assert len(seen.complaints) == 1 and "401" in seen.complaints[0]


def test_what_ended_before_it_was_released_is_said_in_the_words_of_a_page(browser: Any, lit: Stage) -> None:
    """The cure of an API, another route to ask, is none for who sits before a page that has just asked it."""
    with tab(browser, lit) as seen:
        seen.page.evaluate("token => sessionStorage.setItem('gpulockd-token', token)", lit.daemon.token)
        with lit.held("gone-soon", gpus=[1]):
            seen.sees("#gpu-1 .job", "gone-soon")
            seen.push("#gpu-1", "release")
        seen.confirm("release")
        seen.sees("#said", "it has ended meanwhile; here is what there is now")
        seen.sees("#gpu-1 .state", "free")


def test_drain_rollback_and_acknowledge_by_button(browser: Any, lit: Stage) -> None:
    """An operator at the page needs no shell."""
    with tab(browser, lit) as seen:
        seen.page.evaluate("token => sessionStorage.setItem('gpulockd-token', token)", lit.daemon.token)
        seen.push("#gpu-0", "drain")
        seen.confirm("drain")
        seen.sees("#gpu-0 .state", "drained")
        seen.has_focus("#gpu-0-steer")
        seen.push("#gpu-0", "resume")
        seen.confirm("resume")
        seen.sees("#gpu-0 .state", "free")

        changed = {"set": {"gpu_lock": {"max_wait_time": 77}}, "reason": "a <b>bold</b> try"}
        assert lit.ask("POST", "/api/v1/config", changed).status == 200
        seen.sees("#part-changes > .diff", "gpu_lock.max_wait_time")
        seen.sees("#part-changes", "“a <b>bold</b> try”")
        seen.push("#part-changes", "roll back to #0")
        seen.confirm("roll back to #0")
        seen.sees("#said", "revision 0 is in force again")
        seen.sees("#said", "● store: well")
        seen.has_focus("#part-changes")
        settings = lit.ask("GET", "/api/v1/config").json["settings"]
        assert settings["gpu_lock"]["max_wait_time"] == 1800
        seen.sees("#part-changes h2", "#2")

        seen.sees("#part-alerts strong", "CROWDED")
        seen.sees("#part-alerts", "队列过长")
        seen.push("#part-alerts", "acknowledge")
        seen.confirm("acknowledge")
        seen.sees("#part-alerts", "acknowledged by the API token")
        seen.has_focus("#part-alerts li")
        assert seen.complaints == []


def test_without_scripts_it_is_plain_tables(browser: Any, lit: Stage) -> None:
    """A text browser, and a person who trusts no script, see the same facts."""
    with lit.held("plain-holder", gpus=[0]), lit.waiting("plain-waiter", gpus=[0]):
        lit.has_counted()
        with tab(browser, lit, java_script_enabled=False) as seen:
            seen.sees("#gpu-0", "plain-holder")
            seen.sees("#part-queue table", "plain-waiter")
            seen.sees("#timeline-table table", "plain-holder")
            seen.sees("#waits-table table", "0.1–0.3 s")
            seen.sees("#part-events table", "granted")
            seen.sees(".no-js", "gpulockd release")
            assert seen.page.locator("button:visible").count() == 0
            assert seen.page.locator("#timeline-table table").is_visible()


@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_and_can_be_read(browser: Any, lit: Stage, size: tuple[int, int], scheme: str) -> None:
    """Nobody scrolls sideways, and text stands out from its ground, by day and by night."""
    long = "a-very-long-task-name-" * 5
    with lit.held(long, gpus=[0, 1]), lit.waiting("w" * 120, gpus=[1]):
        lit.has_counted()
        with tab(browser, lit, size, color_scheme=scheme) as seen:
            seen.sees("#gpu-1", long[:40])
            assert seen.page.evaluate("document.documentElement.scrollWidth") <= size[0]
            assert seen.page.evaluate(LEAST_CONTRAST) >= 4.5
            assert seen.page.locator("#histogram canvas").count() == 1
            assert seen.complaints == []


LEAST_CONTRAST = """() => {
  const light = (colour) => {
    const parts = colour.match(/[\\d.]+/g).slice(0, 3).map((part) => part / 255);
    const [r, g, b] = parts.map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (one) => {
    for (let at = one; at; at = at.parentElement) {
      const found = getComputedStyle(at).backgroundColor;
      if (!/, 0\\)$/.test(found)) return found;
    }
    return "rgb(255, 255, 255)";
  };
  const texts = [...document.querySelectorAll("main *, header *")].filter((one) =>
    one.offsetParent && [...one.childNodes].some((child) => child.nodeType === 3 && child.nodeValue.trim()));
  return Math.min(...texts.map((one) => {
    const pair = [light(getComputedStyle(one).color), light(ground(one))].sort((a, b) => b - a);
    return (pair[0] + 0.05) / (pair[1] + 0.05);
  }));
}"""
"""The least contrast of a text that can be seen with what is behind it (WCAG 2.2, 1.4.3: at least 4.5)."""


def test_the_keyboard_reaches_every_button_and_a_question_can_be_left(browser: Any, lit: Stage) -> None:
    """Not everybody has a mouse."""
    with tab(browser, lit) as seen, lit.held("by-keyboard", gpus=[0]):
        seen.sees("#gpu-0 .job", "by-keyboard")
        reached = set()
        for _ in range(60):
            seen.page.keyboard.press("Tab")
            reached.add(seen.page.evaluate("document.activeElement.textContent.trim()"))
            if "release…" in reached:
                break
        assert {"Now", "theme: auto", "drain…", "release…"} <= reached
        seen.page.keyboard.press("Enter")
        seen.sees("#ask-text", "by-keyboard")
        seen.page.keyboard.press("Escape")
        playwright.expect(seen.page.locator("#ask")).to_be_hidden(timeout=SEEN_MS)
        assert lit.tasks() == ["by-keyboard"]


def test_a_token_and_its_deed_by_keyboard_alone(browser: Any, lit: Stage) -> None:
    """Whoever types the token and presses Enter has said yes, and goes on from where he was."""
    with tab(browser, lit) as seen, lit.held("typed-away", gpus=[1]):
        seen.sees("#gpu-1 .job", "typed-away")
        seen.page.locator("#gpu-1").get_by_role("button", name="release").focus()
        seen.page.keyboard.press("Enter")
        seen.page.keyboard.press("Tab")
        seen.page.keyboard.press("Enter")
        seen.has_focus("#token-text")
        seen.page.keyboard.press("Enter")
        assert seen.page.locator("#token").is_visible()
        seen.page.keyboard.type(lit.daemon.token)
        seen.page.keyboard.press("Enter")
        seen.sees("#gpu-1 .state", "free")
        seen.has_focus("#gpu-1")
        assert seen.complaints == []


def test_a_token_that_is_not_given_changes_nothing_and_says_so(browser: Any, lit: Stage) -> None:
    """Silence after a yes would be taken for success."""
    with tab(browser, lit) as seen:
        seen.push("#gpu-1", "drain")
        seen.confirm("drain")
        seen.page.locator("#token").get_by_role("button", name="Cancel").click(timeout=SEEN_MS)
        seen.sees("#said", "nothing was done")
        seen.has_focus("#gpu-1-steer")
        seen.sees("#gpu-1 .state", "free")


def test_the_reader_chooses_how_much_time_the_timeline_shows(browser: Any, lit: Stage) -> None:
    """What happened half an hour ago is a question too, with scripts and without."""
    for scripts in (False, True):
        with tab(browser, lit, java_script_enabled=scripts) as seen:
            seen.page.get_by_role("link", name="30 min").click()
            seen.sees("#part-timeline h2", "last 30 min")
            seen.sees("#part-timeline [aria-current]", "30 min")
        assert any("&span=30" in url for url in seen.fetched) is scripts


def test_on_a_phone_trouble_comes_first_and_a_thumb_hits_everything(browser: Any, lit: Stage) -> None:
    """Who is woken at night has a phone in the hand."""
    with tab(browser, lit, PHONE) as seen, lit.held("in-hand", gpus=[0]), lit.waiting("in-line", gpus=[0]):
        seen.sees("#gpu-0 .job", "in-hand")
        seen.sees("#part-queue .why [data-up]", re.compile(r"^([2-9]\.\d|\d\d) s$"))
        parts = ("alerts", "cards", "queue", "timeline", "waits", "changes", "events", "performance")
        tops = [seen.page.locator(f"#part-{name}").bounding_box()["y"] for name in parts]
        assert tops == sorted(tops)
        small = "a:not(.skip):visible, button:visible, summary:visible"
        assert [one.text_content() for one in seen.page.locator(small).all() if one.bounding_box()["height"] < 40] == []


@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
def test_a_huge_list_of_settings_stays_folded(browser: Any, lit: Stage, size: tuple[int, int]) -> None:
    """Under two hundred rules nobody would find who holds the GPU."""
    rules = [RULES[0] | {"name": f"RULE_{n}"} for n in range(190)]
    assert lit.ask("POST", "/api/v1/config", {"set": {"alerts": rules}}).status == 200
    try:
        with tab(browser, lit, size) as seen:
            seen.sees("#part-changes > .diff .new summary", "190 entries")
            assert seen.page.locator("#part-changes").bounding_box()["height"] < 1500
            assert seen.page.evaluate("document.documentElement.scrollWidth") <= size[0]
            seen.page.locator("#part-changes > .diff .new summary").click()
            seen.sees("#part-changes > .diff .new .whole", "RULE_7")
            assert seen.page.locator("#part-changes").bounding_box()["height"] < 2000
            seen.page.locator("#settings > summary").click()
            lines = (
                "one => one.getClientRects().length && one.offsetHeight / parseFloat(getComputedStyle(one).lineHeight)"
            )
            names = seen.page.locator("#settings th[scope=row]")
            assert max(name.evaluate(lines) for name in names.all()[:40]) < 5
    finally:
        rolled = {"to": 0, "all": True, "reason": "as it was"}
        assert lit.ask("POST", "/api/v1/config/rollback", rolled).status == 200


def test_the_theme_is_chosen_and_kept(browser: Any, lit: Stage) -> None:
    """The system's choice is not everybody's."""
    with tab(browser, lit, color_scheme="light") as seen:
        ground = "getComputedStyle(document.body).backgroundColor"
        light = seen.page.evaluate(ground)
        for _ in range(2):
            seen.page.locator("#theme").click()
        seen.sees("#theme", "theme: dark")
        assert seen.page.evaluate(ground) != light
        seen.page.reload()
        seen.sees("#theme", "theme: dark")
        assert seen.page.evaluate(ground) != light


def test_a_name_with_markup_stays_text_while_the_page_lives(browser: Any, lit: Stage) -> None:
    """A task name is another user's text, and it comes again with every look."""
    name = "<img src=x onerror=alert(1)>&amp;'\""
    with tab(browser, lit) as seen:
        with lit.held(name, gpus=[0]):
            seen.sees("#gpu-0 .job", name)
            seen.sees("#part-events", name)
            assert seen.page.locator("main img").count() == 0
        assert seen.complaints == []


def test_it_says_stale_when_the_daemon_stops(browser: Any) -> None:
    """An old picture that looks alive is worse than none."""
    with stage() as lit, tab(browser, lit) as seen:
        lit.stop()
        seen.sees("#live", re.compile(r"■ stale for \d+ s"))
        playwright.expect(seen.page.locator("body")).to_have_class(re.compile("stale-page"), timeout=SEEN_MS)
