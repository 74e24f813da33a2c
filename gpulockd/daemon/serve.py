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
from gpulockd.daemon.announcing import FAILED, OK, only_ours, refused, say_ready, warn_of_clear
from gpulockd.daemon.assertions import GuardsWord
from gpulockd.daemon.configkept import KeptFile
from gpulockd.daemon.credentials import API_TOKEN, credential
from gpulockd.daemon.embedded import EmbeddedStore
from gpulockd.daemon.guarding import Guard
from gpulockd.daemon.hostpids import HostPids
from gpulockd.daemon.inforce import in_force_of
from gpulockd.daemon.kept import Kept
from gpulockd.daemon.leaving import say_who_holds
from gpulockd.daemon.levels import Rules, in_seconds, limits_of
from gpulockd.daemon.localguard import LocalGuard
from gpulockd.daemon.offering import Offering
from gpulockd.daemon.opening import open_guard
from gpulockd.daemon.plan import Options, Plan, name_of, plan_of
from gpulockd.daemon.pulse import Pulses
from gpulockd.daemon.services import Services
from gpulockd.daemon.standing import open_session
from gpulockd.daemon.storesocket import pid_behind
from gpulockd.daemon.storeunit import unit_of
from gpulockd.errors import GpuLockError
from gpulockd.hardware.cards import open_cards
from gpulockd.hardware.nvml import NvmlUnavailable
from gpulockd.hardware.processes.identity import Process
from gpulockd.ledger.address import without_secret
from gpulockd.settings import Settings
from gpulockd.web import encrypting, listening, routes
from gpulockd.web.application import application
from gpulockd.web.auth import Names, token_of
from gpulockd.web.backend import Backend
from gpulockd.web.feed import Feed
from gpulockd.web.metrics import Metrics
from gpulockd.web.taking_over import take_over
from gpulockd.web.timed import TimedFile

GOODBYE_S = 10.0

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
        return refused(trouble)
    except ExceptionGroup as several:
        only = only_ours(several)
        if only is not None:
            return refused(only)
        _log.critical("daemon.crashed", exc_info=several, message="the daemon ends by a fault of its own")
        return FAILED
    return OK


async def _run(plan: Plan) -> None:
    """Start everything in order, wait for the end, and stop everything in the other order."""
    process.allow_many_files()
    stopping, starting, reload = anyio.Event(), anyio.CancelScope(), process.Later()
    passed = fdstore.receive()
    doors, kept = passed.doors(), Kept(passed)
    passed.close()
    encrypting.context_of(plan.settings.web.tls)  # what cannot be used is refused before anything is started
    tcp = doors.api or listening.bind_tcp(plan.listen)
    async with anyio.create_task_group() as tasks:
        await tasks.start(
            partial(process.take_signals, stopping, starting, tasks.cancel_scope, reload=reload, ready=reload.ready)
        )
        token = credential(API_TOKEN) or token_of(plan.folders.state)
        kept_config = KeptFile(plan.folders.state, name_of(plan.url))
        in_force = in_force_of(plan.pool, plan.settings, plan.layers, kept_config)
        async with _store(plan) as store:
            offered: Offering | None = None
            try:
                adopted = pid_behind(plan.folders.store_socket) if store is not None else 0
                with open_guard(plan.folders.state, plan.pool, kept, adopted) as guarding:
                    with starting:
                        fence = guarding if plan.settings.gpus.guard else None
                        offered = await _offered(plan, in_force.current.settings, store, fence, token)
                    if offered is not None:
                        feed, pulses = Feed(offered.store, offered.session.keys), Pulses()
                        made = Services(plan, in_force, kept_config, offered, guarding, pulses, feed)
                        reload.reload, made.on_ready = made.configuring.reload, reload.ready.set
                        await _serve_pool(plan, store, offered, made, guarding, token, tcp, doors, stopping)
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


async def _offered(
    plan: Plan, settings: Settings, store: EmbeddedStore | None, guarding: Guard | None, token: str
) -> Offering:
    """Open the daemon's session and offer the cards.

    :raises StoreUnavailable: if the store does not answer
    :raises ConfigError: if it cannot be used, or another host offers this pool
    """
    complete = await store.start() if store is not None else False
    url = plan.url or f"unix://{plan.folders.store_socket}"
    session = open_session(url, plan.pool, settings, plan.folders.api_socket)
    cards = await open_cards(plan.settings.gpus.simulate, plan.pool, os.path.join(plan.folders.state, "simulated"))
    offerer = hashlib.sha256(token.encode()).hexdigest()[:16]
    folder = plan.folders.runtime
    word = GuardsWord(guarding) if guarding is not None else None
    offered = Offering(session, settings, cards, guard=word, offerer=offerer, folder=folder)
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
    made: Services,
    guarding: Guard,
    token: str,
    tcp: list[socket.socket],
    doors: fdstore.Doors,
    stopping: anyio.Event,
) -> None:
    """Run all services until `stopping` is set and the web has ended."""
    url, hello, current = offered.session.url, _about(plan, offered), made.current
    async with anyio.create_task_group() as services:
        if store is not None:
            await services.start(store.run, partial(_vouch_again, offered, store))
        await services.start(made.feed.run)
        await made.start(services)
        secret = without_secret(url) != url
        door = partial(guard.run, plan.folders.guard_socket, lambda: hello, guarding, listener=doors.guard)
        await services.start(partial(door, secret=secret, alive_s=lambda: current.settings.session.keepalive))
        backend = _backend(plan, offered, made, guarding, token, stopping, services)
        if store is not None:
            backend.store_pid = lambda: store.pid
        host, port = _address(plan.listen, tcp)
        names = Names(current.settings.web, host, port)
        current.tell(lambda _before, now: names.allow(now.web))
        app = application(routes.ROWS, backend, names)
        await take_over(backend)
        try:
            async with anyio.create_task_group() as web:
                sockets = doors.api or [*tcp, listening.bind_unix(plan.folders.api_socket)]
                tls = encrypting.context_of(plan.settings.web.tls)
                await web.start(listening.run, app, sockets, stopping, tls)
                address = f"http{'s' if tls else ''}://{f'[{host}]' if ':' in host else host}:{port}"
                warn_of_clear(host, port, encrypted=tls is not None)
                process.keep_what_the_start_made()
                say_ready(__version__, plan, offered.cards, len(offered.gpus), address)
                made.on_ready()
                interval_s = notify.watchdog_interval_s()
                if interval_s is not None:
                    services.start_soon(watchdog.run, made.pulses, interval_s)
                await stopping.wait()
                notify.notify("STOPPING=1")
                _log.info("daemon.stopping", message="the daemon stops")
                await made.alerts.sign_off()
        finally:
            _take_down(plan, doors)
        await say_who_holds(offered.ask, made.keys, guarding.callers, current, stops=bool(store and plan.stop_store))
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
    made: Services,
    guarding: Guard,
    token: str,
    stopping: anyio.Event,
    tasks: anyio.abc.TaskGroup,
) -> Backend:
    assert isinstance(made.feed, Feed)
    metrics = Metrics()
    made.feed.tell(metrics.heard.take)
    return Backend(
        pool=plan.pool,
        url=offered.session.url,
        api_socket=plan.folders.api_socket,
        current=made.current,
        version=__version__,
        token=token,
        uid=os.getuid(),
        ask=partial(metrics.timed, offered.ask),
        feed=made.feed,
        published=lambda: offered.session.defaults,
        guard_for=lambda pid, started, uid, spares_older: LocalGuard(
            guarding,
            Process(pid, started) if pid else None,
            uid,
            spares_older=spares_older,
            is_alive=plan.settings.gpus.guard,
        ),
        limits_s=lambda job: in_seconds(limits_of(job, Rules.of(made.current.settings))),
        reasons=lambda: (offered.trouble,) if offered.trouble else (),
        tasks=tasks,
        stopping=stopping,
        timed=TimedFile(plan.folders.state, plan.pool),
        configuring=made.configuring,
        impact=made.impacts,
        replay=made.impacts.replay,
        rollouts=made.rollouts,
        alerts=made.alerts,
        host_pid=HostPids(guarding.callers, offered.session.process.boot_id),
        oversees=made.oversees,
        connections=offered.store.connections,
        metrics=metrics,
    )


def main(options: Options) -> int:
    """Run `serve` in an event loop of its own and return its exit code."""
    return anyio.run(serve, options)
