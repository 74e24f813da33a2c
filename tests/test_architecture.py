"""The layers, sizes and manners that the code promises, read from the source itself.

Its law: an exception stands in a table below, beside its reason, or not at all.
"""

from __future__ import annotations

import ast
import functools
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from gpulockd.settings import Settings, settings_from

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "gpulockd"

WORDS = frozenset({"errors", "clock", "units", "model", "settings", "events", "places", "version"})
"""The top-level modules that are words; every other top-level name is a layer of its own."""

ROOMS = frozenset(
    {"words", "root", "ledger", "client", "hardware", "config", "daemon", "web", "cli", "compat", "contrib"}
    | {"alerting", "demo", "trial"}
)

MAY_IMPORT: dict[str, frozenset[str]] = {
    "words": frozenset({"words"}),
    "root": frozenset({"words", "client"}),
    "ledger": frozenset({"words", "ledger"}),
    "client": frozenset({"words", "ledger", "client"}),
    "hardware": frozenset({"words", "hardware"}),
    "config": frozenset({"words", "ledger", "config"}),
    "alerting": frozenset({"words", "ledger", "alerting"}),
    "daemon": frozenset({"words", "ledger", "client", "hardware", "config", "alerting", "daemon"}),
    "web": frozenset({"words", "ledger", "client", "config", "alerting", "web"}),
    "cli": ROOMS,
    "compat": frozenset({"words", "root", "ledger", "client", "compat"}),
    "contrib": frozenset({"words", "root", "ledger", "client", "contrib"}),
    "demo": ROOMS,
    "trial": ROOMS,
}
"""Which layers each layer may import: downwards only."""

COMPOSER = "gpulockd.daemon.serve"
"""The one module that puts the services and the web together."""

COMPOSERS = {COMPOSER, "gpulockd.daemon.services"}
"""The modules that know several services: one makes them, the other starts the daemon."""

IMPORTS_INSIDE: dict[str, str] = {
    "gpulockd": "the public names load on first use, so that the short commands never load Redis",
}
"""Modules outside gpulockd.cli that may import inside a function, and why."""

LONGEST_MODULE = 300
LONGEST_FUNCTION = 50
LONGEST_VERB = 80

LONG_MODULES: dict[str, str] = {}
LONG_FUNCTIONS: dict[str, str] = {}
LONG_VERBS: dict[str, str] = {
    "request.lua": "the one verb that serves a ticket in each of its states, and says in its head how each is answered",
    "offer.lua": "the one verb that a daemon begins with, and its head names fourteen arguments",
}

WRITES_WITH_ARGUMENTS = {
    **dict.fromkeys(("hset", "hsetnx", "hmset", "hdel", "hincrby", "hincrbyfloat", "zadd", "zrem", "zincrby"), 1),
    **dict.fromkeys(("zpopmin", "zpopmax", "zremrangebyscore", "zremrangebyrank", "sadd", "srem", "spop"), 1),
    **dict.fromkeys(("lpush", "rpush", "lpop", "rpop", "lrem", "ltrim", "xadd", "xdel", "xtrim"), 1),
    **dict.fromkeys(("incr", "incrby", "decr", "decrby", "setex", "psetex", "setnx", "getset", "getdel"), 1),
    **dict.fromkeys(("pexpire", "pexpireat", "expireat", "persist", "evalsha", "script_load", "register_script"), 1),
    **dict.fromkeys(("set", "expire", "publish", "spublish", "eval", "fcall"), 2),
    **dict.fromkeys(("flushdb", "flushall", "swapdb"), 0),
    "delete": 1,
}
"""Methods of a Redis client that write or run scripts -> the fewest arguments by which they differ from namesakes."""

WRITES_OUTSIDE_LEDGER: dict[str, str] = {
    "gpulockd.daemon.services:publish": "hands what clients go by to the offer",
    "gpulockd.daemon.offering:publish": "hands it to what the pool says",
    "gpulockd.daemon.saying:publish": "the ledger's own verb of that name",
}
"""`module:method` outside gpulockd.ledger that is no write to Redis, and why."""

HEAVY = ("pynvml", "starlette", "uvicorn", "structlog", "gpulockd.cli", "gpulockd.daemon", "gpulockd.web")


@dataclass(frozen=True)
class Import:
    """One import statement of our own: the module that it stands in, its target, and where."""

    source: str
    target: str
    line: int
    inside: bool
    typing_only: bool


@dataclass(frozen=True)
class Module:
    """One Python file of the package."""

    name: str
    path: Path
    text: str
    tree: ast.Module

    @property
    def layer(self) -> str:
        """The layer that the module belongs to."""
        return layer_of(self.name)


def layer_of(name: str) -> str:
    """Return the layer of a module such as `gpulockd.client.lock`."""
    parts = name.split(".")
    if len(parts) == 1 or parts[1] == "__main__":
        return "root" if len(parts) == 1 else "cli"
    return "words" if parts[1] in WORDS else parts[1]


@functools.cache
def modules() -> dict[str, Module]:
    """Return every module of the package by its dotted name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        text = path.read_text()
        found[name] = Module(name, path, text, ast.parse(text, str(path)))
    return found


def targets(node: ast.AST, module: Module) -> list[str]:
    """Return what an import statement, or `import_module("gpulockd…")`, names."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            package = module.name.split(".") if module.path.name == "__init__.py" else module.name.split(".")[:-1]
            base = ".".join([*package[: len(package) - node.level + 1], *([base] if base else [])])
        inner = [f"{base}.{alias.name}" for alias in node.names]
        return [name if name in modules() else base for name in inner]
    if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module") and node.args:
        first = node.args[0]
        return [first.value] if isinstance(first, ast.Constant) and isinstance(first.value, str) else []
    return []


def walk_imports(module: Module, node: ast.AST, inside: bool = False, typing_only: bool = False) -> Iterator[Import]:
    """Yield every import below `node`, and whether it stands in a function or is for types only."""
    for child in ast.iter_child_nodes(node):
        dynamic = isinstance(child, ast.Call)
        for target in targets(child, module):
            yield Import(module.name, target, getattr(child, "lineno", 0), inside and not dynamic, typing_only)
        deeper = inside or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
        typed = typing_only or (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test))
        yield from walk_imports(module, child, deeper, typed)


@functools.cache
def imports() -> tuple[Import, ...]:
    """Return every import statement of the package, of other packages too."""
    return tuple(found for module in modules().values() for found in walk_imports(module, module.tree))


def ours() -> list[Import]:
    """Return the imports whose target is ours."""
    return [found for found in imports() if found.target.split(".")[0] == "gpulockd"]


def is_service(module: Module) -> bool:
    """Return whether a daemon module is a service: it defines `async def run`."""
    return any(isinstance(node, ast.AsyncFunctionDef) and node.name == "run" for node in ast.walk(module.tree))


def functions(module: Module) -> Iterator[tuple[str, int]]:
    """Yield every function of a module with its length in lines."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{module.name}.{node.name}", (node.end_lineno or node.lineno) - node.lineno + 1


def verbs() -> list[Path]:
    """Return the Lua files that are verbs, not parts of the shared prelude."""
    return [path for path in sorted(PACKAGE.rglob("*.lua")) if not path.name.startswith("_")]


def test_every_module_belongs_to_a_layer() -> None:
    """A new room must say what it may import."""
    strangers = sorted(name for name, module in modules().items() if module.layer not in MAY_IMPORT)
    assert not strangers, f"name the layer of {strangers} in MAY_IMPORT or WORDS"


def test_imports_run_downwards_only() -> None:
    """A layer that knows what is above it cannot be read, tested or loaded alone."""
    wrong = [
        f"{found.source}:{found.line} imports {found.target}"
        for found in ours()
        if found.source != COMPOSER and layer_of(found.target) not in MAY_IMPORT.get(layer_of(found.source), ROOMS)
    ]
    assert not wrong, "\n".join(wrong)


def test_services_never_import_each_other() -> None:
    """Each service keeps one promise; only the composing module knows them all."""
    services = {name for name, module in modules().items() if module.layer == "daemon" and is_service(module)}
    services.add(COMPOSER)
    wrong = [
        f"{found.source}:{found.line} imports the service {found.target}"
        for found in ours()
        if layer_of(found.source) == "daemon" and found.source not in COMPOSERS and found.target in services
    ]
    assert not wrong, "\n".join(wrong)


def test_the_composer_imports_no_client_and_no_command() -> None:
    """The daemon speaks to the ledger itself, never through what a program uses."""
    wrong = [f.target for f in ours() if f.source == COMPOSER and layer_of(f.target) in {"client", "cli", "demo"}]
    assert not wrong


def test_no_import_cycles() -> None:
    """A cycle is one module in two files."""
    edges: dict[str, set[str]] = {name: set() for name in modules()}
    for found in ours():
        if not found.inside and not found.typing_only and found.target in edges and found.target != found.source:
            edges[found.source].add(found.target)
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path[path.index(name) :], name))
        if name not in done:
            for target in sorted(edges[name]):
                visit(target, (*path, name))
            done.add(name)

    for name in edges:
        visit(name, ())


def test_no_imports_inside_functions_but_for_named_reasons() -> None:
    """An import inside a function hides a dependency; commands load theirs when called."""
    wrong = [
        f"{found.source}:{found.line} imports {found.target} inside a function"
        for found in imports()
        if found.inside and layer_of(found.source) != "cli" and found.source not in IMPORTS_INSIDE
    ]
    assert not wrong, "\n".join(wrong)


def test_no_module_is_too_long() -> None:
    """A file is one noun; past this length it wants to be two."""
    lengths = {name: module.text.count("\n") for name, module in modules().items()}
    long = {name: n for name, n in lengths.items() if n > LONGEST_MODULE and name not in LONG_MODULES}
    assert not long, f"longer than {LONGEST_MODULE} lines: {long}"


def test_no_function_is_too_long() -> None:
    """A function is one thought."""
    lengths = [found for module in modules().values() for found in functions(module)]
    long = {name: n for name, n in lengths if n > LONGEST_FUNCTION and name not in LONG_FUNCTIONS}
    assert not long, f"longer than {LONGEST_FUNCTION} lines: {long}"


@pytest.mark.parametrize("verb", verbs(), ids=lambda path: path.stem)
def test_a_verb_is_short_and_says_what_it_takes_and_returns(verb: Path) -> None:
    """A reader holds one verb in the head, and only its header knows the order of arguments."""
    lines = verb.read_text().splitlines()
    header = "\n".join(line for line in lines[: next(i for i, s in enumerate([*lines, ""]) if not s.startswith("--"))])
    missing = [word for word in ("KEYS", "ARGV", "returns") if not re.search(rf"\b{word}\b", header, re.IGNORECASE)]
    assert not missing, f"the header of {verb.name} does not name {missing}"
    assert len(lines) <= LONGEST_VERB or verb.name in LONG_VERBS, f"{verb.name} has {len(lines)} lines"


def test_only_the_ledger_writes_to_redis() -> None:
    """Lua is the only writer of lock state, and the ledger is the only door to Lua."""
    wrong = []
    for module in modules().values():
        if module.layer == "ledger":
            continue
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                fewest = WRITES_WITH_ARGUMENTS.get(node.func.attr)
                given = len(node.args) + len(node.keywords)
                where = f"{module.name}:{node.func.attr}"
                if fewest is not None and given >= fewest and where not in WRITES_OUTSIDE_LEDGER:
                    wrong.append(f"{where} line {node.lineno}: {ast.unparse(node)[:80]}")
    assert not wrong, "\n".join(wrong)


def loaded_by(statement: str) -> tuple[set[str], int]:
    """Return the modules that a fresh interpreter has, and its number of threads, after `statement`."""
    program = (
        f"{statement}\nimport json, os, sys\nprint(json.dumps([list(sys.modules), len(os.listdir('/proc/self/task'))]))"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    names, threads = json.loads(done.stdout)
    return set(names), int(threads)


def test_importing_gpulockd_loads_nothing_heavy_and_starts_no_thread() -> None:
    """It lands in torch and Celery processes, which fork."""
    names = "gpu_lock, lock_events" if (PACKAGE / "__init__.py").exists() else ""
    loaded, threads = loaded_by("import gpulockd" + (f"\nfrom gpulockd import {names}" if names else ""))
    assert not sorted(loaded.intersection(HEAVY))
    assert threads == 1


@pytest.mark.skipif(not (PACKAGE / "cli" / "__init__.py").exists(), reason="the commands are not written yet")
def test_the_commands_start_without_redis() -> None:
    """A short command answers in under 80 ms, and Redis alone takes 145 ms to load."""
    loaded, _ = loaded_by("import gpulockd.cli")
    assert not sorted(loaded.intersection({*HEAVY, "redis", "anyio", "asyncio"} - {"gpulockd.cli"}))


def test_config_yml_says_every_key_with_its_default() -> None:
    """Users learn the settings from that file."""
    yaml = pytest.importorskip("ruamel.yaml", reason="ruamel.yaml is not installed")
    said = yaml.YAML(typ="safe").load(ROOT / "config.yml")
    assert settings_from(said) == Settings()
    assert key_paths(said) == key_paths(msgspec.to_builtins(Settings()))


def key_paths(tree: dict[str, object], above: str = "") -> set[str]:
    """Return the dotted path of every key."""
    paths = set()
    for name, value in tree.items():
        paths.add(above + name)
        if isinstance(value, dict):
            paths |= key_paths(value, f"{above}{name}.")
    return paths
