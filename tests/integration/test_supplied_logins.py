"""Logins that the program supplies: they fail while a link is replaced, or change for all clones."""

from __future__ import annotations

from typing import Any

import pytest
from gevent.event import Event

import greenconn
from greenconn import Connection
from greenconn.wire.resp import pack
from greenconn.worker.consumer import ConsumerGreenlet
from greenconn.worker.lifecycle import ConsumerState
from tests.brokers.rabbitmq import RabbitMQ
from tests.brokers.redis_server import RedisServer

CAME = 60.0


class Broker:
    """A RabbitMQ or a Redis with a user ``app`` of its own."""

    def __init__(self, server: RabbitMQ | RedisServer) -> None:
        self._server = server
        self.scheme, _, rest = server.url.partition("://")
        self.place = rest.rpartition("@")[2]
        self.set_password("one")

    def set_password(self, password: str) -> None:
        """Let ``app`` log in with *password* only."""
        if isinstance(self._server, RabbitMQ):
            self._server.ctl("delete_user", "app", "--quiet") if self._has_user() else None
            self._server.ctl("add_user", "app", password)
            self._server.ctl("set_permissions", "app", ".*", ".*", ".*")
        else:
            self._call("ACL", "SETUSER", "app", "reset", "on", f">{password}", "~*", "&*", "+@all")

    def _has_user(self) -> bool:
        assert isinstance(self._server, RabbitMQ)
        return "app" in self._server.ctl("list_users", "--quiet").split()

    def close_connections(self) -> None:
        """Close those of ``app``."""
        if isinstance(self._server, RabbitMQ):
            self._server.close_connections("maintenance")
        else:
            self._call("CLIENT", "KILL", "USER", "app")

    def _call(self, *command: str) -> Any:
        with Connection(self._server.url) as control:
            return control.connection.commands.call(pack(*command))

    def connection(self, **arguments: Any) -> Connection:
        """A connection of ``app`` to it."""
        return Connection(f"{self.scheme}://{self.place}", userid="app", **arguments)

    def remove_user(self) -> None:
        """Leave it as it was."""
        if isinstance(self._server, RabbitMQ):
            self._server.ctl("delete_user", "app")
        else:
            self._call("ACL", "DELUSER", "app")


@pytest.fixture(params=["rabbitmq", "redis"])
def broker(request: pytest.FixtureRequest) -> Any:
    """A broker that may be changed."""
    made = Broker(request.getfixturevalue(f"own_{request.param}"))
    yield made
    made.remove_user()


class Handled:
    """A handler that notes each body."""

    def __init__(self) -> None:
        self.bodies: list[Any] = []
        self.came = Event()

    def __call__(self, body: Any, message: Any) -> None:
        self.bodies.append(body)
        self.came.set()


def is_back(
    consumer: ConsumerGreenlet, handled: Handled, connection: Connection, name: str
) -> bool:
    """Whether the consumer runs, and handles what is published."""
    assert consumer.wait_ready(CAME)
    handled.came.clear()
    greenconn.publish(name, "again", connection=connection, timeout=CAME)
    return handled.came.wait(CAME) and consumer.state is ConsumerState.RUNNING


def test_a_new_secret_reaches_the_connections_that_nobody_sees(broker: Broker, unique: str) -> None:
    """Those for publish(connection=), for dead letters, and of consumers without acks."""
    handled, unacked = Handled(), Handled()

    def failing(body: Any, message: Any) -> None:
        raise ValueError(body)

    with broker.connection(password="one") as connection:
        acked = greenconn.spawn_consumer(unique, handled, connection=connection)
        no_ack = greenconn.spawn_consumer(
            f"{unique}-no-ack", unacked, connection=connection, no_ack=True
        )
        fails = greenconn.spawn_consumer(
            f"{unique}-fails", failing, connection=connection, dead_letter=True
        )
        dead = Handled()
        letters = greenconn.spawn_consumer(f"{unique}-fails.dead", dead, connection=connection)
        assert all(each.wait_ready(CAME) for each in (acked, no_ack, fails, letters))
        assert is_back(acked, handled, connection, unique)
        greenconn.publish(f"{unique}-fails", "one", connection=connection, timeout=CAME)
        assert dead.came.wait(CAME)
        clone = connection.clone()
        key = connection.session.broker.key()
        broker.set_password("two")
        connection.update_secret("two")
        assert connection.password == clone.password == connection.clone().password == "two"
        assert key == connection.session.broker.key() == connection.clone().session.broker.key()
        broker.close_connections()
        assert is_back(acked, handled, connection, unique)
        assert is_back(no_ack, unacked, connection, f"{unique}-no-ack")
        dead.came.clear()
        greenconn.publish(f"{unique}-fails", "two", connection=connection, timeout=CAME)
        assert dead.came.wait(CAME)
        clone.connect()
        clone.close()
        assert greenconn.stop_consumers(CAME)
        for name in ("", "-no-ack", "-fails", "-fails.dead"):
            connection.default_channel.queue_delete(f"{unique}{name}")
