"""A `libnvidia-ml.so.1` of ours, which the real bindings load in a child process: every answer of NVML at will.

`build(folder)` compiles it; start a child with `stub.env` and say with `stub.set(...)`, at any time, what it sees. For
a whole daemon: `running_daemon(env=stub.env, simulate=0)`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

import pytest

SOURCE = Path(__file__).with_name("stub_nvml.c")
WHOLE_CARD = 0xFFFFFFFF

XID, UNAVAILABLE, RECOVERY_CHANGED = 0x8, 0x4000, 0x8000


@dataclass(frozen=True)
class StubMig:
    """A MIG instance in a slot of a card; memory in MiB."""

    slot: int
    uuid: str
    gi: int
    ci: int = 0
    total: int = 10240
    reserved: int = 0
    used: int = 0


@dataclass(frozen=True)
class StubProcess:
    """A process on a card, or on one of its MIG slots; memory in MiB, -1 = not told."""

    pid: int
    used: int = 512
    kind: Literal["compute", "graphics", "mps"] = "compute"
    slot: int = -1


@dataclass(frozen=True)
class StubCard:
    """A card: memory in MiB, `util` in percent, `power` in mW, `delay` in ms for each question about it.

    `error` is what NVML returns for it, `grow` how many times its process list has grown between size and rows,
    `recovery` its recovery action (-1 = a driver that does not tell); `sticky`: once an error, it stays until the
    library is initialized anew.
    """

    uuid: str
    name: str = "NVIDIA H200"
    total: int = 81920
    reserved: int = 500
    used: int = 0
    util: int = 0
    temp: int = 30
    power: int = 70_000
    error: int = 0
    delay: int = 0
    grow: int = 0
    recovery: int = -1
    no_util: bool = False
    no_processes: bool = False
    no_events: bool = False
    sticky: bool = False
    migs: tuple[StubMig, ...] = ()
    processes: tuple[StubProcess, ...] = ()


@dataclass
class Stub:
    """A compiled library and the file of its facts."""

    folder: Path
    cards: tuple[StubCard, ...] = ()
    _host: dict[str, object] = field(default_factory=dict)
    _events: list[str] = field(default_factory=list)

    @property
    def env(self) -> dict[str, str]:
        """The environment in which a child loads it."""
        return {"LD_LIBRARY_PATH": str(self.folder), "STUB_NVML_STATE": str(self._state)}

    @property
    def _state(self) -> Path:
        return self.folder / "state"

    def set(self, cards: Sequence[StubCard] | None = None, **host: object) -> None:
        """Say what the host has from now on; what is left out stays.

        :param host: `init` = what nvmlInit returns, `init_delay` in ms, `kernel` = the version of the kernel's driver
        """
        self.cards = self.cards if cards is None else tuple(cards)
        self._host |= host
        self._write()

    def happen(self, card: int, data: int, *, type: int = XID, gi: int = WHOLE_CARD, ci: int = WHOLE_CARD) -> None:
        """Let a card report an event: an XID, unless `type` says otherwise."""
        self._events.append(f"event seq={len(self._events) + 1} n={card} type={type} data={data} gi={gi} ci={ci}")
        self._write()

    def _write(self) -> None:
        lines = [_line("host", **self._host)]
        for n, card in enumerate(self.cards):
            lines.append(_line("card", n=n, mig=bool(card.migs), **_facts(card)))
            lines += [_line("mig", n=n, **_facts(mig)) for mig in card.migs]
            lines += [_line("process", n=n, **_facts(process)) for process in card.processes]
        fresh = self._state.with_suffix(".new")
        fresh.write_text("\n".join([*lines, *self._events, ""]))
        os.replace(fresh, self._state)


def build(folder: Path, *flags: str, library: str = "570.1") -> Stub:
    """Compile the library in `folder`; skip the test where there is no compiler.

    :param flags: "OLD" (a driver without what came after 470), "ANCIENT" (without process lists too)
    :param library: its version, which must be that of the kernel's driver
    """
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler (apt-get install gcc libc6-dev)")
    folder.mkdir(parents=True, exist_ok=True)
    options = [f"-D{flag}" for flag in flags] + [f'-DLIBRARY="{library}"']
    fresh = folder / "fresh.so"
    command = [compiler, "-shared", "-fPIC", "-O1", "-Wl,-soname,libnvidia-ml.so.1", *options, "-o", str(fresh)]
    done = subprocess.run([*command, str(SOURCE), "-lpthread"], capture_output=True, text=True, timeout=60)
    if done.returncode != 0 and "stdio.h" in done.stderr:
        pytest.skip("no C library headers (apt-get install libc6-dev)")
    assert done.returncode == 0, done.stderr
    # As a package manager does it: a new file in the old one's place, under whoever has that one loaded.
    os.replace(fresh, folder / "libnvidia-ml.so.1")
    stub = Stub(folder)
    stub.set()
    return stub


def _facts(thing: StubCard | StubMig | StubProcess) -> dict[str, object]:
    names = [f.name for f in fields(thing) if f.name not in ("migs", "processes")]
    return {name: getattr(thing, name) for name in names}


def _line(word: str, **facts: object) -> str:
    """One line of the state file; true and false are 1 and 0, a space in a name is an underscore."""
    said = {name: int(fact) if isinstance(fact, bool) else str(fact).replace(" ", "_") for name, fact in facts.items()}
    return " ".join([word, *(f"{name}={fact}" for name, fact in said.items())])
