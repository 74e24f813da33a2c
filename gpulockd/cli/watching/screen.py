"""The screen of `gpulockd top`. What it shows of locks comes with the stream of events; nothing is asked by the clock
but what no event tells: how far tasks are, and what the cards' sensors say.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import ClassVar

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import DataTable, Footer, Label, Static

from gpulockd.cli import http
from gpulockd.cli.records import Record, name_of, seconds
from gpulockd.cli.talk import CommandError, shortened
from gpulockd.cli.watching import rows
from gpulockd.cli.watching.feed import Feed
from gpulockd.cli.watching.picture import MOST_EVENTS, Picture, lately, take

SENSORS_S = 5.0
"""How often sensors and progress are asked for; a card is sampled as often."""

GATHER_S = 0.1
TICK_S = 1.0

_STYLES = {"good": "green", "warn": "yellow", "bad": "bold red", "idle": "dim"}
_CARD_WIDTHS = (5, 10, 20, 17, 6, 12, 6, 5)
_HOLDER = 2
_EVENTS_HEIGHT = 5


class Question(ModalScreen[bool]):
    """Asks yes or no; everything but `y` is no."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "answer(True)", "yes"),
        Binding("n,escape,q,enter", "answer(False)", "no"),
    ]
    CSS = """
    Question { align: center middle; }
    Question > Vertical { width: 60; max-width: 95%; height: auto; border: round $warning; padding: 1 2; }
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text

    def compose(self) -> ComposeResult:
        """The text and the two keys."""
        with Vertical():
            yield Label(self.text, markup=False)
            yield Label("y: yes    n: no", markup=False)

    def action_answer(self, said: bool) -> None:
        """Take the answer."""
        self.dismiss(said)


class Top(App[None]):
    """Cards, queue and events of one daemon."""

    CSS = """
    #head { height: 1; text-style: bold; }
    #cards { height: auto; max-height: 50%; }
    #line { height: 1fr; margin-top: 1; }
    #events { height: 5; margin-top: 1; }
    .gone { background: $error; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit", "quit"),
        Binding("s", "sort", "sort"),
        Binding("r", "release", "release"),
        Binding("d", "drain", "drain/resume"),
        Binding("ctrl+c", "quit", "quit", show=False),
    ]
    ENABLE_COMMAND_PALETTE = False

    def __init__(self, path: str, sort: str = "gpu") -> None:
        """:param path: the daemon's unix socket"""
        super().__init__()
        self.path = path
        self.order = sort
        self.picture: Picture | None = None
        self.shown: list[rows.CardRow] = []
        self.happened: deque[Record] = deque(maxlen=MOST_EVENTS)
        self.gone_since_s: float | None = None
        self.what = self.why = ""
        self.takes = 0
        self._taking = self._again = False
        self._home: asyncio.AbstractEventLoop | None = None
        self._feed = Feed(
            path,
            live=lambda: self._soon(self.came),
            told=lambda event: self._soon(self.told, event),
            gone=lambda why: self._soon(self.went, why),
        )

    def compose(self) -> ComposeResult:
        """One line of head, the cards, the queue, the events, and the keys."""
        # Kept by name, for a question that is open hides them from every query.
        self.heading = Static("asking the daemon …", id="head", markup=False)
        self.cards = DataTable[Text](id="cards", cursor_type="row", cell_padding=0)
        self.line = Static("", markup=False)
        self.events = Static("", id="events", markup=False)
        yield from (self.heading, self.cards, VerticalScroll(self.line, id="line"), self.events, Footer())

    def on_mount(self) -> None:
        """Begin to listen."""
        self._home = asyncio.get_running_loop()
        self._feed.start()
        self.set_interval(TICK_S, self.paint)
        self.set_interval(SENSORS_S, self.refresh_sensors)

    def on_unmount(self) -> None:
        """Hang up."""
        self._feed.close()

    def on_resize(self) -> None:
        """Use the new width."""
        self.paint()

    def came(self) -> None:
        """The stream stands: everything may be other than it was."""
        self.gone_since_s = None
        self.look(with_past=True)

    def went(self, why: str, what: str = "no daemon") -> None:
        """The daemon is gone, or does not answer."""
        if self.gone_since_s is None:
            self.gone_since_s = time.monotonic()
        self.what, self.why = what, why
        self.paint()

    def told(self, event: Record) -> None:
        """Something happened."""
        self.happened.append(event)
        self.look()

    def refresh_sensors(self) -> None:
        """Ask for what no event tells, and whether a daemon that could not answer can do so again."""
        self.look()

    def look(self, *, with_past: bool = False) -> None:
        """Take a new picture soon; what happens meanwhile is in the next one."""
        if self._taking and not with_past:
            self._again = True
            return
        self._taking = True
        self.run_worker(lambda: self._take(with_past), thread=True)

    def _take(self, with_past: bool) -> None:
        try:
            past = lately(self.path) if with_past else None
            time.sleep(GATHER_S)
            picture = take(self.path)
        except CommandError as wrong:
            self._soon(self._missed, wrong.what)
        else:
            self._soon(self._took, picture, past)

    def _missed(self, why: str) -> None:
        self._taking = False
        self.went(why, "no answer")

    def _took(self, picture: Picture, past: list[Record] | None) -> None:
        self.picture, self._taking = picture, False
        self.takes += 1
        self.gone_since_s = None
        if past is not None:
            self.happened.clear()
            self.happened.extend(past)
        self.paint()
        if self._again:
            self._again = False
            self.look()

    def _soon(self, what: Callable[..., object], *words: object) -> None:
        """Call in the loop what a thread has to say; nothing after the end."""
        if self.is_running and self._home is not None:
            with suppress(RuntimeError):  # the loop was closed just now
                self._home.call_soon_threadsafe(what, *words)

    def paint(self) -> None:
        """Show the picture with the ages of now."""
        if self._home is None or not self.is_running:
            return
        self._paint_head()
        if self.picture is None:
            return
        self._paint_cards(self.picture)
        waits = rows.line(self.picture, self.size.width - 2) if self.picture.queue else ["nobody waits"]
        self.line.update("\n".join(waits))
        events = [rows.happened(event) for event in list(self.happened)[-_EVENTS_HEIGHT:]]
        self.events.update("\n".join(shortened(text, self.size.width) for text in events))

    def _paint_head(self) -> None:
        widget = self.heading
        widget.set_class(self.gone_since_s is not None, "gone")
        if self.gone_since_s is not None:
            since = seconds(time.monotonic() - self.gone_since_s)
            widget.update(shortened(f"{self.what} for {since}, what is shown is old: {self.why}", self.size.width))
        elif self.picture is not None:
            widget.update(shortened(f"{rows.head(self.picture)}  sorted by {self.order}", self.size.width))

    def _paint_cards(self, picture: Picture) -> None:
        self.shown = rows.cards(picture, self.order)
        widths = list(_CARD_WIDTHS)
        widths[_HOLDER] = max(8, self.size.width - sum(_CARD_WIDTHS) + widths[_HOLDER] - 1)
        styled = [[Text(cell, style=_STYLES[row.mood]) for cell in row.cells] for row in self.shown]
        _fill(self.cards, rows.CARDS, widths, styled)

    def action_sort(self) -> None:
        """Take the next order."""
        names = list(rows.SORTS)
        self.order = names[(names.index(self.order) + 1) % len(names)]
        self.paint()

    def action_release(self) -> None:
        """Ask, then take the lease of this row from its holder."""
        row = self._row()
        if row is None or not row.lease:
            self.notify("nobody holds this GPU", severity="warning")
            return
        path = f"/api/v1/leases/{http.segment(row.lease)}"
        self._ask(f"Take GPU {name_of(row.key)} from {row.task}?", "DELETE", path)

    def action_drain(self) -> None:
        """Ask, then take the card of this row out of the pool, or put it back."""
        row = self._row()
        if row is None:
            return
        record = next((gpu for gpu in self.picture.gpus if gpu["key"] == row.key), {}) if self.picture else {}
        verb = "drain" if record.get("state") == "ready" else "resume"
        text = "Let nobody begin on" if verb == "drain" else "Put back"
        self._ask(f"{text} GPU {name_of(row.key)}?", "POST", f"/api/v1/gpus/{http.segment(row.key)}/{verb}")

    def _row(self) -> rows.CardRow | None:
        at = self.cards.cursor_row
        return self.shown[at] if 0 <= at < len(self.shown) else None

    def _ask(self, text: str, method: str, path: str) -> None:
        def answered(said: bool | None) -> None:
            if said:
                self.run_worker(lambda: self._do(method, path), thread=True)

        self.push_screen(Question(text), answered)

    def _do(self, method: str, path: str) -> None:
        try:
            with http.Daemon(self.path) as daemon:
                daemon.ask(method, path)
        except CommandError as wrong:
            self._soon(self.notify, f"{wrong.what}\n{wrong.hint}")
        else:
            self._soon(self.look)


def _fill(shown: DataTable[Text], names: tuple[str, ...], widths: list[int], cells: list[list[Text]]) -> None:
    """Show rows; the cursor stays where it is."""
    at, top = shown.cursor_row, shown.scroll_y
    shown.clear(columns=True)
    for name, width in zip(names, widths, strict=True):
        shown.add_column(name, width=width)
    for row in cells:
        for cell, width in zip(row, widths, strict=True):
            cell.truncate(width - 1, overflow="ellipsis")
        shown.add_row(*row)
    shown.move_cursor(row=min(at, max(0, len(cells) - 1)), scroll=False)
    shown.scroll_y = top
