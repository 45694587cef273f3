"""Metrics for Prometheus, the rules for alerts, the dashboard, and their documentation."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent.event import Event

from greenconn.connection import Connection
from greenconn.exceptions import NotFound, Unroutable
from greenconn.options import Retry
from greenconn.pools import Connections
from greenconn.publishing import publish
from greenconn.transport import memory
from greenconn.worker import spawn_consumer
from tests.fix_wires import until
from tests.receiving import consuming

prometheus_client = pytest.importorskip("prometheus_client")
yaml = pytest.importorskip("yaml")

from greenconn.contrib import prometheus  # noqa: E402
from greenconn.contrib.prometheus import ALERTS, DASHBOARD, GAUGES, Metrics, figures, instrument  # noqa: E402

SOON = 30.0
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def registry() -> Any:
    """One that holds nothing else."""
    return prometheus_client.CollectorRegistry()


@pytest.fixture
def metrics(registry: Any) -> Iterator[Metrics]:
    """What is exported."""
    metrics = instrument(registry)
    yield metrics
    metrics.remove()


@pytest.fixture
def connection(unique: str) -> Iterator[Connection]:
    """A connection to a broker that no other test uses."""
    with Connection(f"memory:///{unique}") as connection:
        yield connection
    memory.reset(unique)


def value(registry: Any, name: str, **labels: str) -> float:
    """The value of one series; 0 where there is none."""
    return float(registry.get_sample_value(f"greenconn_{name}", labels) or 0.0)


def test_messages_are_counted(
    registry: Any, metrics: Metrics, connection: Connection, unique: str
) -> None:
    def handle(body: Any, message: Any) -> None:
        if body == "poison":
            raise LookupError("no such user")

    broker = connection.as_uri()
    consumer = consuming(
        unique, handle, connection=connection, retry=Retry(tries=3, delay=0.01), concurrency=2
    )
    for body in ("good", "good", "poison"):
        publish(unique, body, connection=connection)
    until(lambda: consumer.stats()["rejected"] == 1, SOON)
    until(lambda: consumer.stats()["handled"] == 2, SOON)
    to, at = {"broker": broker, "destination": unique}, {"broker": broker, "queue": unique}
    assert value(registry, "published_total", **to) == 3
    assert value(registry, "published_bytes_total", **to) == len("good" * 2 + "poison")
    assert value(registry, "publish_errors_total", **to) == 0
    assert value(registry, "publish_seconds_count", **to) == 3
    assert value(registry, "handled_total", **at) == 2
    assert value(registry, "failed_total", **at) == 3
    assert value(registry, "retried_total", **at) == 2
    assert value(registry, "dead_letters_total", **at) == 1
    assert value(registry, "handle_seconds_count", **at) == 5
    assert value(registry, "connects_total", broker=broker) == 1
    assert consumer.stop(SOON)
    connection.close()
    until(lambda: value(registry, "disconnects_total", broker=broker, reason="closed") == 1, SOON)


def test_publishes_that_fail_are_counted_apart(
    registry: Any, metrics: Metrics, connection: Connection, unique: str
) -> None:
    with pytest.raises((Unroutable, NotFound)):
        publish(unique, 1, connection=connection, declare=False)
    to = {"broker": connection.as_uri(), "destination": unique}
    assert value(registry, "publish_errors_total", **to) == 1
    assert value(registry, "published_total", **to) == 0


def test_gauges_are_read_when_they_are_asked_for(
    registry: Any, metrics: Metrics, connection: Connection, unique: str
) -> None:
    entered, go_on = Event(), Event()

    def handle(body: Any, message: Any) -> None:
        entered.set()
        go_on.wait(SOON)

    broker = connection.as_uri()
    assert value(registry, "connections", broker=broker, state="open") == 0
    consumer = consuming(unique, handle, connection=connection, concurrency=2, name="mail")
    assert value(registry, "consumers", consumer="mail", state="running") == 1
    assert value(registry, "consumers", consumer="mail", state="failed") == 0
    assert value(registry, "consumer_concurrency", consumer="mail") == 2
    assert value(registry, "connections", broker=broker, state="open") == 1
    publish(unique, 1, connection=connection)
    assert entered.wait(SOON)
    assert value(registry, "consumer_in_flight", consumer="mail") == 1
    assert value(registry, "unacked", broker=broker) == 1
    assert 0 <= value(registry, "consumer_last_delivery_age_seconds", consumer="mail") < SOON
    assert 0 < value(registry, "hub_lag_seconds") < SOON
    go_on.set()
    until(lambda: value(registry, "unacked", broker=broker) == 0, SOON)
    until(lambda: value(registry, "consumer_in_flight", consumer="mail") == 0, SOON)
    assert consumer.stop(SOON)
    assert value(registry, "consumers", consumer="mail", state="running") == 0
    refused = spawn_consumer("absent", print, connection=connection, passive=True, name=unique)
    with pytest.raises(NotFound):
        refused.get(timeout=SOON)
    assert value(registry, "consumers", consumer=unique, state="failed") == 1


def test_pools_are_shown_while_they_are_used(
    registry: Any, metrics: Metrics, connection: Connection
) -> None:
    pool = Connections(limit=1)[connection]
    name = pool.name
    with pool.acquire(block=True):
        assert value(registry, "pool_in_use", pool=name) == 1
        assert value(registry, "pool_limit", pool=name) == 1
        waiting = gevent.spawn(lambda: pool.acquire(block=True, timeout=SOON).release())
        until(lambda: value(registry, "pool_waiting", pool=name) == 1, SOON)
    waiting.get(timeout=SOON)
    assert value(registry, "pool_wait_seconds_count", pool=name) == 1
    assert value(registry, "pool_errors_total", pool=name) == 0
    pool.force_close_all()


def test_names_that_are_used_once_have_no_series_of_their_own(
    registry: Any, metrics: Metrics, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prometheus, "MOST_SERIES", 2)
    broker = connection.as_uri()
    for name in ("a", "b", "c", "d", "amq.gen-x", "amq.gen-y"):
        connection.default_channel.queue_declare(name)
        publish(name, 1, connection=connection)
    for name, count in {"a": 1, "b": 1, "other": 2, "temporary": 2}.items():
        assert value(registry, "published_total", broker=broker, destination=name) == count
    text = prometheus_client.generate_latest(registry).decode()
    assert "amq.gen" not in text


def test_it_may_be_removed_and_begun_again(registry: Any, connection: Connection) -> None:
    first = instrument(registry)
    with pytest.raises(ValueError, match="Duplicated"):
        instrument(registry)
    first.remove()
    first.remove()
    assert prometheus_client.generate_latest(registry) == b""
    second = instrument(registry, buckets=[1.0, 2.0])
    assert b"greenconn_hub_blocked_seconds_total" in prometheus_client.generate_latest(registry)
    second.remove()


def test_the_application_answers_with_all(registry: Any, metrics: Metrics) -> None:
    given: list[Any] = []
    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/metrics", "QUERY_STRING": ""}
    answer = prometheus.wsgi_app(registry)(environ, lambda *args: given.append(args))
    assert given[0][0] == "200 OK"
    assert b"greenconn_hub_lag_seconds" in b"".join(answer)


def test_the_hub_itself_measures_no_lag(metrics: Metrics) -> None:
    assert set(figures(0.5)) == set(GAUGES)
    assert figures(0.5)["hub_lag_seconds"] == {(): 0.5}


# Rules, dashboard, documentation


def exported() -> set[str]:
    """Names that may be asked for."""
    registry = prometheus_client.CollectorRegistry()
    metrics = Metrics(registry, [1.0])
    found = {f"greenconn_{name}" for name in GAUGES}
    for each in vars(metrics).values():
        kind = getattr(each, "_type", None)
        if kind == "counter":
            found.add(f"{each._name}_total")
        elif kind == "histogram":
            found |= {
                each._name,
                f"{each._name}_bucket",
                f"{each._name}_count",
                f"{each._name}_sum",
            }
    metrics.remove()
    return found


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(ALERTS.read_text())["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


NAMES = re.compile(r"\bgreenconn_\w+")


def test_alerts_use_what_is_exported() -> None:
    names = exported()
    assert len({each["alert"] for each in rules()}) == len(rules())
    for rule in rules():
        used = NAMES.findall(rule["expr"])
        assert used, rule
        assert set(used) <= names, rule
        assert rule["expr"].count("(") == rule["expr"].count(")")
        assert rule["expr"].count("{") == rule["expr"].count("}")
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert set(rule["annotations"]) == {"summary", "remedy"}
        labels = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
        kept = re.findall(r"\bby \(([\w, ]+)\)", rule["expr"])
        for label in labels:
            known = {each for part in kept for each in re.split(r", ?", part)}
            known |= {each for name in used for each in GAUGES.get(name[10:], ("", (), ""))[1]}
            assert label in known, rule


def test_the_dashboard_shows_what_is_exported() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    names = exported()
    panels = dashboard["panels"]
    assert len({each["id"] for each in panels}) == len(panels)
    shown = {
        name
        for panel in panels
        for target in panel["targets"]
        for name in NAMES.findall(target["expr"])
    }
    assert shown <= names
    of_messages = {each for each in names if each.endswith("_total")}
    assert of_messages - shown <= {
        "greenconn_published_bytes_total",
        "greenconn_blocked_seconds_total",
        "greenconn_pool_errors_total",
    }


def test_the_documentation_has_the_rules_and_the_metrics() -> None:
    page = (ROOT / "docs" / "observability.rst").read_text()
    assert sorted(re.findall(r"``(Greenconn\w+)``", page)) == sorted(
        rule["alert"] for rule in rules()
    )
    listed = set(re.findall(r"^   \* - ``(greenconn_\w+)``$", page, re.MULTILINE))
    assert listed == {
        each for each in exported() if not each.endswith(("_bucket", "_count", "_sum"))
    }
    for name, (_, labels, _) in GAUGES.items():
        text = ", ".join(labels) or "none"
        assert f"   * - ``greenconn_{name}``\n     - {text}\n" in page
