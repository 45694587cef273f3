"""What probes are told about connections and consumers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from time import monotonic
from typing import Any
from weakref import WeakSet

import gevent
import pytest

from greenconn import defaults, health
from greenconn.connection import Connection
from greenconn.entity import Queue
from greenconn.exceptions import NotFound
from greenconn.green.hub import PerHub
from greenconn.service.health import Probes, check
from greenconn.session import session as module
from greenconn.testing import MemoryBroker
from greenconn.transport import memory
from greenconn.worker import consumer as worker_consumer
from greenconn.worker import spawn_consumer, stop_consumers
from greenconn.worker.consumer import failures
from tests.receiving import consuming

SOON = 30.0


@pytest.fixture(autouse=True)
def url(unique: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of a broker that no other test uses, in a thread that has used none."""
    monkeypatch.setattr(module, "_in_use", PerHub(WeakSet))
    monkeypatch.setattr(worker_consumer, "_registry", PerHub(worker_consumer._Registry))
    yield f"memory:///{unique}"
    stop_consumers(0)
    defaults.reset()
    memory.reset(unique)


@pytest.fixture
def connection(url: str) -> Iterator[Connection]:
    """The connection of the program."""
    with Connection(url) as connection:
        yield connection


def ask(app: Any, path: str, method: str = "GET") -> tuple[str, dict[str, str], bytes]:
    """The answer of a WSGI application."""
    given: list[Any] = []

    def start_response(status: str, headers: list[tuple[str, str]]) -> Callable[[bytes], object]:
        given.extend((status, dict(headers)))
        return given.append

    body = b"".join(app({"PATH_INFO": path, "REQUEST_METHOD": method}, start_response))
    return given[0], given[1], body


def test_connections_that_are_in_use_are_shown(connection: Connection, url: str) -> None:
    assert check().connections == ()
    connection.connect()
    (found,) = check().connections
    assert (found.url, found.state, found.blocked, found.lost) == (
        connection.as_uri(),
        "open",
        None,
        None,
    )
    assert found.is_ready
    connection.close()
    assert check().connections == ()
    connection.connect()
    (found,) = check().connections
    assert found.lives == 2


def test_each_thread_has_its_own(connection: Connection) -> None:
    connection.connect()
    assert gevent.get_hub().threadpool.apply(check).connections == ()


def test_consumers_are_shown_from_beginning_to_end(connection: Connection) -> None:
    consumer = spawn_consumer("q", lambda body, message: None, connection=connection, name="mail")
    (found,) = check().consumers
    assert (found.name, found.state, found.is_ready) == ("mail", "starting", False)
    assert not check().is_ready
    assert check().is_live
    assert check(SOON).is_ready  # it waits for what is on its way
    (found,) = check().consumers
    assert found.state == "running"
    assert found.stats["handled"] == 0
    consumer.pause(SOON)
    assert check().is_ready
    consumer.resume()
    assert check(SOON).is_ready
    consumer.stop(SOON)
    assert check().consumers == ()


def test_one_that_the_broker_refused_needs_a_restart(connection: Connection) -> None:
    consumer = spawn_consumer("absent", print, connection=connection, passive=True)
    with pytest.raises(NotFound):
        consumer.get(timeout=SOON)
    found = check(SOON)
    assert not found.is_live
    assert not found.is_ready
    assert [(each.name, each.state) for each in found.consumers] == [("absent", "failed")]
    assert "absent" in str(found.consumers[0].error)
    (reason,) = found.reasons
    assert (reason.name, reason.state, reason.needs_restart) == ("absent", "failed", True)
    assert "absent" in str(reason.why)
    for path in ("/health/live", "/health/ready"):
        status, _, body = ask(Probes(), path)
        assert status == "503 Service Unavailable"
        assert b"absent" not in body
        assert json.loads(body)["reasons"][0]["state"] == "failed"
    body = ask(Probes(has_details=True), "/health/live")[2]
    assert json.loads(body)["reasons"][0]["why"] == reason.why
    Queue("absent")(connection.default_channel).declare()
    again = spawn_consumer("absent", print, connection=connection, passive=True)
    assert check(SOON).is_live
    assert check(SOON).is_ready
    again.stop(SOON)


def test_failures_are_not_kept_for_ever(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("greenconn.worker.consumer.FAILURES_KEPT", 2)
    for number in range(3):
        consumer = spawn_consumer(f"absent{number}", print, connection=connection, passive=True)
        with pytest.raises(NotFound):
            consumer.get(timeout=SOON)
    assert {*failures()} >= {"absent1", "absent2"}
    assert "absent0" not in failures()
    for name in ("absent1", "absent2"):
        spawn_consumer(name, print, connection=connection).stop(SOON)
    assert failures() == {}


def test_a_connection_that_comes_back_is_waited_for(amqp_url: str, unique: str) -> None:
    """A real broker: one that is lost with a consumer recovers in the background."""
    with Connection(amqp_url) as connection:
        queue = Queue(unique, expires=60)
        consumer = consuming(queue, print, connection=connection)
        assert check().is_ready
        connection.session.life.link.stream.close()
        connection.session.life.link.end(ConnectionResetError("cut"))
        connection.session.notice_loss()
        assert not check().is_ready
        (found,) = check().connections
        assert found.state == "recovering"
        assert "cut" in str(found.lost)
        (of_consumer, of_connection) = check().reasons
        assert (of_consumer.what, of_consumer.state) == ("consumer", "recovering")
        assert (of_connection.what, of_connection.state) == ("connection", "recovering")
        assert "cut" in str(of_connection.why)
        assert not of_connection.needs_restart
        assert check(SOON).is_ready
        consumer.stop(SOON)


def test_a_broker_that_takes_nothing_is_reported(amqp_url: str) -> None:
    with Connection(f"{amqp_url}") as connection:
        connection.connect()
        flow_control = connection.session.life.link.flow_control
        flow_control.blocked = "low on memory"
        flow_control.blocked_at = monotonic() - 3600
        assert check().connections[0].blocked == "low on memory"
        (reason,) = check().reasons
        assert (reason.state, reason.why, reason.needs_restart) == (
            "blocked",
            "low on memory",
            False,
        )
        assert "alarm" in reason.remedy
        since = datetime.fromisoformat(reason.since)
        assert abs((datetime.now(timezone.utc) - since).total_seconds() - 3600) < SOON
        assert not check().is_ready
        flow_control.blocked = None
        assert check().is_ready


def test_no_password_is_shown(amqp_url: str) -> None:
    with Connection(amqp_url) as connection:
        connection.connect()
        password = connection.password
        assert f":{password}@" not in json.dumps(check().as_dict())
        assert ":**@" in check().connections[0].url


# Probes


def test_probes_answer_by_themselves(connection: Connection) -> None:
    probes = Probes()
    assert ask(probes, "/health/live")[0] == "200 OK"
    status, headers, body = ask(probes, "/health/ready")
    assert status == "200 OK"
    assert json.loads(body) == {"ready": True}
    assert headers["Content-Length"] == str(len(body))
    assert headers["Cache-Control"] == "no-store"
    assert ask(probes, "/health/ready", "HEAD")[2] == b""
    assert ask(probes, "/else")[0] == "404 Not Found"
    spawn_consumer("q", print, connection=connection)
    status, _, body = ask(probes, "/health/ready")
    assert status == "503 Service Unavailable"
    found = json.loads(body)
    assert found["ready"] is False
    (reason,) = found["reasons"]
    since = datetime.fromisoformat(reason.pop("since"))
    assert abs((datetime.now(timezone.utc) - since).total_seconds()) < SOON
    assert "greenconn doctor" in reason.pop("remedy")
    assert reason == {"what": "consumer", "state": "starting"}
    assert ask(probes, "/health/live")[0] == "200 OK"
    assert ask(Probes(timeout=SOON), "/health/ready")[0] == "200 OK"


def test_probes_stand_before_another_application(connection: Connection) -> None:
    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        start_response("200 OK", [])
        return [environ["PATH_INFO"].encode()]

    probes = Probes(app, prefix="/-")
    assert ask(probes, "/health/live")[2] == b"/health/live"
    assert json.loads(ask(probes, "/-/live")[2]) == {"live": True}


def test_probes_report_all_if_they_shall(connection: Connection) -> None:
    consuming("q", print, connection=connection)
    found = json.loads(ask(Probes(has_details=True), "/health/ready")[2])
    assert found == json.loads(json.dumps(health.check().as_dict()))
    assert found["consumers"][0]["stats"]["state"] == "running"


def test_the_figures_of_a_refused_consumer_stay(connection: Connection) -> None:
    consumer = spawn_consumer(
        "absent", print, connection=connection, passive=True, name="refused", concurrency=3
    )
    with pytest.raises(NotFound):
        consumer.get(timeout=SOON)
    (found,) = check().consumers
    assert (found.name, found.state, found.is_ready) == ("refused", "failed", False)
    assert found.stats["handled"] == 0
    assert found.stats["concurrency"] == 3
    assert found.stats == {**consumer.stats()}


def test_the_next_memory_broker_knows_nothing_of_a_refused_consumer(connection: Connection) -> None:
    elsewhere = spawn_consumer("absent", print, connection=connection, passive=True, name="kept")
    with MemoryBroker() as broker:
        by_default = spawn_consumer("absent", print, passive=True)
        own = broker.connection()
        by_itself = spawn_consumer("absent", print, passive=True, connection=own, name="own")
        for consumer in (elsewhere, by_default, by_itself):
            with pytest.raises(NotFound):
                consumer.get(timeout=SOON)
        assert [each.name for each in check().consumers] == ["absent", "kept", "own"]
        own.close()
    with MemoryBroker():
        assert [each.name for each in check().consumers] == ["kept"]
