"""Arguments, replies and errors of pika."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("dramatiq")

import greenconn
from greenconn.contrib.dramatiq.broker import (
    PikaChannel,
    PikaConnection,
    connection_arguments,
    split_url,
    url_arguments,
)
from greenconn.exceptions import NotFound, RecoverableConnectionError
from greenconn.transport import memory

LOGIN = SimpleNamespace(username="ada", password="p/w")


def test_parameters_become_arguments_of_a_connection() -> None:
    assert connection_arguments(
        {
            "host": "rabbit",
            "port": 5673,
            "virtual_host": "v/h",
            "credentials": LOGIN,
            "heartbeat": 5,
            "socket_timeout": 10,
            "stack_timeout": 15,
            "blocked_connection_timeout": 30,
            "frame_max": 8192,
            "tcp_options": {"TCP_USER_TIMEOUT": 1000},
            "connection_attempts": 5,
            "retry_delay": 2.0,
            "ssl_options": None,
        }
    ) == {
        "hostname": "rabbit",
        "port": 5673,
        "virtual_host": "v/h",
        "userid": "ada",
        "password": "p/w",
        "heartbeat": 5,
        "connect_timeout": 15,
        "transport_options": {
            "blocked_timeout": 30,
            "frame_max": 8192,
            "socket_settings": {"TCP_USER_TIMEOUT": 1000},
        },
    }


def test_tls_and_the_login_by_a_certificate() -> None:
    context = ssl.create_default_context()
    given = SimpleNamespace(context=context, server_hostname="name")
    external = SimpleNamespace(TYPE="EXTERNAL")
    assert connection_arguments({"ssl_options": given, "credentials": external}) == {
        "ssl": {"context": context, "server_hostname": "name"},
        "login_method": "EXTERNAL",
    }
    nameless = SimpleNamespace(context=context, server_hostname=None)
    assert connection_arguments({"ssl_options": nameless}) == {"ssl": {"context": context}}


def test_pikas_own_objects_are_read() -> None:
    pika = pytest.importorskip("pika")
    context = ssl.create_default_context()
    assert connection_arguments(
        {
            "credentials": pika.PlainCredentials("ada", "pw"),
            "ssl_options": pika.SSLOptions(context, "name"),
        }
    ) == {"userid": "ada", "password": "pw", "ssl": {"context": context, "server_hostname": "name"}}
    external = pika.credentials.ExternalCredentials()
    assert connection_arguments({"credentials": external}) == {"login_method": "EXTERNAL"}


@pytest.mark.parametrize(
    ("parameters", "error"),
    [
        ({"hostname": "a"}, "pika's connections have no parameter 'hostname'"),
        ({"heartbeat": print}, "heartbeat must be a number of seconds, got a function"),
        ({"credentials": ("ada", "pw")}, r"credentials must be those of pika, .* got tuple$"),
        ({"ssl_options": True}, "ssl_options must be pika.SSLOptions, with a context, got True"),
    ],
)
def test_wrong_parameters(parameters: dict[str, Any], error: str) -> None:
    with pytest.raises(TypeError, match=error):
        connection_arguments(parameters)


def test_several_brokers() -> None:
    urls, others = url_arguments(
        [{"host": "a", "heartbeat": 5}, {"host": "::1", "port": 1, "credentials": LOGIN}]
    )
    assert urls == ["amqp://guest:guest@a:5672//", "amqp://ada:p%2Fw@[::1]:1//"]
    assert others == {"heartbeat": 5}
    with pytest.raises(ValueError, match="heartbeat must be the same for all brokers, got 6"):
        url_arguments([{"heartbeat": 5}, {"heartbeat": 6}])


def test_parameters_in_the_query_of_a_url() -> None:
    query = "heartbeat=5&blocked_connection_timeout=1.5&connection_attempts=3&confirm_timeout=7"
    assert split_url(f"amqp://u:p@h/%2f?{query}") == (
        "amqp://u:p@h/%2f?confirm_timeout=7",
        {"heartbeat": 5, "transport_options": {"blocked_timeout": 1.5}},
    )
    assert split_url("amqp://h?heartbeat=None&locale=en_US") == (
        "amqp://h",
        {"transport_options": {"locale": "en_US"}},
    )


@pytest.fixture
def connection() -> Iterator[PikaConnection]:
    with PikaConnection("memory://localhost/pika") as connection:
        yield connection
    memory.reset("pika")


@pytest.fixture
def channel(connection: PikaConnection) -> PikaChannel:
    return PikaChannel(connection.channel())


def test_replies_have_pikas_shape(channel: PikaChannel) -> None:
    reply = channel.queue_declare("q", durable=True)
    assert (reply.method.queue, reply.method.message_count) == ("q", 0)
    assert reply.message_count == reply.consumer_count == 0
    greenconn.Producer(channel._channel).publish("x", routing_key="q")
    assert channel.queue_declare("q", passive=True).method.message_count == 1
    purged = channel.queue_purge("q")
    assert purged == purged.method.message_count == 1
    assert channel.queue_delete("q").method.message_count == 0
    channel.confirm_delivery()
    assert (channel.is_open, channel.is_closed) == (True, False)
    channel.close()
    assert (channel.is_open, channel.is_closed) == (False, True)


def test_a_queue_outlives_its_consumers(channel: PikaChannel) -> None:
    """The default of pika, not that of amqp."""
    channel.queue_declare("q")
    tag = channel.basic_consume("q", callback=print)
    channel.basic_cancel(tag)
    assert channel.queue_declare("q", passive=True).queue == "q"


def test_errors_are_pikas_too_if_the_program_has_imported_them(channel: PikaChannel) -> None:
    errors = pytest.importorskip("pika.exceptions")
    with pytest.raises(errors.ChannelClosedByBroker) as caught:
        channel.queue_declare("q", passive=True)
    assert isinstance(caught.value, NotFound)
    assert caught.value.reply_code == 404
    assert "no queue 'q'" in caught.value.reply_text
    assert isinstance(caught.value, errors.AMQPChannelError)
    assert str(caught.value) == str(caught.value.__cause__)


def test_errors_of_a_closed_connection(connection: PikaConnection, channel: PikaChannel) -> None:
    errors = pytest.importorskip("pika.exceptions")
    connection.close()
    with pytest.raises(errors.AMQPConnectionError) as caught:
        channel.queue_purge("q")
    assert isinstance(caught.value, RecoverableConnectionError)
