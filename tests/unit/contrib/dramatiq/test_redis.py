"""The broker in the place of Dramatiq's ``RedisBroker``."""

from __future__ import annotations

import logging
from typing import Any

import pytest

pytest.importorskip("dramatiq")
pytest.importorskip("redis")

import redis

from greenconn.contrib.dramatiq import RedisBroker


def uri(**arguments: Any) -> str:
    return RedisBroker(**arguments).connection.as_uri(include_password=True)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, "redis://localhost:6379//"),
        ({"host": "h", "port": 1, "db": 2}, "redis://h:1/2"),
        ({"host": "h", "password": "p/w"}, "redis://:p%2Fw@h:6379//"),
        ({"host": "h", "username": "ada", "password": "pw"}, "redis://ada:pw@h:6379//"),
        ({"unix_socket_path": "/r.sock", "db": 3}, "redis+socket:///r.sock?virtual_host=3"),
        ({"url": "redis://h"}, "redis://h:6379//"),
        ({"url": "redis://ada:pw@h:1/4"}, "redis://ada:pw@h:1/4"),
        ({"url": "redis://h:1?db=5"}, "redis://h:1/5"),
        ({"url": "redis://h:1/4?db=5"}, "redis://h:1/5"),
        ({"url": "unix:///r.sock?db=6"}, "redis+socket:///r.sock?virtual_host=6"),
        ({"url": "redis://h", "host": "other", "db": 9}, "redis://h:6379//"),
    ],
)
def test_addresses(arguments: dict[str, Any], expected: str) -> None:
    assert uri(**arguments) == expected


def test_a_socket_with_a_login() -> None:
    address = uri(unix_socket_path="/r.sock", password="p/w")
    assert address == "redis+socket://:p%2Fw@/r.sock?virtual_host=0"


def test_options() -> None:
    broker = RedisBroker(
        host="h", socket_timeout=3, max_connections=4, ssl=True, ssl_cert_reqs="none",
        namespace="jobs", heartbeat_timeout=60_000, dead_message_ttl=5000, timeout=9.0,
        transport_options={"replicas": 1},
    )  # fmt: skip
    assert broker.connection.transport_options == {
        "socket_timeout": 3,
        "max_connections": 4,
        "global_keyprefix": "jobs.",
        "lease": 60.0,
        "replicas": 1,
    }
    assert broker.connection.ssl == {"ssl_cert_reqs": "none"}
    assert broker.entities("work").dead_letters.queue_arguments == {"x-message-ttl": 5000}
    assert RedisBroker(host="h", ssl=True).connection.ssl is True
    assert not RedisBroker(host="h", ssl=False, ssl_keyfile=None).connection.ssl


def test_an_argument_without_effect_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "greenconn.contrib.dramatiq")
    RedisBroker(maintenance_chance=1)
    assert "maintenance_chance has no effect" in caplog.text


def test_an_unknown_argument_is_refused() -> None:
    with pytest.raises(TypeError, match="no argument 'decode_responses'"):
        RedisBroker(decode_responses=True)


def test_a_client_says_where_its_server_is() -> None:
    client = redis.Redis("h", 1, 2, username="ada", password="pw", socket_timeout=3)
    broker = RedisBroker(client=client)
    assert broker.client is client
    assert broker.connection.as_uri(include_password=True) == "redis://ada:pw@h:1/2"
    assert broker.connection.transport_options["socket_timeout"] == 3
    assert uri(client=redis.Redis(unix_socket_path="/r.sock")).startswith("redis+socket:///r.sock?")
    encrypted = RedisBroker(client=redis.Redis("h", ssl=True, ssl_check_hostname=True)).connection
    assert encrypted.ssl["ssl_check_hostname"] is True


def test_a_client_of_sentinel_is_refused() -> None:
    sentinel: Any = redis.sentinel.Sentinel
    client = sentinel([("h", 1)]).master_for("m")
    with pytest.raises(TypeError, match="give Sentinel or a cluster as a url"):
        RedisBroker(client=client)
