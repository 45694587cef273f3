"""Logins that the program supplies: they fail while a link is replaced, or change for all clones."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import gevent
import pytest
import redis
from gevent.event import Event

import greenconn
from greenconn import Connection, Queue
from greenconn.credentials import SuppliedError
from greenconn.wire.resp import pack
from greenconn.worker.consumer import ConsumerGreenlet
from greenconn.worker.lifecycle import ConsumerState
from tests.brokers.rabbitmq import RabbitMQ
from tests.brokers.redis_server import RedisServer
from tests.brokers.tls import CERTS
from tests.fix_leaks import HubErrors
from tests.fix_tls import TlsFront
from tests.fix_wires import until
from tests.receiving import consuming

CAME = 60.0


class Broker:
    """A RabbitMQ or a Redis with a user ``app`` of its own."""

    def __init__(self, server: RabbitMQ | RedisServer) -> None:
        self._server = server
        self.scheme, _, rest = server.url.partition("://")
        self.place = rest.rpartition("@")[2]
        if isinstance(server, RabbitMQ):
            server.add_user("app", "one")
        else:
            self.set_password("one")

    def set_password(self, password: str) -> None:
        """Let ``app`` log in with *password* only."""
        if isinstance(self._server, RabbitMQ):
            self._server.set_password("app", password)
        else:
            self._call("ACL", "SETUSER", "app", "reset", "on", f">{password}", "~*", "&*", "+@all")

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
            self._server.delete_user("app")
        else:
            self._call("ACL", "DELUSER", "app")


@pytest.fixture(params=["rabbitmq", "redis"])
def broker(request: pytest.FixtureRequest) -> Any:
    """A broker that may be changed."""
    made = Broker(request.getfixturevalue(f"own_{request.param}"))
    yield made
    made.remove_user()


class Login(redis.CredentialProvider):
    """A password function and a credential provider, which fail as they are told."""

    def __init__(self) -> None:
        self.failures: list[Any] = []

    def get_credentials(self) -> Any:
        """Return user name and password."""
        failure = self.failures.pop(0) if self.failures else ("app", "one")
        if isinstance(failure, BaseException):
            raise failure
        return failure

    def password(self) -> Any:
        """Return the password."""
        given = self.get_credentials()
        return given and given[1]

    def connection(self, broker: Broker, way: str) -> Connection:
        """A connection that asks for the login as *way* says."""
        if way == "function":
            return broker.connection(password=self.password)
        return broker.connection(credential_provider=self)


class HttpError(OSError):
    """An error as HTTP libraries raise it, by its class one of networks."""


def failures() -> list[Any]:
    """What the code of a login raises, its own timeout among it."""
    own = gevent.Timeout(CAME)
    return [KeyError("token"), ValueError("no JSON"), HttpError("502"), own, KeyError("token")]


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


@pytest.mark.parametrize("way", ["function", "provider"])
@pytest.mark.sampled(1)
def test_a_login_that_fails_during_a_reconnect_is_asked_for_again(
    broker: Broker, way: str, unique: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    login, handled = Login(), Handled()
    with login.connection(broker, way) as connection:
        consumer = greenconn.spawn_consumer(unique, handled, connection=connection)
        assert is_back(consumer, handled, connection, unique)
        login.failures = failures()
        broker.close_connections()
        until(lambda: not login.failures)
        assert is_back(consumer, handled, connection, unique)
        assert consumer.stop(CAME)
        connection.default_channel.queue_delete(unique)
    told = [
        (each.name, each.exc_info[0])
        for each in caplog.records
        if "the program supplies" in each.getMessage() and each.exc_info
    ]
    # The consumer's connection and that which publishes share the failures; each reports a class once.
    kinds = {kind for _, kind in told}
    assert kinds == {KeyError, ValueError, HttpError, gevent.Timeout}
    assert len(told) <= 5


@pytest.mark.full
@pytest.mark.sampled(1)
def test_an_error_of_on_declared_does_not_end_a_consumer_that_ran(
    broker: Broker, unique: str
) -> None:
    errors: list[BaseException] = []

    def on_declared(*counts: Any) -> None:
        if errors:
            raise errors.pop(0)

    queue, handled = Queue(unique, on_declared=on_declared), Handled()
    with broker.connection(password="one") as connection:
        consumer = consuming(queue, handled, connection=connection)
        errors += [KeyError("size"), gevent.Timeout(CAME), KeyError("size")]
        broker.close_connections()
        until(lambda: not errors)
        assert is_back(consumer, handled, connection, unique)
        connection.default_channel.queue_delete(unique)
        assert consumer.stop(CAME)


@pytest.mark.parametrize("way", ["function", "provider"])
@pytest.mark.full
def test_a_login_that_is_none_during_a_reconnect_is_asked_for_again(
    broker: Broker, way: str, unique: str
) -> None:
    login, handled = Login(), Handled()
    with login.connection(broker, way) as connection:
        consumer = consuming(unique, handled, connection=connection)
        login.failures = [None]
        broker.close_connections()
        until(lambda: not login.failures)
        assert is_back(consumer, handled, connection, unique)
        connection.default_channel.queue_delete(unique)
        assert consumer.stop(CAME)


@pytest.mark.sampled(1)
def test_the_first_start_ends_by_the_error_of_the_login(
    broker: Broker, unique: str, hub_errors: HubErrors
) -> None:
    login = Login()
    login.failures = [KeyError("token"), KeyError("token")]
    with login.connection(broker, "function") as connection:
        with pytest.raises(KeyError, match="token"):
            connection.connect()
        consumer = greenconn.spawn_consumer(unique, Handled(), connection=connection)
        until(consumer.ready)
        assert consumer.state is ConsumerState.FAILED
        hub_errors.clear()


@pytest.mark.full
@pytest.mark.sampled(1)
def test_a_timeout_of_the_login_is_an_error_of_the_call(broker: Broker) -> None:
    login = Login()
    login.failures = [gevent.Timeout(CAME)]
    with login.connection(broker, "function") as connection:
        with pytest.raises(SuppliedError, match="Timeout") as failed:
            connection.connect()
        assert isinstance(failed.value.__cause__, gevent.Timeout)
        connection.connect()


@pytest.mark.full
def test_a_certificate_file_that_is_half_written_is_read_again(
    broker: Broker, tls_front: TlsFront, unique: str, tmp_path: Path
) -> None:
    parts = urlsplit(f"//{broker.place}")
    assert parts.hostname is not None
    assert parts.port is not None
    port = tls_front((parts.hostname, parts.port))
    file, handled = tmp_path / "ca.pem", Handled()
    whole = (CERTS / "ca.pem").read_bytes()
    file.write_bytes(whole)
    broker.place = f"localhost:{port}{parts.path}"
    broker.scheme += "s"
    with broker.connection(password="one", ssl={"ca_certs": str(file)}) as connection:
        consumer = consuming(unique, handled, connection=connection)
        file.write_bytes(whole[: len(whole) // 2])
        broker.close_connections()
        until(lambda: "ca_certs" in (consumer.lifecycle.failure or ""))
        assert not consumer.ready()
        file.write_bytes(whole)
        assert is_back(consumer, handled, connection, unique)
        assert consumer.stop(CAME)
        connection.default_channel.queue_delete(unique)


@pytest.mark.full
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
