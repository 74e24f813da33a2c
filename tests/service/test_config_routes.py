"""The configuration over HTTP: what is in force, changes, history, rollback, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpulockd.cli import http
from gpulockd.settings import GpuLockBlock
from gpulockd.web.config_views import GpuLockChange
from gpulockd.web.secrets import HIDDEN, hidden, shows_hidden
from tests.daemons import STEADY, Daemon, Reply, running_daemon
from tests.service.test_web import NOBODY, _as_nobody
from tests.system.commands import one_daemon

CONFIG = STEADY | {"gpu_lock": {"max_wait_time": 900}, "redis": {"url": "redis://me:hidden-word@far:6379/0"}}
POLL = "/api/v1/config/gpu-lock"
CURL = shutil.which("curl")


@pytest.fixture(scope="module")
def running() -> Iterator[Daemon]:
    """A daemon whose file sets something, one of it a secret."""
    with one_daemon("--redis", "embedded", config=CONFIG) as daemon:
        yield daemon


@pytest.fixture
async def daemon(running: Daemon) -> Daemon:
    """That daemon with nothing set live."""
    cleared = await running.ask("POST", "/api/v1/config", {"replace": True, "unvalidated": True})
    assert cleared.status == 200, cleared.json
    return running


def bearer(daemon: Daemon) -> dict[str, str]:
    """The header that a write over TCP needs."""
    return {"authorization": f"Bearer {daemon.token}"}


async def change(daemon: Daemon, **said: Any) -> Reply:
    """POST /api/v1/config."""
    return await daemon.ask("POST", "/api/v1/config", said)


async def shown(daemon: Daemon) -> Any:
    """GET /api/v1/config."""
    return (await daemon.get("/api/v1/config")).json


async def number(daemon: Daemon) -> int:
    """The revision in force."""
    found: int = (await shown(daemon))["revision"]["number"]
    return found


def origin_of(said: Any, path: str) -> tuple[Any, str, str]:
    """Value, layer and place of one setting."""
    return next((one["value"], one["layer"], one["where"]) for one in said["origins"] if one["path"] == path)


# What is in force.


async def test_the_first_revision_is_number_0_and_stable(running: Daemon) -> None:
    """There is always something to go back to."""
    oldest = (await running.get("/api/v1/config/history?before=1")).json["revisions"]
    assert [(one["number"], one["stable"], one["origin"]) for one in oldest] == [(0, True, "first")]


async def test_each_value_says_where_it_comes_from(daemon: Daemon) -> None:
    """ "Why is it 900?" is the first question of a person with two layers."""
    await change(daemon, set={"gpu_lock": {"poll_interval": "500ms"}})
    said = await shown(daemon)
    value, layer, where = origin_of(said, "gpu_lock.max_wait_time")
    assert (value, layer) == (900, "file")
    assert where.startswith(f"{said['file']}:1:")
    assert origin_of(said, "gpu_lock.poll_interval")[:2] == (0.5, "live")
    assert origin_of(said, "gpu_lock.lock_timeout") == (3600, "default", "default")
    assert said["settings"]["gpu_lock"]["poll_interval"] == 0.5
    assert said["live"]["all"] == {"gpu_lock": {"poll_interval": 0.5}}


async def test_secrets_are_never_shown(daemon: Daemon) -> None:
    """The page shows it to everybody who can read."""
    for path in ("/api/v1/config", "/api/v1/config/history", "/api/v1/config/audit", "/api/v1/config/diff?older=0"):
        assert b"hidden-word" not in (await daemon.get(path)).body, path
    assert origin_of(await shown(daemon), "redis.url")[:2] == ("embedded", "command line")


@pytest.mark.parametrize(
    ("path", "value", "seen"),
    [
        ("notify.mail.password", "abc", HIDDEN),
        ("notify.slack.url", "https://me:pw@hooks.example:8443/T0/B0/abc", f"https://hooks.example:8443/{HIDDEN}"),
        ("notify.apprise.chat.urls", ["tgram://bot-token/42"], [HIDDEN]),
        ("notify.webhook.secret", "abc", HIDDEN),
        ("redis.url", "rediss://:pw@h:1", "rediss://:***@h:1"),
        ("redis.url", "redis://h:1", "redis://h:1"),
        ("notify", {"hook": {"token": "abc", "retries": 3}}, {"hook": {"token": HIDDEN, "retries": 3}}),
        ("web.allowed_hosts", ["a", "b"], ["a", "b"]),
        ("gpu_lock.poll_interval", 1.0, 1.0),
    ],
)
def test_what_counts_as_a_secret(path: str, value: Any, seen: Any) -> None:
    """A name or an address gives it away."""
    assert hidden(path, value) == seen


def test_the_place_of_a_secret_is_known_as_such() -> None:
    """Who sends back what was shown must not overwrite the secret."""
    assert shows_hidden({"redis": {"url": "redis://me:***@h"}}) == "redis.url"
    assert shows_hidden({"notify": {"webhooks": {"a": {"url": f"https://h/{HIDDEN}"}}}}) == "notify.webhooks.a.url"
    assert shows_hidden({"a": [1, {"b": "x"}], "c": None}) is None


# The documented line.


async def test_a_form_post_changes_it_with_the_bearer_header(daemon: Daemon) -> None:
    """B-306: plain `curl -d` sends JSON as a form."""
    before = await number(daemon)
    headers = bearer(daemon) | {"content-type": "application/x-www-form-urlencoded"}
    answer = await daemon.ask("POST", POLL, raw=b'{"poll_interval": 1.0}', tcp=True, headers=headers)
    assert answer.status == 200, answer.json
    said = answer.json
    assert (said["success"], said["changed"], said["revision"]["number"]) == (True, True, before + 1)
    assert said["gpu_lock"]["poll_interval"] == 1.0
    assert said["diff"] == [{"path": "gpu_lock.poll_interval", "before": 2.0, "after": 1.0}]
    assert (said["revision"]["author"], said["revision"]["origin"]) == ("token", "api")
    assert (await shown(daemon))["settings"]["gpu_lock"]["poll_interval"] == 1.0


@pytest.mark.skipif(CURL is None, reason="curl is not installed")
async def test_the_documented_line_without_the_header_is_told_what_is_missing(daemon: Daemon, tmp_path: Path) -> None:
    """The hint is the same line with the header, and it works as it stands."""
    line = f"curl -s -X POST http://localhost:{daemon.port}{POLL} -d '{{\"poll_interval\": 1.25}}'"
    refused = json.loads(subprocess.run(["bash", "-c", line], capture_output=True, timeout=60, check=True).stdout)
    assert (refused["status"], refused["kind"]) == (401, "unauthorized")
    expected = f'curl -X POST http://localhost:{daemon.port}{POLL} -H "Authorization: Bearer $(gpulockd token)"'
    assert refused["hint"] == expected + " -d '{\"poll_interval\": 1.25}'"
    shim = tmp_path / "gpulockd"
    shim.write_text(f"#!/bin/sh\necho {daemon.token}\n")
    shim.chmod(0o755)
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "no_proxy": "*"}
    done = subprocess.run(["bash", "-c", refused["hint"]], capture_output=True, timeout=60, check=True, env=env)
    assert json.loads(done.stdout)["gpu_lock"]["poll_interval"] == 1.25


async def test_a_hint_never_runs_what_a_stranger_sent(daemon: Daemon) -> None:
    """A person pastes it into a shell."""
    answer = await daemon.ask("POST", POLL, raw=b"'; touch /tmp/x; '", tcp=True)
    assert answer.json["hint"].endswith(""" -d ''"'"'; touch /tmp/x; '"'"''""")
    for raw in (b"\x1b[2J", b"x" * 2000, b"\xff"):
        assert "curl" not in (await daemon.ask("POST", POLL, raw=raw, tcp=True)).json["hint"]


# Changes.


async def test_a_change_takes_blocks_names_text_and_profiles(daemon: Daemon) -> None:
    """A program sends JSON, a command line text."""
    said = (await change(daemon, set={"gpu_lock.poll_interval": 0.3, "gpu_lock": {"max_wait_time": "5m"}})).json
    assert {one["path"]: one["after"] for one in said["diff"]} == {
        "gpu_lock.poll_interval": 0.3,
        "gpu_lock.max_wait_time": 300,
    }
    assign = {"gpu_lock.exponential_backoff": "off", "gpu_lock_monitor.cleanup.max_retry": "5"}
    said = (await change(daemon, assign=assign | {"tasks.shop.render.max_wait_time": "2h"})).json
    assert {one["path"]: one["after"] for one in said["diff"]} == {
        "gpu_lock.exponential_backoff": False,
        "gpu_lock_monitor.cleanup.max_retry": 5,
        "tasks.shop.render.max_wait_time": 7200,
    }
    await change(daemon, profile="optimized")
    block = (await shown(daemon))["settings"]["gpu_lock"]
    assert [block[key] for key in ("poll_interval", "max_wait_time", "lock_timeout", "max_poll_interval")] == [
        0.5,
        300,
        600,
        5,
    ]


async def test_what_is_unset_or_null_goes_back_to_the_file(daemon: Daemon) -> None:
    """Nobody should have to know what the file says to return to it."""
    await change(daemon, set={"gpu_lock": {"max_wait_time": 5, "poll_interval": 1, "lock_timeout": 60}})
    await change(daemon, unset=["gpu_lock.max_wait_time"])
    await daemon.ask("POST", POLL, {"lock_timeout": None})
    block = (await shown(daemon))["settings"]["gpu_lock"]
    assert (block["max_wait_time"], block["poll_interval"], block["lock_timeout"]) == (900, 1, 3600)
    await change(daemon, unset=["gpu_lock"])
    assert (await shown(daemon))["live"]["all"] == {}


async def test_a_pool_may_differ_from_the_fleet(daemon: Daemon) -> None:
    """One slow host must not slow all."""
    said = (await change(daemon, set={"gpu_lock": {"poll_interval": 3}}, scope=daemon.pool)).json
    assert said["revision"]["pool"] == daemon.pool
    assert (await shown(daemon))["live"]["pools"] == {daemon.pool: {"gpu_lock": {"poll_interval": 3}}}
    await change(daemon, scope=daemon.pool, replace=True)


async def test_no_change_is_said_and_makes_no_revision(daemon: Daemon) -> None:
    """ "Success" for nothing hides a typo."""
    first = (await change(daemon, set={"gpu_lock": {"poll_interval": 1}})).json
    again = (await change(daemon, set={"gpu_lock": {"poll_interval": "1s"}})).json
    assert (again["success"], again["changed"], again["diff"]) == (True, False, [])
    assert again["message"].startswith("no change")
    assert again["revision"]["number"] == first["revision"]["number"]


async def test_a_dry_run_says_what_would_change(daemon: Daemon) -> None:
    """One looks before one leaps."""
    before = await number(daemon)
    said = (await change(daemon, set={"gpu_lock": {"poll_interval": 9}}, dry_run=True)).json
    assert (said["changed"], said["dry_run"]) == (False, True)
    assert said["diff"] == [{"path": "gpu_lock.poll_interval", "before": 2.0, "after": 9.0}]
    assert await number(daemon) == before


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"set": {"gpu_lock": {"pol_interval": 1}}}, 422, ["gpu_lock.pol_interval", "did you mean 'poll_interval'"]),
        ({"set": {"gpu_lok.poll_interval": 1}}, 422, ["gpu_lok", "did you mean 'gpu_lock'"]),
        ({"set": {"gpu_lock": {"poll_interval": "soon"}}}, 422, ["gpu_lock.poll_interval", "'soon'"]),
        ({"set": {"gpu_lock": {"poll_interval": -1}}}, 422, ["gpu_lock.poll_interval"]),
        ({"set": {"gpu_lock": {"poll_interval": 0.001}}}, 422, ["gpu_lock.poll_interval", "0.05"]),
        ({"set": {"gpu_lock": 3}}, 422, ["gpu_lock"]),
        ({"set": {"gpu_lock.poll_interval": 1, "gpu_lock": {"poll_interval": 2}}}, 422, ["poll_interval", "twice"]),
        ({"set": {"gpu_lock": {"poll_interval": 2}, "gpu_lock.poll_interval": None}}, 422, ["poll_interval", "twice"]),
        ({"set": {"gpu_lock": None, "gpu_lock.poll_interval": 1}}, 422, ["gpu_lock.poll_interval", "twice"]),
        ({"set": {"gpu_lock_monitor": {"timeout_levels": {"warning": "9h"}}}}, 422, ["warning"]),
        ({"set": {"session": {"ttl": 0.5}}}, 422, ["session.ttl"]),
        ({"set": {"redis": {"url": "redis://h"}}}, 422, ["redis.url", "config.yml", "restart"]),
        ({"set": {"pool": "other"}}, 422, ["pool"]),
        ({"assign": {"gpu_lock_monitor.cleanup.max_retry": "many"}}, 422, ["max_retry", "whole number"]),
        ({"assign": {"gpu_lock.pol": "1"}}, 422, ["gpu_lock.pol"]),
        ({"unset": ["gpu_lock.pol_interval"]}, 422, ["did you mean 'gpu_lock.poll_interval'"]),
        ({"profile": "optimised"}, 422, ["did you mean 'optimized'"]),
        ({"sett": {}}, 422, ["sett", "did you mean 'set'"]),
        ({"set": {"gpu_lock": {"poll_interval": 1}}, "scope": "nowhere"}, 422, ["nowhere"]),
        ({"set": {"gpu_lock": {"poll_interval": 1}}, "expect": -1}, 422, ["expect"]),
        ({}, 422, ["says nothing"]),
        ([], 422, ["object"]),
    ],
)
async def test_what_does_not_fit_is_refused_and_changes_nothing(
    daemon: Daemon, body: Any, status: int, words: list[str]
) -> None:
    """A person gets the path and what was meant; nobody gets half a change."""
    before = await shown(daemon)
    answer = await daemon.ask("POST", "/api/v1/config", body)
    assert answer.status == status, answer.json
    said = f"{answer.json['detail']} {answer.json['hint']}"
    assert [word for word in words if word not in said] == [], said
    after = await shown(daemon)
    assert (after["revision"]["number"], after["live"]) == (before["revision"]["number"], before["live"])


async def test_a_name_and_a_block_may_say_different_settings(daemon: Daemon) -> None:
    """Only what is said twice is refused."""
    said = {"gpu_lock.poll_interval": 0.7, "gpu_lock": {"lock_timeout": 901}, "tasks.a.b.warning": 60}
    assert (await change(daemon, set=said | {"tasks": {"a": {"warning": 61}}}, dry_run=True)).status == 200


@pytest.mark.parametrize("passed", ["yes", 1, None, ["true"]])
async def test_only_true_has_passed(daemon: Daemon, passed: Any) -> None:
    """A verdict that was not understood validates nothing."""
    note = {"tree": {"gpu_lock": {"poll_interval": 1.7}}, "verdict": {"passed": passed}}
    answer = await daemon.ask("POST", "/api/v1/config/validation", note)
    assert answer.status == 422, answer.json
    assert "verdict.passed" in answer.json["detail"]


async def test_a_reason_is_kept_without_what_a_terminal_obeys(daemon: Daemon) -> None:
    """The history and the audit are read on terminals and on the page."""
    said = await change(daemon, set={"gpu_lock.poll_interval": 1.25}, reason="a\n\x1b[31mred \u202eback\x00")
    assert said.json["revision"]["reason"] == "a [31mred back"


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"{}", b'{"poll_interval": NaN}', b'{"pol_interval": 1}', b"1" * 99])
async def test_the_documented_route_refuses_what_is_no_block(daemon: Daemon, raw: bytes) -> None:
    """Nothing that curl can send is a crash."""
    answer = await daemon.ask("POST", POLL, raw=raw)
    assert answer.status in (400, 422)
    assert answer.json["hint"]


async def test_a_change_made_for_another_revision_is_a_conflict(daemon: Daemon) -> None:
    """Two people edit at once, and the second one looks again."""
    before = await number(daemon)
    await change(daemon, set={"gpu_lock": {"poll_interval": 1}})
    late = await change(daemon, set={"gpu_lock": {"poll_interval": 3}}, expect=before)
    assert (late.status, late.json["kind"]) == (409, "conflict")
    assert (await shown(daemon))["settings"]["gpu_lock"]["poll_interval"] == 1


async def test_an_unvalidated_change_is_refused_where_validation_is_required(daemon: Daemon) -> None:
    """B-102: every change is tried first, where the operator says so."""
    wish = {"gpu_lock": {"poll_interval": 0.7}}
    await change(daemon, set={"config": {"require_validation": True}})
    refused = await change(daemon, set=wish)
    assert (refused.status, refused.json["kind"]) == (409, "unvalidated")
    assert "bench config" in refused.json["hint"]
    noted = await daemon.ask("POST", "/api/v1/config/validation", {"tree": wish, "verdict": {"passed": True}})
    assert noted.json["validated"], noted.json
    taken = await change(daemon, set=wish)
    assert (taken.status, taken.json["validated"]) == (200, True), taken.json
    forced = await change(daemon, set={"gpu_lock": {"poll_interval": 0.8}}, unvalidated=True, reason="at night")
    assert forced.status == 200
    texts = [line["text"] for line in (await daemon.get("/api/v1/config/audit?count=5")).json["audit"]]
    assert any("unvalidated" in text and "at night" in text for text in texts)


# What was.


async def test_history_audit_and_differences_tell_who_did_what(daemon: Daemon) -> None:
    """ "Who changed it?" has one answer."""
    first = (await change(daemon, set={"gpu_lock": {"poll_interval": 1}}, reason="less\nload")).json["revision"]
    second = (await change(daemon, set={"gpu_lock": {"max_wait_time": 60}})).json["revision"]
    said = (await daemon.get("/api/v1/config/history?count=2")).json
    assert [one["number"] for one in said["revisions"]] == [second["number"], first["number"]]
    assert said["current"] == second["number"]
    assert said["revisions"][1]["reason"] == "less load"
    assert said["revisions"][1]["author"] == "root" if os.getuid() == 0 else said["revisions"][1]["author"]
    page = (await daemon.get(f"/api/v1/config/history?count=1&before={second['number']}")).json["revisions"]
    assert [one["number"] for one in page] == [first["number"]]
    both = (await daemon.get(f"/api/v1/config/diff?older={first['number'] - 1}&newer={second['number']}")).json
    assert {one["path"]: (one["before"], one["after"]) for one in both["diff"]} == {
        "gpu_lock.poll_interval": (None, 1.0),
        "gpu_lock.max_wait_time": (900.0, 60.0),
    }
    lines = (await daemon.get("/api/v1/config/audit?count=2")).json["audit"]
    assert [line["revision"] for line in lines] == [second["number"], first["number"]]
    older = (await daemon.get(f"/api/v1/config/audit?count=1&before={lines[0]['id']}")).json["audit"]
    assert older == lines[1:]
    for path in ("diff?older=999999", "diff?older=x", "history?count=x", "audit?before=yesterday"):
        assert (await daemon.get(f"/api/v1/config/{path}")).status in (404, 422), path


async def test_a_rollback_restores_the_stable_revision_and_looks_afterwards(daemon: Daemon) -> None:
    """B-401, B-404, B-407: one request, no question, and the answer says how the system is."""
    await change(daemon, set={"gpu_lock": {"poll_interval": 9}})
    answer = await daemon.ask("POST", "/api/v1/config/rollback", {"to": 0, "reason": "too slow"})
    assert answer.status == 200, answer.json
    said = answer.json
    assert (said["success"], said["verified"], said["overall_status"]) == (True, True, "healthy"), said
    assert (said["restored"], said["revision"]["of"]) == (0, 0)
    assert said["diff"] == [{"path": "gpu_lock.poll_interval", "before": 9.0, "after": 2.0}]
    assert (await shown(daemon))["settings"]["gpu_lock"]["poll_interval"] == 2
    again = (await daemon.ask("POST", "/api/v1/config/rollback", {})).json
    assert (again["changed"], again["message"].startswith("no change")) == (False, True)
    missing = await daemon.ask("POST", "/api/v1/config/rollback", {"to": 999999})
    assert (missing.status, missing.json["kind"]) == (404, "not_found")


async def test_the_impact_is_null_before_any_change_and_has_the_documented_fields() -> None:
    """B-505 … B-509."""
    async with running_daemon(config=STEADY) as fresh:
        before = (await fresh.get("/api/v1/monitoring/gpu-lock/config-impact")).json
        await change(fresh, set={"gpu_lock": {"poll_interval": 0.5}})
        after = (await fresh.get("/api/v1/monitoring/gpu-lock/config-impact")).json
        assert (await fresh.get("/api/v1/monitoring/gpu-lock/config-impact?revision=77")).status == 404
    assert before["config_change_time"] is None
    for side in ("before", "after"):
        assert {before[side][key] for key in ("poll_interval", "avg_wait_time", "timeout_rate")} == {None}
    for key in ("wait_time_improvement", "timeout_rate_change", "recommendation"):
        assert before["impact_summary"][key] is None
    assert after["config_change_time"].endswith("Z")
    assert (after["before"]["poll_interval"], after["after"]["poll_interval"]) == (2, 0.5)


async def test_openapi_says_the_form_of_each_body_and_answer(running: Daemon) -> None:
    """A generated client knows every field."""
    paths = (await running.get("/api/v1/openapi.json")).json["paths"]
    for path, methods in paths.items():
        for operation in methods.values() if "config" in path else ():
            schemas = [next(iter(operation["responses"]["200"]["content"].values()))["schema"]]
            if "requestBody" in operation:
                schemas.append(operation["requestBody"]["content"]["application/json"]["schema"])
            assert all("$ref" in schema for schema in schemas), path
    form = paths["/api/v1/config/gpu-lock"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert form["$ref"].endswith("/GpuLockChange")
    assert set(GpuLockChange.__struct_fields__) == set(GpuLockBlock.__struct_fields__)


# Who may, and what nobody can do.


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_other_users_may_read_and_not_change(running: Daemon) -> None:
    """The configuration is everybody's, so it is not anybody's."""
    assert _as_nobody(running, "GET", "/api/v1/config")[0] == 200
    for path in ("config", "config/gpu-lock", "config/rollback", "config/validation", "config/rollout/abort"):
        body = '{"tree": {}, "verdict": {}}' if path.endswith("validation") else "{}"
        status, said = _as_nobody(running, "POST", f"/api/v1/{path}", body)
        assert (status, said["kind"]) == (403, "forbidden"), path
        assert str(NOBODY) in said["detail"]


async def test_without_a_rollout_there_is_nothing_to_steer(daemon: Daemon) -> None:
    """A refusal, no crash."""
    assert (await daemon.get("/api/v1/config/rollout")).json == {"rollout": None}
    for verb in ("approve", "pause", "resume", "abort"):
        answer = await daemon.ask("POST", f"/api/v1/config/rollout/{verb}", {})
        assert 400 <= answer.status < 500, answer.json


@pytest.mark.parametrize(
    "stages",
    [
        [{"share": "half", "hold": 1}],
        [{"share": 0, "hold": 1}],
        [{"share": 0.5, "hold": 1}, {"share": 0.1, "hold": 1}],
        [{"share": 0.5, "hold": "never"}],
        [{"share": "200%", "hold": 1}],
    ],
)
async def test_stages_that_make_no_sense_are_refused(daemon: Daemon, stages: list[dict[str, Any]]) -> None:
    """A share of nothing, or one that shrinks, is a slip of the hand."""
    body = {"set": {"gpu_lock": {"poll_interval": 1}}, "stages": stages}
    assert (await daemon.ask("POST", "/api/v1/config/rollout", body)).status == 422


names = st.sampled_from(["gpu_lock", "poll_interval", "tasks", "x", "max_wait_time", "alerts", "rules"]) | st.text(
    max_size=12
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)
bodies = st.fixed_dictionaries(
    {}, optional={"set": JSON, "assign": JSON, "unset": JSON, "profile": JSON, "scope": JSON, "expect": JSON}
)


@settings(
    max_examples=60,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(body=bodies | st.dictionaries(names, JSON, max_size=3), block=st.booleans())
def test_no_body_crashes_it_or_changes_by_halves(running: Daemon, body: Any, block: bool) -> None:
    """What is taken is taken whole, what is refused changes nothing."""
    with http.Daemon(running.socket) as asked:
        before = asked.get("/api/v1/config")
        status = 200
        try:
            asked.ask("POST", POLL if block else "/api/v1/config", body)
        except http.Refused as refused:
            status = refused.status
        after = asked.get("/api/v1/config")
    assert status < 500
    if status != 200 or after["revision"]["number"] == before["revision"]["number"]:
        assert (after["live"], after["revision"]) == (before["live"], before["revision"])


@pytest.mark.parametrize("depth", [50, 400, 900, 5000])
async def test_a_deep_body_is_refused(daemon: Daemon, depth: int) -> None:
    """Recursion has an end in Python."""
    deep = '{"a":' * depth + "1" + "}" * depth
    both = f'{{"set": {{"gpu_lock": {deep}, "gpu_lock.a": {deep}}}}}'
    for path, raw in (("/api/v1/config", both), (POLL, deep)):
        answer = await daemon.ask("POST", path, raw=raw.encode())
        assert answer.status in (400, 422), answer.json


@pytest.mark.parametrize(
    ("body", "detail", "hint"),
    [
        ({"gpu_lock": {"poll_interval": 1}}, "there is no field 'gpu_lock'", 'put it under "set"'),
        ({"sett": {}}, "there is no field 'sett'", "did you mean 'set'?"),
        ({"expect": -1}, "expect: expected", "openapi"),
        ({"set": {"notify.webhooks.x.url": "ftp://x"}}, "notify.webhooks.x.url: it is no address", "https://host/path"),
        ({"set": {"gpu_lock.poll_interval": "soon"}}, "'soon' is not a duration", "write seconds"),
    ],
)
async def test_a_refusal_says_what_was_meant(daemon: Daemon, body: dict[str, Any], detail: str, hint: str) -> None:
    """The words of a library are no help to who types a body at night."""
    answer = await daemon.ask("POST", "/api/v1/config", body)
    assert answer.status == 422
    assert detail in answer.json["detail"] and "`" not in answer.json["detail"], answer.json
    assert hint in answer.json["hint"], answer.json
