"""What /metrics says, held against what happened; and what is shipped for Grafana and Prometheus, against its names."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from ruamel.yaml import YAML

from gpulockd import GpuLockTimeout, LeaseLost, gpu_lock
from tests.daemons import STEADY, Daemon, daemon_folder, eventually, running_daemon, standing_still

ROOT = Path(__file__).resolve().parents[2]
DASHBOARD = ROOT / "docs/grafana/gpulockd.json"
RULES = ROOT / "docs/prometheus/gpulockd.rules.yml"
TABLE = ROOT / "docs/metrics.md"

PROMISED = (
    *("requests_total", "wait_seconds", "hold_seconds", "handoff_seconds", "queue_length", "oldest_wait_seconds"),
    *("held", "limits_reached_total", "leases_lost_total", "recoveries_total", "heartbeats_total", "cleanups_total"),
    *("health_score", "monitor_up", "checks_total", "wakeups_total", "redis_roundtrip_seconds", "redis_connections"),
    *("http_request_seconds", "config_revision", "process_resident_memory_bytes", "process_cpu_seconds_total"),
    *("gpu_memory_used_bytes", "gpu_utilization_ratio", "gpu_temperature_celsius", "gpu_power_watts"),
)
"""The names on which dashboards outside are built."""

Series = dict[tuple[str, tuple[tuple[str, str], ...]], float]


async def scraped(daemon: Daemon) -> Series:
    """All samples of one scrape, by name and labels."""
    reply = await daemon.get("/metrics")
    assert reply.status == 200
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    families = text_string_to_metric_families(reply.body.decode())
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def value(series: Series, name: str, **labels: str) -> float:
    """One sample of ours."""
    return series[f"gpulockd_{name}", tuple(sorted(labels.items()))]


def families_of(series: Series) -> set[str]:
    """The names that a query may use."""
    return {name for name, _ in series}


def names_in(text: str) -> set[str]:
    """The metrics of ours that a query or a page names."""
    return set(re.findall(r"\b(?:gpulockd|process)_[a-z_]+[a-z]\b(?!\.)", text))


async def test_metrics_count_what_happened(monkeypatch: pytest.MonkeyPatch) -> None:
    """A grant, a wait, a hand-off, a time-out and a lease that was taken: each in its own series, and none twice."""
    config = STEADY | {"gpu_lock_monitor": {"monitor_interval": 0.5}}
    async with running_daemon(config=config) as daemon:
        monkeypatch.setenv("GPULOCKD_SOCKET", daemon.socket)
        before = await scraped(daemon)
        assert value(before, "requests_total", outcome="acquired") == 0
        assert value(before, "health_score") == 100
        assert families_of(before) >= {f"gpulockd_{name}" for name in PROMISED if not name.endswith("seconds")}
        assert families_of(before) >= {f"gpulockd_{name}_count" for name in PROMISED if name.endswith("n_seconds")}

        first = await daemon.open("POST", "/api/v1/leases", {"task": "a", "gpus": [0]})
        await first.until("granted")
        second = await daemon.open("POST", "/api/v1/leases", {"task": "b", "gpus": [0]})
        await second.until("waiting")
        with pytest.raises(GpuLockTimeout):
            async with gpu_lock("gpu_lock:0", max_wait_time=0.1):
                pass
        await asyncio.sleep(1.1)  # a scrape serves for a second
        busy = await scraped(daemon)
        assert (value(busy, "queue_length"), value(busy, "leases"), value(busy, "busy_ratio")) == (1, 1, 0.5)
        assert (value(busy, "held", gpu="0"), value(busy, "held", gpu="1")) == (1, 0)
        assert value(busy, "oldest_wait_seconds") > 0
        for _ in range(20):  # two scrapes in one second are one look
            if await scraped(daemon) == await scraped(daemon):
                break
        else:
            pytest.fail("each scrape looks anew")

        await daemon.ask("DELETE", "/api/v1/leases/0")
        await second.until("granted")
        await second.aclose()
        with pytest.raises(LeaseLost):
            async with gpu_lock("gpu_lock:1", task="slow", warning=0.2, soft_timeout=1.5, hard_timeout=3.0):
                await asyncio.sleep(60)

        async def recovered() -> bool:
            now = await scraped(daemon)
            counted = value(now, "requests_total", outcome="acquired"), value(now, "hold_seconds_count")
            return counted == (3, 3) and value(now, "gpus", state="ready") == 2

        await eventually(recovered)
        after = await scraped(daemon)
        assert value(after, "requests_total", outcome="timed_out") == 1
        assert (value(after, "wait_seconds_count"), value(after, "hold_seconds_count")) == (3, 3)
        assert value(after, "wait_seconds_bucket", le="+Inf") == 3
        assert value(after, "wait_seconds_sum") >= 1.0
        assert value(after, "handoff_seconds_count") == 1
        assert (value(after, "wakeups_total", via="doorbell"), value(after, "wakeups_total", via="poll")) == (1, 0)
        assert value(after, "leases_lost_total", reason="operator") == 1
        assert value(after, "leases_lost_total", reason="hard_timeout") == 1
        assert [value(after, "limits_reached_total", level=level) for level in ("warning", "soft", "hard")] == [1, 1, 1]
        assert value(after, "checks_total", result="healthy") + value(after, "checks_total", result="unhealthy") > 0
        assert value(after, "heartbeats_total", outcome="heard") > 0
        assert (value(after, "monitor_up"), value(after, "store_up"), value(after, "frozen")) == (1, 1, 0)
        assert value(after, "redis_connections") >= 2
        assert value(after, "redis_roundtrip_seconds_count") > 5
        route = {"method": "DELETE", "route": "/api/v1/leases/{id}", "status": "200"}
        assert value(after, "http_request_seconds_count", **route) == 1
        card = next(dict(labels) for name, labels in after if name == "gpulockd_gpu_power_watts")
        assert (card["gpu"], card["uuid"][:4]) == ("0", "GPU-")

        # The names that are shipped.
        known = families_of(after)
        board = json.loads(DASHBOARD.read_text("utf-8"))
        queries = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
        queries += [one["query"]["query"] for one in board["templating"]["list"] if one["type"] == "query"]
        rules = [rule["expr"] for group in YAML(typ="safe").load(RULES)["groups"] for rule in group["rules"]]
        for query in queries + rules:
            assert names_in(query) or "up{" in query
            assert names_in(query) <= known, query
        bare = {name.removesuffix("_count").removesuffix("_bucket").removesuffix("_sum") for name in known}
        told = {name for name in names_in(TABLE.read_text("utf-8")) if not name.endswith("process")}
        assert told <= bare | known
        ours = {name for name in bare if name.startswith("gpulockd_") and "_process_" not in name}
        assert ours <= told, ours - told


async def test_metrics_go_on_over_a_restart_and_without_a_store() -> None:
    """What was counted must not be lost with the daemon, and a dashboard must see that the store is away."""
    async with daemon_folder() as base:
        async with running_daemon(config=STEADY, base=base) as daemon:
            holding = await daemon.open("POST", "/api/v1/leases", {"task": "a", "gpus": [0]})
            await holding.until("granted")
            await holding.aclose()
            await eventually(lambda: _released(daemon))
            await daemon.kill()
        async with running_daemon(config=STEADY, base=base) as daemon:
            assert value(await scraped(daemon), "requests_total", outcome="acquired") == 1
            assert value(await scraped(daemon), "hold_seconds_count") == 1
            with standing_still(daemon):
                await eventually(lambda: _is_store_away(daemon))


async def _released(daemon: Daemon) -> bool:
    series = await scraped(daemon)
    return value(series, "hold_seconds_count") == 1 and value(series, "leases") == 0


async def _is_store_away(daemon: Daemon) -> bool:
    series = await scraped(daemon)
    away = value(series, "store_up") == 0
    assert not away or "gpulockd_queue_length" not in families_of(series)  # what is not known is not told
    return away
