"""Servers of python-socketio that share events by our manager, and their clients, in processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

pytest.importorskip("socketio")

from tests.brokers.rabbitmq import RabbitMQ
from tests.brokers.redis_server import RedisServer
from tests.integration.processes import Running, start

pytestmark = [pytest.mark.programs]

SOON = 150.0
EVENTS = 200
PROGRAM = "tests.quality.thirdparty.socketio_program"


@contextmanager
def program(role: str, address: str) -> Iterator[Running]:
    """A process of the application, ended at the end."""
    running = start("-m", PROGRAM, "contrib", role, address, str(EVENTS))
    try:
        yield running
    finally:
        running.end()


def value(running: Running, name: str) -> int:
    """Wait for the next line of a process, which must be *name* and a number."""
    words = running.line(SOON).split()
    assert words[0] == name, words
    return int(words[1])


def emit(url: str, at_half: Callable[[], None], servers: int = 1) -> None:
    """Emit events to a client of each server; they get each event once."""
    with ExitStack() as stack:
        clients = []
        for _ in range(servers):
            server = stack.enter_context(program("server", url))
            address = f"http://127.0.0.1:{value(server, 'port')}"
            clients.append(stack.enter_context(program("client", address)))
        for client in clients:
            assert client.line(SOON) == "connected"
        emitter = stack.enter_context(program("emitter", url))
        assert emitter.line(SOON) == "half"
        at_half()
        outcome = emitter.outcome(timeout=SOON)
        assert outcome.code == 0, outcome.errors
        for client in clients:
            assert (value(client, "copies"), value(client, "received")) == (0, EVENTS)


@pytest.mark.parametrize("servers", [1, pytest.param(2, marks=pytest.mark.full)])
def test_events_come_to_the_clients_of_each_server(amqp_url: str, servers: int) -> None:
    emit(amqp_url, lambda: None, servers)


@pytest.mark.full
@pytest.mark.parametrize("kind", ["redis", "sqlite"])
def test_other_brokers(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    at_redis = kind == "redis"
    url = request.getfixturevalue("redis_url") if at_redis else f"sqlite:///{tmp_path}/q.db"
    emit(url, lambda: None)


@pytest.mark.full
def test_a_restart_of_rabbitmq_loses_and_doubles_nothing(own_rabbitmq: RabbitMQ) -> None:
    def restart() -> None:
        own_rabbitmq.stop()
        own_rabbitmq.start()

    emit(own_rabbitmq.url, restart)


@pytest.mark.full
def test_a_rabbitmq_that_is_killed_loses_and_doubles_nothing(own_rabbitmq: RabbitMQ) -> None:
    def kill() -> None:
        own_rabbitmq.kill()
        own_rabbitmq.start()

    emit(own_rabbitmq.url, kill)


@pytest.mark.full
def test_a_redis_that_is_killed_loses_and_doubles_nothing(durable_redis: RedisServer) -> None:
    def kill() -> None:
        durable_redis.kill()
        durable_redis.start()

    emit(durable_redis.url, kill)


@pytest.mark.full
def test_lost_connections_lose_and_double_nothing(own_rabbitmq: RabbitMQ) -> None:
    emit(own_rabbitmq.url, lambda: own_rabbitmq.close_connections("a test"))
