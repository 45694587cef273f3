"""Dead-letter exchanges that RabbitMQ's policies, and other programs, have given to queues."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

import greenconn
from greenconn.connection import Connection
from greenconn.entity import Exchange, Queue
from tests.brokers.rabbitmq import RabbitMQ
from tests.fix_wires import until
from tests.integration.test_failed_messages import fail
from tests.integration.test_worker_failures import got
from tests.receiving import consuming

pytestmark = pytest.mark.halved

SOON = 60.0


@pytest.fixture
def connection(managed_rabbitmq: RabbitMQ) -> Iterator[Connection]:
    url = f"{managed_rabbitmq.url}?manager_port={managed_rabbitmq.http_port}"
    with Connection(url) as connection:
        yield connection


@pytest.fixture
def policy(managed_rabbitmq: RabbitMQ, unique: str) -> Iterator[Callable[..., None]]:
    """Sets a policy for the queue of that name."""

    def set_policy(**rules: str) -> None:
        rules = {name.replace("_", "-"): value for name, value in rules.items()}
        managed_rabbitmq.ctl("set_policy", unique, f"^{unique}$", json.dumps(rules))

    yield set_policy
    managed_rabbitmq.ctl("clear_policy", unique)


@pytest.fixture
def letters(connection: Connection, unique: str) -> Queue:
    """A queue of dead letters, behind an exchange."""
    queue = Queue(f"{unique}-kept", Exchange(f"{unique}-letters", "fanout"))
    with connection.channel() as channel:
        queue(channel).declare()
    return queue


def fail_one(connection: Connection, queue: str | Queue) -> None:
    """Publish a message for a handler that fails."""
    consumer = consuming(queue, fail, connection=connection)
    greenconn.publish(queue, "a body", connection=connection)
    until(lambda: consumer.stats()["rejected"] == 1, SOON)
    assert consumer.stop(SOON)


@dataclass
class Restricted:
    """A user without tags, and with few rights."""

    connection: Connection
    allow: Callable[[str], None]


@contextmanager
def restricted(connection: Connection, name: str) -> Iterator[Restricted]:
    """A user for a while; *allow* sets the names of what it may declare, read and write."""
    manager = connection.get_manager()
    vhost = connection.virtual_host or "/"
    assert manager.create_user(name, "secret")
    try:
        with connection.clone(userid=name, password="secret") as own:

            def allow(names: str) -> None:
                manager.set_vhost_permissions(vhost, name, names, ".*", names)

            yield Restricted(own, allow)
    finally:
        manager.delete_user(name)


def test_exchange_of_a_policy_is_used(
    connection: Connection, unique: str, letters: Queue, policy: Callable[..., None]
) -> None:
    policy(dead_letter_exchange=f"{unique}-letters")
    fail_one(connection, Queue(unique))
    assert got(connection, letters.name).payload == "a body"
    with connection.channel() as channel, pytest.raises(connection.channel_errors):
        channel.queue_declare(f"{unique}.dead", passive=True)


def test_policy_with_an_exchange_that_is_missing_loses_nothing(
    connection: Connection, unique: str, policy: Callable[..., None]
) -> None:
    policy(dead_letter_exchange=f"{unique}-nowhere")
    fail_one(connection, unique)
    assert got(connection, f"{unique}.dead").payload == "a body"


def test_arguments_that_another_program_has_declared_are_used(
    connection: Connection, unique: str, letters: Queue
) -> None:
    with Connection(connection.as_uri(include_password=True)) as other, other.channel() as channel:
        arguments = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": letters.name}
        channel.queue_declare(unique, durable=True, auto_delete=False, arguments=arguments)
    fail_one(connection, unique)
    assert got(connection, letters.name).payload == "a body"


def test_queue_that_would_get_its_own_dead_letters_back(
    connection: Connection, unique: str, policy: Callable[..., None]
) -> None:
    policy(dead_letter_exchange="")
    fail_one(connection, unique)
    assert got(connection, f"{unique}.dead").payload == "a body"


def test_user_who_may_not_ask_for_policies_loses_nothing(
    connection: Connection, unique: str, policy: Callable[..., None]
) -> None:
    policy(dead_letter_exchange=f"{unique}-letters")
    with restricted(connection, unique) as user:
        user.allow(".*")
        fail_one(user.connection, unique)
        assert got(connection, f"{unique}.dead").payload == "a body"


@pytest.mark.parametrize("options", [{}, {"batch_size": 2}], ids=["single", "batch"])
@pytest.mark.sampled(1)
def test_message_whose_dead_letter_cannot_be_stored_stays(
    connection: Connection, unique: str, options: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with restricted(connection, unique) as user:
        user.allow(f"^({unique}|amq\\.default)$")
        with connection.channel() as channel:
            channel.queue_declare(unique, durable=True, auto_delete=False)
        consumer = consuming(unique, fail, connection=user.connection, **options)
        greenconn.publish(unique, "a body", connection=connection)
        text = f"cannot be stored in queue '{unique}.dead', and stays"
        until(lambda: text in caplog.text, SOON)
        assert consumer.stats()["in_flight"] == 1
        assert consumer.stats()["rejected"] == 0
        user.allow(".*")
        assert got(connection, f"{unique}.dead").payload == "a body"
        assert consumer.stats()["failed"] <= 4  # it does not fail in a loop
        assert consumer.stop(SOON)
