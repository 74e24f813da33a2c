"""Ends that somebody meant, told as what they are: of leases by time or by hand, of gpus taken out and put back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.daemons import STEADY, Daemon, eventually
from tests.system.commands import call, one_daemon

CONFIG = STEADY | {
    "gpu_lock_monitor": {"monitor_interval": 0.5},
    "notify": {"webhooks": {"ops": {"url": "http://127.0.0.1:9/nobody"}}},
}


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    """One daemon for all: each test leaves its gpus free."""
    with one_daemon(config=CONFIG) as made:
        yield made


def bearer(daemon: Daemon) -> dict[str, str]:
    """The header of who has the token."""
    return {"authorization": f"Bearer {daemon.token}"}


async def events(daemon: Daemon, *kinds: str) -> list[dict[str, Any]]:
    """The events so far, of these kinds."""
    body = (await daemon.ask("GET", "/api/v1/events?since=1h&follow=0")).body
    told = [json.loads(line[6:]) for line in body.splitlines() if line.startswith(b"data: ")]
    return [event for event in told if event["type"] in kinds]


async def counts(daemon: Daemon) -> dict[str, float]:
    """What is counted of losses, recoveries, limits and clean-ups, and what the monitoring says of them."""
    await asyncio.sleep(1.1)  # a scrape serves for a second
    text = (await daemon.get("/metrics")).body.decode()
    wanted = ("leases_lost_total", "recoveries_total", "limits_reached_total", "cleanups_total")
    found = {
        f"{sample.name}{sorted(sample.labels.values())}": sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.removeprefix("gpulockd_") in wanted
    }
    del found["gpulockd_cleanups_total['gpu']"]  # what settles is cleaned, whoever has left it
    monitor = (await daemon.get("/api/v1/monitoring/monitor/status")).json["monitor_stats"]
    limits = (await daemon.get("/api/v1/monitoring/timeout/status")).json
    found["successful_recoveries"] = monitor["successful_recoveries"]
    found["soft"] = monitor["soft_timeout_count"] + limits["timeout_stats"]["soft_timeout_actions"]
    found["actions"] = len(limits["action_history"])
    beats = (await daemon.get("/api/v1/monitoring/heartbeat/all")).json
    return found | {"dead_tasks": len(beats["dead_tasks"])}


async def leased(daemon: Daemon, how: dict[str, Any] | None = None, **wish: Any) -> dict[str, Any]:
    """A lease for a time; its line."""
    asked = await daemon.open("POST", "/api/v1/leases", {"max_wait_time": 20} | wish, **(how or {}))
    line: dict[str, Any] = await asked.until("granted")
    await asked.ends()
    await asked.aclose()
    return line


async def all_free(daemon: Daemon) -> None:
    """Wait until nobody holds and nothing settles."""

    async def is_free() -> bool:
        gpus = (await daemon.get("/api/v1/gpus")).json["gpus"]
        return all(gpu["state"] == "ready" and not gpu["leases"] for gpu in gpus)

    await eventually(is_free)


async def test_a_time_that_is_over_is_no_death(daemon: Daemon) -> None:
    """It was asked for with that time: nobody was lost, and nothing had to be recovered."""
    before = await counts(daemon)
    lease = (await leased(daemon, task="timed", task_id="timed-1", ttl="300ms"))["lease"]
    await all_free(daemon)
    (ended,) = [one for one in await events(daemon, "lock_expired") if one["lease"] == lease]
    assert (ended["reason"], ended["planned"]) == ("expired", True)
    assert await counts(daemon) == before
    assert (await daemon.get("/api/v1/statistics")).json["window"]["lost"] == 0


async def test_a_connection_that_is_closed_is_no_death_either(daemon: Daemon) -> None:
    """On the unix socket it is a release; from afar the gpu settles, for nobody can see what still runs there."""
    before, told = await counts(daemon), []
    ways: list[dict[str, Any]] = [{}, {"tcp": True, "headers": bearer(daemon)}]
    for how in ways:
        holding = await daemon.open("POST", "/api/v1/leases", {"task": "held"}, **how)
        lease = (await holding.until("granted"))["lease"]
        await holding.aclose()
        await all_free(daemon)
        told += [one["reason"] for one in await events(daemon, "lock_released") if one["lease"] == lease]
        settling = [one["lease"] for one in await events(daemon, "gpu_settling")]
        assert (lease in settling) == bool(how)
    assert told == ["released", "left"]
    assert await counts(daemon) == before


async def test_an_operators_stop_is_no_limit(daemon: Daemon) -> None:
    """Each answer says that it is asked to stop, and none that it is old."""
    before = await counts(daemon)
    holding = await daemon.open("POST", "/api/v1/leases", {"task": "asked"})
    lease = (await holding.until("granted"))["lease"]
    path = f"/api/v1/leases/{lease}"
    assert (await daemon.ask("PATCH", path, {"stop": True})).json["stopping"] is True
    assert (await daemon.ask("PATCH", path, {"percent": 50})).json["stopping"] is True
    (found,) = (await daemon.get("/api/v1/leases")).json["leases"]
    assert (found["stopping"], found["level"]) == (True, "")
    assert [one["reason"] for one in await events(daemon, "stop_requested")] == ["operator"]
    assert await counts(daemon) == before
    await holding.aclose()
    await all_free(daemon)


async def test_who_took_a_gpu_out_and_put_it_back_is_told(daemon: Daemon) -> None:
    """Each is an event of its own, of which the page hears, and no cleaning up."""
    cleaned = (await daemon.get("/metrics")).body.decode()
    for verb in ("drain", "drain", "resume"):
        assert (await daemon.ask("POST", f"/api/v1/gpus/1/{verb}")).status == 200
    told = await events(daemon, "gpu_drained", "gpu_resumed")
    assert [(one["type"], one["gpus"]) for one in told] == [
        ("gpu_drained", ["gpu_lock:1"]),
        ("gpu_resumed", ["gpu_lock:1"]),
    ]
    who = told[0]["reason"].removeprefix("drained by ")
    assert who and told[1]["reason"] == f"resumed by {who}"
    await asyncio.sleep(1.1)
    line = 'gpulockd_cleanups_total{kind="gpu"}'
    now = (await daemon.get("/metrics")).body.decode()
    assert [one for one in now.splitlines() if line in one] == [one for one in cleaned.splitlines() if line in one]


@pytest.mark.parametrize(
    ("over_tcp", "with_token", "kind", "reason"),
    [
        (False, False, "lock_released", "released"),
        (True, True, "lock_released", "released"),
        (True, False, "lock_revoked", "operator"),
    ],
)
async def test_its_user_gives_a_lease_back_and_an_operator_takes_it(
    daemon: Daemon, over_tcp: bool, with_token: bool, kind: str, reason: str
) -> None:
    """Over TCP everybody is the API token's bearer: the lease's own token tells its user from an operator."""
    how: dict[str, Any] = {"tcp": True, "headers": bearer(daemon)} if over_tcp else {}
    line = await leased(daemon, how, task="mine", ttl="1h")
    query = f"?token={line['token']}" if with_token else ""
    said = await daemon.ask("DELETE", f"/api/v1/leases/{line['lease']}{query}", **how)
    assert (said.status, said.json["reason"]) == (200, reason)
    await all_free(daemon)
    assert [one["reason"] for one in await events(daemon, kind) if one["lease"] == line["lease"]] == [reason]


async def test_when_a_lease_for_a_time_ends_is_known(daemon: Daemon) -> None:
    """Also to those who wait for it, before anything is known of its task."""
    lease = (await leased(daemon, task="an hour", ttl="1h", gpus=[0]))["lease"]
    waiting = await daemon.open("POST", "/api/v1/leases", {"task": "next", "gpus": [0]})
    await waiting.until("waiting")
    (found,) = [one for one in (await daemon.get("/api/v1/leases")).json["leases"] if one["id"] == lease]
    assert 3500 < found["ends_in_s"] <= 3600 and 3500 < found["expected_end"]["middle_s"] <= 3600
    (ticket,) = (await daemon.get("/api/v1/queue")).json["queue"]
    assert 3500 < ticket["expected_start"]["middle_s"] <= 3600
    said = await waiting.said()
    while said["expected_start"] is None:
        said = await waiting.said()
    assert 3500 < said["expected_start"]["middle_s"] <= 3600
    assert "pid 0" not in said["text"] and "held by an hour (" in said["text"]
    await waiting.aclose()
    await daemon.ask("DELETE", f"/api/v1/leases/{lease}")
    await all_free(daemon)


async def test_a_lock_that_the_pool_does_not_have_has_no_health(daemon: Daemon) -> None:
    """A dashboard with a wrong key must not stay green; a slot without a GPU is known while it is used."""
    base = "/api/v1/monitoring/gpu-lock"
    for name in ("status", "health"):
        refused = await daemon.get(f"{base}/{name}?lock_key=gpu_lock:9")
        assert (refused.status, refused.json["kind"]) == (404, "not_found")
        assert "gpu_lock:0, gpu_lock:1" in refused.json["hint"]
        assert (await daemon.get(f"{base}/{name}?lock_key=1")).status == 200
    holding = await daemon.open("POST", "/api/v1/leases", {"task": "slot", "key": "gpu_lock:ocr"})
    await holding.until("granted")
    assert (await daemon.get(f"{base}/status?lock_key=gpu_lock:ocr")).json["is_locked"] is True
    await holding.aclose()


@pytest.mark.parametrize("path", ["/api/v1/alerts/test", "/api/v1/leases"])
async def test_an_empty_body_says_nothing(daemon: Daemon, path: str) -> None:
    """Where every field is optional that is a whole request."""
    opened = await daemon.open("POST", path)
    assert opened.status == 200
    await opened.aclose()
    await all_free(daemon)


async def test_an_empty_body_is_told_what_it_lacks(daemon: Daemon) -> None:
    """With the names of the fields."""
    refused = await daemon.ask("POST", "/api/v1/monitoring/release-lock")
    assert (refused.status, refused.json["kind"], refused.json["detail"]) == (400, "empty", "the body is empty")
    assert refused.json["hint"] == 'send {"lock_key": …}'


async def test_a_pid_that_cannot_be_is_told_the_line_that_works(daemon: Daemon) -> None:
    """Only the unix socket knows who asks."""
    over_tcp = await daemon.ask("POST", "/api/v1/leases", {"pid": 1}, tcp=True, headers=bearer(daemon))
    nobodys = await daemon.ask("POST", "/api/v1/leases", {"pid": 999_999_999})
    for refused in (over_tcp, nobodys):
        assert (refused.status, refused.json["kind"]) == (422, "impossible")
        assert f"curl --unix-socket {daemon.socket} http://localhost/api/v1/leases" in refused.json["hint"]


async def test_statistics_of_a_task_are_of_that_task(daemon: Daemon) -> None:
    """All that can be told of one task alone is; what cannot is null."""
    await leased(daemon, task="counted", ttl="100ms")
    await all_free(daemon)

    async def counted() -> bool:
        found = (await daemon.get("/api/v1/statistics?task=counted")).json
        return bool(found["window"]["acquired"] == 1 and found["holds"]["spread"]["count"] == 1)

    await eventually(counted)
    found = (await daemon.get("/api/v1/statistics?task=counted")).json
    assert (found["task"], found["spans"], list(found["tasks"])) == ("counted", None, ["counted"])
    assert found["waits"]["spread"]["count"] == 1
    none = (await daemon.get("/api/v1/statistics?task=unknown")).json
    assert none["window"]["attempts"] == 0 and none["tasks"] == {}
    whole = (await daemon.get("/api/v1/statistics")).json
    assert whole["task"] is None and whole["window"]["acquired"] > 1 and whole["spans"]


async def test_channels_are_listed_before_their_first_message(daemon: Daemon) -> None:
    """Who configures one wants to see that it is there."""
    channels = {one["name"]: one for one in (await daemon.get("/api/v1/alerts")).json["channels"]}
    assert {"ops", "log"} <= channels.keys()
    assert channels["ops"]["kind"] == "webhook" and channels["ops"]["configured"] is True


async def test_a_wrong_token_is_told_so_and_stands_in_the_audit(daemon: Daemon) -> None:
    """Whoever reads the audit must see that somebody tried; so with values that no setting takes."""
    wrong = {"authorization": "Bearer of-bad-news-of-bad-news"}
    refused = await daemon.ask("POST", "/api/v1/config/gpu-lock", {"poll_interval": 1}, tcp=True, headers=wrong)
    assert refused.status == 401 and "the token that was sent is not this daemon's" in refused.json["hint"]
    assert "gpulockd token" in refused.json["hint"]
    assert (await daemon.ask("POST", "/api/v1/config", {"sett": {}})).status == 422
    assert (await daemon.ask("POST", "/api/v1/config", tcp=True, body={})).status == 401
    audit = [one for one in (await daemon.get("/api/v1/config/audit")).json["audit"] if one["what"] == "refused"]
    assert [(one["author"], one["origin"]) for one in audit][1] == ("wrong token", "api")
    assert audit[0]["origin"] == "socket" and "there is no field 'sett'" in audit[0]["text"]
    assert len(audit) == 2


async def test_what_a_daemon_tries_for_itself_is_no_attempt(daemon: Daemon) -> None:
    """A rollback takes a lease to see that one can be had."""
    assert (await daemon.ask("POST", "/api/v1/config/gpu-lock", {"poll_interval": 1.5})).status == 200
    before = (await daemon.get("/api/v1/monitoring/statistics")).json["gpu_lock"]["total_attempts"]
    with_probe = len(await events(daemon, "lock_acquired"))
    done = await daemon.ask("POST", "/api/v1/config/rollback", {})
    assert done.status == 200 and done.json["checks"]["grants"] is True
    assert len(await events(daemon, "lock_acquired")) == with_probe + 1
    found = (await daemon.get("/api/v1/monitoring/statistics")).json
    assert found["gpu_lock"]["total_attempts"] == before
    await asyncio.sleep(1.5)  # until the recorder has written
    assert "config-probe" not in (await daemon.get("/api/v1/statistics")).json["tasks"]
    assert "check timeout_rate: 0%" in done.json["text"]


async def test_the_document_names_the_header_by_which_a_reader_goes_on(daemon: Daemon) -> None:
    """And paths as a person writes them."""
    paths = (await daemon.get("/api/v1/openapi.json")).json["paths"]
    (header,) = [one for one in paths["/api/v1/events"]["get"]["parameters"] if one["in"] == "header"]
    assert (header["name"], header.get("required", False)) == ("Last-Event-ID", False)
    assert "/api/v1/leases/{id}" in paths


def test_a_command_says_commands(daemon: Daemon) -> None:
    """Who types commands is not told to send requests."""
    said = call(daemon, "alerts", "ack", "NOPE")
    assert said.returncode == 1 and "'gpulockd alerts' lists them" in said.stderr and "GET " not in said.stderr
