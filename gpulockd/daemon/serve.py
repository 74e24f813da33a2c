"""`gpulockd serve`: puts store, offer, timer, guard socket and web together, in order, and says READY.

One task group: what fails in it ends the daemon, is logged once, and the service manager starts it again. The order is
the promise: a program that sees the sockets can already be served, and READY is said when GPUs can be asked for.
"""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial

import anyio
import anyio.abc
import structlog

from gpulockd import __version__
from gpulockd.daemon import fdstore, folders, guard, logs, notify, process, watchdog
from gpulockd.daemon.assertions import GuardsWord
from gpulockd.daemon.credentials import API_TOKEN, credential
from gpulockd.daemon.embedded import EmbeddedStore
from gpulockd.daemon.guarding import Guard
from gpulockd.daemon.kept import Kept
from gpulockd.daemon.levels import Rules, in_seconds, limits_of
from gpulockd.daemon.localguard import LocalGuard
from gpulockd.daemon.offering import Offering
from gpulockd.daemon.opening import open_guard
from gpulockd.daemon.plan import Options, Plan, plan_of
from gpulockd.daemon.pulse import Pulses
from gpulockd.daemon.services import Services
from gpulockd.daemon.standing import open_session
from gpulockd.daemon.storeunit import unit_of
from gpulockd.errors import ConfigError, GpuLockError
from gpulockd.hardware.cards import Cards, open_cards
from gpulockd.hardware.nvml import NvmlUnavailable
from gpulockd.hardware.processes.identity import Process
from gpulockd.ledger.address import without_secret
from gpulockd.web import listening, routes
from gpulockd.web.application import application
from gpulockd.web.auth import Names, token_of
from gpulockd.web.backend import Backend
from gpulockd.web.feed import Feed

GOODBYE_S = 10.0

OK, FAILED, UNUSABLE = 0, 1, 2

_log = structlog.get_logger(__name__)


async def serve(options: Options) -> int:
    """Run the daemon until a signal ends it. Returns its exit code: 0, 1 for a failure, 2 for what cannot be used."""
    logs.set_up()
    try:
        plan = plan_of(options)
        folders.prepare(plan.folders)
        with folders.locked(plan.folders):
            await _run(plan)
    except GpuLockError as trouble:
        return _refused(trouble)
    except ExceptionGroup as several:
        only = _only(several)
        if only is not None:
            return _refused(only)
        _log.critical("daemon.crashed", exc_info=several, message="the daemon ends by a fault of its own")
        return FAILED
    return OK


def _refused(trouble: GpuLockError) -> int:
    _log.error("daemon.refused", kind=type(trouble).__name__, message=trouble.message)
    return UNUSABLE if isinstance(trouble, ConfigError) else FAILED


def _only(error: BaseException) -> GpuLockError | None:
    """Return the one error of ours that task groups have wrapped, or None if there is another."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error if isinstance(error, GpuLockError) else None


async def _run(plan: Plan) -> None:
    """Start everything in order, wait for the end, and stop everything in the other order."""
    process.allow_many_files()
    stopping, starting = anyio.Event(), anyio.CancelScope()
    passed = fdstore.receive()
    doors, kept = passed.doors(), Kept(passed)
    passed.close()
    tcp = doors.api or listening.bind_tcp(plan.listen)
    async with anyio.create_task_group() as tasks:
        await tasks.start(process.take_signals, stopping, starting, tasks.cancel_scope)
        token = credential(API_TOKEN) or token_of(plan.folders.state)
        async with _store(plan) as store:
            offered: Offering | None = None
            try:
                with open_guard(plan.folders.state, plan.pool, kept) as guarding:
                    with starting:
                        offered = await _offered(plan, store, guarding if plan.settings.gpus.guard else None, token)
                    if offered is not None:
                        await _serve_pool(plan, store, offered, guarding, token, tcp, doors, stopping)
            finally:
                if offered is not None:
                    with anyio.move_on_after(GOODBYE_S, shield=True):
                        await offered.close()
        _log.info("daemon.stopped", message="the daemon has stopped")
        tasks.cancel_scope.cancel()


@asynccontextmanager
async def _store(plan: Plan) -> AsyncIterator[EmbeddedStore | None]:
    """The embedded store, started or adopted; None if the store is another's. It outlives the block."""
    if plan.url is not None:
        folders.publish_store(plan.folders, plan.pool, None)
        yield None
        return
    binary = plan.settings.redis.server_binary
    store = EmbeddedStore(plan.folders, plan.pool, binary=binary, unit=unit_of(plan.folders))
    try:
        yield store
    finally:
        with anyio.CancelScope(shield=True):
            if plan.stop_store:
                await store.stop()
            store.close()


async def _offered(plan: Plan, store: EmbeddedStore | None, guarding: Guard | None, token: str) -> Offering:
    """Open the daemon's session and offer the cards.

    :raises StoreUnavailable: if the store does not answer
    :raises ConfigError: if it cannot be used, or another host offers this pool
    """
    complete = await store.start() if store is not None else False
    url = plan.url or f"unix://{plan.folders.store_socket}"
    session = open_session(url, plan.pool, plan.settings, plan.folders.api_socket)
    cards = await open_cards(plan.settings.gpus.simulate, plan.pool, os.path.join(plan.folders.state, "simulated"))
    offerer = hashlib.sha256(token.encode()).hexdigest()[:16]
    folder = plan.folders.runtime
    word = GuardsWord(guarding) if guarding is not None else None
    offered = Offering(session, plan.settings, cards, guard=word, offerer=offerer, folder=folder)
    try:
        if store is not None:
            offered.vouch(store.run_id if complete else None, fresh=store.fresh)
        await offered.open()
        try:
            await offered.offer()
        except NvmlUnavailable as away:
            # A host whose driver is away is served: its queue stands, and the offer comes with the driver.
            _log.error("daemon.no_gpus", message=away.message)
    except BaseException:
        with anyio.move_on_after(GOODBYE_S, shield=True):
            await offered.close()
        raise
    return offered


async def _vouch_again(offered: Offering, store: EmbeddedStore, complete: bool) -> None:
    await offered.store_restarted(store.run_id if complete else None)


async def _serve_pool(
    plan: Plan,
    store: EmbeddedStore | None,
    offered: Offering,
    guarding: Guard,
    token: str,
    tcp: list[socket.socket],
    doors: fdstore.Doors,
    stopping: anyio.Event,
) -> None:
    """Run all services until `stopping` is set and the web has ended."""
    url, keys = offered.session.url, offered.session.keys
    hello = _about(plan, offered)
    feed = Feed(offered.store, keys)
    pulses = Pulses()
    all_of_it = Services(plan, offered, guarding, pulses, feed)
    async with anyio.create_task_group() as services:
        if store is not None:
            await services.start(store.run, partial(_vouch_again, offered, store))
        await services.start(feed.run)
        await all_of_it.start(services)
        secret = without_secret(url) != url
        door = partial(guard.run, plan.folders.guard_socket, lambda: hello, guarding, listener=doors.guard)
        await services.start(partial(door, secret=secret, alive_s=plan.settings.session.keepalive))
        backend = _backend(plan, offered, guarding, feed, token, stopping, services)
        host, port = _address(plan.listen, tcp)
        app = application(routes.ROWS, backend, Names(plan.settings.web, host, port))
        try:
            async with anyio.create_task_group() as web:
                sockets = doors.api or [*tcp, listening.bind_unix(plan.folders.api_socket)]
                await web.start(listening.run, app, sockets, stopping)
                _say_ready(plan, offered, f"http://{f'[{host}]' if ':' in host else host}:{port}")
                interval_s = notify.watchdog_interval_s()
                if interval_s is not None:
                    services.start_soon(watchdog.run, pulses, interval_s)
                await stopping.wait()
                notify.notify("STOPPING=1")
                _log.info("daemon.stopping", message="the daemon stops")
        finally:
            _take_down(plan, doors)
        services.cancel_scope.cancel()


def _about(plan: Plan, offered: Offering) -> dict[str, object]:
    """What the guard's socket says of this daemon."""
    return {
        "pool": plan.pool,
        "store": offered.session.url,
        "guarded": plan.settings.gpus.guard,
        "version": __version__,
        "boot_id": offered.session.process.boot_id,
        "state_dir": plan.folders.state,
    }


def _take_down(plan: Plan, doors: fdstore.Doors) -> None:
    """Remove the sockets of our own. What systemd listens on stays: programs wait there for the next daemon."""
    for path, given in ((plan.folders.api_socket, doors.api), (plan.folders.guard_socket, doors.guard)):
        if not given:
            with suppress(OSError):
                os.unlink(path)


def _address(listen: str, sockets: list[socket.socket]) -> tuple[str, int]:
    """Return host and port of the API, also where systemd chose the port."""
    host, port = listening.split_listen(listen)
    ports = [one.getsockname()[1] for one in sockets if one.family != socket.AF_UNIX]
    return host, ports[0] if ports else port


def _backend(
    plan: Plan,
    offered: Offering,
    guarding: Guard,
    feed: Feed,
    token: str,
    stopping: anyio.Event,
    tasks: anyio.abc.TaskGroup,
) -> Backend:
    return Backend(
        pool=plan.pool,
        url=offered.session.url,
        api_socket=plan.folders.api_socket,
        settings=plan.settings,
        version=__version__,
        token=token,
        uid=os.getuid(),
        ask=offered.ask,
        feed=feed,
        guard_for=lambda pid, started, uid: LocalGuard(guarding, Process(pid, started) if pid else None, uid),
        limits_s=lambda job: in_seconds(limits_of(job, Rules.of(plan.settings))),
        reasons=lambda: (offered.trouble,) if offered.trouble else (),
        tasks=tasks,
        stopping=stopping,
    )


def _say_ready(plan: Plan, offered: Offering, address: str) -> None:
    line = (
        f"gpulockd {__version__} ready: pool {plan.pool}, {_counted(offered.cards, len(offered.gpus))}, {address}, "
        f"{plan.folders.api_socket}"
    )
    with suppress(OSError):  # a terminal that is closed must not end the daemon
        print(line, flush=True)
    notify.notify("READY=1", f"STATUS={line}")
    _log.info("daemon.ready", pool=plan.pool, gpus=len(offered.gpus), message=line)


def _counted(cards: Cards, count: int) -> str:
    if count == 0:
        return f"no GPU ({cards.describe()})"
    kind = "simulated " if cards.source == "simulated" else ""
    return f"{count} {kind}GPU{'' if count == 1 else 's'}"


def main(options: Options) -> int:
    """Run `serve` in an event loop of its own and return its exit code."""
    return anyio.run(serve, options)
