"""The configuration of a running daemon: what changes it, what does not, and who learns of it."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
import redis

from gpulockd import LeaseLost, gpu_lock
from gpulockd.client import process
from gpulockd.config.staged import Rollout, Spell, Stage
from gpulockd.ledger import revisions
from gpulockd.ledger.store import Store
from gpulockd.web.config_views import ValidationNote
from tests.configured import (
    CONFIG,
    config_file,
    events_of,
    history,
    number,
    roll_back,
    set_live,
    shown,
    times_out,
    until_shown,
    until_value,
    value,
    write_config,
)
from tests.daemons import STEADY, Daemon, daemon_folder, eventually, running_daemon
from tests.pools import client_here


async def test_the_first_start_is_revision_0_and_stable() -> None:
    """There is always something to go back to."""
    async with running_daemon(config={"gpu_lock": {"max_wait_time": "5m"}}) as daemon:
        found = await shown(daemon)
        assert (found["revision"]["number"], found["stable"]) == (0, 0)
        assert found["settings"]["gpu_lock"]["max_wait_time"] == 300
        assert not [event for event in await events_of(daemon.store_url, daemon.pool) if "config" in event.kind]


async def test_a_changed_file_is_a_revision_and_a_broken_one_changes_nothing() -> None:
    """An editor's half-written file must not stop the queue, and the operator must learn why it was not taken."""
    async with running_daemon() as daemon:
        write_config(daemon, {"gpu_lock": {"max_wait_time": 77}})
        await until_value(daemon, "gpu_lock.max_wait_time", 77)
        await until_shown(daemon, lambda found: found["revision"]["number"] == 1)
        made = (await history(daemon))[0]
        assert (made["number"], made["origin"], made["pool"]) == (1, "file", daemon.pool)
        assert made["diff"] == [{"path": "gpu_lock.max_wait_time", "before": 1800, "after": 77}]
        for broken in ('{"gpu_lock": {"max_wait_tim": 5}}', "gpu_lock: [", '{"gpu_lock": {"poll_interval": 60}}'):
            config_file(daemon).write_text(broken)
            await until_shown(daemon, lambda found: "config.yml:1" in found["trouble"])
            assert await value(daemon, "gpu_lock.max_wait_time") == 77
            write_config(daemon, {"gpu_lock": {"max_wait_time": 77}})
            await until_shown(daemon, lambda found: not found["trouble"])
        config_file(daemon).unlink()
        await until_shown(daemon, lambda found: "no such" in found["trouble"])
        daemon.process.send_signal(signal.SIGHUP)
        await eventually(lambda: "config.reload_refused" in daemon.log, 30)
        write_config(daemon, {"gpu_lock": {"max_wait_time": 77}})
        await until_shown(daemon, lambda found: not found["trouble"])
        daemon.process.send_signal(signal.SIGHUP)
        await eventually(lambda: "config.reloaded" in daemon.log, 30)
        assert await number(daemon) == 1
        audit = (await daemon.ask("GET", f"{CONFIG}/audit")).json["audit"]
        assert any("did you mean 'max_wait_time'" in line["text"] for line in audit)


async def test_the_next_request_of_a_running_client_uses_a_change_and_a_running_wait_does_not() -> None:
    """That is what live means to a worker that nobody restarts."""
    async with running_daemon(config=STEADY) as daemon:
        with client_here(daemon.store_url, daemon.pool):
            async with gpu_lock("gpu_lock:0", task="holds"):
                async with anyio.create_task_group() as tasks:
                    waiting = asyncio.create_task(times_out(nested="wait"))
                    await _until_queued(daemon, 1)
                    reply = await set_live(daemon, {"gpu_lock": {"max_wait_time": 0.3}}, reason="too long")
                    assert reply.json["revision"]["number"] == 1
                    assert await asyncio.to_thread(_asks_elsewhere)
                    assert not waiting.done()
                    waiting.cancel()
                    tasks.cancel_scope.cancel()


async def _until_queued(daemon: Daemon, count: int) -> None:
    async def holds() -> bool:
        return len((await daemon.ask("GET", "/api/v1/queue")).json["queue"]) == count

    await eventually(holds, 30)


def _asks_elsewhere(**arguments: Any) -> bool:
    """The same process, in another thread."""
    return asyncio.run(times_out(nested="wait", **arguments))


async def _times_out_until_taken_back(daemon: Daemon) -> None:
    """Let requests time out until the limit is the one of before. Each says its own: one that begins just after that
    moment would wait for half an hour."""
    with anyio.fail_after(60):
        while await value(daemon, "gpu_lock.max_wait_time") != 1800:
            assert await asyncio.to_thread(_asks_elsewhere, max_wait_time=0.05)


async def test_a_change_reaches_limits_names_and_terms_at_once() -> None:
    """One revision is in force in every service, not in those that happened to read it again."""
    config: dict[str, Any] = STEADY | {"gpu_lock_monitor": {"cleanup": {"retry_delay": 0.2}}}
    async with running_daemon(config=config) as daemon:
        with client_here(daemon.store_url, daemon.pool):
            levels = {"warning": 0.1, "soft_timeout": 0.2, "hard_timeout": 0.3}
            with pytest.raises(LeaseLost):
                async with gpu_lock("gpu_lock:0", task="holds"):
                    reply = await set_live(daemon, {"gpu_lock_monitor": {"timeout_levels": levels}})
                    assert reply.status == 200
                    await anyio.sleep(30)
            process.say_goodbye()
        headers = {"host": f"gpu.lan:{daemon.port}"}
        assert (await daemon.get("/livez", headers=headers)).status != 200
        assert (await set_live(daemon, {"web": {"allowed_hosts": ["gpu.lan"]}})).status == 200
        assert (await daemon.get("/livez", headers=headers)).status == 200
        assert (await daemon.get("/livez", headers={"host": f"127.0.0.1:{daemon.port}"})).status == 200
        assert (await set_live(daemon, {"web": {"writes": "loopback"}})).status == 200
        reply = await daemon.ask("POST", CONFIG, {"set": {"session": {"ttl": 25.0}}}, tcp=True)
        assert reply.status == 200
        checks = (await roll_back(daemon, to=reply.json["revision"]["number"] - 1))["checks"]
        assert checks["terms"] is True


async def test_what_does_not_fit_is_refused_whole() -> None:
    """A half-applied change is worse than none."""
    async with running_daemon() as daemon:
        for tree in (
            {"gpu_lock": {"max_wait_time": 5, "poll_intervall": 1}},
            {"gpu_lock_monitor": {"timeout_levels": {"warning": "3h"}}},
            {"redis": {"url": "redis://elsewhere"}},
            {"config": {"restart": "reboot"}},
            {"session": {"ttl": 1}},
        ):
            assert (await set_live(daemon, tree)).status == 422, tree
        assert (await set_live(daemon, {"gpu_lock": {"max_wait_time": 5}}, scope="nowhere")).status == 422
        assert (await set_live(daemon, {"gpu_lock": {"max_wait_time": 5}}, expect=7)).status == 409
        assert (await set_live(daemon, {"gpu_lock": {"max_wait_time": 5}}, dry_run=True)).json["diff"]
        same = {"gpu_lock": {"max_wait_time": 1800}}
        assert (await set_live(daemon, same)).json["revision"]["number"] == 1
        assert (await set_live(daemon, same)).json["changed"] is False
        assert await number(daemon) == 1


async def test_what_needs_a_restart_waits_for_it_and_the_rest_applies() -> None:
    """A file may say both; the operator learns which part does not count yet."""
    async with running_daemon() as daemon:
        write_config(daemon, {"gpu_lock": {"max_wait_time": 66}, "gpus": {"guard": False}})
        await until_value(daemon, "gpu_lock.max_wait_time", 66)
        found = await shown(daemon)
        assert found["waits_for_restart"] == ["gpus.guard"]
        assert found["settings"]["gpus"]["guard"] is True


async def test_require_validation_refuses_what_no_trial_has_passed() -> None:
    """An operator may demand a trial before each live change; whoever goes past it leaves a line."""
    tree = {"gpu_lock": {"poll_interval": 0.5}}
    async with running_daemon(config={"config": {"require_validation": True}}) as daemon:
        assert (await set_live(daemon, tree)).status == 409
        assert (await set_live(daemon, {"gpu_lock": {"poll_interval": 0.7}}, unvalidated=True)).status == 200
        assert "unvalidated" in (await history(daemon))[0]["reason"]
        for passed, status in ((False, 409), (True, 200)):
            body = {ValidationNote.__struct_fields__[0]: tree, "verdict": {"passed": passed}}
            assert (await daemon.ask("POST", f"{CONFIG}/validation", body)).status in (200, 201)
            assert (await set_live(daemon, tree)).status == status


async def test_rollback_brings_back_what_was_in_force_and_verifies_itself() -> None:
    """B-404: one command, the last stable values, a real grant afterwards, and a line in the audit."""
    async with running_daemon(config={"gpu_lock": {"max_wait_time": 600}}) as daemon:
        await set_live(daemon, {"gpu_lock": {"poll_interval": 0.5}}, reason="faster")
        write_config(daemon, {"gpu_lock": {"max_wait_time": 20}, "tasks": {"whisper": {"max_wait_time": 5}}})
        await until_value(daemon, "gpu_lock.max_wait_time", 20)
        done = await roll_back(daemon, reason="timeouts")
        assert (done["restored"], done["overall_status"], done["verified"]) == (0, "healthy", True)
        assert done["checks"]["grants"] is True
        found = (await shown(daemon))["settings"]["gpu_lock"]
        assert (found["poll_interval"], found["max_wait_time"]) == (2, 600)
        assert (await shown(daemon))["stable"] == 3
        assert (await roll_back(daemon))["revision"]["number"] == 3
        kinds = [(event.kind, event.reason) for event in await events_of(daemon.store_url, daemon.pool)]
        assert [kind for kind, _ in kinds if "config" in kind] == [
            "config_changed",
            "config_changed",
            "config_rolled_back",
        ]
        # The file counts again where it says something new.
        write_config(daemon, {"gpu_lock": {"max_wait_time": 44}, "tasks": {"whisper": {"max_wait_time": 5}}})
        await until_value(daemon, "gpu_lock.max_wait_time", 44)
        audit = (await daemon.ask("GET", f"{CONFIG}/audit")).json["audit"]
        assert any(line["what"] == "rolled back" and line["text"].startswith("timeouts: ") for line in audit)


async def test_a_rollback_runs_the_operators_restart_and_tells_how_it_went(tmp_path: Path) -> None:
    """Services that know nothing of live settings are restarted by the one command that goes back."""
    status = tmp_path / "status"
    async with running_daemon(config={"config": {"restart": f"echo done; exit $(cat {status})"}}) as daemon:
        checks = []
        for code in ("0", "3"):
            status.write_text(code)
            await set_live(daemon, {"gpu_lock": {"poll_interval": 0.5}})
            done = await roll_back(daemon)
            assert done["verified"] is (code == "0")
            checks.append(done["checks"]["restart"])
            assert (await shown(daemon))["stable"] == 2
        assert checks[0] is True
        assert "ended with 3" in checks[1]


async def test_a_revision_that_runs_well_becomes_stable() -> None:
    """So that the next rollback keeps what has proved itself."""
    rules = {"stable_after": 0.5, "stable_samples": 5, "rollback_after": 1}
    async with running_daemon(config=STEADY | {"config": rules}) as daemon:
        await set_live(daemon, {"gpu_lock": {"max_wait_time": 9}})
        with client_here(daemon.store_url, daemon.pool):
            with anyio.fail_after(60):
                while (await shown(daemon))["stable"] != 1:
                    async with gpu_lock(task="short"):
                        pass
        assert "ran well" in (await history(daemon))[0]["outcome"]
        await set_live(daemon, {"gpu_lock": {"max_wait_time": 8}})
        assert (await roll_back(daemon))["restored"] == 1


async def test_too_many_timeouts_take_a_revision_back_by_itself() -> None:
    """B-404: nobody need be awake when a change makes everybody give up."""
    rules = {"rollback_after": 10, "rollback_samples": 5, "rollback_timeout_rate": 0.1}
    async with running_daemon(config=STEADY | {"config": rules}) as daemon:
        with client_here(daemon.store_url, daemon.pool):
            async with gpu_lock("gpu_lock:0", task="holds"):
                bad = {"gpu_lock": {"max_wait_time": 0.05}, "alerts": {"window": 99}}
                await set_live(daemon, bad, reason="a bad idea")
                assert await asyncio.to_thread(_asks_elsewhere)
                await _times_out_until_taken_back(daemon)
        made = (await history(daemon))[0]
        assert (made["origin"], made["of"]) == ("auto_rollback", 0)
        assert "timed out" in made["reason"]
        assert await value(daemon, "alerts.window") == 99, "who is told of it stays"


async def test_the_timeouts_of_a_canary_take_nothing_back() -> None:
    """They are the candidate's doing, and its gates have judged them; also after its end, and after a restart."""
    rules = {"rollback_after": 3, "rollback_samples": 5, "rollback_timeout_rate": 0.1}
    async with running_daemon(config=STEADY | {"config": rules}) as daemon:
        await set_live(daemon, {"gpu_lock": {"max_wait_time": 0.05}})
        store = Store(daemon.store_url, deadline_s=30)
        spell = Spell(rollout="r", unit="sessions", pools=(daemon.pool,), below=1.0, from_ms=1, to_ms=2**52)
        over = Rollout(
            id="r", author="me", reason="", stages=(Stage(0.4, 9.0),), unit="sessions", base=1, phase="returned"
        )
        over = msgspec.structs.replace(over, spells=(spell,))
        row = await revisions.write_rollout(store.ask, expected=0, state=msgspec.to_builtins(over))
        with client_here(daemon.store_url, daemon.pool):
            async with gpu_lock("gpu_lock:0", task="holds"):
                for _ in range(8):
                    assert await asyncio.to_thread(_asks_elsewhere)
                await anyio.sleep(1.5)
                assert await number(daemon) == 1
                assert isinstance(row, revisions.RolloutRow)
                over = msgspec.structs.replace(over, spells=())
                await revisions.write_rollout(store.ask, expected=row.version, state=msgspec.to_builtins(over))
                await _times_out_until_taken_back(daemon)
        await store.aclose()


async def test_the_audit_says_what_changed_and_what_was_refused() -> None:
    """Who asks what happened last night finds the deed there, and not only that there was one."""
    async with running_daemon(config={"gpu_lock": {"poll_interval": 3}}) as daemon:
        await set_live(daemon, {"gpu_lock": {"poll_interval": 0.5, "max_wait_time": 9}}, reason="faster")
        for _ in range(2):
            assert (await set_live(daemon, {"gpu_lock": {"poll_interval": 99}})).status == 422
        assert (await set_live(daemon, {"gpu_lock": {"poll_interval": 1}}, expect=7)).status == 409
        assert (await set_live(daemon, {"gpu_lock": {"lock_timeout": 1}}, dry_run=True)).status == 422
        lines = (await daemon.ask("GET", f"{CONFIG}/audit")).json["audit"]
        said = next(line["text"] for line in lines if line["what"] == "revised")
        assert "faster" in said
        assert "gpu_lock.poll_interval: 3 -> 0.5" in said
        refused = [line["text"] for line in lines if line["what"] == "refused"]
        assert len(refused) == 2, "the same one twice is one line, and a question is no deed"
        assert "max_poll_interval" in refused[1]
        # What the file says in vain is said where its owner looks.
        write_config(daemon, {"gpu_lock": {"poll_interval": 4}})
        await until_shown(daemon, lambda found: found["revision"]["number"] == 2)
        assert "has no effect: live (revision 1) says 0.5" in (await history(daemon))[0]["reason"]
        origins = {one["path"]: one["where"] for one in (await shown(daemon))["origins"]}
        assert origins["gpu_lock.max_wait_time"] == "revision 1", "where it was set, not what is in force"
        assert origins["web.listen"] == "--listen"
        config_file(daemon).write_text("")
        await until_shown(daemon, lambda found: "it is empty" in found["trouble"])
        assert await number(daemon) == 2


async def test_a_restarted_daemon_goes_on_with_the_same_revision() -> None:
    """A restart is no change; a file that was changed meanwhile is one."""
    async with daemon_folder() as base:
        async with running_daemon(base=base) as daemon:
            await set_live(daemon, {"gpu_lock": {"poll_interval": 0.5}})
            await daemon.kill()
        async with running_daemon(base=base) as daemon:
            assert await number(daemon) == 1
            assert await value(daemon, "gpu_lock.poll_interval") == 0.5
        async with running_daemon(base=base, config={"gpu_lock": {"max_wait_time": 3}}) as daemon:
            assert (await history(daemon))[0]["origin"] == "file"
            assert await number(daemon) == 2
            kept = json.loads((daemon.state / "configuration.json").read_text())
            assert kept["current"] == 2
        with redis.Redis.from_url(daemon.store_url) as store:
            assert store.hexists(f"gpulockd:{{fleet}}:bases:{daemon.pool}", "2"), "noted in the same step"
        async with running_daemon(base=base, config={"gpu_lock": {"max_wait_time": 3}}) as daemon:
            assert await number(daemon) == 2
            kinds = [event.kind for event in await events_of(daemon.store_url, daemon.pool)]
            assert kinds.count("config_changed") == 2
